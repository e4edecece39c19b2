"""`ray up` on the machine list as it is shipped, with only addresses, user and zones written into it."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.kernel import command
from tests.cluster.lab import LabMachine, until
from tests.cluster.several import HOMEPORT, Several, several, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
READY_S = 90.0
"""The target for a `ray up` of four machines with dependencies present, to all keepers ready."""
HOME_OF = {"den-pc": "home", "tower": "home", "rack": "office", "attic": "office"}


@pytest.fixture
def cluster(prepared: Path, tmp_path: Path) -> Iterator[Several]:
    """Four machines in two zones, none of them on."""
    with several(tmp_path / "lab", prepared, HOME_OF) as made:
        yield made


def hosts(machine: LabMachine) -> list[int]:
    return [pid for pid in machine.pids() if "serving.host" in command(pid)]


def off(cluster: Several) -> Callable[[], bool]:
    """Whether no process but sshd runs on any of its machines."""
    return lambda: not any(machine.commands() for machine in cluster.members)


def test_ray_up_makes_four_machines_one_service_and_both_ways_down_leave_nothing(cluster: Several) -> None:
    for machine in cluster.members:
        machine.boot()
    began = time.monotonic()
    first = cluster.ray("up")
    assert first.returncode == 0, first.stdout
    wait_for(lambda: cluster.ready() == set(HOME_OF), "every keeper ready", READY_S, cluster.logs)
    took_s = time.monotonic() - began
    print(f"ray up, {len(HOME_OF)} machines, to all keepers ready: {took_s:.1f} s")
    assert took_s <= READY_S
    assert {name: machine["zone"] for name, machine in cluster.fleet().items()} == HOME_OF

    sessions = [(f"chat-{number}", "Name three colours.") for number in range(len(HOME_OF))]
    homes = [answer.machine for answer in cluster.ask(*sessions)]
    assert sorted(homes) == sorted(HOME_OF)
    before = {machine.name: hosts(machine) for machine in cluster.members}

    second = cluster.ray("up")
    assert second.returncode == 0, second.stdout
    again = cluster.ask(*sessions)
    assert [(answer.machine, answer.pin) for answer in again] == [(home, "kept") for home in homes]
    assert {machine.name: hosts(machine) for machine in cluster.members} == before

    down = cluster.ray("down")
    assert down.returncode == 0, down.stdout
    assert "Exception occurred" not in down.stdout, down.stdout
    until(off(cluster), "the end of everything after `ray down`")

    assert cluster.ray("up").returncode == 0
    wait_for(lambda: cluster.ready() == set(HOME_OF), "up again", READY_S, cluster.logs)
    assert [(answer.machine, answer.pin) for answer in cluster.ask(*sessions)] == [
        (home, "kept") for home in homes
    ]
    ended = cluster.head.ssh(f"{HOMEPORT} down --all")
    assert all(name in ended.stdout for name in ("tower", "rack", "attic")), ended.stdout
    until(off(cluster), "the end of everything after `homeport down --all`")


def test_a_machine_that_is_off_is_named_and_a_second_ray_up_heals_it(cluster: Several) -> None:
    den, tower, rack, attic = cluster.members
    for machine in (den, tower, attic):
        machine.boot()
    first = cluster.ray("up")
    assert first.returncode == 0, first.stdout
    others = {"den-pc", "tower", "attic"}
    wait_for(lambda: cluster.ready() == others, "the others go on", READY_S, cluster.logs)
    said = den.ssh(f"{HOMEPORT} join --head ~/ray_bootstrap_config.yaml").stdout
    (line,) = [line for line in said.splitlines() if rack.address in line]
    assert "is it off?" in line
    before = {machine.name: hosts(machine) for machine in (den, tower, attic)}
    rack.boot()
    second = cluster.ray("up")
    assert second.returncode == 0, second.stdout
    wait_for(lambda: cluster.ready() == {*others, "rack"}, "the second run heals it", READY_S, cluster.logs)
    assert {machine.name: hosts(machine) for machine in (den, tower, attic)} == before
    assert all(len(found) == 1 for found in before.values())
