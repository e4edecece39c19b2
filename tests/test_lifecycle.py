"""Where a homeport listens before anything is started: alone on loopback, or where others reach it."""

import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.build import build_id
from cluster.join import machine_name
from cluster.machine import Machine
from cluster.paths import Paths, read_json, write_private
from cluster.processes import mark
from cluster.proof import machine_token
from router.lifecycle import (
    Prepared,
    UpRefused,
    age_secrets,
    give_list,
    leave_former_cluster,
    lock_or_run,
    prepare,
    speaks_tls,
    start,
    take_up_lock,
    write_revision,
)
from tests.test_router_end import Routers

MODEL = "models: [{name: smollm2, source: bundled, replicas: 1, needs: {cores: CORES, memory: 1MiB}}]\n"
HERE = "127.0.0.1"
NOWHERE = "203.0.113.7"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(tmp_path / "home", tmp_path / "locks")
    made.make()
    return made


@pytest.fixture
def mine() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((NOWHERE, 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])


def prepared(paths: Paths, text: str, address: str | None = None, cores: int = 1) -> Prepared:
    config = paths.home / "homeport.yaml"
    config.write_text(text + MODEL.replace("CORES", str(cores)))
    return prepare(paths, config, {}, address)


def test_a_machine_without_an_address_is_alone(paths: Paths) -> None:
    machine = prepared(paths, "").machine
    assert (machine.address, machine.name) == (HERE, machine_name(socket.gethostname()))


def test_machines_speak_tls_where_others_reach_them_and_the_network_is_not_private(
    paths: Paths, mine: str
) -> None:
    for text, address, expected in (
        ("", None, False),
        ("", mine, True),
        ("network: {private: false}\n", mine, True),
        ("network: {private: true}\n", mine, False),
    ):
        ready = prepared(paths, text, address)
        assert speaks_tls(ready.config, ready.machine) is expected


def test_its_entry_is_found_by_its_address_or_gives_it(paths: Paths, mine: str) -> None:
    private, host = "network: {private: true}\n", machine_name(socket.gethostname())
    by_address = prepared(
        paths, f"{private}machines: [{{name: den-pc, address: {mine}, zone: home}}]\n", mine
    )
    assert (by_address.machine.name, by_address.machine.zone) == ("den-pc", "home")
    by_name = prepared(paths, f"{private}machines: [{{name: {host}, address: {mine}}}]\n")
    assert (by_name.machine.name, by_name.machine.address) == (host, mine)


def test_an_address_of_another_machine_is_refused(paths: Paths) -> None:
    with pytest.raises(UpRefused, match="is no address of this machine"):
        prepared(paths, "network: {private: true}\n", NOWHERE)


def test_where_others_may_join_a_model_may_fit_on_one_of_them_only(paths: Paths, mine: str) -> None:
    with pytest.raises(UpRefused, match="fits nowhere"):
        prepared(paths, "", cores=1000)
    assert prepared(paths, "network: {private: true}\n", mine, cores=1000).machine.address == mine


def test_controller_and_router_are_told_the_machines_address(paths: Paths, mine: str) -> None:
    ready = prepared(paths, "network: {private: true, control: 8090}\nmachines: [{name: attic}]\n", mine)
    machine: Machine = ready.machine
    write_revision(paths, ready.config, machine, (8100, 8199))
    revision = read_json(paths.revision)
    assert revision["control"] == {"host": mine, "port": 8090, "tls": False, "lost_after_s": 30.0}
    assert [entry["name"] for entry in revision["machines"]] == ["attic"]
    assert read_json(paths.router_settings)["control_url"] == f"http://{mine}:8090"
    assert read_json(paths.router_settings)["ca_file"] is None
    write_revision(paths, ready.config, machine, (8100, 8199))
    assert read_json(paths.revision)["revision"] == revision["revision"]


def test_a_list_of_machines_is_given_and_taken_away(paths: Paths, tmp_path: Path) -> None:
    give_list(paths, tmp_path / "list.yaml")
    assert paths.machine_list.read_text() == str(tmp_path / "list.yaml")
    give_list(paths, None)
    give_list(paths, None)
    assert not paths.machine_list.exists()


