"""What the relay reads in a host's bytes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.reading import (
    HELD_BYTES,
    before_answer,
    code_of,
    last_code,
    read_disagreement,
    whole_events,
)

SESSION = "ab" * 32


@given(st.lists(st.sampled_from([b"a", b"\n", b"\n\n", b"data: x\n\n", b": c\n\n"])).map(b"".join))
def test_no_byte_is_changed_lost_or_moved(data: bytes) -> None:
    whole, rest = whole_events(data)
    assert whole + rest == data
    assert not whole or whole.endswith(b"\n\n")
    assert b"\n\n" not in rest


@given(st.lists(st.binary(max_size=5)))
def test_pieces_come_out_as_they_went_in(pieces: list[bytes]) -> None:
    out = held = b""
    for piece in pieces:
        whole, held = whole_events(held + piece)
        out += whole
    assert out + held == b"".join(pieces)


def test_an_endless_event_is_not_held_back_for_ever() -> None:
    assert whole_events(b"x" * HELD_BYTES) == (b"", b"x" * HELD_BYTES)
    assert whole_events(b"x" * (HELD_BYTES + 1)) == (b"x" * (HELD_BYTES + 1), b"")
    long = b"data: a\n\n" + b"x" * (HELD_BYTES + 1)
    assert whole_events(long) == (long, b"")


@pytest.mark.parametrize(
    ("chunk", "before"),
    [
        (b": waiting\n\n", True),
        (b"\n", True),
        (b": a\n\n: b\n\n", True),
        (b": a\n\ndata: {}\n\n", False),
        (b'data: {"choices":[],"prompt_progress":{"total":9}}\n\n', True),
        (b'data: {"delta":{"content":"\\"prompt_progress\\":1"}}\n\n', False),
    ],
)
def test_what_comes_before_an_answer_is_told_from_it(chunk: bytes, before: bool) -> None:
    assert before_answer(chunk) is before


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"error": {"code": "queue_timeout"}}', "queue_timeout"),
        (b'{"error": {"code": "something a client made up"}}', "host_error"),
        (b'{"error": {"code": null}}', "host_error"),
        (b'{"error": {"code": []}}', "host_error"),
        (b'{"error": "text"}', None),
        (b"Internal Server Error", None),
        (b"\xff", None),
        (b"[]", None),
    ],
)
def test_only_known_codes_become_outcomes(body: bytes, code: str | None) -> None:
    assert code_of(body) == code


def test_the_last_event_tells_why_a_stream_ended() -> None:
    ended = b'data: {"choices": []}\n\ndata: {"error": {"code": "host_stopping"}}\n\n'
    assert last_code(ended) == "host_stopping"
    assert last_code(b'data: {"choices": []}\n\n') == "host_error"
    assert last_code(b"") == "host_error"


def test_a_disagreement_brings_the_hosts_pin() -> None:
    pin = {"session": SESSION, "model": "tiny", "replica": "den/0", "generation": 2, "created_s": 1.0}
    told = read_disagreement(json.dumps({"homeport": {"reason": "generation", "pin": pin}}).encode())
    assert told.reason == "generation"
    assert told.pin is not None
    assert told.pin.generation == 2


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"nonsense", b'{"homeport": 7}', b'{"homeport": {"pin": {"session": "short"}}}']
)
def test_a_disagreement_that_cannot_be_read_brings_no_pin(body: bytes) -> None:
    assert read_disagreement(body).pin is None
