"""What the router reads of a request: its path, its head, the model and what names its session."""

import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decision import Ask, Send
from router.errors import Rejected
from router.keys import Key
from router.offers import split_model
from router.request import (
    Address,
    Who,
    host_headers,
    read_address,
    read_head,
    read_policy,
    read_zone,
    with_model,
)
from serving.routing import read_ask


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("/v1/models", Address("/v1/models")),
        ("/s/tea/v1/models", Address("/v1/models", "tea")),
        ("/m/den/v1/models", Address("/v1/models", None, "den")),
        ("/m/den/s/tea/v1/models", Address("/v1/models", "tea", "den")),
        ("/s/tea/m/den/v1/models", Address("/v1/models", "tea", "den")),
        ("/s/a%2Fb%20c/v1/models", Address("/v1/models", "a/b c")),
        ("/s/m/v1/models", Address("/v1/models", "m")),
        ("/s/a/s/b/v1/models", Address("/s/b/v1/models", "a")),
        ("/s/tea", Address("/s/tea")),
        ("/s//v1/models", Address("/v1/models", "")),
        ("/sessions", Address("/sessions")),
    ],
)
def test_a_path_is_read_with_what_stands_before_it(path: str, address: Address) -> None:
    from_wire = {"path": path, "raw_path": path.encode()}
    assert read_address(from_wire) == address


@given(st.text(min_size=1), st.text(min_size=1))
def test_any_name_comes_through_a_path(session: str, machine: str) -> None:
    raw = f"/s/{quote(session, safe='')}/m/{quote(machine, safe='')}/v1/models"
    found = read_address({"path": f"/s/{session}/m/{machine}/v1/models", "raw_path": raw.encode()})
    assert found == Address("/v1/models", session, machine)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("tiny", ("tiny", None)),
        ("tiny@den", ("tiny", "den")),
        ("tiny@", ("tiny@", None)),
        ("@den", ("@den", None)),
        ("tiny@den@attic", ("tiny", "den@attic")),
    ],
)
def test_a_model_may_name_a_machine(name: str, parts: tuple[str, str | None]) -> None:
    assert split_model(name) == parts


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.booleans())))
def test_another_model_changes_nothing_else(fields: dict[str, object]) -> None:
    body = json.dumps({**fields, "model": "tiny@den"}).encode()
    assert json.loads(with_model(body, "tiny")) == {**fields, "model": "tiny"}


def test_numbers_keep_their_digits() -> None:
    body = b'{"seed": 123456789012345678901234567890, "x": 1.50, "model": "a@b"}'
    assert with_model(body, "a") == b'{"seed":123456789012345678901234567890,"x":1.50,"model":"a"}'


def test_placing_headers_are_checked() -> None:
    head = read_head([(b"x-homeport-when-lost", b"Move"), (b"x-homeport-zone", b"")], lambda: "id")
    with pytest.raises(Rejected) as refused:
        read_policy(head, "wait")
    assert (refused.value.error.status, refused.value.error.code) == (400, "invalid_value")
    with pytest.raises(Rejected) as refused:
        read_zone(head)
    assert (refused.value.error.status, refused.value.error.code) == (400, "invalid_value")
    plain = read_head([(b"x-homeport-when-lost", b"move"), (b"x-homeport-zone", b"home")], lambda: "id")
    assert (read_policy(plain, "fail"), read_zone(plain)) == ("move", "home")
    assert read_policy(read_head([], lambda: "id"), "fail") == "fail"


def test_what_the_host_is_told_is_what_it_reads() -> None:
    key = Key("anna", places=2, weight=0.0001)
    ask = Ask("tiny", "ab" * 32, "r1", key=key, rank="guessed", family="cd" * 32)
    who = Who("hp_" + "0" * 24, "ee" * 32, ("11" * 32, "22" * 32))
    to = Send("den/0", 3, 2, "moved", claim_free=True)
    headers = host_headers(ask, to, who, "Bearer x", 1.5)
    read = read_ask(dict(line.split(": ", 1) for line in headers.splitlines()), "")
    assert (read.session, read.generation, read.pin, read.claim_free) == ("ab" * 32, 2, "moved", True)
    assert (read.rank, read.history, read.continues) == ("guessed", who.history, who.continues)
    assert (read.parent, read.public) == (ask.family, who.public)
    assert (read.places, read.weight, read.queue_left_s) == (2, 0.001, 1.5)


def test_a_named_session_tells_no_history() -> None:
    ask = Ask("tiny", "ab" * 32, "r1")
    headers = host_headers(ask, Send("den/0", 3, 1, "kept", False), Who("hp_x"), "Bearer x", 1.5)
    assert not [word for word in ("history", "rank", "weight") if word in headers]
