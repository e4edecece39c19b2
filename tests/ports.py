"""Ports for what tests start: above those that Linux gives to clients, each of the workers its own part of them."""

import itertools
import os
import random
import socket

FIRST, EACH, WORKERS = 61000, 560, 8

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
_next = itertools.count(random.randrange(EACH))


def free_port() -> int:
    """One on which nobody listens, and which is told to nobody else for a while."""
    for _ in range(EACH):
        port = FIRST + EACH * _worker + next(_next) % EACH
        if is_free(port):
            return port
    raise AssertionError("no free port")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
