"""Who may use a replica, and when: places, residents, the line, leases.

Pure: `step(state, event, now) -> (state, actions)`. The host carries the actions out and feeds what comes of
them back as events. It knows nothing of HTTP, of prompts or of the engine, and saves no context: it says when
to park.

A lease is a turn's right to run. It is taken by `Serve` and given back by exactly one `Ended`.
Times are seconds on one clock that never falls.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, assert_never

PlaceState = Literal["free", "running", "quiet", "parking"]

MOVES: dict[PlaceState, frozenset[PlaceState]] = {
    "free": frozenset({"running"}),
    "running": frozenset({"quiet", "free"}),
    "quiet": frozenset({"running", "parking"}),
    "parking": frozenset({"free"}),
}

RefusalCode = Literal["queue_timeout", "host_stopping"]


@dataclass(frozen=True, slots=True)
class Place:
    """Room for one session. The engine's sequence of the same number belongs to it.

    free: nobody's. running: a turn holds its lease. quiet: `session` is resident between turns.
    parking: `session` is being saved or dropped. A transient turn runs with `session` None.
    """

    number: int
    state: PlaceState = "free"
    session: str | None = None
    turn: int | None = None
    since_s: float = 0.0
    """When it came into this state."""

    def moved(self, state: PlaceState, session: str | None, turn: int | None, now: float) -> "Place":
        if state not in MOVES[self.state]:
            raise ValueError(f"a place that is {self.state} cannot become {state}")
        return Place(self.number, state, session, turn, now)


@dataclass(frozen=True, slots=True)
class Waiting:
    """One turn in the line. `session` None: a transient, which has no hold and leaves nothing resident."""

    turn: int
    session: str | None
    until_s: float
    """When it is refused."""


@dataclass(frozen=True, slots=True)
class Admission:
    """The whole state. `line` is in order of arrival; `ranked` says who goes first."""

    places: tuple[Place, ...]
    hold_s: float
    queue_s: float
    line: tuple[Waiting, ...] = ()
    closed: bool = False
    taken: int = 0
    """Leases taken since the beginning."""
    given: int = 0
    """Leases given back. taken - given = places that are running."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A turn asks for its lease. `turn` was never used before."""

    turn: int
    session: str | None
    queue_s: float | None = None
    """What is left of its time to wait, if it waited elsewhere before; the replica's own limit holds too."""


@dataclass(frozen=True, slots=True)
class Left:
    """The turn's client is gone. Its place in the line is given up, or its running turn cancelled."""

    turn: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A running turn is over, however it went: its lease is given back.

    `kept`: the sequence holds the session's context, which stays resident. A transient's is erased anyway.
    """

    turn: int
    kept: bool


@dataclass(frozen=True, slots=True)
class Parked:
    """A Park was carried out: the sequence is empty."""

    place: int


@dataclass(frozen=True, slots=True)
class Unloading:
    """The engine is to be freed: the longest quiet resident is parked, hold or not. Fed again for the next."""


@dataclass(frozen=True, slots=True)
class Adjusted:
    """The config has other limits now. Who waits already waits for as long as before."""

    hold_s: float
    queue_s: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; due at `wake_at`."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The host stops: nobody is served any more."""


Event = Arrived | Left | Ended | Parked | Unloading | Adjusted | Tick | Closed


@dataclass(frozen=True, slots=True)
class Serve:
    """The turn holds its lease on this place. Answered by one Ended.

    `resident`: the place's sequence holds this very session's context; else it is empty.
    """

    turn: int
    place: int
    resident: bool


@dataclass(frozen=True, slots=True)
class Park:
    """Save this resident's context and empty the sequence. Answered by one Parked."""

    place: int
    session: str


@dataclass(frozen=True, slots=True)
class Erase:
    """Empty this place's sequence before anything else runs on it: it may hold what nobody owns. Not answered."""

    place: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """End this running turn at once. Its Ended is still to come."""

    turn: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """The turn gets no lease and is out of the line."""

    turn: int
    code: RefusalCode


Action = Serve | Park | Erase | Cancel | Refuse


def fresh(places: int, hold_s: float, queue_s: float) -> Admission:
    """All places free, nobody in the line."""
    return Admission(tuple(Place(number) for number in range(places)), hold_s, queue_s)


def step(state: Admission, event: Event, now: float) -> tuple[Admission, tuple[Action, ...]]:
    """Take one event in, then serve whoever can be served.

    1. a turn of a quiet resident     -> Serve on its place, whoever else waits
    2. a turn of a running session    -> waits: turns of one session run one at a time, in order of arrival
    3. a place is free                -> Serve, in the order of `ranked`
    4. a resident is past its hold    -> Park the longest quiet one, then 3
    5. otherwise                      -> waits, refused after `queue_s`
    """
    actions: list[Action] = []
    match event:
        case Arrived(turn, session, queue_s):
            if state.closed:
                return state, (Refuse(turn, "host_stopping"),)
            until_s = now + (state.queue_s if queue_s is None else min(queue_s, state.queue_s))
            state = replace(state, line=(*state.line, Waiting(turn, session, until_s)))
        case Left(turn):
            if _running(state, turn) is not None:
                return state, (Cancel(turn),)
            state = replace(state, line=tuple(w for w in state.line if w.turn != turn))
        case Ended(turn, kept):
            state = _give_back(state, turn, kept, now, actions)
        case Parked(number):
            place = state.places[number]
            state = _with(state, place.moved("free", None, None, now))
        case Unloading():
            quiet = [p for p in state.places if p.state == "quiet"]
            state = _park(state, sorted(quiet, key=lambda p: p.since_s)[:1], now, actions)
        case Adjusted(hold_s, queue_s):
            state = replace(state, hold_s=hold_s, queue_s=queue_s)
        case Tick():
            pass
        case Closed():
            actions += [Refuse(w.turn, "host_stopping") for w in state.line]
            actions += [Cancel(p.turn) for p in state.places if p.turn is not None]
            return replace(state, line=(), closed=True), tuple(actions)
        case _:
            assert_never(event)
    state = _serve(state, now, actions)
    state = _make_room(state, now, actions)
    state = _time_out(state, now, actions)
    return state, tuple(actions)


