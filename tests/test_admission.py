"""Who may use a replica: scenarios. What holds for all of them is in test_admission_properties.py."""

import pytest

from serving.admission import (
    MOVES,
    Action,
    Admission,
    Arrived,
    Cancel,
    Closed,
    Ended,
    Erase,
    Event,
    Left,
    Park,
    Parked,
    Place,
    Refuse,
    Serve,
    Tick,
    Unloading,
    free_places,
    fresh,
    place_of,
    problems,
    running,
    step,
    wake_at,
)

HOLD_S, QUEUE_S = 10.0, 60.0


class Desk:
    """Feeds events at a clock that the test moves, and looks for problems after each."""

    def __init__(self, places: int = 1) -> None:
        self.state: Admission = fresh(places, HOLD_S, QUEUE_S)
        self.now = 0.0

    def feed(self, event: Event) -> tuple[Action, ...]:
        self.state, actions = step(self.state, event, self.now)
        assert problems(self.state, self.now) == ()
        return actions

    def resident(self, session: str, turn: int) -> None:
        """Have `session` quiet in the engine since now."""
        self.feed(Arrived(turn, session))
        self.feed(Ended(turn, kept=True))


def test_a_new_session_gets_a_free_place_at_once() -> None:
    assert Desk().feed(Arrived(1, "ann")) == (Serve(1, 0, resident=False),)


def test_a_resident_is_served_at_once_on_its_own_place() -> None:
    desk = Desk(places=2)
    desk.resident("ann", 1)
    desk.resident("ben", 2)
    assert desk.feed(Arrived(3, "ben")) == (Serve(3, 1, resident=True),)


def test_full_home_waits_rather_than_refuses() -> None:
    desk = Desk()
    desk.feed(Arrived(1, "ann"))
    assert desk.feed(Arrived(2, "ben")) == ()
    assert wake_at(desk.state) == QUEUE_S


def test_a_resident_within_its_hold_keeps_its_place_while_another_waits() -> None:
    desk = Desk()
    desk.resident("ann", 1)
    assert desk.feed(Arrived(2, "ben")) == ()
    assert wake_at(desk.state) == HOLD_S
    desk.now = 5.0
    assert desk.feed(Arrived(3, "ann")) == (Serve(3, 0, resident=True),)


def test_a_resident_past_its_hold_is_parked_for_the_one_who_waits() -> None:
    desk = Desk()
    desk.resident("ann", 1)
    desk.feed(Arrived(2, "ben"))
    desk.now = HOLD_S
    assert desk.feed(Tick()) == (Park(0, "ann"),)
    assert desk.feed(Parked(0)) == (Serve(2, 0, resident=False),)


def test_a_resident_past_its_hold_stays_while_nobody_waits() -> None:
    desk = Desk()
    desk.resident("ann", 1)
    desk.now = 1000.0
    assert desk.feed(Tick()) == ()
    assert wake_at(desk.state) is None
    assert desk.feed(Arrived(2, "ann")) == (Serve(2, 0, resident=True),)


def test_the_longest_quiet_resident_is_parked_and_only_one_for_one() -> None:
    desk = Desk(places=2)
    desk.resident("ann", 1)
    desk.now = 1.0
    desk.resident("ben", 2)
    desk.now = 50.0
    assert desk.feed(Arrived(3, "cem")) == (Park(0, "ann"),)
    assert desk.feed(Tick()) == ()


def test_two_waiting_turns_of_one_session_ask_for_one_place() -> None:
    desk = Desk(places=2)
    desk.resident("ann", 1)
    desk.resident("ben", 2)
    desk.feed(Arrived(3, "cem"))
    desk.feed(Arrived(4, "cem"))
    desk.now = HOLD_S
    assert desk.feed(Tick()) == (Park(0, "ann"),)
    assert desk.feed(Parked(0)) == (Serve(3, 0, resident=False),)
    assert desk.feed(Ended(3, kept=True)) == (Serve(4, 0, resident=True),)


def test_turns_of_one_session_run_one_at_a_time_in_order_beside_a_free_place() -> None:
    desk = Desk(places=2)
    desk.feed(Arrived(1, "ann"))
    assert desk.feed(Arrived(2, "ann")) == ()
    assert desk.feed(Arrived(3, "ann")) == ()
    assert desk.feed(Ended(1, kept=True)) == (Serve(2, 0, resident=True),)
    assert desk.feed(Ended(2, kept=True)) == (Serve(3, 0, resident=True),)


def test_a_turn_whose_client_left_is_cancelled_before_its_retry_runs() -> None:
    desk = Desk()
    desk.feed(Arrived(1, "ann"))
    assert desk.feed(Left(1)) == (Cancel(1),)
    assert desk.feed(Arrived(2, "ann")) == ()
    assert desk.feed(Ended(1, kept=True)) == (Serve(2, 0, resident=True),)


