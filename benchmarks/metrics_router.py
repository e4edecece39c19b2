"""`python -m benchmarks.metrics_router filled|switched …`: the router as it ships, with the arguments of router.app.

`filled`: it has counted requests of every model on every machine. `switched`: in every other second it counts nothing,
by the clock that all processes of a machine share, so that both can be measured in one process. With the variable
COUNTS it counts into files of that folder, as one of several workers does.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from prometheus_client import CollectorRegistry

from benchmarks import fifty, metrics_fleet
from router import app
from router.metrics import Metrics, count_in_files

WINDOW_S = 1.0
COUNTS = "COUNTS"
ENDS = (
    ("ok", "new"),
    ("ok", "kept"),
    ("ok", "none"),
    ("client_gone", "kept"),
    ("queue_timeout", "kept"),
    ("machine_unavailable", None),
)


class Filled(Metrics):
    def __init__(self, registry: CollectorRegistry, version: str, folder: Path | None = None) -> None:
        super().__init__(registry, version, folder)
        for model in metrics_fleet.models():
            for number in range(fifty.MACHINES):
                for status, pin in ENDS:
                    self.ended(model.name, f"machine-{number:02}", status, 2.5, 0.3, pin, is_session=True)


def counts_at(now: float) -> bool:
    """Whether it counts then, by time.monotonic."""
    return int(now / WINDOW_S) % 2 == 0


class Switched(Metrics):
    def __init__(self, registry: CollectorRegistry, version: str, folder: Path | None = None) -> None:
        files = os.environ.get(COUNTS)
        super().__init__(registry, version, folder if files is None else Path(files))

    def ended(self, *args: Any, **more: Any) -> None:
        if counts_at(time.monotonic()):
            super().ended(*args, **more)


def main(words: list[str]) -> int:
    if (files := os.environ.get(COUNTS)) is not None:
        count_in_files(Path(files), 1)
    kinds: dict[str, type[Metrics]] = {"filled": Filled, "switched": Switched}
    with mock.patch.object(app, "Metrics", kinds[words[0]]):
        return app.main(words[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
