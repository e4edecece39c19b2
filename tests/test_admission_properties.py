"""Who may use a replica, driven at random: no place is ever two sessions', no context is seen by another session, no
key runs more than it may, no family times out because of itself, nobody waits beside a place that it could have, every
lease is given back and every request ends."""

import math
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serving.admission import problems, step, wake_at
from serving.admission_events import (
    Action,
    Adjusted,
    Arrived,
    Cancel,
    Closed,
    Drop,
    Ended,
    Erase,
    Event,
    Left,
    Park,
    Parked,
    Refuse,
    Renamed,
    Serve,
    Tick,
    Unloading,
)
from serving.places import Standing, fresh, running

HOLD_S, QUEUE_S = 10.0, 60.0
STANDINGS = {
    "ann": Standing("a"),
    "ben": Standing("a", "guessed"),
    "cem": Standing("b"),
    "dora": Standing("b", family="cem"),
    "ed": Standing("b", family="cem"),
    "fay": Standing("a", family="cem"),
    None: Standing("c", weight=2.0),
}
"""cem began a family; one of it came with another key."""
SESSIONS = st.sampled_from(list(STANDINGS))
PLACES = st.sampled_from([None, 1, 2])
NOBODY = "nobody"
"""Owns what a transient, or a turn that failed, left in a sequence."""


class AdmissionMachine(RuleBasedStateMachine):
    """A host that carries actions out late and in any order, with clients that come and leave as they like. It keeps
    books of its own of what each sequence holds."""

    @initialize(
        places=st.integers(1, 4),
        hold_s=st.sampled_from([0.0, HOLD_S]),
        most=st.fixed_dictionaries({"a": PLACES, "b": PLACES, "c": PLACES}),
    )
    def begin(self, places: int, hold_s: float, most: dict[str, int | None]) -> None:
        self.most = most
        self.dropping: str | None = None
        self.dropped: set[int] = set()
        """Turns that ran when their session was ended."""
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
                match code:
                    case "queue_timeout":
                        assert self.now >= self.limits[turn], "refused too early"
                        assert not self.waits_for_family(turn), "refused because of its own family"
                    case "session_ended":
                        assert self.open[turn] == self.dropping
                    case "host_stopping":
                        assert self.state.closed
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
        key = STANDINGS[session].key
        assert key is not None
        most = self.most[key]
        assert most is None or sum(self.key(other) == key for other in self.runs) <= most, (
            "more than its key may"
        )

    def key(self, turn: int) -> str | None:
        return STANDINGS[self.open[turn]].key

    def family(self, session: str | None) -> str | None:
        return STANDINGS[session].family or session

    def waits_for_family(self, turn: int) -> bool:
        session = self.open[turn]
        others = {self.open[other] for other in self.runs} - {None, session}
        return session is not None and any(self.family(other) == self.family(session) for other in others)

    def advance(self, until: float) -> None:
        """Time passes, but not for those who wait for their family."""
        for turn in self.open.keys() - self.ended - self.runs.keys():
            if self.waits_for_family(turn):
                self.limits[turn] += until - self.now
        self.now = until

    def end_turn(self, turn: int, kept: bool) -> None:
        place = self.runs.pop(turn)
        self.ended.add(turn)
        self.gives += 1
        session = self.open[turn] if turn not in self.dropped else None
        self.holds[place] = session if kept and session is not None else NOBODY
        self.feed(Ended(turn, kept))

    @rule(session=SESSIONS, queue_s=st.sampled_from([None, 0.0, 5.0, 2 * QUEUE_S]))
    def arrive(self, session: str | None, queue_s: float | None) -> None:
        turn = len(self.open) + 1
        self.open[turn] = session
        self.limits[turn] = self.now + min(self.state.queue_s, math.inf if queue_s is None else queue_s)
        standing = STANDINGS[session]
        assert standing.key is not None
        self.feed(Arrived(turn, session, queue_s, replace(standing, places=self.most[standing.key])))

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

    @rule(session=SESSIONS.filter(lambda session: session is not None))
    def drop(self, session: str) -> None:
        waiting = {w.turn for w in self.state.line if w.session == session}
        runs = {turn for turn in self.runs if self.open[turn] == session}
        self.dropping = session
        self.dropped |= runs
        self.feed(Drop(session))
        self.dropping = None
        assert waiting <= self.ended
        assert session not in [
            self.holds[place] for place in set(range(len(self.holds))) - {*self.runs.values()}
        ]

    @rule(session=st.sampled_from(["dora", "ed"]))
    def rename(self, session: str) -> None:
        """What one of the family left becomes that of the one who began it, which has nothing."""
        if any(p.session == "cem" for p in self.state.places) or any(
            w.session == "cem" for w in self.state.line
        ):
            return
        quiet = [p.number for p in self.state.places if p.state == "quiet" and p.session == session]
        for place in quiet:
            self.holds[place] = "cem"
        self.feed(Renamed(session, "cem"))

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
            self.advance(max(self.now, due))
            self.feed(Tick())
            ticks += 1
            assert ticks < 1000, "it wakes for nothing"
        self.advance(until)

    @invariant()
    def all_is_well(self) -> None:
        if not hasattr(self, "state"):
            return
        assert problems(self.state, self.now) == ()
        assert {p.turn: p.number for p in self.state.places if p.turn is not None} == self.runs
        assert {p.number for p in self.state.places if p.state == "parking"} == self.parking
        waiting = {w.turn for w in self.state.line}
        assert waiting == set(self.open) - self.ended - set(self.runs)
        assert all(self.now < self.limits[turn] or self.is_seen_to(turn) for turn in waiting), (
            "waits too long"
        )
        self.nobody_waits_beside_a_place()
        assert self.state.given == self.gives
        for place in self.state.places:
            if place.state == "free":
                assert self.holds[place.number] is None, "a free place is not empty"

    def is_seen_to(self, turn: int) -> bool:
        """Waits without a limit, or for a place that is being emptied for it."""
        return self.waits_for_family(turn) or any(place.kept_for == turn for place in self.state.places)

    def nobody_waits_beside_a_place(self) -> None:
        """Whoever lacks nothing but a place, beyond the places that are being emptied, can have none."""
        here = {place.session: place for place in self.state.places if place.session is not None}
        ready, seen = [], set()
        for waiting in self.state.line:
            session, most = waiting.session, waiting.standing.places
            key_runs = sum(self.key(turn) == waiting.standing.key for turn in self.runs)
            own = here.get(session) if session is not None else None
            first = session not in seen and (own is None or own.state == "quiet")
            if first and (most is None or key_runs < most):
                ready.append(session)
                assert own is None, "its own place is quiet"
            if session is not None:
                seen.add(session)
        if len(ready) <= len(self.parking):
            return
        quiet = [place for place in self.state.places if place.state == "quiet"]
        assert all(place.state != "free" for place in self.state.places), "waits beside a free place"
        for place in quiet:
            hold_s = 0.0 if place.session == "ben" else self.state.hold_s
            assert self.now < place.since_s + hold_s, "waits beside a resident past its hold"
        families = {self.family(place.session) for place in quiet}
        member = [session for session in ready if session is not None and self.family(session) in families]
        assert len(member) <= len(self.parking), "waits beside its family's quiet place"

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
