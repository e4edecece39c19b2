"""Announcements that are really made and heard, on loopback."""

import socket
import time
from dataclasses import replace

import pytest
import zeroconf

from cluster import mdns
from cluster.announced import Announced
from tests.multicast import LOOPBACK, announces, needs_multicast

HEAD = Announced(LOOPBACK, 18090, "den", "mdns" + "a" * 39)
"""Tests that run beside these say other things on the same loopback."""
SEARCH_S = 3.0


def heard(fingerprint: str | None, seconds: float = SEARCH_S) -> list[Announced]:
    return [head for head in mdns.search(fingerprint, seconds) if head.port in (HEAD.port, HEAD.port + 1)]


def test_a_head_is_heard_of_for_as_long_as_it_is_announced() -> None:
    needs_multicast()
    with announces(HEAD):
        began = time.monotonic()
        assert heard(HEAD.fingerprint) == [HEAD]
        assert time.monotonic() - began < SEARCH_S / 2, "it was searched for on"
    assert heard(HEAD.fingerprint, 1.0) == []


def test_heads_that_the_token_is_not_of_do_not_end_the_search() -> None:
    needs_multicast()
    in_clear = replace(HEAD, port=HEAD.port + 1, name="shed", fingerprint=None)
    with announces(HEAD, in_clear):
        for fingerprint in (None, "mdns" + "b" * 39):
            began = time.monotonic()
            assert sorted(heard(fingerprint, 1.0), key=lambda head: head.port) == [HEAD, in_clear]
            assert time.monotonic() - began >= 1.0


def test_a_machine_whose_port_is_anothers_alone_cannot_search(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as alone:
        alone.bind(("", 0))
        port = alone.getsockname()[1]

        def new_socket(*_: object, **__: object) -> socket.socket:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as refused:
                refused.bind(("", port))
            raise AssertionError("the port is free")

        monkeypatch.setattr("zeroconf._utils.net.new_socket", new_socket)
        with pytest.raises(mdns.CannotSearch, match="Address already in use"):
            mdns.search(None, 1.0)


def test_what_the_library_refuses_is_a_search_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise zeroconf.NotRunningException

    monkeypatch.setattr("zeroconf.asyncio.Zeroconf", refuse)
    with pytest.raises(mdns.CannotSearch, match="NotRunningException"):
        mdns.search(None, 1.0)
