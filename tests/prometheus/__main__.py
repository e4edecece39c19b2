"""`python -m tests.prometheus`: records some minutes of a homeport with traffic, and draws docs/dashboard-*.png of it.

`--minutes N` records longer or shorter.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from configs.grafana.generate import BOARDS
from router.lifecycle import end_everything
from tests.e2e.installation import Homeport, eventually
from tests.prometheus.draw import draw
from tests.prometheus.server import running
from tests.prometheus.traffic import Busy, installation

DOCS = Path(__file__).parents[2] / "docs"
STEP_S = 1
LONGEST_RATE_S = 60
"""Of those that are told per minute: until then they begin from nothing."""
FOREIGN = "while True: pass"


def main(argv: Sequence[str]) -> int:
    """Exit status: 2 without Prometheus."""
    parser = argparse.ArgumentParser(prog="python -m tests.prometheus")
    parser.add_argument("--minutes", type=float, default=3.0)
    minutes = parser.parse_args(argv).minutes
    if shutil.which("prometheus") is None:
        print("There is no prometheus here: apt-get install prometheus, then try again.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        homeport = installation(Homeport(folder))
        try:
            homeport.up()
            record(homeport, folder, 60 * minutes)
        finally:
            end_everything(homeport.paths)
    return 0


def record(homeport: Homeport, folder: Path, seconds: float) -> None:
    """In the second third of the time a foreign program keeps one core busy."""
    with running(folder, homeport.url.removeprefix("http://")) as prometheus:
        eventually(lambda: prometheus.now("homeport_machine_up"))
        (machine,) = homeport.get("/api/fleet")["machines"]
        with Busy(homeport):
            time.sleep(LONGEST_RATE_S)
            began = time.time()
            time.sleep(seconds / 3)
            with subprocess.Popen([sys.executable, "-c", FOREIGN]) as foreign:
                time.sleep(seconds / 3)
                foreign.kill()
            time.sleep(seconds / 3)
            ended = time.time()
        for board in BOARDS:
            file = DOCS / f"dashboard-{board.name}.png"
            draw(board, prometheus, machine["name"], began, ended, STEP_S, file)
            print(f"{file.relative_to(DOCS.parent)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
