"""Who goes first of those who wait, and about when. Pure.

Between keys the line is fair: whose turns were served least, by their weight, goes first. Every key has a time on the
line's own clock at which its next turn is due; a turn that is served puts it off by 1/weight, and who comes anew begins
where the line is now, so that nobody saves up. (Start-time fair queueing: Goyal, Vin and Cheng, 1996, with all turns
of length 1.) Within a key named sessions go before guessed ones and those before transients, each in order of arrival;
a session that began a family goes before those that it started.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush

from serving.places import Admission, Rank, Share, Waiting, hold_of, running

_RANKS: dict[Rank, int] = {"named": 0, "guessed": 1, "transient": 2}


@dataclass(frozen=True, slots=True)
class LineEntry:
    """Somebody in the line, for those who look at it. `about_s`: how long it takes yet; None: nothing was measured."""

    session: str | None
    position: int
    """From 1."""
    waited_s: float
    about_s: float | None
    turn: int


def ranked(state: Admission, turns: Iterable[Waiting]) -> tuple[Waiting, ...]:
    """These turns, given in order of arrival, as they would be served one after another."""
    queues: dict[str | None, list[Waiting]] = {}
    for waiting in turns:
        queues.setdefault(waiting.key, []).append(waiting)
    dues = {share.key: share.due for share in state.shares}
    lines = {key: deque(_within(queue)) for key, queue in queues.items()}
    heads = [(max(dues.get(key, 0.0), state.clock), number, key) for number, key in enumerate(lines)]
    heapify(heads)
    order = []
    while heads:
        due, number, key = heappop(heads)
        waiting = lines[key].popleft()
        order.append(waiting)
        if lines[key]:
            heappush(heads, (due + 1 / waiting.standing.weight, number, key))
    return tuple(order)


def charged(state: Admission, waiting: Waiting) -> Admission:
    """The state once this turn is served, and no longer in the line."""
    due = _due(state, waiting.key)
    line = tuple(other for other in state.line if other.turn != waiting.turn)
    clock = max(state.clock, due)
    waits = {other.key for other in line}
    others = (share for share in state.shares if share.key != waiting.key)
    shares = (*others, Share(waiting.key, due + 1 / waiting.standing.weight))
    kept = tuple(share for share in shares if share.due > clock or share.key in waits)
    return replace(state, line=line, clock=clock, shares=kept)


def joined(state: Admission, waiting: Waiting) -> Admission:
    """The state with this turn at the line's end. Where nobody ran or waited, nobody has had more than others."""
    if not state.line and not running(state):
        state = replace(state, shares=(), clock=0.0)
    shares = state.shares
    if not any(other.key == waiting.key for other in state.line):
        others = tuple(share for share in shares if share.key != waiting.key)
        shares = (*others, Share(waiting.key, _due(state, waiting.key)))
    return replace(state, line=(*state.line, waiting), shares=shares)


def line_view(state: Admission, turn_s: float | None, now: float) -> tuple[LineEntry, ...]:
    """The line as it is served. `turn_s`: how long a turn takes; None: nobody knows yet."""
    order = ranked(state, state.line)
    abouts = _abouts(state, order, turn_s, now)
    return tuple(
        LineEntry(waiting.session, position, now - waiting.arrived_s, about_s, waiting.turn)
        for position, (waiting, about_s) in enumerate(zip(order, abouts, strict=True), 1)
    )


def estimate(state: Admission, turn: int, turn_s: float | None, now: float) -> tuple[int, float | None]:
    """A turn's place in the line (1: it is next; 0: it is not in it), and about how long it takes yet."""
    for entry in line_view(state, turn_s, now):
        if entry.turn == turn:
            return entry.position, entry.about_s
    return 0, None


def _within(queue: list[Waiting]) -> list[Waiting]:
    """One key's turns in their order."""
    first: dict[str | None, int] = {}
    for number, waiting in enumerate(queue):
        first.setdefault(waiting.family, number)

    def order(numbered: tuple[int, Waiting]) -> tuple[int, int, bool, int]:
        number, waiting = numbered
        began = waiting.session is not None and waiting.session == waiting.family
        return _RANKS[waiting.rank], first[waiting.family] if began else number, not began, number

    return [waiting for _, waiting in sorted(enumerate(queue), key=order)]


def _due(state: Admission, key: str | None) -> float:
    return max(state.clock, next((share.due for share in state.shares if share.key == key), 0.0))


@dataclass(slots=True)
class _Seat:
    """A place as it is expected to be: its last turn over at `end_s` from now, and its resident's hold after that."""

    session: str | None
    family: str | None
    end_s: float
    hold_s: float

    def ready_s(self, waiting: Waiting) -> float:
        own = self.family is None or self.family == waiting.family
        return max(0.0, self.end_s + (0.0 if own else self.hold_s))


def _abouts(
    state: Admission, order: tuple[Waiting, ...], turn_s: float | None, now: float
) -> list[float | None]:
    """How long each in the line waits yet, if every turn takes `turn_s` and nobody comes or leaves. What keys may
    run at once is left out of account."""
    if turn_s is None or not state.places:
        return [None] * len(order)
    seats = []
    for place in state.places:
        hold_s = hold_of(state, place) if place.session is not None else 0.0
        spent_s = now - place.since_s
        match place.state:
            case "running":
                seats.append(_Seat(place.session, place.family, max(0.0, turn_s - spent_s), hold_s))
            case "quiet":
                seats.append(_Seat(place.session, place.family, -spent_s, hold_s))
            case _:
                seats.append(_Seat(None, None, 0.0, 0.0))
    abouts: list[float | None] = []
    for waiting in order:
        own = (seat for seat in seats if waiting.session is not None and seat.session == waiting.session)
        seat = next(own, None) or min(seats, key=lambda seat: seat.ready_s(waiting))
        ready_s = seat.ready_s(waiting)
        abouts.append(ready_s)
        seat.session, seat.family, seat.end_s = waiting.session, waiting.family, ready_s + turn_s
        seat.hold_s = state.hold_s if waiting.rank == "named" else 0.0
    return abouts
