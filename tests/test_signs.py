"""What a waiting client is told."""

from serving.openai_wire import PromptProgress
from serving.signs import Prefill, waiting


def test_the_line_is_told_with_place_and_time() -> None:
    assert waiting(2, 40.4) == "waiting, place 2 in the line, about 40 s"
    assert waiting(1, 0.2) == "waiting, place 1 in the line, about 1 s"


def test_what_is_not_known_is_not_told() -> None:
    assert waiting(1, None) == "waiting, place 1 in the line"
    assert waiting(0, None) == "waiting"


def test_a_prompt_is_told_as_it_grows() -> None:
    prefill = Prefill(4000)
    assert prefill.word() == "getting the context"
    prefill.began(1000, now=50.0)
    assert prefill.progress(50.0) == PromptProgress(total=4000, cache=1000, processed=1000, time_ms=0)
    assert prefill.word() == "evaluating 1000 of 4000 tokens"
    assert prefill.evaluated(1200)
    assert prefill.word() == "evaluating 1200 of 4000 tokens"
    assert prefill.progress(50.25) == PromptProgress(total=4000, cache=1000, processed=1200, time_ms=250)
    assert prefill.evaluated(4000)
    assert prefill.word() == "answering"


def test_what_an_aborted_decode_took_back_is_not_told_anew() -> None:
    prefill = Prefill(100)
    prefill.began(0, now=0.0)
    assert prefill.evaluated(64)
    assert not prefill.evaluated(32)
    assert not prefill.evaluated(64)
    assert prefill.evaluated(96)
