"""A keeper with real hosts in real slices: what it does when the engine of one ends its process."""

import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cluster import confine, machine_tls
from cluster.confine import Launch, Record
from cluster.inventory import measure
from cluster.join import enter
from cluster.machine import Hardware, Reserve
from cluster.paths import Paths, secret, write_private
from cluster.processes import mark, ours
from cluster.slices import Need
from cluster.tls import speaks_tls
from router.lifecycle import end_everything
from serving import reconcile
from serving.keeper import Keeper
from serving.model import ModelSpec, ParkingSpec
from tests.e2e.installation import _free_ports
from tests.fakes import Behaviour
from tests.host_process import model_spec, text_of

PATIENCE_S = 60.0
ASSERTION = "made-up.cpp:7: GGML_ASSERT(n_tokens_all <= cparams.n_batch) failed"
ABORTS = Behaviour(aborts_after=5, endless=True)
TALKS = Behaviour(endless=True, step_s=0.01)


class Machine:
    """This machine with its keeper; which FakeEngine a slot's host has is decided when it starts."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths = Paths(root / "home", root / "locks")
        self.paths.make()
        self.behaviours = [ABORTS, TALKS]
        monkeypatch.setenv("HOMEPORT_HOME", str(self.paths.home))
        monkeypatch.setenv("HOMEPORT_LOCKS", str(self.paths.locks))
        self.launch = confine.launch
        monkeypatch.setattr(confine, "launch", self.launch_fake)
        self.token = secret(self.paths.machine_token)
        hardware: Hardware = measure({})
        _, _, first, last = _free_ports()
        enter(self.paths, "den", "default", hardware, Reserve(0, 0), (first, last))
        self.keeper = Keeper()

    def launch_fake(self, order: Launch) -> Record:
        told = order.folder / "behaviour.json"
        told.write_text(json.dumps(asdict(self.behaviours[int(order.folder.name)])))
        python, _, _, spec = order.command
        return self.launch(replace(order, command=(python, "-m", "tests.fakes", spec, str(told))))

    def serve(self, replicas: int, revision: int = 1, head: str = "den", **spec: Any) -> None:
        model = replace(model_spec(**spec), replicas=replicas)
        wish = {"model": model.to_json(), "digest": "d" * 64, "count": replicas}
        self.keeper.apply(revision, [wish], head)

    def give(self, revision: int, models: list[tuple[ModelSpec, str]]) -> None:
        """One replica of each, in order."""
        wishes = [{"model": model.to_json(), "digest": digest, "count": 1} for model, digest in models]
        self.keeper.apply(revision, wishes, "den")

    def replace_keeper(self) -> None:
        """The next one finds what it left."""
        self.keeper.close()
        self.keeper = Keeper()

    def replica(self, slot: int) -> dict[str, Any]:
        found: dict[str, Any] = next(r for r in self.keeper.report()["replicas"] if r["slot"] == slot)
        return found

    def until(self, slot: int, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The replica once it is as wanted: looked at whenever the keeper has news."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds(replica := self.replica(slot)):
            assert time.monotonic() < deadline, replica
            self.keeper.report(self.keeper.report()["version"], 1.0)
        return replica

    def lives(self, slot: int, life: int) -> dict[str, Any]:
        """The replica once its host serves, started for the `life`th time."""
        return self.until(slot, lambda r: r["state"] == "ready" and r["incarnation"] == life)

    def connection(self, slot: int) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.replica(slot)["port"], timeout=PATIENCE_S)

    def settings(self, slot: int) -> dict[str, Any]:
        """What the host itself says that it goes by."""
        connection = self.connection(slot)
        try:
            connection.request("GET", "/state", headers={"authorization": f"Bearer {self.token}"})
            told: dict[str, Any] = json.loads(connection.getresponse().read())["settings"]
            return told
        finally:
            connection.close()

    def until_settings(self, slot: int, **wanted: object) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while {**(told := self.settings(slot)), **wanted} != told:
            assert time.monotonic() < deadline, told
            time.sleep(0.05)

    def ask(self, slot: int, tokens: int) -> str:
        """The text that comes, until its end or that of the host."""
        connection = self.connection(slot)
        question = {"role": "user", "content": "Hello"}
        body = {"model": "smollm2", "stream": True, "max_tokens": tokens, "messages": [question]}
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        text = ""
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            for line in connection.getresponse():
                if line.startswith(b"data: {"):
                    text += text_of(json.loads(line[6:]))
        except (http.client.HTTPException, OSError):
            pass
        finally:
            connection.close()
        return text


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    if len(measure({}).cores) < 2:
        pytest.skip("two hosts need two cores")
    made = Machine(tmp_path, monkeypatch)
    try:
        yield made
    finally:
        made.keeper.close()
        end_everything(made.paths)


def test_a_machine_with_another_reserve_carves_its_slots_anew(machine: Machine) -> None:
    """Its share of the revision that it has is given to it again, and ignored where nothing is different."""
    machine.keeper.apply(3, [], "den")
    machine.replace_keeper()
    assert machine.keeper.report()["revision"] == 3
    first, last = json.loads(machine.paths.machine.read_text())["ports"]
    enter(machine.paths, "den", "default", measure({}), Reserve(0, 1 << 20), (first, last))
    machine.replace_keeper()
    assert machine.keeper.report()["revision"] == 0
    assert machine.keeper.apply(3, [], "den")["revision"] == 3
    machine.replace_keeper()
    assert machine.keeper.report()["revision"] == 3


def test_a_failed_assertion_of_llama_cpp_ends_one_host_only_and_is_told(machine: Machine) -> None:
    machine.serve(2)
    before = [machine.lives(slot, 1) for slot in (0, 1)]
    heard: list[str] = []
    neighbour = threading.Thread(target=lambda: heard.append(machine.ask(1, 300)))
    neighbour.start()
    machine.behaviours[0] = TALKS
    assert len(machine.ask(0, 100)) < 100, "the host died within its answer"
    after = machine.lives(0, 2)
    assert after["deaths"] == 1
    assert ASSERTION in (machine.paths.replica(0) / "host.err.1").read_text()
    assert len(machine.ask(0, 100)) == 100
    neighbour.join(PATIENCE_S)
    assert len(heard[0]) == 300
    assert machine.replica(1)["pid"] == before[1]["pid"]


def test_a_host_that_dies_five_times_in_ten_minutes_is_given_up_with_its_last_lines(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "BACKOFF_S", (0.0, 0.0, 0.0, 0.0))
    machine.serve(1)
    for death in range(1, 6):
        machine.lives(0, death)
        machine.ask(0, 100)
    failed = machine.until(0, lambda replica: replica["state"] == "failed")
    assert failed["detail"] == "it died 5 times in 10 minutes"
    assert failed["stderr"][-1] == ASSERTION
    assert (failed["deaths"], failed["incarnation"], failed["pid"]) == (5, 5, None)


def test_between_two_lives_a_host_is_starting_and_its_last_lines_are_shown(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "BACKOFF_S", (600.0,) * 4)
    machine.serve(1)
    machine.lives(0, 1)
    machine.ask(0, 100)
    waits = machine.until(0, lambda replica: replica.get("deaths") == 1)
    assert waits["state"] == "starting"
    assert "is started again" in waits["detail"]
    assert waits["stderr"][-1] == ASSERTION


def test_a_host_that_cannot_be_started_is_given_up_with_the_reason(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "BACKOFF_S", (0.0, 0.0, 0.0, 0.0))

    def refuse(order: Launch) -> Record:
        raise confine.LaunchFailed("no space left on the disk")

    monkeypatch.setattr(confine, "launch", refuse)
    machine.serve(1)
    failed = machine.until(0, lambda replica: replica["state"] == "failed")
    assert failed["detail"] == "it died 5 times in 10 minutes: no space left on the disk"
    assert failed["stderr"] == []


def test_new_settings_reach_a_host_that_runs_and_one_that_is_adopted(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.behaviours = [TALKS]
    machine.serve(1)
    before = machine.lives(0, 1)
    parking = ParkingSpec(2**20, 2**21, 60.0)
    machine.serve(1, revision=2, hold_s=1.0, queue_s=2.0, unload_s=1800.0, parking=parking)
    machine.until_settings(0, hold_s=1.0, queue_s=2.0, unload_s=1800.0, parking=parking.to_json())
    machine.replace_keeper()
    machine.serve(1, revision=3, hold_s=3.0)
    machine.until_settings(0, hold_s=3.0, queue_s=60.0, unload_s=None, parking=ParkingSpec().to_json())
    after = machine.until(0, lambda replica: replica["state"] == "ready")
    assert (after["pid"], after["incarnation"]) == (before["pid"], 1)


def test_what_was_given_up_is_tried_again_with_another_configuration(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "BACKOFF_S", (0.0, 0.0, 0.0, 0.0))

    def refuse(order: Launch) -> Record:
        raise confine.LaunchFailed("no space left on the disk")

    with monkeypatch.context() as patch:
        patch.setattr(confine, "launch", refuse)
        machine.serve(1)
        machine.until(0, lambda replica: replica["state"] == "failed")
    machine.behaviours = [TALKS]
    machine.serve(1, revision=2, hold_s=1.0)
    assert machine.replica(0)["state"] == "failed"
    machine.give(3, [(model_spec(), "e" * 64)])
    assert machine.lives(0, 1)["deaths"] == 0


def test_a_slice_that_is_carved_anew_restarts_its_host_and_the_next_one_waits_for_the_cores(
    machine: Machine,
) -> None:
    machine.behaviours = [TALKS, TALKS]
    need = Need(1, 64 * 1024**2)
    all_of_it = replace(model_spec(), need=need, take="rest")
    machine.give(1, [(all_of_it, "d" * 64)])
    before = machine.lives(0, 1)
    machine.give(2, [(replace(model_spec(), name="second", need=need), "e" * 64), (all_of_it, "d" * 64)])
    after, second = machine.lives(0, 2), machine.lives(1, 1)
    assert set(after["slice"]["cores"]) < set(before["slice"]["cores"])
    assert set(after["slice"]["cores"]).isdisjoint(second["slice"]["cores"])
    assert second["deaths"] == 0
    assert (after["running_digest"], after["config_digest"]) == ("d" * 64, "d" * 64)


def test_another_heads_revisions_are_taken_whatever_their_number(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.keeper.close()

    def serves() -> tuple[int, str, list[int]]:
        report = machine.keeper.report()
        return report["revision"], report["head"], [r["slot"] for r in report["replicas"]]

    machine.serve(1, revision=3)
    machine.serve(2, revision=3)
    assert serves() == (3, "den", [0])
    machine.serve(2, revision=1, head="attic")
    assert serves() == (1, "attic", [0, 1])
    machine.replace_keeper()
    machine.keeper.close()
    assert serves() == (1, "attic", [0, 1])
    machine.serve(1, revision=3)
    assert serves() == (3, "den", [0])
    machine.serve(2, revision=2)
    assert serves() == (2, "den", [0, 1])


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address of this machine on Linux only")
def test_a_host_that_listens_at_an_earlier_address_is_replaced_at_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.behaviours = [TALKS]
    machine.serve(1)
    machine.lives(0, 1)
    machine.keeper.close()
    kept = json.loads(machine.paths.machine.read_text())
    write_private(machine.paths.machine, json.dumps({**kept, "address": "127.0.0.2"}))
    began = time.monotonic()
    machine.keeper = Keeper()
    assert machine.lives(0, 2)["address"] == "127.0.0.2"
    assert time.monotonic() - began < 20
    machine.replace_keeper()
    machine.lives(0, 2)  # at its own address it is adopted


def test_a_keeper_that_is_closed_leaves_no_thread_and_its_host_alive(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(threading.enumerate())
    machine.replace_keeper()
    machine.behaviours = [TALKS]
    machine.serve(1)
    pid = machine.lives(0, 1)["pid"]
    machine.keeper.close()
    machine.keeper.close()  # once more is nothing
    assert not set(threading.enumerate()) - before
    machine.replace_keeper()
    assert machine.lives(0, 1)["pid"] == pid


@pytest.mark.parametrize("change", ["tls", "the token of a former build", "another token"])
def test_a_host_that_was_told_what_holds_no_longer_is_replaced_at_once(machine: Machine, change: str) -> None:
    """A network that was private; a host that has the token of all machines."""
    machine.behaviours = [TALKS]
    machine.serve(1)
    machine.lives(0, 1)
    machine.keeper.close()
    kept = json.loads(machine.paths.machine.read_text())
    if change == "tls":
        machine_tls.certify_head(machine.paths, kept["id"], "127.0.0.1", time.time())
        write_private(machine.paths.machine, json.dumps({**kept, "tls": True}))
    elif change == "another token":
        write_private(machine.paths.machine_token, "of a cluster with other secrets")
    else:
        file = machine.paths.replica(0) / "spec.json"
        spec = {**json.loads(file.read_text()), "token_file": str(machine.paths.cluster_token)}
        write_private(file, json.dumps(spec))
    began = time.monotonic()
    machine.keeper = Keeper()
    port = machine.lives(0, 2)["port"]
    assert time.monotonic() - began < 20
    assert speaks_tls("127.0.0.1", port, 5.0) is (change == "tls")
    machine.replace_keeper()
    machine.lives(0, 2)  # as it is now it is adopted


def test_a_keeper_that_leaves_ends_all_that_runs_here_and_returns_at_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.behaviours = [TALKS]
    machine.serve(1)
    machine.lives(0, 1)
    service = subprocess.Popen(["sleep", "600"], env=mark(machine.paths, "parent"))
    machine.keeper.close()  # or it would start the host anew
    machine.keeper.leave()
    assert service.wait(PATIENCE_S) == -signal.SIGKILL
    deadline = time.monotonic() + PATIENCE_S
    while ours(machine.paths):
        assert time.monotonic() < deadline, (machine.paths.logs / "ending.log").read_text()
        time.sleep(0.1)
    assert (machine.paths.logs / "ending.log").read_text() == ""
