"""Twenty-four machines in three zones, hundreds of sessions, and everything above the hosts killed at random.

The tests go on from one another. `make test-fleet` runs them; each prints what it measured (`-s`).
"""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from serving.journal_file import NOTHING, entries_since
from tests.fleet.machines import LOST_AFTER_S, PER_ZONE, ZONES, Fleet, fleet, until
from tests.fleet.people import People, Session, sessions_of

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(300)]
MACHINES = len(ZONES) * PER_ZONE
SESSIONS = 240
KILLS = 48
PAUSE_S = 1.2
"""Between two kills."""
RESTART_S = (0.2, 1.5)
"""How long after its death Ray, or a router's parent, starts it again."""
MAY_SAY = {"machine_unavailable", "machine_lost", "host_lost", "host_silent", "queue_timeout"}
NO_ROUTER = {"ServerDisconnectedError", "ClientOSError", "ClientConnectorError", "ClientPayloadError"}
SEED = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("fleet")) as up:
        print(f"\n{MACHINES} machines ready after {up.until_ready():.1f} s")
        yield up


@pytest.fixture(scope="module")
def everybody() -> list[Session]:
    return sessions_of("chat", SESSIONS)


@pytest.fixture
async def people(made: Fleet) -> AsyncIterator[People]:
    timeout = aiohttp.ClientTimeout(total=90.0)
    async with aiohttp.ClientSession(timeout=timeout) as client:
        yield People(made, client, seed=SEED)


def all_serve(told: dict[str, dict[str, Any]]) -> bool:
    return len(told) == MACHINES and all(
        each["state"] == "ready" for machine in told.values() for each in machine["replicas"]
    )


def stay_in_their_zones(made: Fleet, sessions: list[Session]) -> None:
    """Where each may be, and where it began."""
    for session in sessions:
        zones = {made.zone(home.partition("/")[0]) for home in session.homes}
        assert len(zones) == 1, (session.name, session.homes)
        assert session.zone in (None, *zones), (session.name, session.homes)


async def test_new_sessions_at_once_land_on_a_free_machine_each(made: Fleet, people: People) -> None:
    """Through two routers."""
    sessions = [Session(f"first-{number}") for number in range(MACHINES)]
    at_once = People(made, people._client, at_once=MACHINES)
    await at_once.all_talk(sessions)
    assert Counter(session.machine for session in sessions) == dict.fromkeys(made.machines, 1)
    assert all(session.pins == {"new": 1} for session in sessions)


async def test_hundreds_of_sessions_have_homes_in_their_zones_and_keep_them(
    made: Fleet, people: People, everybody: list[Session]
) -> None:
    began = time.monotonic()
    for _ in range(3):
        await people.all_talk(everybody)
    took_s = time.monotonic() - began
    print(f"\n{SESSIONS} sessions, {people.turns} turns in {took_s:.1f} s")
    stay_in_their_zones(made, everybody)
    assert all(len(session.homes) == 1 and session.pins["new"] == 1 for session in everybody)
    at = Counter(session.machine for session in everybody)
    assert at.keys() == made.machines.keys()
    print(f"sessions on a machine: {min(at.values())} to {max(at.values())}")


async def test_pins_stay_over_random_kills(made: Fleet, people: People, everybody: list[Session]) -> None:
    """Keepers, hosts, routers and the controller, while all sessions talk. But for one thing: the controller and a host
    are not away at once. A router that has forgotten its sessions could then ask nobody, and begins one anew."""
    rng, killed, stop = random.Random(SEED), Counter[str](), asyncio.Event()
    homes = {session.name: session.home for session in everybody}
    talking = asyncio.create_task(people.keep_talking(everybody, stop))
    for _ in range(KILLS):
        what = rng.choice(("keeper", "keeper", "host", "host", "router", "controller"))
        killed[what] += 1
        if what in ("host", "controller"):
            await asyncio.to_thread(until, lambda: all_serve(made.told()), "controller and hosts are there")
        match what:
            case "host":
                found = await asyncio.to_thread(made.hosts)
                os.kill(rng.choice([pid for pids in found.values() for pid in pids]), signal.SIGKILL)
            case _:
                parts = {
                    "keeper": [machine.keeper for machine in made.machines.values()],
                    "router": made.routers,
                    "controller": [made.controller],
                }
                part = rng.choice(parts[what])
                part.kill()
                asyncio.get_running_loop().call_later(rng.uniform(*RESTART_S), part.start)
        await asyncio.sleep(PAUSE_S)
    stop.set()
    await talking
    print(f"\nkilled: {dict(killed)}; {people.turns} turns meanwhile")
    print(f"whole {await asyncio.to_thread(made.until_ready):.1f} s after")
    await people.all_talk(everybody)
    assert {session.name: session.home for session in everybody} == homes
    assert all(session.pins.keys() == {"new", "kept"} for session in everybody)
    told = sum((session.told for session in everybody), Counter[str]())
    print(f"told instead of an answer: {dict(told)}")
    assert told.keys() <= MAY_SAY | NO_ROUTER, told
    stay_in_their_zones(made, everybody)


