"""Which fetched models go so that another one has room."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.model_room import Disk, Kept, NoRoom, percent, what_goes, words

GIB = 1024**3
OLD, MIDDLE, NEW = Kept("old", 3 * GIB, 1.0), Kept("middle", 2 * GIB, 2.0), Kept("new", 5 * GIB, 3.0)
HELD = [NEW, OLD, MIDDLE]


def disk(budget: int | None, free: int = 100, used: int = 10) -> Disk:
    return Disk(used * GIB, free * GIB, None if budget is None else budget * GIB)


def test_nothing_goes_where_there_is_room() -> None:
    assert what_goes(HELD, (), disk(20), 10 * GIB) == ()


def test_what_was_used_longest_ago_goes_first_and_no_more_than_it_takes() -> None:
    assert what_goes(HELD, (), disk(10), 1 * GIB) == ("old",)
    assert what_goes(HELD, (), disk(10), 4 * GIB) == ("old", "middle")


def test_what_a_config_names_stays() -> None:
    assert what_goes(HELD, {"old"}, disk(10), 1 * GIB) == ("middle",)
    with pytest.raises(
        NoRoom, match=r"4 GiB more do not fit into network.models_disk \(10 GiB, of which 10 GiB"
    ):
        what_goes(HELD, {"old", "middle", "new"}, disk(10), 4 * GIB)


def test_a_smaller_budget_removes_what_is_too_much() -> None:
    assert what_goes(HELD, (), disk(6), 0) == ("old", "middle")


def test_without_a_budget_nothing_is_ever_removed() -> None:
    with pytest.raises(NoRoom, match="4 GiB are needed and 3 GiB of the disk are free"):
        what_goes(HELD, (), disk(None, free=3), 4 * GIB)


def test_a_disk_that_is_full_below_the_budget_gets_room_too() -> None:
    assert what_goes(HELD, (), disk(100, free=1), 4 * GIB) == ("old",)


KEPT = st.lists(
    st.builds(Kept, st.uuids().map(str), st.integers(0, 100), st.floats(0, 100)),
    max_size=6,
    unique_by=lambda each: each.source,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(KEPT, st.integers(0, 200), st.integers(0, 200), st.one_of(st.none(), st.integers(0, 300)), st.data())
def test_what_goes_makes_it_fit_and_is_named_by_nobody(
    held: list[Kept], needed: int, free: int, budget: int | None, data: st.DataObject
) -> None:
    named = data.draw(st.sets(st.sampled_from([k.source for k in held]))) if held else set()
    used = sum(kept.size for kept in held)
    try:
        going = what_goes(held, named, Disk(used, free, budget), needed)
    except NoRoom:
        spare = sum(kept.size for kept in held if kept.source not in named) if budget is not None else 0
        assert free + spare < needed or (budget is not None and used - spare + needed > budget)
        return
    freed = sum(kept.size for kept in held if kept.source in going)
    assert not named & set(going)
    assert needed <= free + freed
    assert budget is None or used - freed + needed <= budget


@pytest.mark.parametrize(
    ("got", "size", "is_"), [(0, 7, 0), (429, 1000, 42), (999, 1000, 99), (7, 7, 100), (0, 0, 100)]
)
def test_all_is_a_hundred_per_cent_and_nothing_less(got: int, size: int, is_: int) -> None:
    assert percent(got, size) == is_


def test_what_is_said_of_a_model_that_comes() -> None:
    assert words("fetching", 43 * GIB, 100 * GIB, "hf") == "fetching 43 % of 100 GiB from hf"
    assert words("checking", 0, GIB, "") == "checking 1 GiB"
    assert words("asking", 0, 0, "hf") == "asking hf"
