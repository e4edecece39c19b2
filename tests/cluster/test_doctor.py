"""`homeport doctor` on machines of which one is off, one behind a firewall and one's clock wrong; then on two that
serve, whose hosts have no way out."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.kernel import run
from tests.cluster.lab import LabMachine
from tests.cluster.several import HOMEPORT, Several, several, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(500)]
NAMES = {"den-pc": "home", "tower": "home", "rack": "office", "attic": "office"}
AHEAD_S = 7.0
READY_S = 120.0
DROP = (
    "add table inet walls; add chain inet walls in {{ type filter hook input priority 0; }}; "
    "add rule inet walls in ip saddr {0} tcp dport 8100-8199 drop"
)


@pytest.fixture(scope="module")
def cluster(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Several]:
    """den-pc and tower are well; rack's clock is ahead; attic is off."""
    with several(tmp_path_factory.mktemp("doctor") / "lab", prepared, NAMES) as made:
        den, tower, rack, attic = made.members
        attic.plug(plugged=False)  # its namespace would answer for it, that nobody listens
        _set_clock_ahead(rack)
        for machine in (den, tower, rack):
            machine.boot()
        yield made


def _set_clock_ahead(machine: LabMachine) -> None:
    """For every Python of its shells: the kernel's clock is that of all."""
    (machine.disk / "skew").mkdir()
    code = f"import time\nreal = time.time\ntime.time = lambda: real() + {AHEAD_S}\n"
    (machine.disk / "skew" / "sitecustomize.py").write_text(code)
    config = machine.disk / "sshd_config"
    text, done = re.subn(r"(?m)^(SetEnv .*)$", r'\1 "PYTHONPATH=/mnt/skew"', config.read_text())
    assert done == 1
    config.write_text(text)


def in_network_of(machine: LabMachine, *command: str) -> None:
    run("ip", "netns", "exec", machine.namespace, *command)


def doctor(machine: LabMachine, *words: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and findings."""
    done = machine.ssh(f"{HOMEPORT} doctor --json {' '.join(words)}", check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)["findings"]


def bad(found: list[dict[str, Any]], topic: str = "") -> list[dict[str, Any]]:
    return [each for each in found if each["severity"] != "ok" and topic in each["topic"]]


def about(found: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    """What differs from machine to machine; the rest is of the real one that all are made of."""
    ours = ("ssh", "ports", "clock", "versions", "python", "rsync")
    return {
        (each["machine"], each["topic"], each["severity"]) for each in bad(found) if each["topic"] in ours
    }


def test_it_names_exactly_what_is_wrong_and_its_remedy_mends_it(cluster: Several) -> None:
    den, tower, _rack, attic = cluster.members
    in_network_of(tower, "nft", DROP.format(den.address))
    listed = "homeport/configs/cluster.yaml"
    began = time.monotonic()
    code, found = doctor(cluster.laptop, listed)
    print(f"doctor, 4 machines, one of them off: {time.monotonic() - began:.1f} s")
    assert code == 1
    assert about(found) == {
        (attic.address, "ssh", "fail"),
        ("tower", "ports", "fail"),
        ("rack", "clock", "warn"),
    }, found
    (off,) = bad(found, "ssh")
    assert "is it off?" in off["what"]
    (clock,) = bad(found, "clock")
    assert f"{AHEAD_S} s ahead of that of den-pc" in clock["what"]
    (wall,) = bad(found, "ports")
    assert wall["what"] == "not reached by den-pc on 8100-8199 (replicas): dropped, as a firewall does"
    assert den.address in wall["remedy"]
    assert not any("homeport" in line for line in tower.commands()), "nothing of it stays"

    tower.ssh(wall["remedy"].removeprefix("sudo "))
    _, found = doctor(cluster.laptop, listed)
    assert about(found) == {(attic.address, "ssh", "fail"), ("rack", "clock", "warn")}, found
    in_network_of(tower, "nft", "delete table inet walls")


def test_a_person_reads_it(cluster: Several) -> None:
    done = cluster.laptop.ssh(f"{HOMEPORT} doctor homeport/configs/cluster.yaml", check=False)
    assert done.returncode == 1
    for words in ("den-pc", "is it off?", "-> switch it on", "to mend."):
        assert words in done.stdout
    assert cluster.laptop.ssh(f"{HOMEPORT} doctor /nowhere.yaml", check=False).returncode == 2
    assert cluster.laptop.ssh(f"{HOMEPORT} doctor --egress", check=False).returncode == 3


def test_hosts_have_no_way_out_until_the_config_leaves_them_one(cluster: Several) -> None:
    den, tower = cluster.members[:2]
    cluster.write_list(den.address, [tower.address])
    up = cluster.ray("up")
    assert up.returncode == 0, up.stdout
    names = {"den-pc", "tower"}
    wait_for(lambda: cluster.ready() == names, "both machines ready", READY_S, cluster.logs)

    code, found = doctor(den)
    assert (code, about(found)) == (0, set()), found
    assert len([each for each in found if each["topic"] == "versions" and "Ray" in each["what"]]) == 2

    answers = cluster.ask(("a", "Name a colour."), ("b", "Name a fruit."))
    assert ({answer.machine for answer in answers}, {answer.status for answer in answers}) == (names, {200})
    limits = [replica["limits"] for each in cluster.fleet().values() for replica in each["replicas"]]
    assert all("network" in each["enforced"] for each in limits), limits

    began = time.monotonic()
    code, found = doctor(den, "--egress")
    print(f"doctor --egress, 2 hosts on 2 machines: {time.monotonic() - began:.1f} s")
    assert code == 0, found
    assert {(each["machine"], each["what"]) for each in found} == {
        ("den-pc", "den-pc/0: no way out (network unreachable)"),
        ("tower", "tower/0: no way out (network unreachable)"),
    }

    _leave_them_their_network(den)
    wait_for(lambda: _is_left(cluster), "hosts that have their network", READY_S, cluster.logs)
    code, found = doctor(den, "--egress")
    assert code == 1
    for each in found:
        assert each["severity"] == "fail"
        assert f"CAN connect: connects to {den.address}:" in each["what"]
        assert "has eth0" in each["what"]
        assert "isolate: true" in each["remedy"]
    kept = cluster.ask(("a", "Another one."), ("b", "Another one."))
    assert [(a.machine, a.pin) for a in kept] == [(answer.machine, "kept") for answer in answers]


def _leave_them_their_network(head: LabMachine) -> None:
    config = head.home / "homeport" / "configs" / "homeport.yaml"
    text, done = re.subn(r"(?m)^  isolate: true", "  isolate: false", config.read_text())
    assert done == 1
    config.unlink()  # its text is shared with other machines' files
    config.write_text(text)
    applied: subprocess.CompletedProcess[str] = head.ssh(
        f"{HOMEPORT} apply --yes --config ~/homeport/configs/homeport.yaml", check=False, timeout=300
    )
    assert applied.returncode == 0, applied.stdout + applied.stderr
    assert "isolate true -> false" in applied.stdout, applied.stdout


def _is_left(cluster: Several) -> bool:
    replicas = [replica for each in cluster.fleet().values() for replica in each["replicas"]]
    return len(replicas) == 2 and all(
        replica["state"] == "ready" and replica["reach"] == "up" and "network" in replica["limits"]["watched"]
        for replica in replicas
    )
