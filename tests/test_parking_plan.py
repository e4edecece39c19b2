"""serving/parking_plan.py: budgets, who gives way, who is written behind."""

from hypothesis import given
from hypothesis import strategies as st

from serving.parking_plan import BEHIND_S, MARGIN_BYTES, Quiet, behind, gives_way, memory_budget

GIB = 2**30


def test_memory_for_states_is_what_was_asked_for_or_what_the_slice_has_left() -> None:
    assert memory_budget(GIB, 4 * GIB, GIB) == GIB
    assert memory_budget(2 * GIB, 2 * GIB, GIB) == GIB - MARGIN_BYTES
    assert memory_budget(GIB, GIB, GIB) == 0


def test_the_longest_unused_gives_way_until_the_rest_fits() -> None:
    sizes = {"old": 10, "middle": 10, "young": 10}
    assert gives_way(sizes, 30) == ()
    assert gives_way(sizes, 29) == ("old",)
    assert gives_way(sizes, 30, coming=11) == ("old", "middle")
    assert gives_way(sizes, 0, least=1) == ("old", "middle")


@given(
    st.dictionaries(st.text(max_size=3), st.integers(0, 100), max_size=8),
    st.integers(0, 300),
    st.integers(0, 50),
)
def test_what_stays_fits_and_nobody_goes_in_vain(sizes: dict[str, int], budget: int, coming: int) -> None:
    gone = gives_way(sizes, budget, coming)
    names = list(sizes)
    assert list(gone) == names[: len(gone)]
    stays = sum(sizes.values()) - sum(sizes[name] for name in gone) + coming
    assert stays <= budget or len(gone) == len(names)
    assert not gone or stays + sizes[gone[-1]] > budget


def test_a_resident_is_written_behind_after_its_hold_and_then_once_a_minute() -> None:
    assert behind([Quiet("ann", 0.0, None)], 10.0, 9.0) == ((), 10.0)
    assert behind([Quiet("ann", 0.0, None)], 10.0, 10.0) == (("ann",), None)
    assert behind([Quiet("ann", 20.0, 10.0)], 10.0, 30.0) == ((), 10.0 + BEHIND_S)
    assert behind([Quiet("ann", 20.0, 10.0), Quiet("ben", 25.0, None)], 10.0, 35.0) == (("ben",), 70.0)
    assert behind([], 10.0, 35.0) == ((), None)
