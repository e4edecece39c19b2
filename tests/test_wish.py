"""serving/wish.py: what somebody wants to run, in words."""

import pytest

from serving.wish import BITS, Wish, WishError, parse


def test_the_words_of_a_wish() -> None:
    assert parse("32B at Q4, 16k context, 2 sessions, 20 tokens/s") == Wish(
        32e9, 32e9, BITS["Q4"], 16384, 2, 20.0
    )
    assert parse("8b") == Wish(8e9, 8e9), "the rest is as usual"


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("270M, F16", Wish(270e6, 270e6, 16.0)),
        ("30B-A3B with Q4_K_M", Wish(30e9, 3e9, BITS["Q4"])),
        ("7B and 4 bits", Wish(7e9, 7e9, 4.0)),
        ("7B at Q8_0, context of 4096 tokens", Wish(7e9, 7e9, 8.5, 4096)),
        ("7B, 32k tokens of context, 1 chat", Wish(7e9, 7e9, BITS["Q4"], 32768)),
        ("7B, 12.5 tok/s each", Wish(7e9, 7e9, decode_per_s=12.5)),
        (
            "7B; 500 tokens/s prefill; 8 tokens per second",
            Wish(7e9, 7e9, decode_per_s=8.0, prefill_per_s=500.0),
        ),
        ("7B, prompts at 300 tokens/s", Wish(7e9, 7e9, prefill_per_s=300.0)),
    ],
)
def test_many_ways_to_say_it(text: str, wish: Wish) -> None:
    assert parse(text) == wish


@pytest.mark.parametrize("text", ["32B, blue", "32B at Q77", "7B, context", "7B, 8B"])
def test_unknown_words_are_answered_with_known_ones(text: str) -> None:
    with pytest.raises(
        WishError, match=r"is not understood. What is: a size \(32B, .*For example: 32B at Q4"
    ):
        parse(text)


def test_a_wish_without_a_size_or_with_nothing_is_refused() -> None:
    with pytest.raises(WishError, match="names no size of a model"):
        parse("fast, please")
    with pytest.raises(WishError, match="more parameters are used than there are"):
        parse("3B-A30B")
    with pytest.raises(WishError, match="more than 0"):
        parse("7B, 0 sessions")
