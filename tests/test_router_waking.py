"""A home that sleeps: what its session's turn gets, and when its machine is asked for."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from router.choose import choose
from router.decision import Move, Refuse, Send, Wait
from router.snapshot import Machine, Snapshot
from router.waking import AGAIN_S, BOOTS_S, FORGOTTEN_S, PATIENCE_S, Woken, try_again
from tests.test_choose import ASK, NOW, fleet, home, replica

SILENT = replica("den/0", heard_at=NOW - 100.0)


def sleeping(
    state: str = "asleep", wakes: bool = True, woken: Woken | None = None, **more: object
) -> Snapshot:
    """den is away; attic, in the same zone, serves."""
    there = fleet(SILENT, replica("attic/0"))
    machines = {**there.machines, "den": Machine("den", state, "home", wakes=wakes)}
    return replace(there, machines=machines, woken={} if woken is None else {"den": woken}, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", ["asleep", "lost", "unknown"])
@pytest.mark.parametrize("when_lost", ["wait", "move", "fail"])
def test_a_session_whose_home_can_be_woken_waits_for_it(state: str, when_lost: str) -> None:
    decision = choose(structs.replace(ASK, when_lost=when_lost), home("den/0"), sleeping(state), NOW)
    assert isinstance(decision, Wait)
    assert (decision.replica, decision.wake) == ("den/0", "den")
    assert "is being woken" in decision.message
    assert ("sleeps" in decision.message) == (state == "asleep")


def test_a_home_that_sleeps_and_answers_is_served() -> None:
    there = sleeping()
    awake = replace(there, replicas={**there.replicas, "den/0": replica("den/0")})
    assert isinstance(choose(ASK, home("den/0"), awake, NOW), Send)


def test_one_that_falls_asleep_now_is_waited_for_and_not_woken_before_it_sleeps() -> None:
    there = sleeping()
    falling = replace(there, replicas={**there.replicas, "den/0": replica("den/0", heard_at=NOW - 4.0)})
    decision = choose(ASK, home("den/0"), falling, NOW)
    assert isinstance(decision, Wait)
    assert decision.wake is None


@pytest.mark.parametrize(("free_at", "retry_s"), [(None, 30.0), (NOW + 600.0, 600.0)])
def test_a_machine_that_its_person_has_and_put_to_sleep_is_not_woken(
    free_at: float | None, retry_s: float
) -> None:
    there = sleeping()
    den = replace(there.machines["den"], yielded=True, free_at=free_at)
    theirs = replace(there, machines={**there.machines, "den": den})
    for when_lost in ("wait", "move", "fail"):
        refused = choose(structs.replace(ASK, when_lost=when_lost), home("den/0"), theirs, NOW)
        assert isinstance(refused, Refuse)
        assert (refused.code, refused.retry_s, refused.wake) == ("machine_yielded", retry_s, None)
    alone = replace(theirs, replicas={"den/0": SILENT})
    assert getattr(choose(ASK, None, alone, NOW), "wake", None) is None


def test_its_persons_time_over_a_machine_that_sleeps_is_woken() -> None:
    there = sleeping()
    den = replace(there.machines["den"], yielded=True, free_at=NOW - 1.0)
    decision = choose(ASK, home("den/0"), replace(there, machines={**there.machines, "den": den}), NOW)
    assert isinstance(decision, Wait)
    assert decision.wake == "den"


def test_a_home_that_was_never_heard_by_this_router_is_woken_too() -> None:
    there = sleeping()
    unheard = replace(there, replicas={"attic/0": there.replicas["attic/0"]})
    decision = choose(ASK, home("den/0"), unheard, NOW)
    assert isinstance(decision, Wait)
    assert decision.wake == "den"


def test_without_a_controller_nobody_can_wake_it_and_it_says_so() -> None:
    decision = choose(ASK, home("den/0"), sleeping(is_current=False), NOW)
    assert isinstance(decision, Wait)
    assert decision.wake is None
    assert "controller, which would have it woken, does not answer" in decision.message


def test_one_that_does_not_come_in_time_counts_as_lost_and_is_asked_for_all_the_same() -> None:
    for state in ("asleep", "lost"):
        there = sleeping(state, woken=Woken(NOW - BOOTS_S, NOW - 10.0))
        waits = choose(ASK, home("den/0"), there, NOW)
        assert isinstance(waits, Refuse)
        assert (waits.status, waits.code, waits.wake) == (503, "machine_lost", "den")
        assert "did not come when it was woken" in waits.message
        moves = choose(structs.replace(ASK, when_lost="move"), home("den/0"), there, NOW)
        assert isinstance(moves, Move)
        assert [each.replica for each in moves.ranked] == ["attic/0"]
        fails = choose(structs.replace(ASK, when_lost="fail"), home("den/0"), there, NOW)
        assert isinstance(fails, Refuse)
        assert fails.status == 410


def test_who_waits_anyway_gives_it_the_time_to_boot_and_who_moves_does_not() -> None:
    there = sleeping(woken=Woken(NOW - PATIENCE_S, NOW))
    assert isinstance(choose(ASK, home("den/0"), there, NOW), Wait)
    assert isinstance(choose(structs.replace(ASK, when_lost="move"), home("den/0"), there, NOW), Move)
    sooner = sleeping(woken=Woken(NOW - PATIENCE_S + 1.0, NOW))
    assert isinstance(choose(structs.replace(ASK, when_lost="move"), home("den/0"), sooner, NOW), Wait)


def test_one_that_sleeps_and_cannot_be_woken_is_as_lost() -> None:
    there = sleeping(wakes=False)
    waits = choose(ASK, home("den/0"), there, NOW)
    assert isinstance(waits, Refuse)
    assert (waits.status, waits.wake) == (503, None)
    assert "which sleeps" in waits.message
    assert isinstance(choose(structs.replace(ASK, when_lost="move"), home("den/0"), there, NOW), Move)


def test_a_forgotten_machine_is_not_woken() -> None:
    there = sleeping("lost", forgotten={"den": "home"})
    decision = choose(ASK, home("den/0"), there, NOW)
    assert isinstance(decision, Move)


def test_a_new_session_goes_to_who_is_awake_and_wakes_somebody_only_where_nobody_is() -> None:
    assert isinstance(choose(ASK, None, sleeping(), NOW), Send)
    machines = {
        "den": Machine("den", "asleep", "home", wakes=True),
        "attic": Machine("attic", "asleep", "home"),
    }
    there = replace(fleet(SILENT, replica("attic/0", heard_at=NOW - 100.0)), machines=machines)
    decision = choose(ASK, None, there, NOW)
    assert isinstance(decision, Wait)
    assert (decision.wake, decision.replica) == ("den", None)
    cordoned = replace(machines["den"], cordoned=True)
    for other in (cordoned, replace(machines["den"], wakes=False)):
        refused = choose(ASK, None, replace(there, machines={**machines, "den": other}), NOW)
        assert isinstance(refused, Refuse)
        assert refused.code == "model_unavailable"


def test_one_machine_is_woken_for_all_new_sessions() -> None:
    machines = {name: Machine(name, "asleep", "home", wakes=True) for name in ("den", "attic")}
    there = replace(fleet(SILENT, replica("attic/0", heard_at=NOW - 100.0)), machines=machines)
    first = choose(structs.replace(ASK, session="00" * 32), None, there, NOW)
    assert isinstance(first, Wait)
    assert first.wake is not None
    began = replace(there, woken={first.wake: Woken(NOW, NOW)})
    for digit in "0123456789abcdef":
        other = choose(structs.replace(ASK, session=digit * 64), None, began, NOW)
        assert isinstance(other, Wait)
        assert other.wake == first.wake


# when a machine is asked for


def test_a_machine_is_asked_for_once_in_30_s() -> None:
    first = try_again(None, 100.0)
    assert first == Woken(100.0, 100.0)
    assert try_again(first, 100.0 + AGAIN_S - 0.1) is None
    assert try_again(first, 100.0 + AGAIN_S) == Woken(100.0, 100.0 + AGAIN_S)


def test_its_time_is_counted_from_the_first_try_and_anew_when_nobody_asked_for_long() -> None:
    tried = Woken(100.0, 130.0)
    assert not tried.is_over(100.0 + PATIENCE_S - 0.1, PATIENCE_S)
    assert tried.is_over(100.0 + PATIENCE_S, PATIENCE_S)
    later = 130.0 + FORGOTTEN_S
    assert not tried.is_over(later, PATIENCE_S)
    assert try_again(tried, later) == Woken(later, later)


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=50))
def test_however_many_turns_wait_it_is_asked_at_most_once_in_30_s(gaps: list[float]) -> None:
    now, tried, asked = 0.0, None, list[float]()
    for gap in gaps:
        now += gap
        if (again := try_again(tried, now)) is not None:
            tried = again
            asked.append(now)
    assert asked[0] == gaps[0]
    assert all(later - before >= AGAIN_S for before, later in pairwise(asked))