def test_leaving_the_line_touches_nobody_who_runs() -> None:
    desk = Desk()
    desk.feed(Arrived(1, "ann"))
    desk.feed(Arrived(2, "ben"))
    assert desk.feed(Left(2)) == ()
    assert desk.feed(Ended(1, kept=True)) == ()
    assert running(desk.state) == 0


def test_leaving_after_the_end_is_nothing() -> None:
    desk = Desk()
    desk.resident("ann", 1)
    assert desk.feed(Left(1)) == ()


def test_a_named_session_goes_before_a_transient_that_came_first() -> None:
    desk = Desk()
    desk.feed(Arrived(1, None))
    desk.feed(Arrived(2, None))
    desk.feed(Arrived(3, "ann"))
    assert desk.feed(Ended(1, kept=True)) == (Erase(0), Serve(3, 0, resident=False))


def test_a_transient_leaves_nothing_and_has_no_hold() -> None:
    desk = Desk()
    desk.feed(Arrived(1, None))
    assert desk.feed(Ended(1, kept=True)) == (Erase(0),)
    assert free_places(desk.state) == 1


def test_a_turn_waits_at_most_the_queue() -> None:
    desk = Desk()
    desk.feed(Arrived(1, "ann"))
    desk.now = 1.0
    desk.feed(Arrived(2, "ben"))
    desk.now = 1.0 + QUEUE_S
    assert desk.feed(Tick()) == (Refuse(2, "queue_timeout"),)
    assert desk.feed(Ended(1, kept=True)) == ()


def test_a_turn_that_waited_elsewhere_waits_only_what_is_left() -> None:
    desk = Desk()
    desk.feed(Arrived(1, "ann"))
    desk.feed(Arrived(2, "ben", queue_s=5.0))
    desk.feed(Arrived(3, "cem", queue_s=2 * QUEUE_S))
    assert wake_at(desk.state) == 5.0
    desk.now = 5.0
    assert desk.feed(Tick()) == (Refuse(2, "queue_timeout"),)
    assert wake_at(desk.state) == QUEUE_S
    assert desk.feed(Arrived(4, "dora", queue_s=0.0)) == (Refuse(4, "queue_timeout"),)


def test_nothing_left_to_wait_is_enough_for_a_free_place() -> None:
    assert Desk().feed(Arrived(1, "ann", queue_s=0.0)) == (Serve(1, 0, resident=False),)


def test_unloading_parks_one_who_is_quiet_after_another_and_nobody_who_runs() -> None:
    desk = Desk(places=3)
    desk.resident("ann", 1)
    desk.resident("ben", 2)
    desk.feed(Arrived(3, "cem"))
    assert desk.feed(Unloading()) == (Park(0, "ann"),)
    assert desk.feed(Unloading()) == (Park(1, "ben"),)
    assert desk.feed(Unloading()) == ()
    assert desk.feed(Arrived(4, "ann")) == ()
    desk.feed(Parked(1))
    assert place_of(desk.state, "ben") is None
    assert desk.feed(Parked(0)) == (Serve(4, 0, resident=False),)


def test_a_broken_turn_frees_its_place() -> None:
    desk = Desk()
    desk.feed(Arrived(1, "ann"))
    assert desk.feed(Ended(1, kept=False)) == (Erase(0),)
    assert place_of(desk.state, "ann") is None
    assert desk.feed(Arrived(2, "ben")) == (Serve(2, 0, resident=False),)


def test_a_lease_is_given_back_once() -> None:
    desk = Desk()
    desk.resident("ann", 1)
    with pytest.raises(ValueError, match="holds no lease"):
        desk.feed(Ended(1, kept=True))


def test_a_parked_session_that_returns_meanwhile_waits_its_turn() -> None:
    desk = Desk()
    desk.resident("ann", 1)
    desk.feed(Arrived(2, "ben"))
    desk.now = HOLD_S
    desk.feed(Tick())
    assert desk.feed(Arrived(3, "ann")) == ()
    assert desk.feed(Parked(0)) == (Serve(2, 0, resident=False),)


def test_closing_refuses_the_line_and_cancels_who_runs() -> None:
    desk = Desk()
    desk.feed(Arrived(1, "ann"))
    desk.feed(Arrived(2, "ben"))
    assert desk.feed(Closed()) == (Refuse(2, "host_stopping"), Cancel(1))
    assert desk.feed(Arrived(3, "cem")) == (Refuse(3, "host_stopping"),)
    assert desk.feed(Ended(1, kept=True)) == ()


def test_a_place_makes_only_legal_moves() -> None:
    for state, allowed in MOVES.items():
        for target in MOVES:
            place = Place(0, state)
            if target in allowed:
                assert place.moved(target, None, None, 1.0).state == target
            else:
                with pytest.raises(ValueError, match="cannot become"):
                    place.moved(target, None, None, 1.0)