def test_a_machine_that_served_a_head_has_secrets_of_its_own_when_it_starts_alone(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths.join_token.parent.mkdir()
    tokens = (paths.machine_token, paths.ray_token, paths.join_token)
    for token in tokens:
        write_private(token, "of the former cluster")
    for known in (False, True):
        if known:
            write_private(paths.joined, "{}")
        start_nothing(paths, monkeypatch)
        assert (paths.ray_token.read_text() == "of the former cluster") is not known
        assert paths.machine_token.read_text() != "of the former cluster"
        assert paths.join_token.exists() is not known
    assert not paths.joined.exists()
    kept = [token.read_text() for token in tokens[:2]]
    start_nothing(paths, monkeypatch)
    assert [token.read_text() for token in tokens[:2]] == kept


def test_a_head_of_a_former_build_gets_a_secret_of_its_own_and_knows_its_machines_by_the_former(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_private(paths.cluster_token, "what every machine has")
    start_nothing(paths, monkeypatch)
    mine = paths.cluster_token.read_text()
    assert mine != "what every machine has"
    assert paths.former_token.read_text() == "what every machine has"
    start_nothing(paths, monkeypatch)
    assert paths.cluster_token.read_text() == mine
    own = machine_token(mine, read_json(paths.machine)["id"])
    assert paths.machine_token.read_text() == own


@pytest.mark.parametrize(
    ("known", "speaks_tls", "are_gone"),
    [
        ({"address": "10.0.0.1", "tls": False}, True, True),
        ({"address": "10.0.0.1"}, True, True),  # of a build without TLS
        ({"address": "10.0.0.1", "tls": True}, True, False),
        ({"address": "10.0.0.1", "tls": False}, False, False),
        ({"address": "127.0.0.1", "tls": False}, True, False),
        (None, True, False),
    ],
)
def test_what_was_said_in_clear_is_no_secret_once_machines_speak_tls(
    paths: Paths, known: dict[str, Any] | None, speaks_tls: bool, are_gone: bool
) -> None:
    for part in paths.spoken:
        write_private(part, "it")
    if known is not None:
        write_private(paths.machine, json.dumps(known))
    age_secrets(paths, "10.0.0.1", speaks_tls)
    assert {part.exists() for part in paths.spoken} == {not are_gone}


def test_what_was_said_in_clear_is_no_secret_either_after_a_time_alone(paths: Paths) -> None:
    for part in paths.spoken:
        write_private(part, "it")
    age_secrets(paths, "10.0.0.1", False)
    write_private(paths.machine, json.dumps({"address": "127.0.0.1", "tls": False}))
    age_secrets(paths, "127.0.0.1", False)
    assert {part.exists() for part in paths.spoken} == {True}
    age_secrets(paths, "10.0.0.1", True)
    assert {part.exists() for part in (*paths.spoken, paths.said_in_clear)} == {False}


def test_who_runs_is_written_down_with_its_build(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    start_nothing(paths, monkeypatch)
    run = read_json(paths.run)
    assert (run["build"], "machines" in run) == (build_id(), False)


def test_hosts_of_a_former_cluster_are_ended(paths: Paths) -> None:
    host = subprocess.Popen(["sleep", "600"], env=mark(paths, "host"))
    leave_former_cluster(paths)
    assert host.poll() is None
    write_private(paths.joined, "{}")
    leave_former_cluster(paths)
    host.wait(10)


def test_a_start_that_waits_for_a_router_that_was_left_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = Routers(tmp_path, 30.0)
    client, said = left.ask(), list[str]()

    def hears(word: str) -> None:
        said.append(word)
        if "waiting" in word:
            client.close()

    try:
        start_nothing(left.paths, monkeypatch, hears)
    finally:
        left.close()
    assert said == ["ending the router", "waiting for 1 open request to end, at most 30 s"]


def start_nothing(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, say: Callable[[str], None] = lambda _: None
) -> None:
    """`start` up to the parent, which is none."""
    lock = take_up_lock(paths)
    assert lock is not None
    ports = "network: {control: 18190, ports: 18191-18199}\nrouter: {listen: 127.0.0.1:18189}\n"
    ready = prepared(paths, ports)
    with monkeypatch.context() as patch:
        patch.setattr("router.lifecycle.subprocess.Popen", lambda *_, **__: None)
        start(paths, ready, {}, os.getpid(), lock, say=say)


def test_an_up_that_has_not_said_yet_what_it_starts_is_waited_for(paths: Paths) -> None:
    lock = take_up_lock(paths)
    assert lock is not None
    said = threading.Timer(0.5, lambda: write_private(paths.run, json.dumps({"build": build_id()})))
    said.start()
    try:
        assert lock_or_run(paths) == (None, {"build": build_id()})
    finally:
        said.join()
        os.close(lock)
    free, _ = lock_or_run(paths)
    assert free is not None
    os.close(free)
