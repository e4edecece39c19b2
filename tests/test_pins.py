"""Pins: what one is, and which of two holds."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.pins import Pin, is_session, merge, pin_from_json

SESSION = "ab" * 32
PIN = Pin(SESSION, "smollm2", "den/0", 1, 100.0)


def test_the_higher_generation_wins() -> None:
    moved = replace(PIN, replica="attic/0", generation=2, created_s=900.0)
    assert merge(PIN, moved) == merge(moved, PIN) == moved


def test_twins_of_one_generation_go_to_the_earlier() -> None:
    twin = replace(PIN, replica="attic/0", created_s=99.0)
    assert merge(PIN, twin) == twin


def test_twins_of_one_moment_go_to_the_first_name() -> None:
    twin = replace(PIN, replica="attic/0")
    assert merge(PIN, twin) == merge(twin, PIN) == twin


def test_pins_of_different_sessions_or_models_do_not_merge() -> None:
    for other in (replace(PIN, session="cd" * 32), replace(PIN, model="other")):
        with pytest.raises(ValueError, match="do not merge"):
            merge(PIN, other)


def test_a_pin_survives_json() -> None:
    assert pin_from_json(PIN.to_json()) == PIN


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("session", "short"),
        ("session", None),
        ("generation", 0),
        ("generation", True),
        ("generation", "1"),
        ("created_s", None),
        ("created_s", True),
        ("replica", 3),
    ],
)
def test_a_broken_pin_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match="pin"):
        pin_from_json({**PIN.to_json(), key: value})


def test_a_session_is_a_lower_case_digest() -> None:
    assert is_session(SESSION)
    assert not is_session(SESSION.upper())
    assert not is_session(SESSION + "\n")


pins = st.builds(
    Pin,
    session=st.just(SESSION),
    model=st.just("smollm2"),
    replica=st.sampled_from(["attic/0", "den/0", "den/1"]),
    generation=st.integers(1, 3),
    created_s=st.sampled_from([1.0, 2.0]),
)


@given(pins, pins, pins)
def test_merging_agrees_whatever_the_order(a: Pin, b: Pin, c: Pin) -> None:
    assert merge(a, b) == merge(b, a)
    assert merge(a, a) == a
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
