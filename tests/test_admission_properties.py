"""Who may use a replica, driven at random: no place is ever two sessions', no context is seen by another session, every
lease is given back and every request ends."""

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serving.admission import (
    Action,
    Adjusted,
    Arrived,
    Cancel,
    Closed,
    Ended,
    Erase,
    Event,
    Left,
    Park,
    Parked,
    Refuse,
    Serve,
    Tick,
    Unloading,
    fresh,
    problems,
    running,
    step,
    wake_at,
)

HOLD_S, QUEUE_S = 10.0, 60.0
SESSIONS = st.sampled_from(["ann", "ben", "cem", "dora", None])
NOBODY = "nobody"
"""Owns what a transient, or a turn that failed, left in a sequence."""


class AdmissionMachine(RuleBasedStateMachine):
    """A host that carries actions out late and in any order, with clients that come and leave as they like. It keeps
    books of its own of what each sequence holds."""

    @initialize(places=st.integers(1, 4), hold_s=st.sampled_from([0.0, HOLD_S]))
    def begin(self, places: int, hold_s: float) -> None:
        self.now = 0.0
        self.state = fresh(places, hold_s, QUEUE_S)
        self.open: dict[int, str | None] = {}
        """Every turn that ever came, and whose."""
        self.limits: dict[int, float] = {}
        self.runs: dict[int, int] = {}
        self.parking: set[int] = set()
        self.ended: set[int] = set()
        self.holds: list[str | None] = [None] * places
        """Whose context each sequence holds; None: it is empty."""
        self.last_served: dict[str, int] = {}
        self.gives = 0

    def feed(self, event: Event) -> None:
        self.state, actions = step(self.state, event, self.now)
        for action in actions:
            self.carry_out(action)

    def carry_out(self, action: Action) -> None:
        match action:
            case Serve(turn, place, resident):
                self.serve(turn, place, resident)
            case Park(place, session):
                assert place not in self.runs.values(), "parked under a turn"
                assert place not in self.parking
                assert self.holds[place] == session, "parked what is not there, or another's"
                self.parking.add(place)
                self.holds[place] = None
            case Erase(place):
                assert place not in self.runs.values(), "erased under a turn"
                self.holds[place] = None
            case Refuse(turn, code):
                assert turn not in self.runs
                assert turn not in self.ended
                assert code == "host_stopping" or self.now >= self.limits[turn], "refused too early"
                self.ended.add(turn)
            case Cancel(turn):
                assert turn in self.runs

    def serve(self, turn: int, place: int, resident: bool) -> None:
        session = self.open[turn]
        assert turn not in self.ended
        assert turn not in self.runs
        assert not self.state.closed
        assert place not in self.runs.values(), "two turns on one sequence"
        assert place not in self.parking, "served where somebody is being parked"
        assert self.holds[place] == (session if resident else None), "sees what another left"
        if session is not None:
            assert all(self.open[other] != session for other in self.runs), "two turns of a session"
            assert self.last_served.get(session, 0) < turn, "turns of a session out of order"
            self.last_served[session] = turn
        self.runs[turn] = place

    def end_turn(self, turn: int, kept: bool) -> None:
        place = self.runs.pop(turn)
        self.ended.add(turn)
        self.gives += 1
        session = self.open[turn]
        self.holds[place] = session if kept and session is not None else NOBODY
        self.feed(Ended(turn, kept))

    @rule(session=SESSIONS, queue_s=st.sampled_from([None, 0.0, 5.0, 2 * QUEUE_S]))
    def arrive(self, session: str | None, queue_s: float | None) -> None:
        turn = len(self.open) + 1
        self.open[turn] = session
        self.limits[turn] = self.now + min(self.state.queue_s, math.inf if queue_s is None else queue_s)
        self.feed(Arrived(turn, session, queue_s))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        turn = data.draw(st.sampled_from(sorted(self.open)))
        waits = turn not in self.ended and turn not in self.runs
        self.feed(Left(turn))
        if waits:
            self.ended.add(turn)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), kept=st.booleans())
    def end(self, data: st.DataObject, kept: bool) -> None:
        """A turn ends well, is cancelled, or the engine fails it (then nothing is kept)."""
        self.end_turn(data.draw(st.sampled_from(sorted(self.runs))), kept)

    @precondition(lambda self: self.parking)
    @rule(data=st.data())
    def parked(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.parking)))
        self.parking.remove(place)
        self.feed(Parked(place))

    @rule()
    def unload(self) -> None:
        quiet = sum(place.state == "quiet" for place in self.state.places)
        for _ in range(quiet):
            self.feed(Unloading())
        assert all(place.state != "quiet" for place in self.state.places)

    @rule(hold_s=st.sampled_from([0.0, HOLD_S]), queue_s=st.sampled_from([15.0, QUEUE_S]))
    def adjust(self, hold_s: float, queue_s: float) -> None:
        """The config changes; who waits already keeps its time."""
        self.feed(Adjusted(hold_s, queue_s))

    @precondition(lambda self: len(self.open) > 5)
    @rule()
    def close(self) -> None:
        self.feed(Closed())

    @rule(seconds=st.sampled_from([0.5, 3.0, HOLD_S, 25.0, QUEUE_S]))
    def pass_time(self, seconds: float) -> None:
        """Move the clock, waking whenever admission asked to be woken."""
        until = self.now + seconds
        ticks = 0
        while (due := wake_at(self.state)) is not None and due <= until:
            self.now = max(self.now, due)
            self.feed(Tick())
            ticks += 1
            assert ticks < 1000, "it wakes for nothing"
        self.now = until

    @invariant()
    def all_is_well(self) -> None:
        if not hasattr(self, "state"):
            return
        assert problems(self.state, self.now) == ()
        assert {p.turn: p.number for p in self.state.places if p.turn is not None} == self.runs
        assert {p.number for p in self.state.places if p.state == "parking"} == self.parking
        waiting = {w.turn for w in self.state.line}
        assert waiting == set(self.open) - self.ended - set(self.runs)
        assert all(self.now < self.limits[turn] for turn in waiting), "waits for too long"
        assert self.state.given == self.gives
        for place in self.state.places:
            if place.state == "free":
                assert self.holds[place.number] is None, "a free place is not empty"

    def teardown(self) -> None:
        """Once clients stop coming, every turn ends and every place is given back."""
        if not hasattr(self, "state"):
            return
        for _ in range(200):
            if set(self.open) == self.ended:
                break
            for place in sorted(self.parking):
                self.parking.remove(place)
                self.feed(Parked(place))
            for turn in sorted(self.runs):
                self.end_turn(turn, kept=True)
            self.pass_time(1.0)
        assert set(self.open) == self.ended, "a turn without an end"
        assert self.state.taken == self.state.given == self.gives
        assert running(self.state) == 0


TestAdmissionMachine = AdmissionMachine.TestCase
TestAdmissionMachine.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
