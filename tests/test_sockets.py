"""Connections that go on soon after a cut; how soon is measured in tests/cluster/test_cuts.py."""

import socket
import sys

import aiohttp
import pytest

from cluster.sockets import LASTS_MS, RETRY_MS, TCP_RTO_MAX_MS, TCP_USER_TIMEOUT, connecting, recover_soon


def options(made: socket.socket) -> tuple[int, int]:
    try:
        longest = made.getsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS)
    except OSError:
        pytest.skip("this kernel is older than 6.15: it cannot try again so soon")
    return longest, made.getsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be told")
async def test_both_ends_of_a_connection_try_again_within_a_second() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        recover_soon(listener).listen()
        address = listener.getsockname()
        connector = aiohttp.TCPConnector(socket_factory=connecting)
        async with aiohttp.ClientSession(connector=connector) as client:
            with pytest.raises(TimeoutError):
                async with client.get(f"http://127.0.0.1:{address[1]}/", timeout=aiohttp.ClientTimeout(0.2)):
                    pass
        accepted, _ = listener.accept()
        with accepted, connecting((socket.AF_INET, socket.SOCK_STREAM, 0, "", address)) as made:
            assert options(accepted) == options(made) == (RETRY_MS, LASTS_MS)


def test_a_socket_that_cannot_be_told_is_returned_as_it_is() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert recover_soon(one) is one
