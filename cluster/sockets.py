"""Connections between machines that go on soon after a cut. Sets options; opens and closes nothing."""

import contextlib
import socket
import sys
from typing import Any

RETRY_MS = 1000
"""The longest time after which what was not acknowledged is sent again: the least that Linux takes. By default it
doubles with each try, so that a cut of ten seconds may hold a stream for ten more."""
LASTS_MS = 600_000
"""How long a connection is kept over which nothing comes through. Linux would otherwise count the tries, and give up
after some 15 s of such short ones."""

TCP_USER_TIMEOUT = 18
TCP_RTO_MAX_MS = 44
"""Linux 6.15 and newer."""


def recover_soon(made: socket.socket) -> socket.socket:
    """Let a TCP connection go on within about a second once its network is back; a listener's connections have it too.

    Nothing changes where the kernel cannot do it. Returns the socket.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            made.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS, RETRY_MS)
            made.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, LASTS_MS)
    return made


def connecting(address: tuple[Any, ...]) -> socket.socket:
    """A socket to connect with, for aiohttp: (family, kind, protocol, name, address)."""
    family, kind, protocol, *_ = address
    return recover_soon(socket.socket(family, kind, protocol))
