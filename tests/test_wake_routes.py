"""Sleeping machines over real HTTP: the controller that remembers and wakes them, the router whose turns wait."""

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster import magic_packet
from cluster.paths import Paths, read_json, write_private
from router import turn
from serving.machine_book import MachineBook
from tests.standins import AnswersHost, Controller, Router, routed
from tests.test_controller import OneMachine, Running, Several, folder

__all__ = ["folder"]
MAC = "3c:ec:ef:01:23:45"
SEGMENT = ["192.0.2.10/24"]


@pytest.fixture(autouse=True)
def unwired(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that runs this is on nobody's wire."""
    monkeypatch.setattr(magic_packet, "networks", tuple)


def config(folder: Path, **wakes: Any) -> None:
    """Let the revision that lies there say how these machines are woken."""
    paths = Paths(folder / "home", folder / "locks")
    revision = read_json(paths.revision)
    machines = [{"name": name, "zone": "default", "wake": wake} for name, wake in wakes.items()]
    write_private(paths.revision, json.dumps({**revision, "revision": 4, "machines": machines}))


def den_and_attic() -> tuple[OneMachine, OneMachine]:
    """attic is on den's wire."""
    den, attic = OneMachine(), OneMachine(id_="id-2", name="attic")
    den.told = {"address": "192.0.2.20", "networks": ["192.0.2.20/24"]}
    attic.told = {"address": "192.0.2.10", "networks": [*SEGMENT, "198.51.100.1/24"]}
    return den, attic


def falls_asleep(machine: OneMachine) -> None:
    machine.told = {**machine.told, "sleeping": True}
    machine.changes += 1


# the controller


def test_a_machine_that_said_so_is_asleep_also_to_the_next_controller(folder: Path) -> None:
    den, attic = den_and_attic()
    first = Running(folder, Several(den, attic))
    first.until_stands("den", "ready")
    falls_asleep(den)
    first.until_stands("den", "asleep")
    den.here = False
    assert MachineBook(folder / "home" / "head" / "machines.json").asleep == {"id-1"}
    again = Running(folder, Several(den, attic), lost_after_s=0.5)
    again.until_stands("attic", "ready")
    den_told = again.until_stands("den", "asleep")
    assert (den_told["heard_s"], den_told["wakes"]) == (None, False)
    time.sleep(0.7)
    assert again.until_stands("den", "asleep"), "silence is what sleep is"
    den.told, den.here = {"address": "192.0.2.20"}, True
    den.changes += 1
    again.until_stands("den", "ready")
    assert MachineBook(folder / "home" / "head" / "machines.json").asleep == set()


def test_a_magic_packet_is_sent_by_who_is_on_its_wire(folder: Path) -> None:
    den, attic = den_and_attic()
    running = Running(folder, Several(den, attic))
    config(folder, den={"mac": MAC})
    running.until_stands("den", "ready")
    assert running.ask("/machines/den/wake", {})[1]["awake"] is True
    falls_asleep(den)
    deadline = time.monotonic() + 10.0
    while not running.until_stands("den", "asleep")["wakes"]:
        assert time.monotonic() < deadline, "the revision is not read"
        time.sleep(0.05)
    told = running.until("/machines/den/wake", {}, 200)
    assert told == {"machine": "den", "awake": False, "how": "packet", "by": ["attic"]}
    assert attic.woke == [("id-2", MAC, SEGMENT)]
    assert den.woke == []


def test_the_head_sends_itself_also_while_its_keeper_is_away(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[str, tuple[str, ...]]] = []
    monkeypatch.setattr(magic_packet, "networks", lambda: tuple(SEGMENT))

    def send(mac: str, among: Sequence[str]) -> tuple[str, ...]:
        sent.append((mac, tuple(among)))
        return tuple(among)

    monkeypatch.setattr(magic_packet, "send", send)
    paths = Paths(folder / "home", folder / "locks")
    paths.make()
    write_private(paths.machine, json.dumps({"id": "id-2"}))
    den, attic = den_and_attic()
    running = Running(folder, Several(den, attic))
    config(folder, den={"mac": MAC})
    running.until_stands("attic", "ready")
    falls_asleep(den)
    running.until_stands("den", "asleep")
    assert running.until("/machines/den/wake", {}, 200)["by"] == ["attic"]
    attic.here = False
    deadline = time.monotonic() + 10.0
    while "id-2" in running.controller._heard_of():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert running.until("/machines/den/wake", {}, 200)["by"] == ["the head"]
    assert sent == [(MAC, tuple(SEGMENT))] * 2
    assert attic.woke == [], "no keeper is asked for what the head does itself"


def test_a_machine_that_sleeps_counts_as_gone_for_who_may_move(folder: Path) -> None:
    den, attic = den_and_attic()
    running = Running(folder, Several(den, attic))
    for machine in (den, attic):
        machine.hosts = [{"name": f"{machine.name}/0", "slot": 0, "model": "m", "state": "ready", "port": 1}]
        machine.hosts[0] |= {"address": "127.0.0.1", "pins": 0}
        machine.changes += 1
    claim = {"session": "ab" * 32, "model": "m", "ranked": [{"replica": "den/0", "free": 1}], "refused": []}
    running.until("/claim", claim, 200)
    instead = {"instead_of": {"replica": "den/0", "generation": 1}}
    elsewhere = {**claim, **instead, "ranked": [{"replica": "attic/0", "free": 1}]}
    assert running.ask("/claim", elsewhere)[1]["pin"]["replica"] == "den/0"
    falls_asleep(den)
    running.until_stands("den", "asleep")
    assert running.ask("/claim", elsewhere)[1]["pin"]["replica"] == "attic/0"


@pytest.mark.parametrize(
    ("name", "wakes", "says", "status"),
    [
        ("shed", {}, "There is no machine shed; known: attic, den.", 404),
        ("den", {}, "The config does not say how den is woken.", 409),
        ("den", {"den": {"command": ["/no/such/program"]}}, "cannot be started: /no/such/program", 502),
        ("loft", {"loft": {"mac": MAC}}, "attic could not send the magic packet of loft", 502),
    ],
)
def test_why_a_machine_is_not_woken(
    folder: Path, name: str, wakes: dict[str, Any], says: str, status: int
) -> None:
    den, attic = den_and_attic()
    running = Running(folder, Several(den, attic))
    config(folder, **wakes)
    running.until_stands("den", "ready")
    falls_asleep(den)
    den_told = running.until_stands("den", "asleep")
    assert den_told["wakes"] is ("den" in wakes)

    async def refuses(machine: str, mac: str, networks: list[str]) -> int:
        return 0

    attic.wake = refuses  # type: ignore[method-assign]
    found, told = running.ask(f"/machines/{name}/wake", {})
    assert found == status, told
    assert says in told["error"]["message"]


# the router


async def asleep(router: Router, home: str) -> AnswersHost:
    """The host of that home stops answering, its machine said that it sleeps, and the router has seen both."""
    controller = router.controller
    host = next(each for each in controller.hosts if each.replica == home)
    controller.asleep.add(home.partition("/")[0])
    await host.stop()

    def seen() -> bool:
        known = router.parts.fleet.snapshot()
        is_out = known.replicas[home].reach(time.monotonic()) == "out"
        return is_out and known.machines[home.partition("/")[0]].state == "asleep"

    await router.until(seen)
    return host


async def test_a_turn_wakes_its_home_once_and_waits_with_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "HEAD_AFTER_S", 0.5)
    monkeypatch.setattr(turn, "COMMENT_EVERY_S", 0.5)
    hosts = [AnswersHost("den/0"), AnswersHost("attic/0")]
    async with routed(tmp_path, *hosts) as router:
        controller = router.controller
        home = (await router.chat(session="tea")).headers["x-homeport-replica"]
        machine = home.partition("/")[0]
        controller.wakes.add(machine)
        host = await asleep(router, home)
        asked = asyncio.Event()

        async def on_wake(_: str) -> None:
            asked.set()

        controller.on_wake = on_wake
        turns = [asyncio.create_task(router.chat(session="tea", stream=True)) for _ in range(2)]
        turns.append(asyncio.create_task(router.chat(session="tea")))
        await asyncio.wait_for(asked.wait(), 15)
        await asyncio.sleep(1.5)
        assert not any(each.done() for each in turns)
        controller.asleep.clear()
        await host.start()
        answers = await asyncio.gather(*turns)
        for answer in answers:
            assert answer.status == 200
            assert answer.headers["x-homeport-replica"] == home
        for answer in answers[:2]:
            assert answer.body.startswith(f": waiting for {home}, ".encode())
            assert answer.events[-1] == b"[DONE]"
        assert controller.woken == [machine]
        await router.until(lambda: router.parts.fleet.woken == {})


