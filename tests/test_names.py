"""By which names the router may be called: DNS rebinding and pages of other sites stay outside."""

import pytest

from router.names import Names, may_come_from, may_name

LOOPBACK = Names("127.0.0.1", "den-pc.lan", ("ai.home.lan",))
OPEN = Names("0.0.0.0", "Den-PC.lan", ("ai.home.lan",))


@pytest.mark.parametrize(
    "host",
    [b"localhost", b"localhost:8000", b"127.0.0.1:8000", b"127.8.9.1", b"[::1]:8000", b"[::1]", b"LOCALHOST"],
)
def test_loopback_names_always_do(host: bytes) -> None:
    assert may_name(host, LOOPBACK)
    assert may_name(host, OPEN)
    assert may_come_from(b"http://" + host, OPEN)


@pytest.mark.parametrize("host", [b"ai.home.lan", b"AI.home.lan:8000", b"ai.home.lan."])
def test_names_of_the_config_always_do(host: bytes) -> None:
    assert may_name(host, LOOPBACK)
    assert may_name(host, OPEN)


@pytest.mark.parametrize(
    "host",
    [b"192.168.1.5:8000", b"[fe80::1]:8000", b"10.0.0.1", b"den-pc.lan", b"den-pc", b"DEN-pc.local:80"],
)
def test_addresses_and_its_own_name_do_only_while_it_listens_for_others(host: bytes) -> None:
    assert not may_name(host, LOOPBACK)
    assert may_name(host, OPEN)
    assert may_come_from(b"https://" + host, OPEN)


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b":8000",
        b"evil.example",
        b"evil.example:8000",
        b"localhost.evil.example",
        b"den-pc.evil.example",
        b"[::1",
        b"127.0.0.1.evil.example",
        b"\xff",
        b"localhost@evil.example",
        b"0x7f.1",
    ],
)
def test_no_other_name_does(host: bytes) -> None:
    assert not may_name(host, LOOPBACK)
    assert not may_name(host, OPEN)
    assert not may_name(host, Names("0.0.0.0"))


@pytest.mark.parametrize(
    "origin", [b"null", b"", b"file://", b"ftp://localhost", b"http://evil.example", b"localhost"]
)
def test_a_page_of_another_site_does_not(origin: bytes) -> None:
    assert not may_come_from(origin, OPEN)
