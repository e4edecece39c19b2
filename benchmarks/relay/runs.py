"""Rounds over relays: each is started fresh in each round, measured, ended. What came of it, by relay.

Knows no targets (see `rows`).
"""

import asyncio
import os
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from benchmarks.cores import share_out
from benchmarks.relay.load import Refused
from benchmarks.relay.measure import WORKS, Bench, Cost, Found
from benchmarks.relay.process import Watched, running
from benchmarks.relay.relays import Missing, Place, Relay, started
from tests.ports import free_port

HOSTS = 4
HOSTS_START_S = 20.0
ONCE = ("idle", "gone")
"""Works that are done in the first round only: they do not move from one to the next."""


@dataclass(slots=True)
class Outcome:
    """What was found of one relay, by work, a value a round; and what could not be, with the reason."""

    found: dict[str, list[Found]] = field(default_factory=dict)
    missing: str | None = None
    """Why it could not be had or started."""
    refused: dict[str, str] = field(default_factory=dict)
    """By work."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What relays are measured beside: the stand-in hosts, on the cores that the load has too."""

    folder: Path
    control_port: int
    hosts: tuple[int, ...]
    relay_cpus: tuple[int, ...]
    process: Watched


@dataclass(slots=True)
class Runs:
    """All rounds. `say` is told of each figure as it is measured."""

    relays: Sequence[Relay]
    works: Sequence[str]
    seconds: float
    rounds: int
    say: Callable[[str], None]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    _rng: random.Random = field(default_factory=lambda: random.Random(7))

    def run(self) -> None:
        self.outcomes = {relay.name: Outcome() for relay in self.relays}
        for relay in self.relays:
            try:
                relay.get()
            except Missing as missing:
                self._lost(relay, missing)
        with stand_ins() as beside:
            for number in range(self.rounds):
                for relay in (*self.relays[number:], *self.relays[:number]):
                    if self.outcomes[relay.name].missing is None:
                        self._round(relay, number, beside)

    def _round(self, relay: Relay, number: int, beside: Beside) -> None:
        folder = beside.folder / f"{relay.name}-{number}"
        folder.mkdir()
        key = f"hp-{secrets.token_urlsafe(32)}"
        place = Place(folder, free_port(), beside.hosts, beside.control_port, key)
        try:
            with started(relay, place, beside.relay_cpus) as process:
                before = self.outcomes[relay.name].found.get("streams", [None])[-1]
                per_event = before if isinstance(before, Cost) else None
                bench = Bench(relay, place, process, self.seconds, self._rng, per_event)
                for work in self.works:
                    if number == 0 or work not in ONCE:
                        self._work(bench, work, beside, number)
        except Missing as missing:
            self._lost(relay, missing)

    def _work(self, bench: Bench, work: str, beside: Beside, number: int) -> None:
        name, outcome = bench.relay.name, self.outcomes[bench.relay.name]
        at, began = beside.process.cpu_s() + time.process_time(), time.monotonic()
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                found: Found = runner.run(WORKS[work](bench))
        except (Refused, OSError, TimeoutError) as error:
            outcome.refused[work] = " ".join(str(error).split())[:200] or type(error).__name__
            self.say(f"{number + 1} {name:14} {work:8} not measured: {outcome.refused[work]}")
            return
        outcome.found.setdefault(work, []).append(found)
        load = (beside.process.cpu_s() + time.process_time() - at) / (time.monotonic() - began)
        self.say(f"{number + 1} {name:14} {work:8} {found} (load and hosts: {load:.0%})")

    def _lost(self, relay: Relay, missing: Missing) -> None:
        self.outcomes[relay.name].missing = str(missing)
        self.say(f"  {relay.name:14} not measured: {missing}")


@contextmanager
def stand_ins() -> Iterator[Beside]:
    """Stand-in hosts on all cores but one, where this process is too for as long as the block lasts."""
    cores, before = share_out(1), os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores.rest)
    try:
        with tempfile.TemporaryDirectory(prefix="homeport-relay-") as name:
            folder = Path(name)
            control_port, *hosts = (free_port() for _ in range(1 + HOSTS))
            ports = map(str, (control_port, *hosts))
            command = [sys.executable, "-m", "benchmarks.relay.host", *ports]
            log = folder / "hosts.log"
            with running(command, {}, cores.rest, log) as process:
                _until_up(process, log)
                yield Beside(folder, control_port, tuple(hosts), cores.engines, process)
    finally:
        os.sched_setaffinity(0, before)


def _until_up(process: Watched, log: Path) -> None:
    until = time.monotonic() + HOSTS_START_S
    while log.read_bytes() != b"up\n":
        if not process.alive or time.monotonic() > until:
            raise RuntimeError(f"the stand-in hosts do not start: {process.last_words()}")
        time.sleep(0.05)
