"""A terminal closed while `homeport down` or `homeport up` ends everything does not keep the rest from ending."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.processes import mark, ours
from tests.test_router_end import Routers

IN_TERMINAL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
what, hangup = sys.argv[1:3]
if hangup == "ignored":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
if what == "down":
    from router import cli
    sys.argv = ["homeport", "down"]
    cli.main()
else:
    from cluster.paths import Paths
    from router import following
    following.start_signals()
    try:
        signal.raise_signal(signal.SIGINT)
    except following.Ended:
        following.end(Paths.from_env(os.environ))
"""


class Terminal:
    """In which a command runs that ends everything, until somebody closes it."""

    def __init__(self, routers: Routers, what: str, hangup: str = "heard") -> None:
        self._master, slave = pty.openpty()
        named = {"HOMEPORT_HOME": str(routers.paths.home), "HOMEPORT_LOCKS": str(routers.paths.locks)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL, what, hangup],
            env={**os.environ, **named, "TERM": "xterm"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)

    def until(self, word: bytes) -> None:
        told = b""
        while word not in told:
            told += os.read(self._master, 4096)

    def close(self) -> None:
        if self._master >= 0:
            os.close(self._master)
            self._master = -1


@pytest.fixture
def routers(tmp_path: Path) -> Iterator[Routers]:
    made = Routers(tmp_path, 30.0)
    host = subprocess.Popen(["sleep", "600"], env={**os.environ, **mark(made.paths, "host")})
    yield made
    host.kill()
    host.wait()
    made.close()


@pytest.mark.parametrize("what", ["down", "up"])
def test_who_closes_the_terminal_hurries_the_end(routers: Routers, what: str) -> None:
    client = routers.ask()
    terminal = Terminal(routers, what)
    try:
        terminal.until(b"waiting for")
        began = time.monotonic()
        terminal.close()
        assert terminal.process.wait(15) == 0
        assert time.monotonic() - began < 10
        assert client.recv(3) == b"cut"
        assert ours(routers.paths) == []
    finally:
        terminal.close()
        terminal.process.kill()
        terminal.process.wait()


def test_who_has_it_ignored_as_nohup_does_hurries_nothing(routers: Routers) -> None:
    client = routers.ask()
    terminal = Terminal(routers, "down", "ignored")
    try:
        terminal.until(b"waiting for")
        terminal.process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert terminal.process.poll() is None
        client.close()
        assert terminal.process.wait(15) == 0
        assert ours(routers.paths) == []
    finally:
        terminal.process.kill()
        terminal.process.wait()
        terminal.close()
