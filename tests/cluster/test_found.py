"""A head is found in its own network while a machine may join, not beyond it, and not at any other time."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.cluster.kernel import run
from tests.cluster.lab import LabMachine, until
from tests.cluster.several import CLONE, HOMEPORT, several, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
NAMES = {"den-pc": "home", "rack": "office"}
"""The head, and a machine beyond the router."""
PATIENCE_S = 120.0
TAKEN_BACK_S = 10.0
HEAR = """
import dataclasses, json
from cluster import mdns
print(json.dumps([dataclasses.asdict(head) for head in mdns.search(None, 2.0)]))
"""


def hears(machine: LabMachine) -> list[str]:
    """The addresses of the heads that are announced where this machine is."""
    told = machine.ssh(f"cd {CLONE} && .venv/bin/python - <<'END'\n{HEAR}\nEND").stdout
    return [each["address"] for each in json.loads(told)]


def joins(machine: LabMachine, words: str, token: str) -> subprocess.CompletedProcess[str]:
    return machine.ssh(f"{HOMEPORT} join {words} --token-file - <<< {token}", check=False, timeout=200)


def test_a_machine_in_the_heads_network_needs_no_address_to_join(prepared: Path, tmp_path: Path) -> None:
    with several(tmp_path / "lab", prepared, NAMES, private=False) as cluster:
        den, rack = cluster.members
        attic = cluster.add("attic", "home")
        for machine in (den, rack):
            run("rm", "-rf", str(machine.home / "homeport"))
            run("cp", "-al", str(prepared), str(machine.home / "homeport"))
        (den.home / "homeport.yaml").write_text(cluster.config.read_text())
        for machine in (den, rack, attic):
            machine.boot()
        den.ssh(f"{HOMEPORT} up --detach --config homeport.yaml", timeout=200)
        wait_for(lambda: cluster.ready() == {"den-pc"}, "the head", PATIENCE_S, cluster.logs)
        assert hears(cluster.laptop) == []

        made = den.ssh(f"{HOMEPORT} join-token")
        assert f"homeport join {den.address} --token-file -" in made.stderr
        assert "the address can be left out" in made.stderr
        heard_s = until(lambda: hears(cluster.laptop) == [den.address], "an announcement")
        assert hears(rack) == []
        joined = joins(attic, "", made.stdout.strip())
        assert joined.returncode == 0, joined.stdout + joined.stderr + cluster.logs()
        assert f"found the head den-pc at {den.address}\n" in joined.stdout
        silent_s = until(lambda: hears(cluster.laptop) == [], "an end of it", TAKEN_BACK_S)
        print(f"heard after {heard_s:.1f} s, silent {silent_s:.1f} s after the join")

        token = den.ssh(f"{HOMEPORT} join-token").stdout.strip()
        refused = joins(rack, "", token)
        assert refused.returncode == 1, refused.stdout + refused.stderr
        assert "No head that this token could be of was found in this network segment" in refused.stderr
        assert "Join by the address that `homeport join-token` printed" in refused.stderr
        joined = joins(rack, den.address, token)
        assert joined.returncode == 0, joined.stdout + joined.stderr + cluster.logs()
        wait_for(lambda: cluster.ready() == {*NAMES, "attic"}, "all three", PATIENCE_S, cluster.logs)
        assert hears(cluster.laptop) == []

        again = attic.ssh(f"{HOMEPORT} join")
        assert f"attic serves the head at {den.address}" in again.stdout
        den.ssh(f"{HOMEPORT} down --all")
        for machine in (den, rack, attic):
            until(lambda machine=machine: not machine.commands(), "the end of everything on it")  # type: ignore[misc]
