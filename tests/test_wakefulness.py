"""While a lease is held the machine is kept awake, and for a moment after: the decision."""

from hypothesis import given
from hypothesis import strategies as st

from serving.wakefulness import LINGER_S, Wakefulness, step


def test_a_lease_keeps_it_awake_without_an_end() -> None:
    assert step(Wakefulness(), True, 10.0) == Wakefulness(True)


def test_after_the_last_lease_it_stays_awake_for_a_moment() -> None:
    after = step(Wakefulness(True), False, 10.0)
    assert after == Wakefulness(True, 10.0 + LINGER_S)
    assert step(after, False, 10.5) == after
    assert step(after, False, 10.0 + LINGER_S) == Wakefulness()


def test_a_turn_that_follows_at_once_goes_on_with_what_is_held() -> None:
    after = step(Wakefulness(True), False, 10.0)
    assert step(after, True, 10.5) == Wakefulness(True)


def test_without_leases_nothing_begins() -> None:
    assert step(Wakefulness(), False, 10.0) == Wakefulness()


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 3.0)), max_size=30))
def test_it_is_held_whenever_a_lease_is_and_never_for_longer_than_a_moment_after(
    events: list[tuple[bool, float]],
) -> None:
    state, now, last = Wakefulness(), 0.0, None
    for has_leases, later_s in events:
        now += later_s
        state = step(state, has_leases, now)
        if has_leases:
            last = now
            assert state.held
        else:
            # Called again at `until_s`, as the host's alarm does.
            if state.until_s is not None:
                assert last is not None
                assert now < state.until_s
                assert not step(state, False, state.until_s).held
            assert not state.held or state.until_s is not None
