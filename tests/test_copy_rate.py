"""How fast files may be copied, and which bytes of one were asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.copy_rate import CopyRate, NoSuchBytes, byte_range


def test_without_a_limit_nothing_waits() -> None:
    rate = CopyRate(None)
    assert (rate.after(10**9, 1.0), rate.piece(1024)) == (0.0, 1024)


@given(st.integers(1, 10**6), st.lists(st.integers(1, 10**6), min_size=1, max_size=20))
def test_who_waits_as_told_stays_below_the_rate_but_for_the_first_piece(
    bytes_s: int, pieces: list[int]
) -> None:
    rate, now, sent = CopyRate(bytes_s), 5.0, 0
    for piece in pieces:
        assert sent <= bytes_s * (now - 5.0) * 1.000001
        now += rate.after(piece, now)
        sent += piece


def test_a_pause_saves_nothing_up() -> None:
    rate = CopyRate(100)
    assert rate.after(100, 0.0) == 1.0
    assert rate.after(100, 60.0) == 1.0


def test_two_that_share_a_rate_are_together_below_it() -> None:
    rate = CopyRate(100)
    assert (rate.after(100, 0.0), rate.after(100, 0.0)) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (None, None),
        ("bytes=0-", (0, 10)),
        ("bytes=4-", (4, 10)),
        ("bytes=4-5", (4, 6)),
        ("bytes=4-99999", (4, 10)),
        ("bytes = 4 - 5", (4, 6)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("bytes=5-4", None),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("bytes=a-b", None),
        ("chunks=1-2", None),
        ("bytes=1-2" + "0" * 40, None),
    ],
)
def test_ranges(header: str | None, found: tuple[int, int] | None) -> None:
    assert byte_range(header, 10) == found


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=11-12", "bytes=-0", "bytes=9999999999999999999-"])
def test_a_range_beyond_the_end_is_no_range(header: str) -> None:
    with pytest.raises(NoSuchBytes):
        byte_range(header, 10)
