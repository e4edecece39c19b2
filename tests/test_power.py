"""Sleep and staying awake on a real D-Bus, with a stand-in for logind on it."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jeepney import DBusAddress, DBusErrorResponse, new_error, new_method_call

from cluster import sleeping
from cluster.logind import Bus, NoLogind, inhibit
from cluster.sleeping import SleepWatch
from serving.wakefulness import LINGER_S
from tests.fake_logind import Logind, bus, is_missing, logind
from tests.fakes import Behaviour
from tests.host_process import TOKEN, Answer, HostProcess, model_spec

pytestmark = pytest.mark.skipif(is_missing(), reason="needs D-Bus's daemon: apt-get install dbus-daemon")
LATE_S = 5.0
"""By then a lock is taken or given back, on a machine that is busy with other tests."""
TALKS = Behaviour(endless=True, step_s=0.01)
BLOCKED = "sleep:idle/block"
SHORT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with bus(tmp_path) as made:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", made)
        yield made


@pytest.fixture
def manager(address: str) -> Iterator[Logind]:
    with logind(address) as made:
        yield made


@pytest.fixture
def host(tmp_path: Path) -> Iterator[HostProcess]:
    made = HostProcess(tmp_path / "0", model_spec(), "none.gguf", TALKS)
    try:
        yield made
    finally:
        made.kill()


def nothing() -> None:
    """Neither before nor after."""


def test_a_lock_lasts_as_long_as_its_descriptor(manager: Logind) -> None:
    lock = inhibit("sleep", "A test", "delay")
    assert manager.until(bool) == ["sleep/delay"]
    assert not os.get_inheritable(lock), "what is started meanwhile would hold it"
    os.close(lock)
    manager.until(lambda held: not held)


def test_who_cannot_be_asked_says_why(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(NoLogind, match="ServiceUnknown"):
        inhibit("sleep", "A test", "delay")
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    with pytest.raises(NoLogind, match="no system D-Bus"):
        Bus()
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "tcp:host=127.0.0.1")
    with pytest.raises(NoLogind, match="no system D-Bus"):
        Bus()


def test_a_bus_that_takes_no_more_connections_is_one_that_cannot_be_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that it is asked again: a thread that ends of it never would."""
    asked = new_method_call(DBusAddress("/", "org.freedesktop.DBus", "org.freedesktop.DBus"), "Hello")
    asked.header.serial = 1
    full = DBusErrorResponse(new_error(asked, "org.freedesktop.DBus.Error.LimitsExceeded", "s", ("full",)))

    def refuses(*_: object, **__: object) -> None:
        raise full

    monkeypatch.setattr("jeepney.io.blocking.open_dbus_connection", refuses)
    with pytest.raises(NoLogind, match="LimitsExceeded"):
        Bus()


def test_sleep_is_put_off_until_all_is_done_and_again_after_it(manager: Logind) -> None:
    done: list[str] = []

    def before() -> None:
        assert manager.held == ["sleep/delay"]
        done.append("before")

    watch = SleepWatch(before, lambda: done.append("after"), nothing)
    watch.start()
    try:
        for round_ in (1, 2):
            manager.until(lambda held: held == ["sleep/delay"])
            assert watch.detail == ""
            manager.prepare_for_sleep(True)
            manager.until(lambda held: not held)
            manager.prepare_for_sleep(False)
            manager.until(lambda held: held == ["sleep/delay"])
            wait(lambda: done == ["before", "after"] * round_)  # noqa: B023
    finally:
        watch.stop()
    manager.until(lambda held: not held)


def test_what_fails_before_sleep_does_not_keep_the_machine_awake(manager: Logind) -> None:
    def before() -> None:
        raise ValueError("made up")

    watch = SleepWatch(before, nothing, nothing)
    watch.start()
    try:
        manager.until(bool)
        manager.prepare_for_sleep(True)
        manager.until(lambda held: not held)
        manager.prepare_for_sleep(False)
        manager.until(bool)
    finally:
        watch.stop()


def test_a_machine_without_logind_says_so_once_and_is_asked_again(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sleeping, "AGAIN_S", 0.05)
    told: list[str] = []
    watch = SleepWatch(nothing, nothing, lambda: told.append(watch.detail))
    watch.start()
    try:
        wait(lambda: bool(told))
        with logind(address) as manager:
            manager.until(bool)
            wait(lambda: told[-1] == "")
        assert told == ["logind says ServiceUnknown", ""]
    finally:
        watch.stop()


