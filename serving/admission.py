"""Who may use a replica, and when: places, residents, the line, families, leases.

Pure: `step(state, event, now) -> (state, actions)`. The host carries the actions out and feeds what comes of
them back as events. It knows nothing of HTTP, of prompts or of the engine, and saves no context: it says when
to park. What it is told and answers is admission_events.py's, the state places.py's, who goes first of those who
wait line.py's.

A lease is a turn's right to run. It is taken by `Serve` and given back by exactly one `Ended`.
Times are seconds on one clock that never falls.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import assert_never

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
from serving.line import charged, joined, ranked
from serving.places import (
    Admission,
    Place,
    Waiting,
    coming,
    family_places,
    free_places,
    hold_of,
    kept_turns,
    key_full,
    past_hold,
    place_of,
    place_of_turn,
    running,
    seatable,
    waits_for_family,
)


def step(state: Admission, event: Event, now: float) -> tuple[Admission, tuple[Action, ...]]:
    """Take one event in, then serve whoever can be served.

    1. a turn of a quiet resident arrives   -> Serve on its place, whoever else waits
    2. one of its family arrives            -> Park that member, and its place is this turn's; but a free place first
    3. a turn of a running session          -> waits: turns of one session run one at a time, in order of arrival
    4. as many of its key's turns run as may -> waits
    5. then those who wait, in the order of `ranked`, each: its own place, a free one, one of its family's (as in 2),
       one that is past its hold (the longest quiet is parked), one whose family waits behind it for another key
    6. otherwise                            -> waits, refused after `queue_s`, in which the time is not counted when
                                               another of its family runs
    """
    actions: list[Action] = []
    state = _put_off(state, now)
    match event:
        case Arrived():
            state = _arrive(state, event, now, actions)
        case Left(turn):
            state = _leave(state, turn, actions)
        case Ended(turn, kept):
            state = _give_back(state, turn, kept, now, actions)
        case Parked(number):
            state = _parked(state, state.places[number], now, actions)
        case Unloading():
            state = _unload(state, now, actions)
        case Adjusted(hold_s, queue_s):
            state = replace(state, hold_s=hold_s, queue_s=queue_s)
        case Drop(session):
            state = _drop(state, session, now, actions)
        case Renamed(session, name):
            state = _rename(state, session, name)
        case Tick():
            pass
        case Closed():
            actions += [Refuse(w.turn, "host_stopping") for w in state.line]
            actions += [Cancel(p.turn) for p in state.places if p.turn is not None]
            state = replace(state, line=(), closed=True)
        case _:
            assert_never(event)
    state = _seat(state, now, actions)
    state = _time_out(state, now, actions)
    return state, tuple(actions)


def wake_at(state: Admission) -> float | None:
    """When the next Tick is due, if nothing happens before; None: never."""
    kept = kept_turns(state)
    due = [w.until_s for w in state.line if w.turn not in kept and not waits_for_family(state, w)]
    if _lacking(state):
        due += [p.since_s + hold_of(state, p) for p in state.places if p.state == "quiet"]
    # What was due when something happened last was seen to then.
    return min((at for at in due if at > state.seen_s), default=None)


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
    for waiting in _lacking(state):
        own = place_of(state, waiting.session)
        if own is not None and own.state == "quiet":
            yield f"turn {waiting.turn} waits although its session is resident and quiet"
        if free_places(state):
            yield f"turn {waiting.turn} waits beside a free place"
        if family_places(state, waiting):
            yield f"turn {waiting.turn} waits beside a quiet place of its family"
        if any(past_hold(state, place, now) for place in state.places):
            yield f"turn {waiting.turn} waits beside a resident past its hold"


def _lacking(state: Admission) -> tuple[Waiting, ...]:
    """Those who lack a place, and none is being emptied for them."""
    kept = kept_turns(state)
    lacking = [waiting for waiting in ranked(state, seatable(state)) if waiting.turn not in kept]
    return tuple(lacking[coming(state) :])


def _with(state: Admission, place: Place) -> Admission:
    places = (*state.places[: place.number], place, *state.places[place.number + 1 :])
    return replace(state, places=places)


def _put_off(state: Admission, now: float) -> Admission:
    """Since something happened last, time has not passed for those who wait for their own family."""
    passed_s = now - state.seen_s
    line = tuple(
        replace(w, until_s=w.until_s + passed_s) if passed_s > 0 and waits_for_family(state, w) else w
        for w in state.line
    )
    return replace(state, line=line, seen_s=max(state.seen_s, now))


def _arrive(state: Admission, event: Arrived, now: float, actions: list[Action]) -> Admission:
    if state.closed:
        actions.append(Refuse(event.turn, "host_stopping"))
        return state
    limit_s = state.queue_s if event.queue_s is None else min(event.queue_s, state.queue_s)
    waiting = Waiting(event.turn, event.session, now + limit_s, event.standing, now)
    state = joined(state, waiting)
    if waiting not in seatable(state):
        return state
    own = place_of(state, waiting.session)
    if own is not None:
        return _take(state, waiting, own, now, actions)
    members = family_places(state, waiting)
    if members and not free_places(state):
        return _park(state, members[0], waiting.turn, now, actions)
    return state


def _leave(state: Admission, turn: int, actions: list[Action]) -> Admission:
    if place_of_turn(state, turn) is not None:
        actions.append(Cancel(turn))
        return state
    return replace(state, line=tuple(w for w in state.line if w.turn != turn))


def _unload(state: Admission, now: float, actions: list[Action]) -> Admission:
    quiet = [place for place in state.places if place.state == "quiet"]
    if not quiet:
        return state
    return _park(state, min(quiet, key=lambda place: place.since_s), None, now, actions)


def _give_back(state: Admission, turn: int, kept: bool, now: float, actions: list[Action]) -> Admission:
    place = place_of_turn(state, turn)
    if place is None:
        raise ValueError(f"turn {turn} holds no lease")
    state = replace(state, given=state.given + 1)
    if kept and place.session is not None and not place.dropped:
        return _with(state, place.moved("quiet", place.session, None, now, standing=place.standing))
    actions.append(Erase(place.number))
    return _with(state, place.moved("free", None, None, now))


def _parked(state: Admission, place: Place, now: float, actions: list[Action]) -> Admission:
    kept_for, place = place.kept_for, place.moved("free", None, None, now)
    state = _with(state, place)
    mine = next((w for w in seatable(state) if w.turn == kept_for), None)
    if mine is None or place_of(state, mine.session) is not None:
        return state
    return _take(state, mine, place, now, actions)


def _drop(state: Admission, session: str, now: float, actions: list[Action]) -> Admission:
    actions += [Refuse(w.turn, "session_ended") for w in state.line if w.session == session]
    state = replace(state, line=tuple(w for w in state.line if w.session != session))
    place = place_of(state, session)
    if place is None:
        return state
    if place.turn is not None:
        actions.append(Cancel(place.turn))
        return _with(state, replace(place, dropped=True))
    if place.state == "quiet":
        actions.append(Erase(place.number))
        return _with(state, place.moved("free", None, None, now))
    return state


def _rename(state: Admission, session: str, name: str) -> Admission:
    place = place_of(state, session)
    if place is None or place.state != "quiet":
        return state
    if place_of(state, name) is not None:
        raise ValueError("the session that a place is renamed to is in another")
    return _with(state, replace(place, session=name))


def _seat(state: Admission, now: float, actions: list[Action]) -> Admission:
    """Serve whom there is a place for, and make room for the others, until nothing changes any more."""
    seats = not state.closed
    while seats and state.line:
        taken = state.taken
        state = _seat_once(state, now, actions)
        seats = state.taken > taken
    return state


def _seat_once(state: Admission, now: float, actions: list[Action]) -> Admission:
    order, kept, empty = ranked(state, seatable(state)), kept_turns(state), coming(state)
    for number, waiting in enumerate(order):
        own = place_of(state, waiting.session)
        if waiting.turn in kept or key_full(state, waiting) or (own is not None and own.state != "quiet"):
            continue
        place = own or next((p for p in state.places if p.state == "free"), None)
        if place is not None:
            state = _take(state, waiting, place, now, actions)
            continue
        behind = order[number + 1 :]
        members = [p for p in family_places(state, waiting) if not _goes_on(p, waiting, behind)]
        if members:
            state = _park(state, members[0], waiting.turn, now, actions)
        elif empty > 0:
            empty -= 1
        elif (place := _gives_way(state, waiting, behind, now)) is not None:
            state = _park(state, place, None, now, actions)
    return state


def _goes_on(place: Place, waiting: Waiting, behind: tuple[Waiting, ...]) -> bool:
    """Whether this resident's own next turn waits, of the same key: then there is no use in parking it."""
    return any(other.session == place.session and other.key == waiting.key for other in behind)


