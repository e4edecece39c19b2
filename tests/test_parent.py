"""The parent of a head: when it throws Ray's state away, and how it keeps Ray's monitor. Starts no Ray."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster import certificates, machine_tls, ray_cluster
from cluster.inventory import measure
from cluster.join import enter
from cluster.machine import Reserve
from cluster.paths import Paths, read_json, write_private
from cluster.ray_cluster import RayFailed
from router import parent as parent_module
from router.parent import DOUBTFUL, Parent
from router.workers import Workers

NOWHERE = "203.0.113.7"
BEARS = """
import subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
open(sys.argv[1], "a").write(f"{child.pid}\\n")
time.sleep(600)
"""


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    made = Paths(tmp_path / "home", tmp_path / "locks")
    made.make()
    monkeypatch.setattr(parent_module, "backoff_s", lambda _: 0.0)
    monkeypatch.setattr(parent_module, "LIST_S", 0.05)
    return made


class Head(Parent):
    """A parent whose starts of Ray and of the controller fail as it is told."""

    def __init__(
        self, paths: Paths, monkeypatch: pytest.MonkeyPatch, address: str, *starts: Exception | None
    ) -> None:
        machine = enter(paths, "den", "default", measure({}), Reserve(0, 0), (8100, 8199), address)
        write_private(paths.run, json.dumps({"machine": machine.to_json(), "ray": "10.0.0.1:1"}))
        super().__init__(paths)
        self.starts = list(starts)
        self.controller: Exception | None = None
        self.forgotten: list[int] = []
        self.done = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        monkeypatch.setattr(ray_cluster, "start_head", self.start_head)
        monkeypatch.setattr(ray_cluster, "forget_state", lambda _: self.forgotten.append(len(self.starts)))

    def start_head(self, *_: Any) -> str:
        if not self.starts:
            time.sleep(0.01)
            self.loop.call_soon_threadsafe(self.done.set)
            return "10.0.0.1:1"
        if failure := self.starts.pop():
            raise failure
        return "10.0.0.1:1"

    async def _start_controller(self) -> None:
        if self.controller is not None:
            raise self.controller

    async def _ray_gone(self) -> None:
        """It is gone at once."""

    async def play(self) -> list[int]:
        """Until all starts were made; before which of them, counted from the end, the state was thrown away."""
        keeping = asyncio.create_task(self._keep_ray())
        await asyncio.wait_for(self.done.wait(), 20)
        keeping.cancel()
        return self.forgotten


async def test_a_ray_that_does_not_start_begins_at_last_without_its_state(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await Head(paths, monkeypatch, "127.0.0.1", *[RayFailed("x")] * (DOUBTFUL + 1)).play() == [1]


async def test_a_full_disk_is_no_reason_to_throw_the_state_away(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await Head(paths, monkeypatch, "127.0.0.1", *[OSError("full")] * 9).play() == []


async def test_a_network_that_is_away_is_no_reason_either(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await Head(paths, monkeypatch, NOWHERE, *[RayFailed("no such address")] * 9).play() == []


async def test_a_ray_whose_controller_never_answers_counts_as_one_that_does_not_start(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = Head(paths, monkeypatch, "127.0.0.1", *[None] * (DOUBTFUL + 1))
    head.controller = RayFailed("The controller could not be started")
    assert (await head.play())[0] == 1


async def test_starts_that_fail_now_and_then_keep_the_state(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = [RayFailed("x"), RayFailed("x"), None] * 4
    assert await Head(paths, monkeypatch, "127.0.0.1", *starts).play() == []


async def test_who_takes_over_hurries_no_parent_that_ends_everything(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[bool] = []

    def ends(_: Paths, hurried: Callable[[], bool]) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
            time.sleep(0.2)
            found.append(hurried())

    async def keeps(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(parent_module, "end_everything", ends)
    monkeypatch.setattr(Workers, "keep", keeps)
    monkeypatch.setattr(Head, "_keep_ray", keeps)
    owner = await asyncio.create_subprocess_exec("sleep", "0.1")
    head = Head(paths, monkeypatch, "127.0.0.1")
    head.run["owner"] = owner.pid
    try:
        await asyncio.wait_for(head.main(), 20)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            asyncio.get_running_loop().remove_signal_handler(number)
        await owner.wait()
    assert found == [False, True]


async def test_ray_begins_anew_once_the_heads_certificate_is_renewed(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parent_module, "DUE_S", 0.02)
    monkeypatch.setattr(parent_module, "RENEW_S", 0.02)

    class Lives(Head):
        async def _ray_gone(self) -> None:
            await asyncio.Event().wait()

    head = Lives(paths, monkeypatch, "127.0.0.1")
    me = head.run["machine"]["id"]
    write_private(paths.machine, json.dumps({**(read_json(paths.machine) or {}), "tls": True}))
    machine_tls.certify_head(paths, me, "127.0.0.1", time.time())
    lasting = paths.certificate.read_text()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(head._ray_ends(), 0.3)
    assert paths.certificate.read_text() == lasting, "it was not to be renewed"

    monkeypatch.setattr(certificates, "MACHINE_DAYS", certificates.RENEW_DAYS - 1)
    machine_tls.certify_head(paths, me, "127.0.0.1", time.time())
    with pytest.raises(TimeoutError):  # The new one ends soon as well: nothing would be won.
        await asyncio.wait_for(head._ray_ends(), 0.3)
    paths.authority.write_text('{"key": "broken", "certificate": "broken"}')
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(head._ray_ends(), 0.3)
    paths.authority.unlink()
    monkeypatch.setattr(certificates, "MACHINE_DAYS", 5 * 365)
    why = await asyncio.wait_for(head._ray_ends(), 10)
    assert why == "the head's certificate was about to end and is renewed: Ray begins anew with it"


# Ray's monitor


@asynccontextmanager
async def monitored(head: Head) -> AsyncIterator[None]:
    head._ray_runs.set()
    keeping = asyncio.create_task(head._keep_monitor())
    try:
        yield
    finally:
        keeping.cancel()
        if pid := head.run["steps"].get("machines", {}).get("pid"):
            os.killpg(pid, signal.SIGKILL)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - other processes are looked at
            await asyncio.sleep(0.02)


async def test_a_changed_list_ends_the_monitor_with_all_that_it_started(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    born, machines = tmp_path / "born", tmp_path / "list.yaml"
    born.touch()
    machines.write_text("one")
    paths.machine_list.write_text(str(machines))
    monkeypatch.setattr(ray_cluster, "monitor_command", lambda *_: [sys.executable, "-c", BEARS, str(born)])
    head = Head(paths, monkeypatch, NOWHERE)
    said: list[tuple[Any, ...]] = []
    tell = head._step

    def step(*words: Any, **more: Any) -> None:
        said.append(words)
        tell(*words, **more)

    monkeypatch.setattr(head, "_step", step)
    async with monitored(head):
        await until(lambda: born.read_text().count("\n") == 1)
        first = head.run["steps"]["machines"]["pid"]
        machines.write_text("two")
        await until(lambda: born.read_text().count("\n") == 2)
        child = int(born.read_text().splitlines()[0])
        await until(lambda: not _lives(child))
        assert not _lives(first)
        changed = ("machines", "starting", "the list of machines has changed")
        assert said == [("machines", "ready"), changed, ("machines", "ready")]


async def test_a_monitor_that_cannot_be_started_is_tried_again(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "list.yaml").write_text("one")
    paths.machine_list.write_text(str(tmp_path / "list.yaml"))
    command = ["/nowhere/python"]
    monkeypatch.setattr(ray_cluster, "monitor_command", lambda *_: command)
    monkeypatch.setattr(parent_module, "backoff_s", lambda _: 0.01)
    head = Head(paths, monkeypatch, NOWHERE)
    async with monitored(head):
        await until(lambda: head.run["steps"].get("machines", {}).get("state") == "failed")
        assert "/nowhere/python" in head.run["steps"]["machines"]["detail"]
        command[:] = ["sleep", "600"]
        await until(lambda: head.run["steps"]["machines"]["state"] == "ready")


def _lives(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