def wake_at(state: Admission) -> float | None:
    """When the next Tick is due, if nothing happens before; None: never."""
    due = [w.until_s for w in state.line]
    if _places_wanted(state) > 0:
        due += [place.since_s + state.hold_s for place in state.places if place.state == "quiet"]
    return min(due, default=None)


def ranked(line: tuple[Waiting, ...]) -> tuple[Waiting, ...]:
    """The line as it is served: named sessions before transients, each in order of arrival."""
    return tuple(sorted(line, key=lambda w: w.session is None))


def free_places(state: Admission) -> int:
    """Places that a new session would get at once."""
    return sum(place.state == "free" for place in state.places)


def running(state: Admission) -> int:
    """Turns that hold a lease."""
    return sum(place.state == "running" for place in state.places)


def place_of(state: Admission, session: str) -> Place | None:
    """The place where this session runs, is quiet or is being parked; None: it is not in the engine."""
    return next((place for place in state.places if place.session == session), None)


def problems(state: Admission, now: float) -> tuple[str, ...]:
    """What must never be the case between two steps; empty when all is well. For tests."""
    return tuple(_problems(state, now))


def _problems(state: Admission, now: float) -> Iterator[str]:
    if running(state) != state.taken - state.given:
        yield f"{running(state)} turns run, {state.taken} leases taken, {state.given} given back"
    sessions = [place.session for place in state.places if place.session is not None]
    if len(sessions) != len(set(sessions)):
        yield "a session is in two places"
    for place in state.places:
        if (place.turn is not None) != (place.state == "running"):
            yield f"place {place.number} is {place.state} with turn {place.turn}"
        if place.state in ("quiet", "parking") and place.session is None:
            yield f"place {place.number} is {place.state} without a session"
    if state.closed and state.line:
        yield "somebody waits in a closed host"
    for waiting in state.line:
        own = place_of(state, waiting.session) if waiting.session is not None else None
        if own is not None and own.state == "quiet":
            yield f"turn {waiting.turn} waits although its session is resident and quiet"
        if own is None and free_places(state):
            yield f"turn {waiting.turn} waits beside a free place"
        if now >= waiting.until_s:
            yield f"turn {waiting.turn} waits longer than the queue allows"
    if _places_wanted(state) > 0 and any(_past_hold(state, place, now) for place in state.places):
        yield "somebody waits beside a resident that is past its hold"


def _with(state: Admission, place: Place) -> Admission:
    places = state.places
    return replace(state, places=(*places[: place.number], place, *places[place.number + 1 :]))


def _running(state: Admission, turn: int) -> Place | None:
    return next((place for place in state.places if place.turn == turn), None)


def _past_hold(state: Admission, place: Place, now: float) -> bool:
    return place.state == "quiet" and now >= place.since_s + state.hold_s


def _places_wanted(state: Admission) -> int:
    """Places that the line needs beyond those that are its sessions' own or are being emptied."""
    named = {w.session for w in state.line if w.session is not None and place_of(state, w.session) is None}
    transients = sum(w.session is None for w in state.line)
    return len(named) + transients - sum(place.state == "parking" for place in state.places)


def _give_back(state: Admission, turn: int, kept: bool, now: float, actions: list[Action]) -> Admission:
    place = _running(state, turn)
    if place is None:
        raise ValueError(f"turn {turn} holds no lease")
    state = replace(state, given=state.given + 1)
    if kept and place.session is not None:
        return _with(state, place.moved("quiet", place.session, None, now))
    actions.append(Erase(place.number))
    return _with(state, place.moved("free", None, None, now))


def _serve(state: Admission, now: float, actions: list[Action]) -> Admission:
    for waiting in () if state.closed else ranked(state.line):
        own = place_of(state, waiting.session) if waiting.session is not None else None
        if own is None:
            place = next((p for p in state.places if p.state == "free"), None)
        else:
            place = own if own.state == "quiet" else None
        if place is None:
            continue
        actions.append(Serve(waiting.turn, place.number, resident=own is not None))
        state = _with(state, place.moved("running", waiting.session, waiting.turn, now))
        line = tuple(w for w in state.line if w.turn != waiting.turn)
        state = replace(state, line=line, taken=state.taken + 1)
    return state


def _make_room(state: Admission, now: float, actions: list[Action]) -> Admission:
    past = sorted((p for p in state.places if _past_hold(state, p, now)), key=lambda p: p.since_s)
    return _park(state, past[: max(0, _places_wanted(state))], now, actions)


def _park(state: Admission, residents: list[Place], now: float, actions: list[Action]) -> Admission:
    for place in residents:
        assert place.session is not None
        actions.append(Park(place.number, place.session))
        state = _with(state, place.moved("parking", place.session, None, now))
    return state


def _time_out(state: Admission, now: float, actions: list[Action]) -> Admission:
    late = [w for w in state.line if now >= w.until_s]
    actions += [Refuse(w.turn, "queue_timeout") for w in late]
    return replace(state, line=tuple(w for w in state.line if w not in late)) if late else state
