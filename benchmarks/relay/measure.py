"""What one started relay costs: CPU of its process tree over the work that came back, times, memory.

Each measure opens its own connections and closes them. Raises Refused where the relay does not do the work.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from benchmarks.relay import wire
from benchmarks.relay.load import Load, Refused, first_events, left_at
from benchmarks.relay.process import Watched
from benchmarks.relay.relays import Place, Relay

CLIENTS = 32
MOST_STREAMS = 400
"""The hosts and the clients, which share a core, have nothing left beyond."""
WARM_S = 1.0
KEPT_UP, FULL = 0.95, 0.9
"""A relay that passes on less than this share of the events that are due, with its core full, is asked for fewer
streams."""
MERGED = 1.05
"""More events a read than this are said."""
BUSY = 0.7
LEAVERS, TOLD_S = 100, 5.0
"""So many clients leave, one after another; for so long a host may not notice one."""
IDLE_SETTLE_S = 1.5


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU of one piece of work, in microseconds; the share of a core that was busy; how many streams or clients."""

    micros: float
    busy: float
    asked: int
    merged: float = 1.0
    """Events that came in one read: beyond 1 the relay was late, and what came late was cheaper."""

    def __str__(self) -> str:
        merged = f", {self.merged:.2f} events a read" if self.merged > MERGED else ""
        return f"{self.micros:.1f} us each, {self.asked} at once, {self.busy:.0%} of a core{merged}"


@dataclass(frozen=True, slots=True)
class FirstToken:
    """What a relay adds to the time to the first event, in microseconds, while `busy` of its core is."""

    p50: float
    p99: float
    busy: float

    def __str__(self) -> str:
        return f"p50 {self.p50:.0f} us and p99 {self.p99:.0f} us added, {self.busy:.0%} of a core"


@dataclass(frozen=True, slots=True)
class Idle:
    """Memory of one of so many open streams in which nothing happens."""

    stream_bytes: float
    streams: int

    def __str__(self) -> str:
        return f"{self.stream_bytes / 1024:.1f} KiB a stream, {self.streams} streams"


@dataclass(frozen=True, slots=True)
class Gone:
    """How long after a client left its host saw that, in milliseconds."""

    p50: float
    p99: float

    def __str__(self) -> str:
        return f"p50 {self.p50:.1f} ms and p99 {self.p99:.1f} ms until the host is told"


Found = Cost | FirstToken | Idle | Gone


