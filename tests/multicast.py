"""Multicast on this machine's loopback, for tests: real announcements that leave it at no time."""

import asyncio
import contextlib
import functools
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from cluster import mdns
from cluster.announced import Announced

LOOPBACK = "127.0.0.1"
GROUP = "224.0.0.251"


@functools.cache
def missing() -> str | None:
    """Why there is none here; None where there is."""
    member = struct.pack("4s4s", socket.inet_aton(GROUP), socket.inet_aton(LOOPBACK))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hears:
        try:
            hears.bind(("", 0))
            hears.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
            hears.settimeout(1.0)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as says:
                says.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK))
                says.sendto(b"?", (GROUP, hears.getsockname()[1]))
            hears.recv(1)
        except OSError as error:
            return f"no multicast on loopback here: {error}"
    return None


def needs_multicast() -> None:
    if (why := missing()) is not None:
        pytest.skip(why)


@contextlib.contextmanager
def announces(*heads: Announced) -> Iterator[None]:
    """These heads are announced, by a thread of its own."""
    is_said, is_enough = threading.Event(), threading.Event()

    async def say() -> None:
        async with contextlib.AsyncExitStack() as said:
            for head in heads:
                await said.enter_async_context(mdns.announced(head))
            is_said.set()
            await asyncio.to_thread(is_enough.wait)

    thread = threading.Thread(target=asyncio.run, args=(say(),))
    thread.start()
    try:
        assert is_said.wait(10.0)
        yield
    finally:
        is_enough.set()
        thread.join()
