"""What is measured: homeport's router, the floor, and peers. How each is started, and what it must be told.

A relay that cannot be had raises Missing with the reason, which its row says.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.relay import wire
from benchmarks.relay.load import Probe, Refused
from benchmarks.relay.process import Watched, running

STREAMS = 200
START_S = 90.0
SETTLE_S = 1.0


class Missing(Exception):
    """Why a relay cannot be measured here."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a relay is to listen, what hosts it has, and a folder of its own. `key`: what clients show."""

    folder: Path
    port: int
    hosts: tuple[int, ...]
    control_port: int
    key: str

    @property
    def bearer(self) -> str:
        return f"Bearer {self.key}"


@dataclass(frozen=True, slots=True)
class Start:
    """The command of a relay, and what its environment has beside the usual."""

    command: Sequence[str]
    env: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Relay:
    """One kind. `get` brings what it needs or raises Missing; `start` writes its files and says how it is run."""

    name: str
    how: str
    """Its workers, its stickiness and its key check, for the table."""
    start: Callable[[Place], Start]
    get: Callable[[], None] = lambda: None
    session_header: str = "x-session-id"
    streams: int = STREAMS
    """How many it is asked for at first."""
    idle_streams: int = 2000
    """How many idle ones it is asked to hold."""

    def headers(self, session: str, key: str) -> dict[str, str]:
        return {"authorization": f"Bearer {key}", self.session_header: session}


@contextmanager
def started(relay: Relay, place: Place, cpus: Sequence[int]) -> Iterator[Watched]:
    """A fresh one that has answered a stream. Raises Missing if it does not come to that."""
    begin = relay.start(place)
    with running(begin.command, dict(begin.env), cpus, place.folder / "log") as process:
        _await(relay, place, process)
        yield process


def _await(relay: Relay, place: Place, process: Watched) -> None:
    request = wire.request(relay.headers("hello", place.key), tokens=1)
    until, reason = time.monotonic() + START_S, ""
    while process.alive and time.monotonic() < until:
        try:
            asyncio.run(_ask(place.port, request))
        except (OSError, Refused, TimeoutError) as error:
            reason = " ".join(str(error).split())[:200]
            time.sleep(0.1)
        else:
            time.sleep(SETTLE_S)
            return
    raise Missing(f"does not serve: {reason}; {process.last_words()}")


async def _ask(port: int, request: bytes) -> None:
    probe = await Probe.at(port)
    try:
        await probe.ask(request)
    finally:
        probe.close()
