"""Leases over one engine: carries out what admission decides, hands each turn's events to its request, and sees to
it that contexts are saved before they are lost.

Everything here runs on one event loop and never awaits between reading and changing a state, so there are no
locks. It speaks no HTTP and writes no journal; saved contexts are kept by parking.py.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import assert_never

from serving import admission, engine
from serving.admission import Park, Place, Refuse, Serve
from serving.engine import (
    Began,
    Broke,
    ChoiceEnded,
    Embed,
    Embedded,
    Engine,
    Prefilled,
    SavedState,
    Text,
    Turn,
    Usage,
)
from serving.lease import Gone, Granted, Happening, Lease, Refused
from serving.parking import Parking
from serving.parking_plan import Missing, Quiet, behind
from serving.remembered import REMEMBERED, Remembered

__all__ = [
    "REMEMBERED",
    "Finished",
    "Gone",
    "Granted",
    "Happening",
    "Lease",
    "Refused",
    "Remembered",
    "Turns",
]

RECENT = 32


@dataclass(frozen=True, slots=True)
class Finished:
    """One turn that ran, for the host's state."""

    request_id: str
    generated: int
    after_disconnect: int
    """Tokens made after the host knew that the client was gone; an upper bound when turns overlap."""


class Turns:
    """All leases of one replica. `attach` must be called on the loop before anything else, and again each time the
    engine was loaded."""

    def __init__(self, engine_: Engine, places: int, hold_s: float, queue_s: float, parking: Parking) -> None:
        self._engine = engine_
        self._parking = parking
        self.state = admission.fresh(places, hold_s, queue_s)
        self.recent: deque[Finished] = deque(maxlen=RECENT)
        self.finished = 0
        self._ids = itertools.count(1)
        self.warmed = Remembered()
        """Sessions that have had context in this engine, whether it is still there or not."""
        self.made = Remembered()
        """Sessions that began with this process: nothing was evaluated for them before it. Whoever pins them adds
        them."""
        self._written_s: dict[str, float] = {}
        """When residents were written behind last."""
        self._leases: dict[int, Lease] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._writing_behind: asyncio.Task[None] | None = None
        self._at_rest: asyncio.Event | None = None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the engine's thread; its events come to `loop`."""
        self._loop = loop
        self._engine.start(self._emit)

    def ask(self, session: str | None, request_id: str, queue_s: float | None = None) -> Lease:
        """Ask for a lease. `session` None is a transient. `queue_s`: what is left of its time to wait, if it waited
        elsewhere before. What comes of it is read from the Lease; whoever asked calls `release` in the end,
        whatever happened."""
        lease = Lease(next(self._ids), session, request_id, self.now(), self.made)
        self._leases[lease.turn] = lease
        self._feed(admission.Arrived(lease.turn, session, queue_s))
        return lease

    async def begin(self, lease: Lease, turn: Turn) -> None:
        """Run the granted turn, with its session's saved context loaded before if the session is not resident. Its
        lease is given back when the engine says that it ended.

        `turn` has the lease's number and place; its state is set here. Nothing happens if the client has left or the
        host stops: the lease's inbox says so.
        """
        assert lease.granted is not None
        assert not lease.begun
        if lease.session is not None and not lease.granted.resident and not lease.lost.is_set():
            found = await self._fetch(lease, lease.session)
            if isinstance(found, SavedState):
                turn = replace(turn, state=found)
                lease.restoring = True
            else:
                lease.missing = found
        if not lease.lost.is_set():
            lease.begun = True
            self._engine.begin(turn)

    async def embed(self, lease: Lease, inputs: Sequence[tuple[int, ...]]) -> None:
        """Have embeddings made on the granted lease of a transient; the rest is as `begin` says."""
        assert lease.granted is not None
        assert not lease.begun
        assert lease.session is None
        if not lease.lost.is_set():
            lease.begun = True
            self._engine.embed(Embed(lease.turn, tuple(inputs)))

    async def _fetch(self, lease: Lease, session: str) -> SavedState | Missing | None:
        """The session's saved context, or why there is none; None once the lease is lost."""
        taking = asyncio.ensure_future(self._parking.take(session))
        losing = asyncio.ensure_future(lease.lost.wait())
        await asyncio.wait({taking, losing}, return_when="FIRST_COMPLETED")
        losing.cancel()
        return taking.result() if taking.done() else None

    def left(self, lease: Lease) -> None:
        """The client is gone: leave the line, or end the turn within a token. May be called at any time."""
        if lease.gone or lease.turn not in self._leases:
            return
        lease.gone = True
        lease.lost.set()
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

    def adjust(self, hold_s: float, queue_s: float) -> None:
        """The config has other limits now."""
        self._feed(admission.Adjusted(hold_s, queue_s))

    def stop(self) -> None:
        """Refuse everybody, those who run too: their turns are cancelled."""
        self._feed(admission.Closed())
        for lease in self._leases.values():
            lease.lost.set()
            lease.push(Refused("host_stopping"))

    async def unload(self) -> None:
        """Park every resident, so that the engine can be closed. Returns once it has saved them all; no turn may be
        running or come meanwhile."""
        while any(place.state == "quiet" for place in self.state.places):
            # One after another: all of them at once may be more than memory holds.
            self._feed(admission.Unloading())
            await self._parking.room()

    async def park_all(self, until_s: float) -> int:
        """After `stop`: save every resident that the disk lacks, the smallest first, once its turn is over. Returns
        at `until_s` on the loop's clock at the latest: how many contexts are not on disk then."""
        self._at_rest = asyncio.Event()
        if admission.running(self.state):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._at_rest.wait(), until_s - self._loop.time())
        quiet = [place for place in self.state.places if place.state == "quiet" and self._lacking(place)]
        for place in sorted(quiet, key=lambda place: self._engine.held(place.number)):
            assert place.session is not None
            await self._parking.room(until_s)
            if (
                self._loop.time() < until_s and self.state.places[place.number] == place
            ):  # `unload` may go on beside
                self._parking.write_behind(place.session, self._engine.save(place.number))
        unsaved = await self._parking.finish(until_s)
        return len(unsaved | {place.session for place in self.state.places if self._lacking(place)})

    def _lacking(self, place: Place) -> bool:
        """Whether the disk could have this place's context and has not."""
        if place.session is None or self._parking.disk_budget == 0:
            return False
        return place.state == "running" or self._parking.is_changed(place.session)

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
                    # Without its sequence touched, a resident's turn leaves what was there.
                    resident = lease.granted is not None and lease.granted.resident
                    self._give_back(lease, kept=resident or _evaluated(event.usage))
                case Broke():
                    self._note(lease, Usage(0, 0, 1, lease.seen))
                    if lease.restoring:
                        self._note_restored(lease, False)
                    lease.push(event)
                    self._give_back(lease, kept=False)
                case Began():
                    self._note_restored(lease, event.restored)
                    lease.push(event)
                case Prefilled() | ChoiceEnded() | Embedded():
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
            self._parking.changed(lease.session)
        self.finished += 1
        self.recent.append(Finished(lease.request_id, usage.generated, after))

    def _note_restored(self, lease: Lease, restored: bool | None) -> None:
        lease.restoring = False
        if lease.session is None or restored is None:
            return
        if restored:
            self._parking.resumed(lease.session)
        else:
            self._parking.refused(lease.session)

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
                    case Park(place, session):
                        # The engine does both in order, before anything that is asked of the place from now on.
                        if self._parking.on:
                            self._parking.park(session, self._engine.save(place))
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
        if self._at_rest is not None and not admission.running(self.state):
            self._at_rest.set()
        self._arm()

    def _tick(self) -> None:
        due, _ = self._behind()
        if due and self._writing_behind is None:
            self._writing_behind = self._loop.create_task(self._write_behind())
        self._feed(admission.Tick())

    async def _write_behind(self) -> None:
        """Have the residents written that are due, one after another: each is memory until it is on disk."""
        residents = {place.session for place in self.state.places}
        self._written_s = {name: at for name, at in self._written_s.items() if name in residents}
        try:
            while due := self._behind()[0]:
                place = admission.place_of(self.state, due[0])
                assert place is not None
                self._written_s[due[0]] = self.now()
                self._parking.write_behind(due[0], self._engine.save(place.number))
                await self._parking.room()
        finally:
            self._writing_behind = None
            self._arm()

    def _behind(self) -> tuple[tuple[str, ...], float | None]:
        """Which residents are to be written behind now, and when the next one is."""
        if self.state.closed:
            return (), None
        quiet = [
            Quiet(place.session, place.since_s, self._written_s.get(place.session))
            for place in self.state.places
            if place.state == "quiet" and place.session and self._parking.is_changed(place.session)
        ]
        return behind(quiet, self.state.hold_s, self.now())

    def _arm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        due_now, due_next = self._behind()
        due = [due for due in (admission.wake_at(self.state), due_next) if due is not None]
        if due_now and self._writing_behind is None:
            due.append(self.now())
        if due:
            delay = max(0.0, min(due) - self.now())
            self._alarm = self._loop.call_later(delay, self._tick)


def _evaluated(usage: Usage) -> bool:
    """Whether the turn left anything in its sequence. A turn that was cancelled at once did not."""
    return usage.reused + usage.evaluated + usage.generated > 0
