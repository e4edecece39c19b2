"""Which machine is which, with real Ray: two laptops of one host name are told apart by name, id and pins."""

import json
from collections.abc import Iterator

import pytest

from tests.cluster.lab import LabMachine, until
from tests.cluster.several import HOMEPORT, Several, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
JOINED_S = 90.0
GONE_S = 60.0
"""`homeport forget` refuses a machine for as long as Ray counts it as alive."""
ASKED = 12
"""New sessions, one after another: with six replicas, enough for each to have one."""


@pytest.fixture
def laptops(shared: Several) -> Iterator[list[LabMachine]]:
    """Two more machines that both call themselves `ubuntu`. Neither has joined."""
    found = [shared.add(f"laptop-{number}", "home") for number in (1, 2)]
    try:
        for laptop in found:
            laptop.boot()
            laptop.ssh("hostname ubuntu")
        yield found
    finally:
        for laptop in found:
            laptop.kill()


def id_of(machine: LabMachine) -> str:
    kept = machine.home / ".local" / "state" / "homeport" / "machine.json"
    return str(json.loads(kept.read_text())["id"])


def test_two_laptops_called_ubuntu_are_told_apart(shared: Several, laptops: list[LabMachine]) -> None:
    first, second = laptops
    joined = shared.join(first)
    assert joined.returncode == 0, joined.stdout + joined.stderr + shared.logs()
    refused = shared.join(second)
    assert refused.returncode != 0
    assert "ubuntu is another machine" in refused.stderr, refused.stderr
    assert "--name" in refused.stderr
    named = shared.join(second, "--name ubuntu-2")
    assert named.returncode == 0, named.stdout + named.stderr + shared.logs()
    both = {"ubuntu", "ubuntu-2"}
    wait_for(lambda: both <= shared.ready(), "both laptops ready", JOINED_S, shared.logs)
    fleet = shared.fleet()
    assert {name: fleet[name]["id"] for name in both} == {"ubuntu": id_of(first), "ubuntu-2": id_of(second)}
    assert {name: fleet[name]["address"] for name in both} == {
        "ubuntu": first.address,
        "ubuntu-2": second.address,
    }

    sessions = [(f"identity-{number}", "Hello") for number in range(ASKED)]
    homes = [answer.machine for answer in shared.ask(*sessions)]
    assert both <= set(homes), homes
    for laptop in laptops:
        laptop.ssh(f"{HOMEPORT} down")
        until(lambda laptop=laptop: not laptop.commands(), "the end of everything on it")  # type: ignore[misc]
    again = shared.join(second, token=False)  # It goes by the name that it has, not by its host name.
    assert again.returncode == 0, again.stdout + again.stderr + shared.logs()
    wait_for(lambda: "ubuntu-2" in shared.ready(), "the second laptop is back", JOINED_S, shared.logs)
    (kept,) = shared.ask(sessions[homes.index("ubuntu-2")])
    assert (kept.machine, kept.pin) == ("ubuntu-2", "kept")

    second.ssh(f"{HOMEPORT} down")
    for name in sorted(both):
        wait_for(
            lambda name=name: shared.head.ssh(f"{HOMEPORT} forget {name}", check=False).returncode == 0,  # type: ignore[misc]
            f"{name} is forgotten",
            GONE_S,
            shared.logs,
        )
