"""Which pages of other sites are listed, and what their browsers are told."""

import pytest

from router.cors import ANY, HEADERS, answered, is_listed, preflight

CHAT = b"https://chat.example.com"
LISTED = frozenset({CHAT, b"http://localhost:3000", b"app://obsidian.md"})


@pytest.mark.parametrize("origin", [*sorted(LISTED), b"HTTPS://Chat.Example.com"])
def test_an_origin_that_is_listed_is_itself_in_any_case(origin: bytes) -> None:
    assert is_listed(origin, LISTED)
    assert not is_listed(origin, frozenset())


@pytest.mark.parametrize(
    "origin",
    [
        b"http://chat.example.com",
        b"https://chat.example.com:8443",
        b"https://chat.example.com.evil.example",
        b"https://evil.example/https://chat.example.com",
        b"https://evil-chat.example.com",
        b"http://localhost",
        b"null",
        b"",
        ANY,
    ],
)
def test_no_other_origin_is(origin: bytes) -> None:
    assert not is_listed(origin, LISTED)


@pytest.mark.parametrize("origin", [CHAT, b"null", b"http://evil.example"])
def test_a_star_lists_all(origin: bytes) -> None:
    assert is_listed(origin, frozenset({ANY}))


def test_an_answer_is_for_its_origin_alone_and_shows_what_homeport_says() -> None:
    told = answered(CHAT, LISTED)
    assert told[b"access-control-allow-origin"] == CHAT
    assert told[b"vary"] == b"origin"
    shown = told[b"access-control-expose-headers"].split(b", ")
    assert {b"x-request-id", b"x-homeport-session", b"x-homeport-replica", b"retry-after"} <= set(shown)
    assert b"access-control-allow-credentials" not in told, "keys are sent by hand, never by the browser"


@pytest.mark.parametrize("origin", [None, b"https://evil.example"])
def test_an_answer_for_others_is_not_kept_for_a_listed_page(origin: bytes | None) -> None:
    assert answered(origin, LISTED) == {b"vary": b"origin"}


def test_a_browser_that_asks_beforehand_gets_what_it_asks_for() -> None:
    asked = [
        (b"access-control-request-method", b"POST"),
        (b"access-control-request-headers", b"authorization,x-stainless-os"),
    ]
    told = preflight(asked) or {}
    assert told[b"access-control-allow-headers"] == b"authorization,x-stainless-os"
    assert b"POST" in told[b"access-control-allow-methods"].split(b", ")
    assert int(told[b"access-control-max-age"]) > 0
    assert b"access-control-allow-private-network" not in told


def test_one_that_names_no_headers_is_told_the_usual_ones() -> None:
    told = preflight([(b"access-control-request-method", b"GET")]) or {}
    assert told[b"access-control-allow-headers"] == HEADERS


def test_one_that_asks_for_this_network_is_let_in() -> None:
    asked = [
        (b"access-control-request-method", b"POST"),
        (b"access-control-request-private-network", b"true"),
    ]
    assert (preflight(asked) or {})[b"access-control-allow-private-network"] == b"true"


def test_options_alone_is_no_such_question() -> None:
    assert preflight([(b"access-control-request-headers", b"authorization")]) is None
