import asyncio
from pathlib import Path

import pytest

from serving.engine import Usage
from serving.rates import Pace, Rates, rate_of
from tests.fakes import Behaviour
from tests.turn_desk import Desk

USAGE = Usage(prompt=200, reused=100, evaluated=100, generated=21)


def pace(alone: bool = True) -> Pace:
    """100 tokens of a prompt in 2 s, then 20 tokens in 4 s, the first one came before them."""
    made = Pace(began_s=10.0, alone=alone)
    made.text(12.0, 1)
    made.text(14.0, 11)
    made.text(16.0, 21)
    return made


def test_decoding_counts_from_the_first_text_and_prefill_up_to_it() -> None:
    found = rate_of(pace(), USAGE, 21)
    assert found is not None
    assert (found.decode_per_s, found.prefill_per_s) == (5.0, 50.0)
    assert (found.depth, found.prompt) == (210, 100)


def test_a_turn_that_shared_the_engine_or_was_too_short_says_nothing() -> None:
    assert rate_of(pace(alone=False), USAGE, 21) is None
    assert rate_of(Pace(), USAGE, 0) is None, "it never began"
    assert rate_of(pace(), Usage(prompt=20, reused=0, evaluated=20, generated=5), 5) is None
    few = rate_of(pace(), Usage(prompt=20, reused=0, evaluated=20, generated=21), 21)
    assert few is not None
    assert (few.decode_per_s, few.prefill_per_s) == (5.0, None), "20 tokens of a prompt are too few"


def test_the_median_is_told() -> None:
    rates = Rates()
    assert rates.report() == {
        "decode_per_s": None,
        "depth": None,
        "prefill_per_s": None,
        "prompt": None,
        "turns": 0,
    }
    for seen in (11, 21, 41):
        rates.note(rate_of(pace(), Usage(30, 0, 30, seen), seen))
    rates.note(None)
    told = rates.report()
    assert (told["decode_per_s"], told["prefill_per_s"], told["turns"]) == (5.0, None, 3)
    assert told["depth"] == 40


async def test_turns_tell_how_fast_they_were_alone_only(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Behaviour(sequences=3, step_s=0.01))
    try:
        await desk.turn("a" * 64, "a" * 80)
        alone = desk.turns.rates.report()
        assert alone["turns"] == 1
        assert alone["prompt"] == 80
        assert 0 < alone["decode_per_s"] <= 100.0, "it makes a token in 10 ms at least"
        await asyncio.gather(desk.turn("b" * 64, "b" * 80), desk.turn("c" * 64, "c" * 80))
        assert desk.turns.rates.report() == alone
    finally:
        await desk.close()


@pytest.mark.parametrize("seen", [0, 3])
def test_text_without_a_beginning_is_no_fault(seen: int) -> None:
    made = Pace()
    made.text(1.0, seen)
    assert rate_of(made, Usage(100, 0, 100, seen), seen) is None
