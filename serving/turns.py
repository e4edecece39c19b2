"""Leases over one engine: carries out what admission decides, hands each turn's events to its request, and sees to
it that contexts are saved before they are lost.

Everything here runs on one event loop and never awaits between reading and changing a state, so there are no
locks. It speaks no HTTP and writes no journal; saved contexts are kept by parking.py.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Literal, assert_never
from weakref import WeakValueDictionary

from serving import admission, admission_events, engine
from serving.admission_events import Cancel, Erase, Park, Refuse, Serve
from serving.contexts import Contexts
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
from serving.lease import Chosen, Finished, Gone, Granted, Lease, Refused
from serving.line import LineEntry, estimate, joined, line_view
from serving.parking import Parking
from serving.parking_plan import Missing
from serving.places import USUAL, Standing, Waiting, fresh, place_of, running
from serving.rates import Rates, rate_of
from serving.remembered import Remembered
from serving.side import scratch_of
from serving.write_behind import WriteBehind

RECENT = 32
NEWEST = 0.2
"""How much the newest turn counts in how long turns take."""

SessionStanding = Literal["running", "waiting", "resident", "parked"]


class Turns:
    """All leases of one replica. `attach` must be called on the loop before anything else, and again each time the
    engine was loaded."""

    def __init__(self, engine_: Engine, places: int, hold_s: float, queue_s: float, parking: Parking) -> None:
        self._engine = engine_
        self._parking = parking
        self.counts = parking.counts
        self._contexts = Contexts(engine_, parking)
        self.state = fresh(places, hold_s, queue_s)
        self.recent: deque[Finished] = deque(maxlen=RECENT)
        self.finished = 0
        self.rates = Rates()
        self._ids = itertools.count(1)
        self.warmed = Remembered()
        """Sessions that have had context in this engine, whether it is still there or not."""
        self.made = Remembered()
        """Sessions that began with this process: nothing was evaluated for them before it. Whoever pins them adds
        them."""
        self._leases: dict[int, Lease] = {}
        self._choosing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Of sessions that `context_for` looks at now."""
        self._turn_s: float | None = None
        """How long turns take, newer ones counting more; None: none has ended."""
        self._alarm: asyncio.TimerHandle | None = None
        self._behind = WriteBehind(engine_, parking, lambda: self.state, self.now, self._arm)
        self._at_rest: asyncio.Event | None = None
        self._has_leases = False
        self.on_leases: Callable[[bool], None] = lambda _: None
        """Called when the first lease is taken, and when the last one was given back."""
        self._given_back = asyncio.Event()
        """Set, and replaced, whenever a lease is given back."""

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the engine's thread; its events come to `loop`."""
        self._loop = loop
        self._engine.start(self._emit)

    async def context_for(self, session: str, prompt: tuple[int, ...]) -> Chosen:
        """What to `ask` for, at once, for a turn of the session: its own context, or its scratch's for a turn that
        would throw the session's out. A turn that goes on from the scratch makes it the session's context."""
        lock = self._choosing.get(session)
        if lock is None:
            lock = self._choosing[session] = asyncio.Lock()
        async with lock:  # In order of arrival, whatever has to be read for it.
            main, aside = self._newest(session), self._newest(scratch_of(session))
            side = await self._contexts.side(session, prompt, self.state, main, aside)
            if side == "promote" and await self._promote(session):
                side = "main"
        return Chosen(session if side == "main" else scratch_of(session), session, prompt)

    async def _promote(self, session: str) -> bool:
        """Have the scratch's context be the session's, whose own is dropped. False: somebody uses them."""
        scratch, state = scratch_of(session), None
        if place_of(self.state, scratch) is None:
            found = await self._parking.take(scratch)
            if not isinstance(found, SavedState):
                return False
            state = found
            # Meanwhile it may have been dropped.
            if self._parking.count(scratch) is None:
                return False
        if any(session == lease.owner for lease in self._leases.values()):
            return False
        self._feed(admission_events.Drop(session))
        self._parking.rename(scratch, session, state)
        self._feed(admission_events.Renamed(scratch, session))
        self._contexts.forget(scratch)
        self.warmed.discard(scratch)
        self.warmed.add(session)
        return True

    def ask(
        self,
        context: Chosen | None,
        request_id: str,
        queue_s: float | None = None,
        standing: Standing = USUAL,
    ) -> Lease:
        """Ask for a lease. `context` None is a transient; otherwise it is what `context_for` said. `queue_s`: what is
        left of its time to wait, if it waited elsewhere before. What comes of it is read from the Lease; whoever asked
        calls `release` in the end, whatever happened."""
        name = None if context is None else context.name
        lease = Lease(next(self._ids), name, request_id, self.now(), self.made, standing)
        if context is not None:
            lease.owner, lease.prompt = context.session, context.prompt
        self._leases[lease.turn] = lease
        self._feed(admission_events.Arrived(lease.turn, name, queue_s, standing))
        return lease

    def estimate(self, lease: Lease) -> tuple[int, float | None]:
        """Its place in the line (1: it is next; 0: it is not in it), and about how many seconds it has to wait yet;
        None: nothing was measured yet. Of one that was refused: if it asked again now."""
        now = self.now()
        if lease.granted is not None:
            return 0, 0.0
        if lease.waited_s is None and not lease.gone:
            return estimate(self.state, lease.turn, self._turn_s, now)
        again = Waiting(lease.turn, lease.session, now, lease.standing, now)
        _, about_s = estimate(joined(self.state, again), lease.turn, self._turn_s, now)
        return 0, about_s

    def line(self) -> list[LineEntry]:
        """Who waits, in the order in which they are served, by their sessions."""
        entries = line_view(self.state, self._turn_s, self.now())
        return [replace(entry, session=self._leases[entry.turn].owner) for entry in entries]

    def is_open(self, session: str) -> bool:
        """Whether a client waits for a turn of the session, or for more of it. A turn whose client is gone may still be
        on its way to its end: the next one waits for that in the line."""
        return any(session == lease.owner and not lease.gone for lease in self._leases.values())

    def standing_of(self, session: str) -> SessionStanding | None:
        """What the session does here; None: nothing is here of it."""
        names = session, scratch_of(session)
        places = [place for name in names if (place := place_of(self.state, name)) is not None]
        if any(place.state == "running" for place in places):
            return "running"
        if any(waiting.session in names for waiting in self.state.line):
            return "waiting"
        if any(place.state == "quiet" for place in places):
            return "resident"
        return "parked" if any(self._parking.count(name) is not None for name in names) else None

    def tokens_of(self, session: str) -> int:
        """Tokens of the session's context, in the engine or parked."""
        return self._contexts.count(session, self.state)

    async def drop(self, session: str) -> None:
        """The session is over: its turns get a refusal and end, and its context and its scratch's go. Returns once
        they are off the disk."""
        for name in (session, scratch_of(session)):
            self._feed(admission_events.Drop(name))
            self._parking.forget(name)
            self._contexts.forget(name)
            self.warmed.discard(name)
            self.made.discard(name)
        for lease in self._leases.values():
            if lease.owner == session and not lease.dropped:
                lease.dropped = True
                lease.lost.set()
                lease.push(Refused("session_ended"))
        await self._parking.removed()

    async def end_turns(self, session: str) -> None:
        """Its turns get the refusal that a host gives which stops. Its context stays. Returns once they have ended."""
        mine = [lease for lease in self._leases.values() if lease.owner == session and not lease.gone]
        for lease in mine:
            lease.lost.set()
            lease.push(Refused("host_stopping"))
            self._feed(admission_events.Left(lease.turn))
            if lease.granted is None and self._leases.pop(lease.turn, None) is not None:
                self.counts.left_line("host_stopping", self.now() - lease.arrived_s)
        while any(lease.owner == session for lease in self._leases.values()):
            await self._given_back.wait()

    def _newest(self, name: str) -> Lease | None:
        return next((lease for lease in reversed(self._leases.values()) if lease.session == name), None)

    async def begin(self, lease: Lease, turn: Turn) -> None:
        """Run the granted turn, with its session's saved context loaded before if the session is not resident. Its
        lease is given back when the engine says that it ended.

        `turn` has the lease's number and place; its state is set here. Nothing happens if the client has left or the
        host stops: the lease's inbox says so.
        """
        assert lease.granted is not None
        assert not lease.begun
        if lease.session is not None and not lease.granted.resident and not lease.lost.is_set():
            looked_s = self.now()
            found = await self._fetch(lease, lease.session)
            if isinstance(found, SavedState):
                turn = replace(turn, state=found)
                lease.restoring = (looked_s, found.size)
            else:
                lease.missing = found
        if not lease.lost.is_set():
            lease.begun = True
            self._contexts.began(lease, len(turn.prompt))
            self._engine.begin(self._contexts.spelled(turn))

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
        self._feed(admission_events.Left(lease.turn))
        if lease.granted is None:
            del self._leases[lease.turn]
            self.counts.left_line("client_gone", self.now() - lease.arrived_s)
        lease.push(Gone())

    def release(self, lease: Lease) -> None:
        """The request is over for whoever asked. Gives the lease back if the engine never got the turn; else
        the engine's last event does."""
        self.left(lease)
        if lease.granted is not None and not lease.begun and lease.turn in self._leases:
            self._give_back(lease, kept=lease.granted.resident)

    def adjust(self, hold_s: float, queue_s: float) -> None:
        """The config has other limits now."""
        self._feed(admission_events.Adjusted(hold_s, queue_s))

    def stop(self) -> None:
        """Refuse everybody, those who run too: their turns are cancelled."""
        self._feed(admission_events.Closed())
        for lease in self._leases.values():
            lease.lost.set()
            lease.push(Refused("host_stopping"))

    async def unload(self) -> None:
        """Park every resident, so that the engine can be closed. Returns once it has saved them all; no turn may be
        running or come meanwhile."""
        while any(place.state == "quiet" for place in self.state.places):
            # One after another: all of them at once may be more than memory holds.
            self._feed(admission_events.Unloading())
            await self._parking.room()

    async def write_all(self, until_s: float) -> int:
        """As `park_all`, while turns go on: of those that run, nothing is saved."""
        return await self._behind.write_all(until_s)

    async def park_all(self, until_s: float) -> int:
        """After `stop`: save every resident that the disk lacks, the smallest first, once its turn is over. Returns
        at `until_s` on the loop's clock at the latest: how many contexts are not on disk then."""
        self._at_rest = asyncio.Event()
        if running(self.state):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._at_rest.wait(), until_s - self._loop.time())
        return await self._behind.write_all(until_s)

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
                    self.counts.text(event.tokens, lease.pace.text(self.now(), lease.seen))
                    lease.push(event)
                case engine.Ended():
                    self._note(lease, event.usage)
                    self.counts.ended(event.usage, lease.seen)
                    self._time(lease)
                    self.rates.note(rate_of(lease.pace, event.usage, lease.seen))
                    lease.push(event)
                    # Without its sequence touched, a resident's turn leaves what was there.
                    resident = lease.granted is not None and lease.granted.resident
                    self._give_back(lease, kept=resident or _evaluated(event.usage))
                case Broke():
                    self._note(lease, Usage(0, 0, 1, lease.seen))
                    if lease.restoring is not None:
                        self._note_restored(lease, False)
                    lease.push(event)
                    self._give_back(lease, kept=False)
                case Began():
                    lease.pace.began_s = self.now()
                    self._note_restored(lease, event.restored)
                    lease.push(event)
                case Prefilled() | ChoiceEnded() | Embedded():
                    lease.push(event)
                case _:
                    assert_never(event)

    def _time(self, lease: Lease) -> None:
        took_s = self.now() - lease.granted_s
        before_s = took_s if self._turn_s is None else self._turn_s
        self._turn_s = before_s + NEWEST * (took_s - before_s)

    def _note(self, lease: Lease, usage: Usage) -> None:
        after = 0
        if lease.made_at_leaving is not None:
            made = self._engine.tokens_generated - lease.made_at_leaving
            after = max(0, min(made, usage.generated - lease.seen_at_leaving))
        if lease.session is not None and _evaluated(usage) and not lease.dropped:
            self.warmed.add(lease.session)
            self._parking.changed(lease.session)
        self.finished += 1
        self.recent.append(Finished(lease.request_id, usage.generated, after))

    def _note_restored(self, lease: Lease, restored: bool | None) -> None:
        restoring, lease.restoring = lease.restoring, None
        if restored and restoring is not None:
            self.counts.resumes.note(self.now() - restoring[0], restoring[1])
        if lease.session is None or restored is None or lease.dropped:
            return
        if restored:
            self._parking.resumed(lease.session)
        else:
            self._parking.refused(lease.session)

    def _give_back(self, lease: Lease, kept: bool) -> None:
        del self._leases[lease.turn]
        self._feed(admission_events.Ended(lease.turn, kept))
        given_back, self._given_back = self._given_back, asyncio.Event()
        given_back.set()

    def _feed(self, event: admission_events.Event) -> None:
        """Step admission and carry its actions out, with what comes of them, until there are no more."""
        events = deque([event])
        while events:
            self.state, actions = admission.step(self.state, events.popleft(), self.now())
            for action in actions:
                match action:
                    case Serve(turn, place, resident):
                        lease = self._leases[turn]
                        lease.granted = Granted(place, resident)
                        lease.granted_s = self.now()
                        lease.waited_s = lease.granted_s - lease.arrived_s
                        self.counts.left_line("granted", lease.waited_s)
                        lease.warm = lease.session in self.warmed
                        lease.push(lease.granted)
                    case Park(place, session):
                        # The engine does both in order, before anything that is asked of the place from now on.
                        if self._parking.on:
                            tokens = self._engine.tokens(place)
                            self._parking.park(session, self._engine.save(place), tokens)
                        self._engine.erase(place)
                        events.append(admission_events.Parked(place))
                    case Erase(place):
                        self._engine.erase(place)
                    case Cancel(turn):
                        if self._leases[turn].begun:
                            self._engine.cancel(turn)
                    case Refuse(turn, code):
                        lease = self._leases.pop(turn)
                        lease.waited_s = self.now() - lease.arrived_s
                        self.counts.left_line(code, lease.waited_s)
                        lease.push(Refused(code))
                    case _:
                        assert_never(action)
        self._mark_crowded()
        has_leases = running(self.state) > 0
        if has_leases != self._has_leases:
            self._has_leases = has_leases
            self.on_leases(has_leases)
        if self._at_rest is not None and not has_leases:
            self._at_rest.set()
        self._arm()

    def _mark_crowded(self) -> None:
        """Those who run together are not alone, now and later."""
        if running(self.state) > 1:
            for lease in self._leases.values():
                lease.pace.alone = lease.pace.alone and lease.granted is None

    def _tick(self) -> None:
        self._behind.begin(self._loop)
        self._feed(admission_events.Tick())

    def _arm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        due = [at for at in (admission.wake_at(self.state), self._behind.due_at()) if at is not None]
        if due:
            self._alarm = self._loop.call_later(max(0.0, min(due) - self.now()), self._tick)


def _evaluated(usage: Usage) -> bool:
    """Whether the turn left anything in its sequence. A turn that was cancelled at once did not."""
    return usage.reused + usage.evaluated + usage.generated > 0
