"""cluster/gpu_probe.py on the stand-in library: `python -m tests.nvml.probe ANSWERS.json`."""

import sys
from pathlib import Path

from tests.nvml.library import FOLDER, install

COMMAND = (sys.executable, "-P", "-m", "tests.nvml.probe")


def command(answers: str | Path) -> tuple[str, ...]:
    """What cluster/gpus.py is to start instead of the real probe. `answers`: a name from the folder, or a path."""
    return (*COMMAND, str(FOLDER / f"{answers}.json" if isinstance(answers, str) else answers))


if __name__ == "__main__":
    install(Path(sys.argv[1]))
    from cluster import gpu_probe

    gpu_probe.main()