async def test_a_cordoned_machine_serves_its_own_and_takes_no_new_session(
    made: Fleet, people: People, everybody: list[Session]
) -> None:
    cordoned = f"{ZONES[0]}-3"
    made.manage(cordoned, "cordon")
    until(lambda: all(made.seen(n).get(cordoned, {}).get("state") == "cordoned" for n in (0, 1)), "both know")
    new = [Session(f"cordon-{n}", zone=ZONES[0], headers={"x-homeport-zone": ZONES[0]}) for n in range(32)]
    own = [session for session in everybody if session.machine == cordoned]
    before = {session.name: session.home for session in own}
    await people.all_talk([*new, *own])
    assert cordoned not in {session.machine for session in new}
    assert {session.name: session.home for session in own} == before
    stay_in_their_zones(made, new)


async def test_keepers_controller_and_routers_are_replaced_and_every_host_lives_on(
    made: Fleet, people: People, everybody: list[Session]
) -> None:
    """As an upgrade of what is above the hosts does it. The cordon of the test before is kept."""
    cordoned = f"{ZONES[0]}-3"
    hosts, homes = made.hosts(), {session.name: session.home for session in everybody}
    assert [len(pids) for pids in hosts.values()] == [1] * MACHINES
    began = time.monotonic()
    for part in made.parts:
        part.kill()
    for part in made.parts:
        part.start()
    await asyncio.to_thread(made.until_ready, (cordoned,))
    print(f"\nall of them replaced and ready {time.monotonic() - began:.1f} s after")
    await people.all_talk(everybody)
    assert {session.name: session.home for session in everybody} == homes
    assert made.hosts() == hosts
    assert made.told()[cordoned]["state"] == "cordoned"
    made.manage(cordoned, "uncordon")
    await asyncio.to_thread(made.until_ready)


async def test_a_revision_goes_from_machine_to_machine_and_pins_survive(
    made: Fleet, people: People, everybody: list[Session]
) -> None:
    hosts, homes, stop = made.hosts(), {session.name: session.home for session in everybody}, asyncio.Event()
    talking = asyncio.create_task(people.keep_talking(everybody[::4], stop))
    began, at_work, order = time.monotonic(), set[str](), list[str]()
    made.apply(replace(made.model, context=3000), "e" * 64)

    def is_done() -> bool:
        told = made.told()
        busy = {
            name
            for name, machine in told.items()
            for each in machine["replicas"]
            if each["state"] != "ready" or each["running_digest"] != each["config_digest"]
        }
        assert len(busy) <= 1, busy
        order.extend(busy - at_work)
        at_work.update(busy)
        return (
            not busy
            and len(told) == MACHINES
            and all(each["revision"] == made.revision for each in told.values())
        )

    await asyncio.to_thread(until, is_done, "every machine has the revision")
    stop.set()
    await talking
    print(f"\na revision that restarts {MACHINES} hosts, one after another: {time.monotonic() - began:.1f} s")
    assert order == sorted(order)
    after = made.hosts()
    assert [len(pids) for pids in after.values()] == [1] * MACHINES
    assert all(after[name] != pids for name, pids in hosts.items())
    await asyncio.to_thread(made.until_ready)
    await people.all_talk(everybody)
    assert {session.name: session.home for session in everybody} == homes


async def test_a_lost_machines_sessions_move_within_their_zone_or_wait_and_forget_moves_the_rest(
    made: Fleet, people: People, everybody: list[Session]
) -> None:
    """One machine of each zone."""
    gone = {zone: f"{zone}-1" for zone in ZONES}
    for name in gone.values():
        made.machines[name].kill()
    away = [session for session in everybody if session.machine in gone.values()]
    movers, others = away[::2], away[1::2]
    homes = {session.name: session.home for session in everybody}
    for session in movers:
        session.headers["x-homeport-when-lost"] = "move"
    await people.all_talk(movers)
    assert all(session.pins["moved"] == 1 and session.machine not in gone.values() for session in movers)

    for session in others:
        session.told.clear()
        assert not await people.ask(session)
        assert set(session.told) == {"machine_lost"}
    for name in gone.values():
        made.manage(name, "forget")
    await people.all_talk(others)
    assert all(session.pins["moved"] == 1 and session.machine not in gone.values() for session in others)

    for name in gone.values():
        made.machines[name].keeper.start()
    print(f"\n{len(away)} sessions of {len(gone)} lost machines moved; back {made.until_ready():.1f} s after")
    await asyncio.sleep(LOST_AFTER_S)  # by now nobody moves back
    await people.all_talk(everybody)
    stayed = [session for session in everybody if session not in away]
    assert {session.name: session.home for session in stayed} == {s.name: homes[s.name] for s in stayed}
    assert all(len(session.homes) == 2 for session in away)
    stay_in_their_zones(made, everybody)


def test_no_journal_has_a_session_of_another_zone(made: Fleet, everybody: list[Session]) -> None:
    """Whatever was killed, moved and forgotten meanwhile: what hosts wrote down before they answered."""
    began_in = {session.digest: made.zone(session.homes[0].partition("/")[0]) for session in everybody}
    read = Counter[str]()
    for machine in made.machines.values():
        entries, _, _ = entries_since(machine.paths.replica(0) / "journal.sqlite", NOTHING)
        for session in {entry.pin.session for entry in entries} & began_in.keys():
            assert began_in[session] == machine.zone
            read[session] += 1
    assert read.keys() == began_in.keys()
    print(f"\n{read.total()} pins of {len(read)} sessions in {MACHINES} journals")
