"""Which session of a machine that is drained moves, where to and when."""

from hypothesis import given
from hypothesis import strategies as st

from serving.drain_plan import NAMED, QUIET_S, Resting, Target, plan

ANN, BEN, CEM = "a" * 64, "b" * 64, "c" * 64
CARRIES = {"den/0": True}


def rests(session: str = ANN, **more: object) -> Resting:
    return Resting(session, "m", "den/0", 1, **more)  # type: ignore[arg-type]


def target(machine: str = "attic", **more: object) -> Target:
    told = {"carries": CARRIES, "free": 1} | more
    return Target(f"{machine}/0", machine, "m", **told)  # type: ignore[arg-type]


def test_before_the_deadline_only_what_loses_nothing_goes() -> None:
    parked, quiet = rests(ANN), rests(BEN, quiet_s=QUIET_S)
    talks, runs = rests(CEM, quiet_s=QUIET_S - 1), rests("d" * 64, busy=True, quiet_s=0.0)
    found = plan([parked, quiet, talks, runs], [target(free=2)], "home", left_s=60.0)
    assert {go.session for go in found.go} == {parked, quiet}
    assert not any(go.ends_turns for go in found.go)
    assert (found.later, found.stays) == (2, {})


def test_a_resident_waits_where_it_would_find_no_free_place_and_a_parked_one_does_not() -> None:
    found = plan([rests(ANN), rests(BEN, quiet_s=QUIET_S)], [target(free=0)], "home", left_s=1.0)
    assert ([go.session.session for go in found.go], found.later) == ([ANN], 1)


def test_what_would_be_evaluated_anew_is_served_until_the_deadline() -> None:
    elsewhere = target(carries={"den/0": False})
    assert plan([rests()], [elsewhere], "home", left_s=0.1).later == 1
    (go,) = plan([rests()], [elsewhere], "home", left_s=0.0).go
    assert go.target == elsewhere


def test_at_the_deadline_all_go_and_their_turns_end() -> None:
    found = plan([rests(ANN, busy=True), rests(BEN, quiet_s=0.0)], [target()], "home", left_s=0.0)
    assert [(go.session.session, go.ends_turns) for go in found.go] == [(ANN, True), (BEN, True)]
    assert (found.later, found.stays) == (0, {})


def test_one_whose_key_names_the_machine_stays_whatever_happens() -> None:
    named, freer = rests(ANN, only=frozenset({"den"})), rests(BEN, only=frozenset({"den", "attic"}))
    for left_s in (60.0, 0.0):
        found = plan([named, freer], [target(), target("loft")], "home", left_s)
        assert [(go.session, go.target.machine) for go in found.go] == [(freer, "attic")]
        assert found.stays == {NAMED: 1}


def test_where_nobody_takes_them_they_stay_and_the_zone_is_said() -> None:
    found = plan([rests(ANN), rests(BEN, busy=True)], [], "office", left_s=0.0)
    assert (found.go, found.stays) == ((), {"no machine in zone office takes them": 2})
    other = Target("attic/1", "attic", "another", 1, 0, CARRIES)
    assert plan([rests()], [other], "office", 0.0).stays == {"no machine in zone office takes them": 1}


def test_they_spread_over_free_places_and_prefer_where_their_context_goes_along() -> None:
    sessions = [rests(f"{number:064x}") for number in range(6)]
    near, far = target("attic", free=3), target("loft", free=3)
    found = plan(sessions, [near, far], "home", left_s=60.0)
    assert sorted(go.target.machine for go in found.go) == ["attic"] * 3 + ["loft"] * 3
    other = target("loft", free=9, carries={})
    assert {go.target.machine for go in plan(sessions, [near, other], "home", 0.0).go} == {"attic"}


def test_a_family_goes_together_and_only_once_all_of_it_is_quiet() -> None:
    parent, child = rests(ANN), rests(BEN, family=ANN, busy=True, quiet_s=0.0)
    targets = [target("attic"), target("loft")]
    assert plan([child, parent], targets, "home", left_s=60.0).later == 2
    found = plan([child, parent], targets, "home", left_s=0.0)
    assert [go.session for go in found.go] == [parent, child]
    assert len({go.target.replica for go in found.go}) == 1


@given(
    st.lists(
        st.tuples(
            st.integers(0, 30),
            st.booleans(),
            st.none() | st.floats(0, 100),
            st.none() | st.integers(0, 30),
            st.none() | st.sets(st.sampled_from(["den", "attic", "loft"]), min_size=1),
        ),
        unique_by=lambda told: told[0],
        max_size=20,
    ),
    st.lists(
        st.tuples(st.sampled_from(["attic", "loft", "shed"]), st.integers(0, 3), st.booleans()), max_size=3
    ),
    st.sampled_from([-1.0, 0.0, 0.1, 600.0]),
)
def test_nobody_is_forgotten_or_goes_where_it_may_not(told: list, where: list, left_s: float) -> None:  # type: ignore[type-arg]
    resting = [
        rests(
            f"{number:064x}",
            busy=busy,
            quiet_s=quiet_s,
            family=None if family is None else f"{family:064x}",
            only=None if only is None else frozenset(only),
        )
        for number, busy, quiet_s, family, only in told
    ]
    targets = [
        Target(f"{name}/{number}", name, "m", free, 0, {"den/0": carries})
        for number, (name, free, carries) in enumerate(where)
    ]
    found = plan(resting, targets, "home", left_s)
    assert len(found.go) + found.later + sum(found.stays.values()) == len(resting)
    assert all(go.session.only is None or go.target.machine in go.session.only for go in found.go)
    if left_s > 0:
        assert not any(go.session.busy or go.ends_turns for go in found.go)
    else:
        assert found.later == 0
