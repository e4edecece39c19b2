"""How soon a connection goes on after its network was away: the sockets of cluster/sockets.py beside plain ones."""

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster.sockets import RETRY_MS, TCP_RTO_MAX_MS, recover_soon
from tests.cluster.lab import Lab

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
CUT_S = 8.0
"""Tries that double are 0.2, 0.6, 1.4, 3, 6.2 and 12.6 s after the first."""
STREAMS = """
import socket, sys, threading, time
from cluster.sockets import recover_soon

def stream(to):
    try:
        while True:
            to.sendall(b"x")
            time.sleep(0.05)
    except OSError:
        pass

for port, make in ((7001, lambda s: s), (7002, recover_soon)):
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((sys.argv[1], port))
    make(listening).listen()
    def accept(listening=listening):
        while True:
            threading.Thread(target=stream, args=(listening.accept()[0],), daemon=True).start()
    threading.Thread(target=accept, daemon=True).start()
print("up", flush=True)
time.sleep(600)
"""


def can_recover_soon() -> bool:
    with recover_soon(socket.socket()) as made:
        try:
            return made.getsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS) == RETRY_MS
        except OSError:
            return False


class Reader(threading.Thread):
    """Reads a stream, and remembers when something of it came last."""

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self.connection = recover_soon(socket.create_connection(address, timeout=10.0))
        self.connection.settimeout(60.0)
        self.heard = threading.Event()
        self.start()

    def run(self) -> None:
        with self.connection:
            while self.connection.recv(65536):
                self.heard.set()

    def next_s(self, since: float, seconds: float) -> float:
        """How long after `since` (monotonic) something more comes."""
        self.heard.clear()
        assert self.heard.wait(seconds), f"nothing within {seconds} s"
        return time.monotonic() - since


@pytest.mark.skipif(
    not can_recover_soon(), reason="this kernel is older than 6.15: it cannot try again so soon"
)
def test_a_stream_goes_on_within_two_seconds_after_its_network_was_away(lab: Lab) -> None:
    tower = lab.add("tower", "home")
    tower.boot()
    with subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{tower.namespace}", sys.executable, "-c", STREAMS, tower.address],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"
        plain, soon = Reader((tower.address, 7001)), Reader((tower.address, 7002))
        for reader in (plain, soon):
            reader.next_s(time.monotonic(), 5.0)
        began = time.monotonic()
        tower.isolate(isolated=True)
        time.sleep(began + CUT_S - time.monotonic())
        tower.isolate(isolated=False)
        back = time.monotonic()
        soon_s = soon.next_s(back, 10.0)
        plain_s = plain.next_s(back, 30.0)
        print(
            f"  cut for {CUT_S:.0f} s: goes on after {soon_s:.1f} s, a plain connection after {plain_s:.1f} s"
        )
        server.kill()
        plain.join(10.0)
        soon.join(10.0)
    assert soon_s < 2.0
