"""`python -m benchmarks.metrics_router filled|switched …`: the router as it ships, with the arguments of router.app.

`filled`: it has counted requests of every model on every machine. `switched`: half of the time it counts nothing, by
the clock that all processes of a machine share, so that both can be measured in one process. With the variable COUNTS
it counts into files of that folder, as one of several workers does.
"""

import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from prometheus_client import CollectorRegistry

from benchmarks import fifty, metrics_fleet
from router import app
from router.cells import count_in_files
from router.metrics import Metrics
from router.relay import Relay
from router.turn import Turn

WINDOW_S = 0.5
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
                    self.ended(model.name, f"machine-{number:02}/0", status, pin, True, 2.5, 0.3)


def counts_at(now: float) -> bool:
    """Whether it counts then, by time.monotonic: in one of each two windows, but with no period (the sequence of Thue
    and Morse), so that nothing that the router does every second or two falls to one side."""
    return int(now / WINDOW_S).bit_count() % 2 == 0


def _filed(registry: CollectorRegistry, version: str, folder: Path | None = None) -> Metrics:
    files = os.environ.get(COUNTS)
    return Metrics(registry, version, folder if files is None else Path(files))


def _now_and_then(relay: Relay, turn: Turn, model: str | None, outcome: str, began_s: float) -> None:
    if counts_at(time.monotonic()):
        _COUNT(relay, turn, model, outcome, began_s)


_COUNT = Relay._count


def main(words: list[str]) -> int:
    if (files := os.environ.get(COUNTS)) is not None:
        count_in_files(Path(files), 1)
    made: Any = Filled if words[0] == "filled" else _filed
    with mock.patch.object(app, "Metrics", made), ExitStack() as stack:
        if words[0] == "switched":
            stack.enter_context(mock.patch.object(Relay, "_count", _now_and_then))
        return app.main(words[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
