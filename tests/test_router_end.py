"""How `homeport down` and the like end routers: what is open in them may end first, and nobody waits for nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import router_end
from cluster.paths import Paths, write_private
from cluster.processes import mark, ours
from cluster.router_end import end_routers, open_requests

ROUTER = """
import signal, socket, sys
signals, hurry = [], []
signal.signal(signal.SIGTERM, lambda *_: signals.append(1))
signal.signal(signal.SIGUSR1, lambda *_: hurry.append(1))
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listening:
    print("up", flush=True)
    listening.settimeout(0.01)
    clients = []
    while not signals:
        try:
            clients.append(listening.accept()[0])
        except TimeoutError:
            pass
for client in clients:
    client.settimeout(0.01)
while clients and not hurry:
    for client in list(clients):
        try:
            if not client.recv(1):
                clients.remove(client)
        except TimeoutError:
            pass
for client in clients:
    client.sendall(b"cut")
"""
"""Takes connections until SIGTERM, and ends when they have, or at SIGUSR1."""


class Routers:
    """One that runs, with its settings and what is said of its end."""

    def __init__(self, folder: Path, drain_s: float | None) -> None:
        self.paths = Paths(folder / "home", folder / "locks")
        self.paths.make()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        limits = {} if drain_s is None else {"limits": {"drain_s": drain_s}}
        write_private(self.paths.router_settings, json.dumps({"port": self.port, **limits}))
        self.process = subprocess.Popen(
            [sys.executable, "-c", ROUTER, str(self.port)],
            env={**os.environ, **mark(self.paths, "router")},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "up\n"
        self.said: list[str] = []
        self.clients: list[socket.socket] = []

    def ask(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), 5)
        self.clients.append(client)
        while open_requests(ours(self.paths, "router"), self.port) != len(self.clients):
            time.sleep(0.01)
        return client

    def hears(self, word: str) -> None:
        self.said.append(word)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()
        for client in self.clients:
            client.close()


@pytest.fixture
def routers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Routers]:
    made = Routers(tmp_path, getattr(request, "param", 30.0))
    yield made
    made.close()


def test_where_nothing_is_open_nobody_waits(routers: Routers) -> None:
    began = time.monotonic()
    end_routers(routers.paths, routers.hears)
    assert time.monotonic() - began < 3
    assert ours(routers.paths) == []
    assert routers.said == ["ending the router"]


def test_where_no_router_runs_nothing_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    end_routers(Paths(tmp_path / "home", tmp_path / "locks"), said.append)
    assert said == []


def test_what_is_open_may_end_first_and_is_told(routers: Routers) -> None:
    routers.ask()
    second = routers.ask()

    def hears(word: str) -> None:
        routers.hears(word)
        if "waiting" in word:
            for client in routers.clients:
                client.close()

    end_routers(routers.paths, hears)
    assert ours(routers.paths) == []
    assert second.fileno() == -1
    assert routers.said == ["ending the router", "waiting for 2 open requests to end, at most 30 s"]


def test_what_others_let_end_already_is_not_cut(routers: Routers) -> None:
    client = routers.ask()
    routers.process.send_signal(signal.SIGTERM)  # as another `homeport down`
    time.sleep(0.2)
    began = time.monotonic()

    def hears(word: str) -> None:
        routers.hears(word)
        if "waiting" in word:
            threading.Timer(0.5, client.shutdown, (socket.SHUT_WR,)).start()

    end_routers(routers.paths, hears)
    assert time.monotonic() - began > 0.5
    assert client.recv(3) == b""
    assert routers.said == ["ending the router", "waiting for 1 open request to end, at most 30 s"]


def test_who_is_in_a_hurry_has_it_cut_by_another_signal(routers: Routers) -> None:
    client = routers.ask()
    end_routers(routers.paths, routers.hears, lambda: len(routers.said) > 1)
    assert ours(routers.paths) == []
    assert client.recv(3) == b"cut"
    assert routers.said == [
        "ending the router",
        "waiting for 1 open request to end, at most 30 s, or until Ctrl-C",
        "1 open request cut",
    ]


@pytest.mark.parametrize("routers", [0.5], indirect=True)
def test_a_router_that_does_not_end_when_its_time_is_over_is_killed(
    routers: Routers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_end, "GRACE_S", 0.2)
    routers.ask()
    began = time.monotonic()
    end_routers(routers.paths, routers.hears)
    assert 0.5 < time.monotonic() - began < 5
    assert ours(routers.paths) == []
    assert routers.said[1:] == ["waiting for 1 open request to end, at most 0.5 s", "1 open request cut"]


@pytest.mark.parametrize("routers", [30.0, 0.0, None], indirect=True)
def test_one_that_hangs_with_nothing_open_is_not_waited_for(
    routers: Routers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_end, "GRACE_S", 0.2)
    routers.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    end_routers(routers.paths, routers.hears)
    assert time.monotonic() - began < 5
    assert ours(routers.paths) == []
    assert routers.said == ["ending the router"]


@pytest.mark.parametrize("text", ["", "[]", '{"limits": 3, "port": 1}', '{"limits": {"drain_s": "x"}}'])
def test_settings_that_cannot_be_read_keep_nobody_waiting(routers: Routers, text: str) -> None:
    routers.ask()
    routers.paths.router_settings.write_text(text)
    routers.process.send_signal(signal.SIGTERM)
    end_routers(routers.paths, routers.hears)
    assert ours(routers.paths) == []
