"""Leases over one engine: carries out what admission decides, and hands each turn's events to its request.

Everything here runs on one event loop and never awaits between reading and changing a state, so there are no
locks. It speaks no HTTP and writes no journal.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import assert_never

from serving import admission, engine
from serving.admission import Park, RefusalCode, Refuse, Serve
from serving.engine import Began, Broke, Engine, Prefilled, Sampling, Text, Usage

RECENT = 32
REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Granted:
    """The lease is taken. `resident`: the sequence holds this session's context."""

    place: int
    resident: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """There will be no lease, or the host stops and the one there was is lost."""

    code: RefusalCode


@dataclass(frozen=True, slots=True)
class Gone:
    """The client left."""


Happening = Granted | Refused | Gone | engine.Event


@dataclass(frozen=True, slots=True)
class Finished:
    """One turn that ran, for the host's state."""

    request_id: str
    generated: int
    after_disconnect: int
    """Tokens made after the host knew that the client was gone; an upper bound when turns overlap."""


class Remembered:
    """The names that were added last, at most `limit` of them. Adding one again makes it the youngest."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._limit = limit
        self._names: dict[str, None] = {}

    def add(self, name: str) -> None:
        self._names.pop(name, None)
        self._names[name] = None
        if len(self._names) > self._limit:
            del self._names[next(iter(self._names))]

    def __contains__(self, name: str | None) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)


class Lease:
    """One open request's standing, from its arrival to its end. Made by `Turns.ask`; read with `next`."""

    def __init__(self, turn: int, session: str | None, request_id: str, now: float) -> None:
        self.turn = turn
        self.session = session
        self.request_id = request_id
        self.arrived_s = now
        self.waited_s: float | None = None
        """Time in the line; None while in it."""
        self.granted: Granted | None = None
        self.warm = False
        """Whether, when it was granted, this engine had ever had context of its session."""
        self.begun = False
        self.gone = False
        self.seen = 0
        """Tokens behind the text that came so far."""
        self.made_at_leaving: int | None = None
        """The engine's count of tokens, and `seen`, when the client left."""
        self.seen_at_leaving = 0
        self._inbox: list[Happening] = []
        self._waiter: asyncio.Future[None] | None = None

    def push(self, happening: Happening) -> None:
        self._inbox.append(happening)
        self._wake()

    async def next(self, until: float | None = None) -> list[Happening]:
        """What happened since the last call, in order; waits for something. Empty when `until`, on the loop's
        clock, comes first."""
        if not self._inbox:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            alarm = loop.call_at(until, self._wake) if until is not None else None
            try:
                await self._waiter
            finally:
                self._waiter = None
                if alarm is not None:
                    alarm.cancel()
        happened, self._inbox = self._inbox, []
        return happened

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Turns:
    """All leases of one replica. `attach` must be called on the loop before anything else."""

    def __init__(self, engine_: Engine, places: int, hold_s: float, queue_s: float) -> None:
        self._engine = engine_
        self.state = admission.fresh(places, hold_s, queue_s)
        self.recent: deque[Finished] = deque(maxlen=RECENT)
        self.finished = 0
        self._ids = itertools.count(1)
        self.warmed = Remembered()
        """Sessions that have had context in this engine, whether it is still there or not."""
        self._leases: dict[int, Lease] = {}
        self._alarm: asyncio.TimerHandle | None = None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the engine's thread; its events come to `loop`."""
        self._loop = loop
        self._engine.start(self._emit)

    def ask(self, session: str | None, request_id: str) -> Lease:
        """Ask for a lease. `session` None is a transient. What comes of it is read from the Lease; whoever
        asked calls `release` in the end, whatever happened."""
        lease = Lease(next(self._ids), session, request_id, self.now())
        self._leases[lease.turn] = lease
        self._feed(admission.Arrived(lease.turn, session))
        return lease

    def begin(
        self,
        lease: Lease,
        prompt: tuple[int, ...],
        max_tokens: int | None,
        sampling: Sampling,
        stop: tuple[str, ...],
    ) -> None:
        """Run the granted turn. Its lease is given back when the engine says that it ended.

        Nothing happens if the client has left or the host stops: the lease's inbox says so.
        """
        assert lease.granted is not None
        assert not lease.begun
        if lease.gone or self.state.closed:
            return
        lease.begun = True
        place = lease.granted.place
        self._engine.begin(engine.Turn(lease.turn, place, prompt, max_tokens, sampling, stop))

    def left(self, lease: Lease) -> None:
        """The client is gone: leave the line, or end the turn within a token. May be called at any time."""
        if lease.gone or lease.turn not in self._leases:
            return
        lease.gone = True
        lease.made_at_leaving = self._engine.tokens_generated
        lease.seen_at_leaving = lease.seen
        self._feed(admission.Left(lease.turn))
        if lease.granted is None:
            del self._leases[lease.turn]
        lease.push(Gone())

    def release(self, lease: Lease) -> None:
        """The request is over for whoever asked. Gives the lease back if the engine never got the turn; else
        the engine's last event does."""
        self.left(lease)
        if lease.granted is not None and not lease.begun and lease.turn in self._leases:
            self._give_back(lease, kept=lease.granted.resident)

    def stop(self) -> None:
        """Refuse everybody, those who run too: their turns are cancelled."""
        self._feed(admission.Closed())
        for lease in self._leases.values():
            lease.push(Refused("host_stopping"))
        if self._alarm is not None:
            self._alarm.cancel()

    def now(self) -> float:
        return time.monotonic()

    def _emit(self, events: Sequence[engine.Event]) -> None:
        """On the engine's thread: one hop to the loop for a step's events."""
        with suppress(RuntimeError):  # The loop is closed: nobody is left to hear it.
            self._loop.call_soon_threadsafe(self._take_in, events)

    def _take_in(self, events: Sequence[engine.Event]) -> None:
        for event in events:
            lease = self._leases.get(event.turn)
            if lease is None:
                continue
            match event:
                case Text():
                    lease.seen += event.tokens
                    lease.push(event)
                case engine.Ended():
                    self._note(lease, event.usage)
                    lease.push(event)
                    self._give_back(lease, kept=_evaluated(event.usage))
                case Broke():
                    self._note(lease, Usage(0, 0, 1, lease.seen))
                    lease.push(event)
                    self._give_back(lease, kept=False)
                case Began() | Prefilled():
                    lease.push(event)
                case _:
                    assert_never(event)

    def _note(self, lease: Lease, usage: Usage) -> None:
        after = 0
        if lease.made_at_leaving is not None:
            made = self._engine.tokens_generated - lease.made_at_leaving
            after = max(0, min(made, usage.generated - lease.seen_at_leaving))
        if lease.session is not None and _evaluated(usage):
            self.warmed.add(lease.session)
        self.finished += 1
        self.recent.append(Finished(lease.request_id, usage.generated, after))

    def _give_back(self, lease: Lease, kept: bool) -> None:
        del self._leases[lease.turn]
        self._feed(admission.Ended(lease.turn, kept))

    def _feed(self, event: admission.Event) -> None:
        """Step admission and carry its actions out, with what comes of them, until there are no more."""
        events = deque([event])
        while events:
            self.state, actions = admission.step(self.state, events.popleft(), self.now())
            for action in actions:
                match action:
                    case Serve(turn, place, resident):
                        lease = self._leases[turn]
                        lease.granted = Granted(place, resident)
                        lease.waited_s = self.now() - lease.arrived_s
                        lease.warm = lease.session in self.warmed
                        lease.push(lease.granted)
                    case Park(place, _):
                        # Parking drops the context for now; once it saves, Parked comes later.
                        self._engine.erase(place)
                        events.append(admission.Parked(place))
                    case admission.Erase(place):
                        self._engine.erase(place)
                    case admission.Cancel(turn):
                        if self._leases[turn].begun:
                            self._engine.cancel(turn)
                    case Refuse(turn, code):
                        lease = self._leases.pop(turn)
                        lease.waited_s = self.now() - lease.arrived_s
                        lease.push(Refused(code))
                    case _:
                        assert_never(action)
        self._arm()

    def _arm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        due = admission.wake_at(self.state)
        if due is not None:
            delay = max(0.0, due - self.now())
            self._alarm = self._loop.call_later(delay, self._feed, admission.Tick())


def _evaluated(usage: Usage) -> bool:
    """Whether the turn left anything in its sequence. A turn that was cancelled at once did not."""
    return usage.reused + usage.evaluated + usage.generated > 0