@dataclass(slots=True)
class Bench:
    """One started relay. `seconds`: how long a measure takes; `per_event`: what an event has cost before;
    `alone`: the share of its core that asking for first events takes."""

    relay: Relay
    place: Place
    process: Watched
    seconds: float
    rng: random.Random
    per_event: Cost | None = None
    alone: float | None = None

    async def streams(self) -> Cost:
        """An event of the streams that it is asked for, or of as many as it keeps up with."""
        count = self.per_event.asked if self.per_event else self.relay.streams
        while True:
            load = Load(self.place.port)
            try:
                await load.open_streams(self._requests(count, "stream", tokens=wire.ENDLESS))
                cost, events = await self._watch(load, count)
            finally:
                load.close()
            kept_up = events / (count * wire.EVENTS_PER_S * self.seconds)
            if kept_up >= KEPT_UP or cost.busy < FULL or count == 1:
                self.per_event = cost
                return cost
            count = max(1, int(count * min(1.0, kept_up) * BUSY))

    async def small(self) -> Cost:
        """A small request of `CLIENTS` clients that ask again as soon as they are answered."""
        return await self._answers("small", history=False)

    async def history(self) -> Cost:
        """The same with a long history in each request."""
        return await self._answers("history", history=True)

    async def first(self) -> FirstToken:
        """With nothing else to do."""
        found = await self._first_token()
        self.alone = found.busy
        return found

    async def busy(self) -> FirstToken:
        """While streams and the asking itself take `BUSY` of its core: tried once, and again with more or fewer."""
        per_event = self.per_event or await self.streams()
        alone = self.alone or (await self.first()).busy
        left = max(0.05, BUSY - alone)
        count = _within(left * 1e6 / per_event.micros / wire.EVENTS_PER_S)
        seen = await self._beside(count, self._first_token)
        count = _within(count * left / max(0.05, seen.busy - alone))
        return await self._beside(count, self._first_token)

    async def idle(self) -> Idle:
        count = self.relay.idle_streams
        load = Load(self.place.port)
        requests = self._requests(count, "idle", tokens=wire.ENDLESS, say=wire.IDLE)
        try:
            await load.open_streams(requests[:CLIENTS])
            before = self.process.memory_bytes()
            await load.open_streams(requests[CLIENTS:])
            await asyncio.sleep(IDLE_SETTLE_S)
            load.check()
            return Idle((self.process.memory_bytes() - before) / (count - CLIENTS), count)
        finally:
            load.close()

    async def gone(self) -> Gone:
        """Clients that leave in the middle of a stream."""
        taken = []
        for request in self._requests(LEAVERS, "gone", tokens=wire.ENDLESS):
            load = Load(self.place.port)
            try:
                await load.open_streams([request])
            finally:
                left = time.monotonic()
                load.close()
            taken.append((await self._told(left) - left) * 1e3)
        return Gone(_at(taken, 0.5), _at(taken, 0.99))

    async def _told(self, left: float) -> float:
        """When a host saw that a client was gone which left then. Raises Refused."""
        while time.monotonic() < left + TOLD_S:
            if (at := await left_at(self.place.control_port)) >= left:
                return at
            await asyncio.sleep(0.005)
        raise Refused(f"no host sees within {TOLD_S:.0f} s that a client left")

    async def _answers(self, what: str, history: bool) -> Cost:
        load = Load(self.place.port)
        try:
            await load.start_asking(self._requests(CLIENTS, what, tokens=None, history=history))
            return (await self._watch(load, CLIENTS))[0]
        finally:
            load.close()

    async def _beside(self, count: int, measure: Callable[[], Awaitable[FirstToken]]) -> FirstToken:
        """What is measured while so many streams flow."""
        load = Load(self.place.port)
        try:
            await load.open_streams(self._requests(count, "busy", tokens=wire.ENDLESS))
            return await measure()
        finally:
            load.close()

    def _requests(
        self, count: int, what: str, *, tokens: int | None, say: str = "Hi", history: bool = False
    ) -> list[bytes]:
        """One for each of `count` sessions."""
        names = (self.relay.headers(f"{what}-{number}", self.place.key) for number in range(count))
        return [wire.request(headers, tokens=tokens, say=say, history=history) for headers in names]

    async def _watch(self, load: Load, asked: int) -> tuple[Cost, int]:
        """What the work costs that gets done in a while, once it is under way; and how much that was."""
        await asyncio.sleep(WARM_S)
        cpu_s, done, reads, began = self.process.cpu_s(), load.done, load.reads, time.monotonic()
        await asyncio.sleep(self.seconds)
        cpu_s, done, reads = self.process.cpu_s() - cpu_s, load.done - done, load.reads - reads
        load.check()
        busy = cpu_s / (time.monotonic() - began)
        return Cost(cpu_s / max(1, done) * 1e6, busy, asked, done / max(1, reads)), done

    async def _first_token(self) -> FirstToken:
        request = wire.request(self.relay.headers("first", self.place.key), tokens=1)
        cpu_s, began = self.process.cpu_s(), time.monotonic()
        ports = (self.place.hosts[0], self.place.port)
        direct, relayed = await first_events(ports, request, self.seconds, self.rng)
        busy = (self.process.cpu_s() - cpu_s) / (time.monotonic() - began)
        p50, p99 = ((_at(relayed, share) - _at(direct, share)) * 1e6 for share in (0.5, 0.99))
        return FirstToken(p50, p99, busy)


WORKS: dict[str, Callable[[Bench], Coroutine[Any, Any, Found]]] = {
    "streams": Bench.streams,
    "small": Bench.small,
    "history": Bench.history,
    "first": Bench.first,
    "busy": Bench.busy,
    "idle": Bench.idle,
    "gone": Bench.gone,
}


def _within(streams: float) -> int:
    return max(1, min(MOST_STREAMS, round(streams)))


def _at(times: list[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * share))]
