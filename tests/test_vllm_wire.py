"""What is said to vLLM for a turn, and what of its stream is read."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engine import Sampling, Turn
from serving.vllm_wire import (
    Found,
    Logprobs,
    Split,
    chunks,
    found,
    is_clients,
    request,
    sampled,
    unfit,
    words,
)

GREEDY = Sampling(temperature=0.0)


def turn(**more: object) -> Turn:
    fields = {"id": 1, "sequence": 0, "prompt": (1, 2, 3), "max_tokens": 5, "sampling": GREEDY, **more}
    return Turn(**fields)  # type: ignore[arg-type]


def test_a_turn_asks_for_tokens_as_ids_and_for_a_stream_with_its_usage() -> None:
    body = request(turn(), 100, (7, 8), "salt")
    assert body["prompt"] == (1, 2, 3)
    assert body["stop_token_ids"] == (7, 8)
    assert body["cache_salt"] == "salt"
    assert body["stream"]
    assert body["stream_options"] == {"include_usage": True}
    assert body["return_token_ids"]
    assert not {"seed", "logit_bias", "logprobs", "structured_outputs"} & body.keys()


def test_what_was_asked_for_is_passed_on() -> None:
    how = Sampling(0.5, 0.9, 3, 0.1, 1.0, 1.1, 0.2, 0.3, ((5, -1.0),), 42)
    body = request(
        turn(sampling=how, logprobs=2, constraint="start: /a/", choices=2, special=True), 100, (), "s"
    )
    told = {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1, "seed": 42}
    assert told.items() <= body.items()
    assert body["logit_bias"] == {"5": -1.0}
    assert (body["presence_penalty"], body["frequency_penalty"]) == (0.2, 0.3)
    assert body["structured_outputs"] == {"grammar": "start: /a/"}
    assert (body["n"], body["logprobs"], body["return_tokens_as_token_ids"]) == (2, 2, True)
    assert not body["skip_special_tokens"]


def test_several_greedy_answers_are_asked_for_in_a_way_that_it_takes() -> None:
    body = request(turn(choices=2), 100, (), "s")
    assert (body["temperature"], body["top_k"]) == (1.0, 1)
    assert request(turn(), 100, (), "s")["temperature"] == 0


@pytest.mark.parametrize(("asked", "most"), [(None, 97), (5, 5), (1000, 97)])
def test_an_answer_ends_with_the_context(asked: int | None, most: int) -> None:
    assert request(turn(max_tokens=asked), 100, (), "s")["max_tokens"] == most


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"prompt": tuple(range(100))}, "does not fit"),
        ({"prompt": ()}, "does not fit"),
        ({"choices": 0}, "at least one answer"),
        ({"sampling": Sampling(typical_p=0.5)}, "typical_p"),
        ({"logprobs": 21}, "at most 20"),
    ],
)
def test_what_cannot_be_answered_is_said(more: dict[str, object], said: str) -> None:
    assert said in (unfit(turn(**more), 100) or "")
    assert unfit(turn(), 100) is None


@given(st.lists(st.integers(1, 30), max_size=12))
def test_events_are_read_however_the_bytes_are_cut(cuts: list[int]) -> None:
    events = [{"choices": [{"index": 0, "text": text, "token_ids": [1]}]} for text in ("a", "ä🙂", "\n\n")]
    stream = (
        b"".join(b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events) + b"data: [DONE]\n\n"
    )
    split, read = Split(), list[bytes]()
    for size in (*cuts, len(stream)):
        read += split.push(stream[:size])
        stream = stream[size:]
    assert read.pop() == b"[DONE]"
    assert [chunks.decode(each).choices[0].text for each in read] == ["a", "ä🙂", "\n\n"]


def test_log_probabilities_are_told_by_token() -> None:
    told = Logprobs(
        ["token_id:65"], [-0.5], [{"token_id:66": -0.1, "token_id:65": -0.5, "token_id:67": -3.0}]
    )
    (only,) = sampled(told, 2, lambda token: bytes([token]))
    assert (only.chosen.token, only.chosen.piece, only.chosen.logprob) == (65, b"A", -0.5)
    assert [each.token for each in only.top] == [66, 65]
    assert sampled(told, 0, lambda _: b"")[0].top == ()


@pytest.mark.parametrize(
    ("kept", "prompt", "reused", "there"),
    [
        (range(100), range(120), 96, Found(96, 0, whole=True)),  # all whole blocks of it
        (range(97), range(120), 96, Found(96, 0, whole=True)),  # of the last token made nothing is kept
        (range(20), range(30), 0, Found(0, 0, whole=False)),  # shorter than a block: nothing was kept
        (range(100), range(120), 0, Found(0, 0, whole=False)),  # dropped
        (range(100), range(120), 64, Found(0, 64, whole=False)),  # dropped in part, or a neighbour's
        (range(100), [*range(50), *range(500, 560)], 32, Found(100, 0, whole=True)),  # edited
        (range(100), range(500, 560), 0, Found(100, 0, whole=False)),  # edited at its first token
        (range(65), range(65), 64, Found(64, 0, whole=True)),  # the same again
        ((), range(50), 32, Found(0, 32, whole=False)),  # a neighbour's beginning
    ],
)
def test_what_was_there_to_use_again_is_counted_in_blocks(
    kept: range, prompt: range, reused: int, there: Found
) -> None:
    assert found(tuple(kept), tuple(prompt), reused, 32) == there


def test_what_a_client_asked_wrongly_is_told_from_what_broke() -> None:
    assert [status for status in (400, 401, 404, 413, 422, 429, 500, 503) if is_clients(status)] == [
        400,
        413,
        422,
    ]


def test_its_words_are_short_and_on_one_line() -> None:
    assert words({"message": "a\n  b"}) == "a b"
    assert len(words({"message": "x" * 1000})) == 301
    assert words({}) == "it gave no reason"
