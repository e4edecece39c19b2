"""For whom a machine is: a person's word and the programs that run, without a clock of its own."""

import pytest

from serving.yielding import (
    PERSON,
    QUIET_S,
    Order,
    Programs,
    Yielded,
    looked,
    wanted_yield,
    yielded,
)

WALL = 1_000_000.0


def after(*looks: tuple[float, tuple[str, ...]]) -> Programs:
    """What is known after these looks: when, and what ran."""
    known = Programs((), None)  # of a keeper that has looked before
    for now, running in looks:
        known = looked(known, running, now)
    return known


def test_a_machine_is_nobodys_but_homeports_by_default() -> None:
    assert yielded(None, Programs(), WALL) is None


def test_a_persons_word_holds_until_its_time_is_over() -> None:
    order = Order(WALL, WALL + 60)
    assert yielded(order, Programs(), WALL) == Yielded(PERSON, WALL + 60)
    assert yielded(order, Programs(), WALL + 59.9) == Yielded(PERSON, WALL + 60)
    assert yielded(order, Programs(), WALL + 60) is None


def test_a_persons_word_without_a_time_holds_until_it_is_taken_back() -> None:
    assert yielded(Order(WALL, None), Programs(), WALL + 1e9) == Yielded(PERSON, None)


def test_the_persons_word_goes_before_a_program_that_outlasts_it() -> None:
    runs = after((0.0, ("steam",)), (1.0, ("steam",)))
    order = Order(WALL, WALL + 60)
    assert yielded(order, runs, WALL + 1) == Yielded(PERSON, WALL + 60)
    assert yielded(order, runs, WALL + 61) == Yielded("steam")


def test_a_program_counts_from_its_second_look_in_a_row() -> None:
    assert after((0.0, ("steam",))).name is None
    assert after((0.0, ("steam",)), (1.0, ())).name is None
    assert after((0.0, ("steam",)), (1.0, ()), (2.0, ("steam",))).name is None
    assert after((0.0, ("steam",)), (1.0, ("steam",))).name == "steam"


def test_a_keeper_that_starts_anew_starts_no_host_beside_a_program() -> None:
    assert looked(Programs(), ("blender",), 0.0).name == "blender"
    assert looked(Programs(), (), 0.0).name is None


def test_a_program_that_ended_counts_for_some_seconds_more() -> None:
    ran = after((0.0, ("steam",)), (1.0, ("steam",)))
    for now in (2.0, 1.0 + QUIET_S - 0.1):
        ran = looked(ran, (), now)
        assert ran.name == "steam"
    assert looked(ran, (), 1.0 + QUIET_S).name is None


def test_a_program_that_starts_again_meanwhile_begins_its_quiet_time_anew() -> None:
    ran = after((0.0, ("steam",)), (1.0, ("steam",)), (8.0, ()), (9.0, ("steam",)), (10.0, ()))
    assert looked(ran, (), 18.0).name == "steam"
    assert looked(ran, (), 19.0).name is None


def test_of_two_programs_the_first_is_told_and_the_second_takes_over_when_it_ends() -> None:
    both = after((0.0, ("steam", "blender")), (1.0, ("steam", "blender")))
    assert both.name == "steam"
    assert looked(both, ("blender",), 2.0).name == "blender"
    later = looked(after((0.0, ("blender",)), (1.0, ("blender",))), ("steam", "blender"), 2.0)
    assert later.name == "blender", "the one that runs on goes on being told"


@pytest.mark.parametrize("order", [Order(WALL, None), Order(WALL, WALL + 7200.5)])
def test_an_order_is_kept_as_it_was(order: Order) -> None:
    assert Order.from_json(order.to_json()) == order


@pytest.mark.parametrize("broken", [None, [], {}, {"given": 1}, {"given": "x", "until": None}])
def test_what_is_no_order_is_said(broken: object) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Order.from_json(broken)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({}, (None, False)),
        ({"for_s": 7200}, (7200.0, False)),
        ({"for_s": None}, (None, False)),
        ({"end": True}, (None, True)),
        ({"end": False, "for_s": 0.5}, (0.5, False)),
    ],
)
def test_what_a_body_asks_for(body: object, wanted: tuple[float | None, bool]) -> None:
    assert wanted_yield(body) == wanted


@pytest.mark.parametrize(
    "body",
    [
        [],
        None,
        "2h",
        {"for_s": "2h"},
        {"for_s": 0},
        {"for_s": -1},
        {"for_s": True},
        {"for_s": float("nan")},
        {"for_s": 1e12},
        {"end": 1},
        {"end": True, "for_s": 5},
        {"until": 7},
    ],
)
def test_what_a_body_may_not_ask_for(body: object) -> None:
    with pytest.raises(ValueError, match=r"for_s"):
        wanted_yield(body)
