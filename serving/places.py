"""What admission knows: a replica's places, who holds them, who waits. Pure, and it changes nothing.

Who goes first is line.py's matter, who gets which place admission.py's.
"""

from dataclasses import dataclass
from typing import Literal

PlaceState = Literal["free", "running", "quiet", "parking"]
Rank = Literal["named", "guessed", "transient"]

MOVES: dict[PlaceState, frozenset[PlaceState]] = {
    "free": frozenset({"running"}),
    "running": frozenset({"quiet", "free"}),
    "quiet": frozenset({"running", "parking", "free"}),
    "parking": frozenset({"free"}),
}


@dataclass(frozen=True, slots=True)
class Standing:
    """How a turn stands to all others."""

    key: str | None = None
    """Whose turn it is: the line is fair between keys."""
    rank: Rank = "named"
    """Within a key named ones go first. What is not named has no hold."""
    family: str | None = None
    """The session that began the family; None: this one, if it has a session."""
    weight: float = 1.0
    """A key of weight 2 is served twice as often as one of weight 1."""
    places: int | None = None
    """How many turns of the key may run at once; None: as many as there are places."""


USUAL = Standing()


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
    standing: Standing = USUAL
    """Of the turn that runs or ran last here."""
    kept_for: int | None = None
    """The turn in whose favour it is being parked; None: of whoever goes first."""
    dropped: bool = False
    """Nothing of what runs here is to be kept."""

    def moved(
        self,
        state: PlaceState,
        session: str | None,
        turn: int | None,
        now: float,
        *,
        standing: Standing = USUAL,
        kept_for: int | None = None,
    ) -> "Place":
        if state not in MOVES[self.state]:
            raise ValueError(f"a place that is {self.state} cannot become {state}")
        return Place(self.number, state, session, turn, now, standing, kept_for)

    @property
    def family(self) -> str | None:
        """None: a transient's, or nobody's."""
        return _family(self.session, self.standing)


@dataclass(frozen=True, slots=True)
class Waiting:
    """One turn in the line. `session` None: a transient, which has no hold and leaves nothing resident."""

    turn: int
    session: str | None
    until_s: float
    """When it is refused; put off for as long as it waits for its own family."""
    standing: Standing = USUAL
    arrived_s: float = 0.0

    @property
    def family(self) -> str | None:
        return _family(self.session, self.standing)

    @property
    def key(self) -> str | None:
        return self.standing.key

    @property
    def rank(self) -> Rank:
        return "transient" if self.session is None else self.standing.rank


@dataclass(frozen=True, slots=True)
class Share:
    """What a key had of the replica: its next turn is due when the line's clock is at `due`."""

    key: str | None
    due: float


@dataclass(frozen=True, slots=True)
class Admission:
    """The whole state. `line` is in order of arrival."""

    places: tuple[Place, ...]
    hold_s: float
    queue_s: float
    line: tuple[Waiting, ...] = ()
    closed: bool = False
    taken: int = 0
    """Leases taken since the beginning."""
    given: int = 0
    """Leases given back. taken - given = places that are running."""
    shares: tuple[Share, ...] = ()
    """Of keys that wait, or had more than those that come now."""
    clock: float = 0.0
    """The line's own, in turns: where a key begins that has had nothing."""
    seen_s: float = 0.0
    """When something happened last."""


def fresh(places: int, hold_s: float, queue_s: float) -> Admission:
    """All places free, nobody in the line."""
    return Admission(tuple(Place(number) for number in range(places)), hold_s, queue_s)


def free_places(state: Admission) -> int:
    """Places that a new session would get at once."""
    return sum(place.state == "free" for place in state.places)


def running(state: Admission) -> int:
    """Turns that hold a lease."""
    return sum(place.state == "running" for place in state.places)


def place_of(state: Admission, session: str | None) -> Place | None:
    """The place where this session runs, is quiet or is being parked; None: it is not in the engine."""
    if session is None:
        return None
    return next((place for place in state.places if place.session == session), None)


def place_of_turn(state: Admission, turn: int) -> Place | None:
    """Where this turn runs."""
    return next((place for place in state.places if place.turn == turn), None)


def hold_of(state: Admission, place: Place) -> float:
    """How long this place's resident may stay quiet while another waits."""
    return state.hold_s if place.standing.rank == "named" else 0.0


def past_hold(state: Admission, place: Place, now: float) -> bool:
    return place.state == "quiet" and now >= place.since_s + hold_of(state, place)


def key_full(state: Admission, waiting: Waiting) -> bool:
    """Whether as many turns of its key run as may."""
    most = waiting.standing.places
    if most is None:
        return False
    return sum(p.state == "running" and p.standing.key == waiting.key for p in state.places) >= most


def seatable(state: Admission) -> tuple[Waiting, ...]:
    """Those in the line who lack nothing but a place: their session does not run, none of its turns came before,
    and their key has room."""
    seen: set[str] = set()
    found = []
    for waiting in state.line:
        own = place_of(state, waiting.session)
        first = waiting.session not in seen
        if waiting.session is not None:
            seen.add(waiting.session)
        if first and (own is None or own.state == "quiet") and not key_full(state, waiting):
            found.append(waiting)
    return tuple(found)


def kept_turns(state: Admission) -> frozenset[int]:
    """Turns in whose favour a place is being parked."""
    return frozenset(place.kept_for for place in state.places if place.kept_for is not None)


def coming(state: Admission) -> int:
    """Places that are being parked for whoever goes first."""
    turns = {waiting.turn for waiting in state.line}
    return sum(place.state == "parking" and place.kept_for not in turns for place in state.places)


def waits_for_family(state: Admission, waiting: Waiting) -> bool:
    """Whether another session of its family runs: then its time to wait does not pass."""
    return waiting.family is not None and any(
        place.state == "running" and place.family == waiting.family and place.session != waiting.session
        for place in state.places
    )


def family_places(state: Admission, waiting: Waiting) -> tuple[Place, ...]:
    """Quiet places of others of its family, the one to give up first in front: the longest quiet, and last of all
    that of the session that began the family."""
    found = [
        place
        for place in state.places
        if place.state == "quiet" and place.family is not None and place.family == waiting.family
    ]
    return tuple(sorted(found, key=lambda place: (place.session == place.family, place.since_s)))


def _family(session: str | None, standing: Standing) -> str | None:
    return None if session is None else standing.family or session
