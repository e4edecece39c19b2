"""A keeper with a real host, a real D-Bus and a stand-in for logind: what is done before its machine sleeps."""

import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.inventory import measure
from router.lifecycle import end_everything
from serving import before_sleep, keeper
from serving.keeper import Keeper
from tests.fake_logind import Logind, bus, is_missing, logind
from tests.fakes import Behaviour
from tests.test_keeper import Machine

pytestmark = pytest.mark.skipif(is_missing(), reason="needs D-Bus's daemon: apt-get install dbus-daemon")
LOGIND_S = 5.0
"""What logind waits for, by default."""
TALKS = Behaviour(answer="It is so.")


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Logind]:
    with bus(tmp_path) as address:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
        with logind(address) as made:
            yield made


@pytest.fixture
def machine(manager: Logind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    if len(measure({}).cores) < 1:
        pytest.skip("a host needs a core")
    made = Machine(tmp_path / "machine", monkeypatch)
    made.behaviours = [TALKS, TALKS]
    try:
        yield made
    finally:
        made.keeper.close()
        end_everything(made.paths)


class FollowsOn:
    """A controller that asks for news again once it has written the last down, which takes `writes_s`."""

    def __init__(self, of: Keeper, writes_s: float = 0.0) -> None:
        self.heard: list[dict[str, Any]] = []
        self._of = of
        self._writes_s = writes_s
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        version = -1
        while not self._ends.is_set():
            report = self._of.report(version, 0.2)
            if report["version"] != version:
                time.sleep(self._writes_s)
                version = report["version"]
                self.heard.append(report)

    def until(self, key: str, value: object) -> None:
        deadline = time.monotonic() + 10.0
        while not self.heard or self.heard[-1][key] != value:
            assert time.monotonic() < deadline, self.heard[-1:]
            time.sleep(0.01)

    def end(self) -> None:
        self._ends.set()
        self._thread.join()


def parking(of: Machine) -> dict[str, Any]:
    """What its host says of saved contexts."""
    connection = http.client.HTTPConnection("127.0.0.1", of.replica(0)["port"], timeout=10)
    try:
        connection.request("GET", "/state", headers={"authorization": f"Bearer {of.token}"})
        state: dict[str, Any] = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return state


def ask_in_session(of: Machine) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", of.replica(0)["port"], timeout=10)
    headers = {"authorization": f"Bearer {of.token}", "x-homeport-session-key": "ab" * 32}
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "Hello"}]}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
    finally:
        connection.close()


def test_what_the_keeper_before_told_is_not_taken_for_told(machine: Machine) -> None:
    version = machine.keeper.report(known=10**6)["version"]
    assert not machine.keeper._wait_told(version, 0.05)
    machine.keeper.report(known=version)
    assert machine.keeper._wait_told(version, 0.05)


def test_before_sleep_sessions_are_on_disk_and_the_controller_knows(
    machine: Machine, manager: Logind
) -> None:
    machine.serve(1)
    before = machine.lives(0, 1)
    follows = FollowsOn(machine.keeper, writes_s=0.3)
    try:
        follows.until("power", "")
        ask_in_session(machine)
        manager.until(lambda held: held == ["sleep/delay"])
        assert parking(machine)["parking"]["saves"] == 0
        at = manager.prepare_for_sleep(True)
        manager.until(lambda held: not held)
        took_s = manager.heard[-1][0] - at
        print(f"  put off for {took_s:.2f} s")
        assert 0.3 < took_s < LOGIND_S, "the controller wrote it down first"
        assert follows.heard[-1]["sleeping"] is True
        state = parking(machine)
        assert (state["parking"]["saves"], state["parking"]["unwritten"]) == (1, 0)
        assert state["parking"]["disk_bytes"] > 0
        manager.prepare_for_sleep(False)
        follows.until("sleeping", value=False)
        manager.until(lambda held: held == ["sleep/delay"])
        after = machine.replica(0)
        assert (after["pid"], after["state"]) == (before["pid"], "ready"), "the host goes on"
        ask_in_session(machine)
    finally:
        follows.end()


def test_a_controller_that_is_away_does_not_keep_the_machine_awake(
    machine: Machine, manager: Logind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(before_sleep, "TOLD_S", 0.5)
    manager.until(lambda held: held == ["sleep/delay"])
    at = manager.prepare_for_sleep(True)
    manager.until(lambda held: not held)
    assert 0.4 < manager.heard[-1][0] - at < LOGIND_S
    assert machine.keeper.report()["sleeping"] is True


def test_what_a_keeper_before_this_one_told_is_not_taken_for_told(
    machine: Machine, manager: Logind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(before_sleep, "TOLD_S", 0.5)
    machine.keeper.report(1000)  # A controller asks so that followed the keeper before it.
    manager.until(lambda held: held == ["sleep/delay"])
    at = manager.prepare_for_sleep(True)
    manager.until(lambda held: not held)
    assert manager.heard[-1][0] - at > 0.4, "nobody has heard that it sleeps"


def test_a_host_that_hangs_does_not_keep_the_machine_awake(
    machine: Machine, manager: Logind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(before_sleep, "PARK_S", 1.0)
    monkeypatch.setattr(keeper, "TICK_S", 60.0)
    machine.serve(1)
    pid = machine.lives(0, 1)["pid"]
    manager.until(lambda held: "sleep/delay" in held)
    os.kill(pid, signal.SIGSTOP)
    try:
        at = manager.prepare_for_sleep(True)
        manager.until(lambda held: not held)
        assert manager.heard[-1][0] - at < LOGIND_S
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_machine_that_may_not_be_kept_from_sleeping_says_so(machine: Machine, manager: Logind) -> None:
    manager.deny("sleep")
    machine.serve(1)
    machine.lives(0, 1)
    ask_in_session(machine)
    deadline = time.monotonic() + 15.0
    while "not from being put to sleep" not in (told := machine.keeper.report()["power"]):
        assert time.monotonic() < deadline, told
        time.sleep(0.05)


def test_a_machine_without_logind_says_so_and_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    made = Machine(tmp_path / "machine", monkeypatch)
    try:
        deadline = time.monotonic() + 10.0
        while "there is no system D-Bus" not in (told := made.keeper.report()["power"]):
            assert time.monotonic() < deadline, told
            time.sleep(0.02)
        assert told.startswith("before sleep nothing is written to disk, for it is not noticed")
        assert made.keeper.report()["sleeping"] is False
    finally:
        made.keeper.sleep.stop()


def test_a_keeper_tells_its_networks_and_sends_on_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Machine(tmp_path / "machine", monkeypatch)
    try:
        own = made.keeper.report()["networks"]
        assert all("/" in each and not each.startswith("127.") for each in own)
        assert made.keeper.wake("3c:ec:ef:01:23:45", ["203.0.113.7/24"]) == 0
        if own:
            assert made.keeper.wake("3c:ec:ef:01:23:45", [own[0], "203.0.113.7/24"]) == 1
    finally:
        made.keeper.sleep.stop()
