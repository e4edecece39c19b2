"""A worker that joined by hand heals by itself, with real Ray: the tests go on from one another, on two machines."""

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.kernel import run
from tests.cluster.lab import LabMachine, until
from tests.cluster.several import CLONE, HOMEPORT, Several, processes, several, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
NAMES = {"den-pc": "home", "tower": "home"}
PATIENCE_S = 90.0
RAY = ("gcs/gcs_server", "raylet/raylet", "ray::Keeper", "ray::Controller")
PARTS = {
    "node": "raylet/raylet",
    "keeper": "ray::Keeper",
    "host": "serving.host",
    "service": "cluster.service",
}


@dataclass
class Pair:
    """A head that is up, and a worker that joined it with a token."""

    several: Several

    @property
    def head(self) -> LabMachine:
        return self.several.head

    @property
    def worker(self) -> LabMachine:
        return self.several.workers[0]

    def step(self) -> dict[str, Any]:
        """What the worker's service says of its Ray."""
        found = self.state("run.json")["steps"].get("ray", {})
        assert isinstance(found, dict)
        return found

    def state(self, file: str) -> Any:
        return json.loads((self.worker.home / ".local" / "state" / "homeport" / file).read_text())

    def rejoins(self, node: int, seconds: float = PATIENCE_S) -> float:
        """Until the worker's Ray is another one than `node`, its keeper is heard and its host ready."""

        def joined() -> bool:
            there = processes(self.worker, PARTS["node"], PARTS["keeper"])
            return (
                self.step()["state"] == "ready"
                and len(there) == 2
                and node not in there
                and self.several.ready() == set(NAMES)
            )

        return wait_for(joined, "the worker is back", seconds, self.several.logs)

    def is_asked(self) -> None:
        """Both machines answer, each in the session that has its home there."""
        answers = self.several.ask(("tea", "Hello"), ("coffee", "Hello"))
        assert [answer.status for answer in answers] == [200, 200], answers
        assert {answer.machine for answer in answers} == set(NAMES)

    def parts(self) -> dict[str, list[int]]:
        return {name: processes(self.worker, words) for name, words in PARTS.items()}


@pytest.fixture(scope="module")
def pair(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with several(tmp_path_factory.mktemp("pair") / "lab", prepared, NAMES) as made:
        for machine in made.members:
            run("rm", "-rf", str(machine.home / "homeport"))
            run("cp", "-al", str(prepared), str(machine.home / "homeport"))
            machine.boot()
        config = made.head.home / "homeport.yaml"
        config.write_text(made.config.read_text())
        up = made.head.ssh(f"{HOMEPORT} up --detach --config homeport.yaml", check=False, timeout=200)
        assert up.returncode == 0, up.stdout + up.stderr + made.logs()
        token = made.head.ssh(f"{HOMEPORT} join-token").stdout.strip()
        worker = made.workers[0]
        joined = worker.ssh(f"{HOMEPORT} join {made.head.address} --token {token}", check=False, timeout=200)
        assert joined.returncode == 0, joined.stdout + joined.stderr + made.logs()
        found = Pair(made)
        wait_for(lambda: made.ready() == set(NAMES), "both machines ready", PATIENCE_S, made.logs)
        found.is_asked()
        yield found


def test_a_killed_node_comes_back_and_its_host_lives_on(pair: Pair) -> None:
    before, machine = pair.parts(), pair.state("machine.json")
    os.kill(before["node"][0], signal.SIGKILL)
    print(f"a node that was killed: back after {pair.rejoins(before['node'][0]):.1f} s")
    assert pair.parts()["host"] == before["host"]
    assert pair.state("machine.json") == machine
    pair.is_asked()


def test_a_service_that_is_replaced_takes_rays_node_over(pair: Pair) -> None:
    before = pair.parts()
    os.kill(before["service"][0], signal.SIGTERM)
    until(lambda: not processes(pair.worker, PARTS["service"]), "the end of the service")
    pair.worker.ssh(f"{HOMEPORT} join {pair.head.address}")
    after = pair.parts()
    assert after.pop("service") != before.pop("service")
    assert after == before
    refused = pair.worker.ssh(f"cd {CLONE} && .venv/bin/python -m cluster.service", check=False)
    assert refused.returncode == 1
    assert "runs on" in refused.stderr


def test_a_worker_that_was_cut_off_for_longer_than_rays_patience_rejoins(pair: Pair) -> None:
    before = pair.parts()
    pair.worker.plug(plugged=False)
    try:
        time.sleep(75)
    finally:
        pair.worker.plug(plugged=True)
    print(f"unplugged for 75 s: back after {pair.rejoins(before['node'][0]):.1f} s")
    assert pair.parts()["host"] == before["host"]
    pair.is_asked()


def test_while_the_heads_ray_is_dead_all_is_served_and_the_worker_stays_as_it_is(pair: Pair) -> None:
    before = pair.parts()
    (parent,) = processes(pair.head, "router.parent")
    os.kill(parent, signal.SIGSTOP)
    try:
        dead = processes(pair.head, *RAY)
        for pid in dead:
            os.kill(pid, signal.SIGKILL)
        time.sleep(10)
        pair.is_asked()
        time.sleep(10)
        pair.is_asked()
    finally:
        os.kill(parent, signal.SIGCONT)
    _controller_is_new(pair, dead)
    assert pair.parts() == before
    pair.is_asked()


def test_a_head_that_reboots_finds_its_worker_as_it_was(pair: Pair) -> None:
    before = pair.parts()
    pair.head.kill()
    pair.head.boot()
    up = pair.head.ssh(f"{HOMEPORT} up --detach --config homeport.yaml", check=False, timeout=200)
    assert up.returncode == 0, up.stdout + up.stderr + pair.several.logs()
    _controller_is_new(pair, [])
    assert pair.parts() == before
    pair.is_asked()


def test_a_worker_with_a_new_address_keeps_its_id(pair: Pair) -> None:
    before, machine = pair.parts(), pair.state("machine.json")
    net = pair.worker.address.rpartition(".")[0]
    ip = ("ip", "-n", pair.worker.namespace)
    run(*ip, "addr", "del", f"{pair.worker.address}/24", "dev", "eth0")
    run(*ip, "addr", "add", f"{net}.77/24", "dev", "eth0")
    run(*ip, "route", "replace", "default", "via", f"{net}.1")
    pair.worker.address = f"{net}.77"
    pair.rejoins(before["node"][0], 150.0)
    after = pair.state("machine.json")
    assert (after["id"], after["name"]) == (machine["id"], machine["name"])
    assert after["address"] == pair.worker.address
    wait_for(
        lambda: pair.several.fleet()["tower"]["address"] == pair.worker.address,
        "the router knows the new address",
        PATIENCE_S,
        pair.several.logs,
    )
    pair.is_asked()


def test_down_leaves_nothing_on_either_machine(pair: Pair) -> None:
    for machine in (pair.worker, pair.head):
        machine.ssh(f"{HOMEPORT} down")
        until(lambda machine=machine: not machine.commands(), f"the end of everything on {machine.name}")  # type: ignore[misc]


def _controller_is_new(pair: Pair, before: list[int]) -> None:
    def works() -> bool:
        there = processes(pair.head, *RAY)
        return len(there) == len(RAY) and not set(there) & set(before) and pair.several.ready() == set(NAMES)

    took = wait_for(works, "the head's Ray is back", PATIENCE_S, pair.several.logs)
    print(f"the head's Ray: back after {took:.1f} s")