def _gives_way(state: Admission, waiting: Waiting, behind: tuple[Waiting, ...], now: float) -> Place | None:
    """The resident that has been quiet longest of those that must give way: it is past its hold, or its family has
    more to do, but another key's turn is due first."""
    quiet = sorted((p for p in state.places if p.state == "quiet"), key=lambda p: p.since_s)
    for place in quiet:
        if past_hold(state, place, now) and not _goes_on(place, waiting, behind):
            return place
    for place in quiet:
        if any(other.family == place.family and other.key != waiting.key for other in behind):
            return place
    return None


def _take(state: Admission, waiting: Waiting, place: Place, now: float, actions: list[Action]) -> Admission:
    """The turn takes its lease on a place that is free, or where its own session is quiet."""
    actions.append(Serve(waiting.turn, place.number, resident=place.state == "quiet"))
    place = place.moved("running", waiting.session, waiting.turn, now, standing=waiting.standing)
    state = charged(_with(state, place), waiting)
    return replace(state, taken=state.taken + 1)


def _park(
    state: Admission, place: Place, kept_for: int | None, now: float, actions: list[Action]
) -> Admission:
    assert place.session is not None
    actions.append(Park(place.number, place.session))
    place = place.moved("parking", place.session, None, now, standing=place.standing, kept_for=kept_for)
    return _with(state, place)


def _time_out(state: Admission, now: float, actions: list[Action]) -> Admission:
    kept = kept_turns(state)
    late = [
        w for w in state.line if now >= w.until_s and w.turn not in kept and not waits_for_family(state, w)
    ]
    actions += [Refuse(w.turn, "queue_timeout") for w in late]
    return replace(state, line=tuple(w for w in state.line if w not in late)) if late else state
