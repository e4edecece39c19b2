"""`python -m benchmarks.metrics_router filled|switched …`: the router as it ships, with the arguments of router.app.

`filled`: it has counted requests of every model on every machine. `switched`: it counts the requests of one block and
nothing of another, by turns, so that both are measured in one process and within milliseconds; when it ends it writes
to the file that the variable TIMES names what each block took. With the variable COUNTS it counts into files of that
folder, as one of several workers does.
"""

import json
import os
import sys
import time
from contextlib import ExitStack
from functools import partialmethod
from pathlib import Path
from typing import Any
from unittest import mock

from prometheus_client import CollectorRegistry

from benchmarks import fifty, metrics_fleet
from router import app
from router.cells import count_in_files
from router.metrics import Metrics
from router.relay import Relay

BLOCK = 64
"""So many requests end in one: some milliseconds, in which a machine stays as fast as it is."""
COUNTS, TIMES = "COUNTS", "TIMES"
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


def counts_in(block: int) -> bool:
    """One of each two blocks counts, but with no period (the sequence of Thue and Morse), so that nothing that the
    router does every so often falls to one side."""
    return block.bit_count() % 2 == 0


def _filed(registry: CollectorRegistry, version: str, folder: Path | None = None) -> Metrics:
    files = os.environ.get(COUNTS)
    return Metrics(registry, version, folder if files is None else Path(files))


class Switch:
    """Stands for Relay._note. `began_ns`: CPU time of the router's thread when each block had begun."""

    def __init__(self) -> None:
        self.began_ns: list[int] = []
        self._note = Relay._note
        self._left = 0
        self._counts = False

    def __call__(self, *turn: Any) -> None:
        if self._left == 0:
            self._left, self._counts = BLOCK, counts_in(len(self.began_ns))
            self.began_ns.append(time.thread_time_ns())
        self._left -= 1
        if self._counts:
            self._note(*turn)


def main(words: list[str]) -> int:
    if (files := os.environ.get(COUNTS)) is not None:
        count_in_files(Path(files), 1)
    made: Any = Filled if words[0] == "filled" else _filed
    switch = Switch()
    with mock.patch.object(app, "Metrics", made), ExitStack() as stack:
        if words[0] == "switched":
            stack.enter_context(mock.patch.object(Relay, "_note", partialmethod(switch)))
        code = app.main(words[1:])
    if words[0] == "switched":
        Path(os.environ[TIMES]).write_text(json.dumps(switch.began_ns))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
