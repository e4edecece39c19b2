"""The controller over its real HTTP, with stand-ins for Ray's side of it."""

import asyncio
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from cluster.machine import CpuCore, Hardware
from cluster.paths import Paths, secret, write_private
from cluster.slices import Need
from serving.controller import Controller
from serving.model import ModelSpec

GIB = 1024**3
MODEL = ModelSpec("m", "llama.cpp", "bundled", "all", 1, Need(1, GIB), "needs", 2048, 1, 1.0, 5.0, "wait")
SESSION = "ab" * 32


class OneMachine:
    """Answers at once, and remembers what it was told to serve."""

    def __init__(self, pins: list[dict[str, Any]] | None = None) -> None:
        self.journal = pins or []
        self.applied: list[tuple[int, list[dict[str, Any]]]] = []
        self.answers = threading.Event()
        self.answers.set()

    def machines(self) -> list[str]:
        return ["id-1"]

    def _report(self) -> dict[str, Any]:
        revision = self.applied[-1][0] if self.applied else 0
        hardware = Hardware((CpuCore(0, (0,), "unknown", 0),), 8 * GIB, ())
        return {
            "id": "id-1",
            "name": "den",
            "zone": "default",
            "address": "127.0.0.1",
            "state": "ready",
            "version": len(self.applied),
            "revision": revision,
            "hardware": hardware.to_json(),
            "reserve": {"cores": 0, "memory_bytes": 0},
            "replicas": [],
        }

    async def report(self, machine: str, known: int, wait_s: float) -> dict[str, Any]:
        if not self.answers.is_set():
            await asyncio.sleep(0.05)
            raise TimeoutError
        if known == len(self.applied):
            await asyncio.sleep(wait_s)
        return self._report()

    async def apply(self, machine: str, revision: int, wishes: list[dict[str, Any]]) -> dict[str, Any]:
        self.applied.append((revision, wishes))
        return self._report()

    async def pins(
        self, machine: str, written: dict[int, int]
    ) -> dict[int, tuple[list[dict[str, Any]], int]]:
        return {0: (self.journal, 1)}


class SilentKeeper(OneMachine):
    """Its machine is there, its keeper does not answer until `answers` is set."""

    def __init__(self, pins: list[dict[str, Any]] | None = None) -> None:
        super().__init__(pins)
        self.answers.clear()


class Running:
    """A controller on a port of its own."""

    def __init__(self, folder: Path, members: OneMachine) -> None:
        paths = Paths(folder / "home", folder / "locks")
        paths.make()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        control = {"host": "127.0.0.1", "port": self.port}
        models = [{"spec": MODEL.to_json(), "digest": "d"}]
        write_private(paths.revision, json.dumps({"revision": 3, "models": models, "control": control}))
        self.token = secret(paths.cluster_token)
        self.controller = Controller(lambda: members)

    def ask(self, path: str, body: Any = None, token: str | None = None) -> tuple[int, Any]:
        """(status, JSON); waits for the controller to listen."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"authorization": f"Bearer {token or self.token}"},
        )
        deadline = time.monotonic() + 10
        while True:
            try:
                with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
                    return answer.status, json.load(answer)
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, json.load(error)
            except urllib.error.URLError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def until(self, path: str, body: Any, status: int) -> Any:
        """The answer once it has that status."""
        deadline = time.monotonic() + 10
        while (found := self.ask(path, body))[0] != status:
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        return found[1]


CLAIM = {"session": SESSION, "model": "m", "ranked": [{"replica": "den/0", "free": 1}], "refused": []}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOMEPORT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOMEPORT_LOCKS", str(tmp_path / "locks"))
    return tmp_path


def test_a_machine_is_told_once_what_to_serve(folder: Path) -> None:
    members = OneMachine()
    running = Running(folder, members)
    running.until("/claim", CLAIM, 200)
    assert [(revision, [w["count"] for w in wishes]) for revision, wishes in members.applied] == [(3, [1])]
    assert running.ask("/fleet")[1]["machines"][0]["revision"] == 3


def test_nobody_is_new_before_the_journals_are_read(folder: Path) -> None:
    kept = {"session": SESSION, "model": "m", "replica": "den/7", "generation": 1, "created_s": 1.0}
    members = SilentKeeper([kept])
    running = Running(folder, members)
    assert running.ask("/claim", CLAIM)[0] == 503
    assert running.ask(f"/pins/{SESSION}?model=m")[0] == 503
    members.answers.set()
    answer = running.until("/claim", CLAIM, 200)
    assert (answer["pin"]["replica"], answer["known"]) == ("den/7", True)


def test_a_session_that_no_journal_knows_is_new(folder: Path) -> None:
    running = Running(folder, OneMachine())
    answer = running.until("/claim", CLAIM, 200)
    assert (answer["pin"]["replica"], answer["known"]) == ("den/0", False)
    assert running.ask(f"/pins/{'cd' * 32}?model=m")[0] == 404


@pytest.mark.parametrize("body", [{}, {**CLAIM, "ranked": []}, [1], {**CLAIM, "ranked": "den/0"}])
def test_what_is_no_claim_is_refused(folder: Path, body: Any) -> None:
    assert Running(folder, OneMachine()).ask("/claim", body)[0] == 400


def test_nothing_is_told_without_the_clusters_token(folder: Path) -> None:
    running = Running(folder, OneMachine())
    assert running.ask("/fleet", token="wrong")[0] == 401
    assert running.ask("/claim", CLAIM, token="wrong")[0] == 401
