"""Who may use a replica: scenarios. What holds for all of them is in test_admission_properties.py."""

from typing import Any

import pytest

from serving.admission import problems, step, wake_at
from serving.admission_events import (
    Action,
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
from serving.places import MOVES, Admission, Place, Standing, free_places, fresh, place_of, running

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


def key(name: str, **others: Any) -> Standing:
    return Standing(name, **others)


CHILD = Standing(family="root")


def served(actions: tuple[Action, ...]) -> list[int]:
    return [action.turn for action in actions if isinstance(action, Serve)]


def test_a_key_that_sends_one_waits_for_at_most_one_turn_of_a_key_that_queues_32() -> None:
    desk = Desk()
    for turn in range(1, 33):
        desk.feed(Arrived(turn, None, standing=key("a")))
    desk.feed(Arrived(33, None, standing=key("b")))
    assert served(desk.feed(Ended(1, kept=False))) == [33]
    assert served(desk.feed(Ended(33, kept=False))) == [2]


def test_a_burst_of_one_session_is_parked_for_the_turn_of_another_key() -> None:
    desk = Desk()
    for turn in range(1, 33):
        desk.feed(Arrived(turn, "ann", standing=key("a")))
    desk.feed(Arrived(33, "ben", standing=key("b")))
    assert desk.feed(Ended(1, kept=True)) == (Park(0, "ann"),)
    assert desk.feed(Parked(0)) == (Serve(33, 0, resident=False),)
    assert desk.feed(Ended(33, kept=True)) == ()  # ben's hold is his
    desk.now = HOLD_S
    assert desk.feed(Tick()) == (Park(0, "ben"),)
    assert desk.feed(Parked(0)) == (Serve(2, 0, resident=False),)
    assert desk.feed(Ended(2, kept=True)) == (Serve(3, 0, resident=True),)


def test_within_one_key_a_burst_of_one_session_goes_on_where_it_is() -> None:
    desk = Desk()
    desk.feed(Arrived(1, "ann"))
    desk.feed(Arrived(2, "ben"))
    desk.feed(Arrived(3, "ann"))
    assert desk.feed(Ended(1, kept=True)) == (Serve(3, 0, resident=True),)


def test_nobody_saves_up_turns_by_being_away() -> None:
    desk = Desk()
    for turn in range(1, 20):
        desk.feed(Arrived(turn, None, standing=key("a")))
        desk.feed(Ended(turn, kept=False))
    desk.feed(Arrived(20, None, standing=key("a")))
    for turn in range(21, 24):
        desk.feed(Arrived(turn, None, standing=key("b")))
    desk.feed(Arrived(24, None, standing=key("a")))
    order = []
    while running(desk.state):
        (turn,) = [place.turn for place in desk.state.places if place.turn is not None]
        order.append(turn)
        desk.feed(Ended(turn, kept=False))
    assert order == [20, 21, 22, 24, 23]


def test_what_keys_had_is_forgotten_once_nobody_runs() -> None:
    desk = Desk()
    for turn in range(1, 50):
        desk.feed(Arrived(turn, None, standing=key(f"key-{turn}")))
        desk.feed(Ended(turn, kept=False))
    assert len(desk.state.shares) == 1


def test_a_key_runs_no_more_than_its_places() -> None:
    desk = Desk(places=3)
    for turn, session in enumerate(("ann", "ben", "cem"), 1):
        desk.feed(Arrived(turn, session, standing=key("a", places=2)))
    assert running(desk.state) == 2
    assert desk.feed(Arrived(4, "dora", standing=key("b"))) == (Serve(4, 2, resident=False),)
    desk.now = HOLD_S
    assert desk.feed(Ended(1, kept=True)) == ()
    assert desk.feed(Arrived(5, "ann", standing=key("a", places=2))) == (Serve(5, 0, resident=True),)


def test_a_resident_waits_for_its_keys_places_too() -> None:
    desk = Desk(places=2)
    limited = key("a", places=1)
    desk.feed(Arrived(1, "ann", standing=limited))
    desk.feed(Ended(1, kept=True))
    desk.feed(Arrived(2, "ben", standing=limited))
    assert desk.feed(Arrived(3, "ann", standing=limited)) == ()
    assert desk.feed(Ended(2, kept=True)) == (Serve(3, 0, resident=True),)


def test_a_guessed_session_waits_behind_named_ones_and_has_no_hold() -> None:
    desk = Desk()
    desk.feed(Arrived(1, "guess", standing=Standing(rank="guessed")))
    desk.feed(Arrived(2, "other-guess", standing=Standing(rank="guessed")))
    desk.feed(Arrived(3, "ann"))
    assert desk.feed(Ended(1, kept=True)) == (Park(0, "guess"),)
    assert desk.feed(Parked(0)) == (Serve(3, 0, resident=False),)


def test_a_child_runs_at_once_in_the_place_of_its_parent() -> None:
    desk = Desk()
    desk.resident("root", 1)
    assert desk.feed(Arrived(2, "child", queue_s=0.0, standing=CHILD)) == (Park(0, "root"),)
    assert desk.feed(Parked(0)) == (Serve(2, 0, resident=False),)
    assert desk.feed(Ended(2, kept=True)) == ()
    assert desk.feed(Arrived(3, "root")) == (Park(0, "child"),)
    assert desk.feed(Parked(0)) == (Serve(3, 0, resident=False),)


def test_a_child_runs_at_once_whoever_else_waits_for_the_place() -> None:
    desk = Desk()
    desk.resident("root", 1)
    desk.feed(Arrived(2, "ben"))
    assert desk.feed(Arrived(3, "child", standing=CHILD)) == (Park(0, "root"),)
    assert desk.feed(Parked(0)) == (Serve(3, 0, resident=False),)


def test_a_child_takes_a_free_place_beside_its_parent() -> None:
    desk = Desk(places=2)
    desk.resident("root", 1)
    assert desk.feed(Arrived(2, "child", standing=CHILD)) == (Serve(2, 1, resident=False),)
    assert desk.feed(Arrived(3, "root")) == (Serve(3, 0, resident=True),)


def test_a_quiet_child_gives_its_place_up_before_the_parent() -> None:
    desk = Desk(places=2)
    desk.resident("root", 1)
    desk.now = 1.0
    desk.feed(Arrived(2, "one", standing=CHILD))
    desk.feed(Ended(2, kept=True))
    assert desk.feed(Arrived(3, "two", standing=CHILD)) == (Park(1, "one"),)


def test_a_family_waits_for_itself_as_long_as_it_takes() -> None:
    desk = Desk()
    desk.resident("root", 1)
    for turn in (2, 3, 4):
        desk.feed(Arrived(turn, f"child-{turn}", standing=CHILD))
    desk.feed(Parked(0))
    desk.now = 10 * QUEUE_S
    assert desk.feed(Tick()) == ()
    assert wake_at(desk.state) is None
    desk.feed(Arrived(5, "root"))
    assert desk.feed(Ended(2, kept=True)) == (Park(0, "child-2"),)
    # The parent goes before those that it started.
    assert desk.feed(Parked(0)) == (Serve(5, 0, resident=False),)
    desk.now = 20 * QUEUE_S
    assert desk.feed(Ended(5, kept=True)) == (Park(0, "root"),)
    assert desk.feed(Parked(0)) == (Serve(3, 0, resident=False),)


def test_a_family_waits_for_others_no_longer_than_the_queue() -> None:
    desk = Desk()
    desk.feed(Arrived(1, "ben"))
    desk.feed(Arrived(2, "child", standing=CHILD))
    desk.now = QUEUE_S
    assert desk.feed(Tick()) == (Refuse(2, "queue_timeout"),)


def test_a_family_that_queues_waits_for_the_turn_of_another_key() -> None:
    desk = Desk()
    child = Standing("a", family="root")
    desk.feed(Arrived(1, "root", standing=key("a")))
    for turn in (2, 3):
        desk.feed(Arrived(turn, f"child-{turn}", standing=child))
    desk.feed(Arrived(4, "ben", standing=key("b")))
    assert desk.feed(Ended(1, kept=True)) == (Park(0, "root"),)
    assert desk.feed(Parked(0)) == (Serve(4, 0, resident=False),)


def test_whoever_leaves_while_a_place_is_emptied_for_it_leaves_it_to_the_next() -> None:
    desk = Desk()
    desk.resident("root", 1)
    desk.feed(Arrived(2, "ben"))
    desk.feed(Arrived(3, "child", standing=CHILD))
    desk.feed(Left(3))
    assert desk.feed(Parked(0)) == (Serve(2, 0, resident=False),)


def test_a_session_that_is_ended_leaves_line_and_place() -> None:
    desk = Desk()
    desk.feed(Arrived(1, "ann"))
    desk.feed(Arrived(2, "ann"))
    desk.feed(Arrived(3, "ben"))
    assert desk.feed(Drop("ann")) == (Refuse(2, "session_ended"), Cancel(1))
    # Even if it ends well, nothing of it stays.
    assert desk.feed(Ended(1, kept=True)) == (Erase(0), Serve(3, 0, resident=False))
    desk.feed(Ended(3, kept=True))
    assert desk.feed(Drop("ben")) == (Erase(0),)
    assert free_places(desk.state) == 1
    assert desk.feed(Drop("nobody")) == ()


def test_a_session_that_is_ended_while_it_is_parked_is_gone_anyway() -> None:
    desk = Desk()
    desk.resident("ann", 1)
    desk.feed(Unloading())
    assert desk.feed(Drop("ann")) == ()
    assert desk.feed(Parked(0)) == ()


def test_a_scratch_becomes_the_sessions_context() -> None:
    desk = Desk()
    desk.feed(Arrived(1, "scratch", standing=Standing(family="ann")))
    assert desk.feed(Renamed("scratch", "ann")) == ()
    desk.feed(Ended(1, kept=True))
    desk.feed(Renamed("scratch", "ann"))
    assert place_of(desk.state, "scratch") is None
    assert desk.feed(Arrived(2, "ann")) == (Serve(2, 0, resident=True),)


def test_two_places_never_get_the_same_name() -> None:
    desk = Desk(places=2)
    desk.resident("ann", 1)
    desk.resident("scratch", 2)
    with pytest.raises(ValueError, match="in another"):
        desk.feed(Renamed("scratch", "ann"))


def test_a_place_makes_only_legal_moves() -> None:
    for state, allowed in MOVES.items():
        for target in MOVES:
            place = Place(0, state)
            if target in allowed:
                assert place.moved(target, None, None, 1.0).state == target
            else:
                with pytest.raises(ValueError, match="cannot become"):
                    place.moved(target, None, None, 1.0)
