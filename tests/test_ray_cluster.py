"""Which ports and settings Ray is started with, and when a head's state is thrown away. Starts no Ray."""

import json
import socket
import time
from pathlib import Path

import pytest

from cluster import ray_cluster
from cluster.machine_tls import certify_head
from cluster.paths import Paths, write_private
from cluster.ray_cluster import HEAD_ADDRESS, Ports, environment, kept_ports, node_address

DEN = "10.0.0.1"


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    made = Paths(tmp_path / "home", tmp_path / "locks")
    made.make()
    monkeypatch.setattr(ray_cluster, "PORTS_S", 0.1)
    return made


def keep_state(paths: Paths) -> Path:
    paths.gcs.mkdir(parents=True, exist_ok=True)
    kept = paths.gcs / "CURRENT"
    kept.write_text("state")
    return kept


def test_a_head_that_starts_again_has_its_ports_and_its_state(paths: Paths) -> None:
    ports = kept_ports(paths, DEN)
    kept = keep_state(paths)
    assert kept_ports(paths, DEN) == ports
    assert kept.exists()


def test_at_another_address_the_state_is_thrown_away_and_the_ports_stay(paths: Paths) -> None:
    ports = kept_ports(paths, DEN)
    kept = keep_state(paths)
    assert kept_ports(paths, "10.0.0.2") == ports
    assert not kept.exists()


@pytest.mark.parametrize("what", ["version", "build_id"])
def test_the_state_of_another_ray_or_build_is_thrown_away(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    kept_ports(paths, DEN)
    kept = keep_state(paths)
    monkeypatch.setattr(ray_cluster, what, lambda *_: "another")
    kept_ports(paths, DEN)
    assert not kept.exists()


def test_where_a_port_was_taken_meanwhile_all_are_chosen_anew(paths: Paths) -> None:
    ports = kept_ports(paths, DEN)
    kept = keep_state(paths)
    with socket.socket() as holder:
        holder.bind(("", ports.gcs))
        holder.listen()
        assert kept_ports(paths, DEN) != ports
    assert not kept.exists()


def test_a_broken_note_of_ports_is_as_good_as_none(paths: Paths) -> None:
    paths.ray_ports.write_text("{")
    assert kept_ports(paths, DEN) == kept_ports(paths, DEN)


def test_a_python_that_differs_in_its_last_number_is_no_obstacle(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private.utils import check_version_info, compute_version_info

    name = "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL"
    monkeypatch.setenv(name, environment(paths, {}, cluster=True)[name])
    ray_version, python, *_ = compute_version_info()
    other = python.rpartition(".")[0] + ".99"
    told = {"ray_version": ray_version, "python_version": other}
    check_version_info(told, "a node", raise_on_mismatch=True)
    with pytest.raises(RuntimeError, match="Python"):
        check_version_info({**told, "python_version": "3.1.99"}, "a node", raise_on_mismatch=True)


def test_a_workers_node_has_no_port_for_a_head() -> None:
    head, worker = Ports(20000).arguments(head=True), Ports(20000).arguments(head=False)
    assert "--port=20000" in head
    assert [each for each in head if each not in worker] == ["--port=20000"]


def test_a_machine_alone_has_ray_on_loopback_and_no_settings_of_a_cluster(paths: Paths) -> None:
    assert node_address("127.0.0.1") == HEAD_ADDRESS
    assert node_address(DEN) == DEN
    assert not ray_cluster.CLUSTER.keys() & environment(paths, {}).keys()
    assert environment(paths, {}, cluster=True).items() >= ray_cluster.CLUSTER.items()


def test_machines_that_speak_tls_let_ray_speak_it_too(paths: Paths) -> None:
    certify_head(paths, "a" * 32, DEN, time.time())
    assert "RAY_USE_TLS" not in environment(paths, {}, cluster=True)
    write_private(paths.machine, json.dumps({"tls": True}))
    told = environment(paths, {}, cluster=True)
    assert told["RAY_USE_TLS"] == "1"
    for name in ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"):
        assert "-----BEGIN" in Path(told[name]).read_text()
    assert "RAY_USE_TLS" not in environment(paths, {})