def test_a_bus_that_ends_while_the_machine_sleeps_does_not_leave_it_asleep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    watch = SleepWatch(lambda: done.append("before"), lambda: done.append("after"), nothing)
    with bus(tmp_path) as address, logind(address) as manager:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
        watch.start()
        manager.until(bool)
        manager.prepare_for_sleep(True)
        manager.until(lambda held: not held)
        assert done == ["before"]
    try:
        wait(lambda: done == ["before", "after"])
    finally:
        watch.stop()


def test_a_bus_that_ends_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sleeping, "AGAIN_S", 0.05)
    watch = SleepWatch(nothing, nothing, nothing)
    try:
        for _ in range(2):
            with bus(tmp_path) as address, logind(address) as manager:
                monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
                if not watch.is_started:
                    watch.start()
                manager.until(bool)
            (tmp_path / "bus").unlink(missing_ok=True)
            wait(lambda: bool(watch.detail))
    finally:
        watch.stop()


def test_a_host_keeps_its_machine_awake_exactly_while_a_turn_runs(manager: Logind, host: HostProcess) -> None:
    host.start()
    assert manager.held == []
    stream = host.stream("Hello", who="anna", max_tokens=2000)
    asked = time.monotonic()
    stream.first_text()
    assert manager.until(bool) == [BLOCKED]
    assert manager.heard[0][0] - asked < LATE_S
    host.wait_until(lambda state: state["awake"] == {"held": "sleep:idle", "detail": ""})
    time.sleep(1.5)
    assert manager.held == [BLOCKED]
    stream.close()
    host.wait_state(running=0)
    ended = time.monotonic()
    manager.until(lambda held: not held)
    assert time.monotonic() - ended < LATE_S
    host.wait_until(lambda state: state["awake"] == {"held": None, "detail": ""})


def test_turns_that_follow_one_another_ask_once(manager: Logind, host: HostProcess) -> None:
    host.start()
    for _ in range(5):
        assert host.chat(SHORT, who="anna").status == 200
    manager.until(lambda held: not held and bool(manager.heard))
    assert [word for _, word in manager.heard] == [f"+{BLOCKED}", f"-{BLOCKED}"]


def test_a_host_that_is_killed_keeps_nobody_awake(manager: Logind, host: HostProcess) -> None:
    host.start()
    host.stream("Hello", who="anna", max_tokens=2000).first_text()
    manager.until(bool)
    host.kill()
    manager.until(lambda held: not held)


def test_who_may_not_keep_sleep_off_keeps_it_from_idling(manager: Logind, host: HostProcess) -> None:
    manager.deny("sleep")
    host.start()
    stream = host.stream("Hello", who="anna", max_tokens=2000)
    stream.first_text()
    assert manager.until(bool) == ["idle/block"]
    awake = host.wait_until(lambda state: state["awake"]["held"] == "idle")["awake"]
    assert "not from being put to sleep" in awake["detail"]
    stream.close()


def test_without_logind_turns_are_answered_and_it_is_said_once(
    address: str, tmp_path: Path, host: HostProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    host.start()
    for _ in range(2):
        assert host.chat(SHORT, who="anna").status == 200
        host.wait_until(lambda state: state["awake"]["detail"] != "")
        time.sleep(LINGER_S + 0.2)
    assert host.errors().count("nothing keeps it awake while turns run (there is no system D-Bus") == 1


def test_a_host_writes_to_disk_what_that_lacks_and_goes_on(host: HostProcess) -> None:
    host.start()
    assert host.chat(SHORT, who="anna").status == 200
    assert host.state()["parking"]["saves"] == 0
    told = park(host, {"seconds": 3.0})
    assert (told.status, told.body) == (200, {"left": 0})
    state = host.state()
    assert (state["state"], state["parking"]["saves"], state["parking"]["unwritten"]) == ("ready", 1, 0)
    assert state["parking"]["disk_bytes"] > 0
    assert [each["quiet_s"] >= 0 for each in state["residents"]] == [True], "it stays resident"
    again = park(host, {"seconds": 3.0})
    assert again.body == {"left": 0}
    assert host.state()["parking"]["saves"] == 1, "what is there is not written again"
    wrongs: tuple[object, ...] = ({}, {"seconds": 0}, {"seconds": True}, {"seconds": 1e9}, [])
    for wrong in wrongs:
        assert park(host, wrong).status == 400


def test_what_runs_while_it_is_written_is_counted_as_left(host: HostProcess) -> None:
    host.start()
    stream = host.stream("Hello", who="anna", max_tokens=2000)
    stream.first_text()
    told = park(host, {"seconds": 0.5})
    assert told.body == {"left": 1}
    assert next(stream.events())
    stream.close()


def park(host: HostProcess, body: object) -> Answer:
    return host._ask("POST", "/park", json.dumps(body).encode(), {"authorization": f"Bearer {TOKEN}"})


def wait(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10.0
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