async def test_a_turn_whose_machine_does_not_come_is_told_so_at_the_end_of_its_time(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("den/0"), queue_s=1.0) as router:
        await router.chat(session="tea")
        router.controller.wakes.add("den")
        await asleep(router, "den/0")
        answer = await router.chat(session="tea")
        assert (answer.status, answer.code) == (503, "machine_unavailable")
        assert "sleeps and is being woken" in answer.json()["error"]["message"]
        assert int(answer.headers["retry-after"]) >= 1
        assert router.controller.woken == ["den"]


async def test_without_a_controller_a_turn_waits_and_is_told_that_nobody_wakes_its_machine(
    tmp_path: Path,
) -> None:
    async with routed(tmp_path, AnswersHost("den/0"), queue_s=1.0) as router:
        await router.chat(session="tea")
        router.controller.wakes.add("den")
        await asleep(router, "den/0")
        await router.controller.stop()
        await router.until(lambda: not router.parts.fleet.snapshot().is_current)
        answer = await router.chat(session="tea")
        assert (answer.status, answer.code) == (503, "machine_unavailable")
        assert (
            "the controller, which would have it woken, does not answer" in answer.json()["error"]["message"]
        )


async def test_a_machine_is_woken_through_the_api(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("den/0")) as router:
        router.controller.wakes.add("den")
        answer = await router.ask("POST", "/api/machines/den/wake")
        assert answer.status == 200
        assert answer.json() == {"machine": "den", "awake": False, "how": "packet", "by": ["attic"]}
        refused = await router.ask("POST", "/api/machines/shed/wake")
        assert (refused.status, refused.code) == (409, "machine_cannot_wake")
        assert refused.headers["x-should-retry"] == "false"
        await router.until(lambda: router.parts.fleet.listed.machines[0].wakes)
        fleet = (await router.get("/api/fleet")).json()
        assert fleet["machines"][0]["wakes"] is True
        await router.controller.stop()
        away = await router.ask("POST", "/api/machines/den/wake")
        assert (away.status, away.code) == (503, "controller_unreachable")


def test_the_stand_in_says_of_machines_what_the_controller_does() -> None:
    assert Controller([], asleep={"den"}).state("den") == "asleep"
