"""Who goes first of those who wait, and about when."""

import pytest

from serving.admission import step
from serving.admission_events import Arrived
from serving.line import LineEntry, estimate, line_view, ranked
from serving.places import Admission, Standing, fresh

HOLD_S, QUEUE_S = 10.0, 60.0


def waiting(*standings: tuple[str | None, Standing]) -> Admission:
    """They wait for the one place, where nobody's turn 1 runs."""
    state, _ = step(fresh(1, HOLD_S, QUEUE_S), Arrived(1, None), 0.0)
    for turn, (session, standing) in enumerate(standings, 2):
        state, _ = step(state, Arrived(turn, session, None, standing), 0.0)
    return state


def order(state: Admission) -> list[int]:
    return [waiting.turn for waiting in ranked(state, state.line)]


def key(name: str, weight: float = 1.0) -> Standing:
    return Standing(name, weight=weight)


def test_within_a_key_first_come_first_served() -> None:
    assert order(waiting(*((f"s{n}", key("a")) for n in range(4)))) == [2, 3, 4, 5]


def test_keys_take_turns() -> None:
    burst = [(f"a{n}", key("a")) for n in range(4)]
    assert order(waiting(*burst, ("b1", key("b")), ("b2", key("b")))) == [2, 6, 3, 7, 4, 5]


def test_a_key_of_weight_2_is_served_twice_as_often() -> None:
    line = [(f"a{n}", key("a")) for n in range(3)] + [(f"b{n}", key("b", 2.0)) for n in range(6)]
    assert order(waiting(*line)) == [2, 5, 6, 3, 7, 8, 4, 9, 10]


def test_named_before_guessed_before_transients_within_a_key_only() -> None:
    line = [
        (None, Standing("a", "transient")),
        ("guess", Standing("a", "guessed")),
        ("name", Standing("a")),
        (None, Standing("b", "transient")),
    ]
    assert order(waiting(*line)) == [4, 5, 3, 2]


def test_who_began_a_family_goes_before_those_it_started_and_nobody_else() -> None:
    child = Standing("a", family="root")
    line = [("other", key("a")), ("c1", child), ("c2", child), ("later", key("a")), ("root", key("a"))]
    assert order(waiting(*line)) == [2, 6, 3, 4, 5]


def test_the_line_is_seen_with_places_and_times() -> None:
    state = waiting(("ann", key("a")), ("ben", key("a")))
    assert line_view(state, None, 3.0) == (
        LineEntry("ann", 1, 3.0, None, 2),
        LineEntry("ben", 2, 3.0, None, 3),
    )
    # A transient runs for 20 s, then ann; her place is hers for the hold, then it is ben's.
    assert [entry.about_s for entry in line_view(state, 20.0, 3.0)] == [17.0, 17.0 + 20.0 + HOLD_S]
    assert estimate(state, 3, 20.0, 3.0) == (2, 47.0)
    assert estimate(state, 9, 20.0, 3.0) == (0, None)


def test_a_turn_that_takes_longer_than_others_is_over_at_any_time() -> None:
    assert estimate(waiting(("ann", key("a"))), 2, 20.0, 50.0) == (1, 0.0)


def test_a_family_waits_for_no_hold_of_its_own() -> None:
    child = Standing("a", family="root")
    state = waiting(("c1", child), ("c2", child))
    assert [entry.about_s for entry in line_view(state, 20.0, 0.0)] == [20.0, 40.0]


@pytest.mark.parametrize(("places", "about_s"), [(1, 50.0), (2, 0.0)])
def test_more_places_make_it_shorter(places: int, about_s: float) -> None:
    """Two turns of ann's are before it on one place; the other is left free by what its key may run at once."""
    state, _ = step(fresh(places, HOLD_S, QUEUE_S), Arrived(1, "ann", None, key("a")), 0.0)
    state, _ = step(state, Arrived(2, "ann", None, key("a")), 0.0)
    state, _ = step(state, Arrived(3, "ben", None, Standing("a", places=1)), 0.0)
    assert estimate(state, 3, 20.0, 0.0)[1] == about_s
