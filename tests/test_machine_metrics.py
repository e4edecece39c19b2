"""Machines and keepers as families of metrics: by hand, from a real keeper, and through a real controller."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.inventory import measure
from cluster.machine import GIB, CpuCore, Gpu, Hardware
from router.lifecycle import end_everything
from serving.exposition import text
from serving.keeper_figures import figures
from serving.machine_metrics import STANDINGS, keeper_families, machine_families
from tests.test_controller import CLAIM, OneMachine, Running
from tests.test_keeper import TALKS, Machine

HARDWARE = Hardware(
    tuple(CpuCore(core, (core,), "unknown", 0) for core in range(4)),
    16 * GIB,
    (
        Gpu("GPU-1", "a", 8 * GIB),
        Gpu("GPU-2", "b", 8 * GIB),
        Gpu("apple", "c", 0, kind="inventory only"),
    ),
)
FIGURES = {
    "version": "7.7",
    "replicas": [
        {"name": "den/0", "restarts": 2, "cpu_s": 30.5, "foreign_cpu_s": 4.25},
        {"name": "den/1"},
    ],
    "gpus": {
        "GPU-1": {
            "total_bytes": 8.0,
            "used_bytes": 3.0,
            "utilization": 0.25,
            "power_w": 110.5,
            "temperature_c": 61.0,
            "energy_j": 9000.5,
            "foreign_processes": 1,
        },
        "GPU-2": {"foreign_processes": 0},
    },
}


def samples(told: bytes | str) -> dict[tuple[str, str], float]:
    """By name, and labels in the order of their names."""
    told = told if isinstance(told, str) else told.decode()
    return {
        (s.name, ",".join(f"{key}={s.labels[key]}" for key in sorted(s.labels))): s.value
        for family in text_string_to_metric_families(told)
        for s in family.samples
    }


def replica(slot: int, pid: int | None, gpus: list[str], state: str = "ready") -> dict[str, Any]:
    held = {"cores": [slot], "cpus": [slot], "gpus": gpus, "memory_bytes": GIB}
    return {"name": f"den/{slot}", "model": "tiny", "state": state, "pid": pid, "slice": held}


def machine(state: str = "ready", *replicas: dict[str, Any], **changes: Any) -> dict[str, Any]:
    told = {"id": "id-1", "name": "den", "zone": "home", "state": state, "replicas": list(replicas)}
    owned = {"hardware": HARDWARE.to_json(), "reserve": {"cores": 1, "memory_bytes": GIB}}
    return told | owned | changes


def test_a_machine_is_told_with_how_it_stands_and_what_it_promised() -> None:
    there = machine("ready", replica(1, 77, ["GPU-1"]), replica(2, None, ["GPU-1"], "failed"))
    found = samples(text(machine_families([there], {"id-1": 1.25})))
    assert found["homeport_machine_up", "machine=den,zone=home"] == 1
    assert found["homeport_heartbeat_age_seconds", "machine=den,zone=home"] == 1.25
    stands = {s: found["homeport_machine_state", f"machine=den,state={s},zone=home"] for s in STANDINGS}
    assert [state for state, value in stands.items() if value] == ["ready"]
    kinds = ("total", "reserved", "promised", "used")
    assert [found["homeport_machine_cores", f"kind={k},machine=den"] for k in kinds] == [4, 1, 2, 1]
    assert [found["homeport_machine_memory_bytes", f"kind={k},machine=den"] / GIB for k in kinds] == [
        16,
        1,
        2,
        1,
    ]
    gpus = [found["homeport_machine_gpus", f"kind={k},machine=den"] for k in kinds]
    assert gpus == [2, 0, 1, 1], "one that is shared is promised once, one that no slice may have is none"
    at = "machine=den,model=tiny,replica=den/2,state"
    assert found["homeport_replica_state", f"{at}=failed"] == 1
    assert found["homeport_replica_state", f"{at}=ready"] == 0


@pytest.mark.parametrize(
    ("state", "up"), [("lost", 0), ("asleep", 0), ("unknown", 0), ("yielded", 1), ("cordoned", 1)]
)
def test_a_machine_that_is_away_is_not_up(state: str, up: int) -> None:
    found = samples(text(machine_families([machine(state)], {})))
    assert found["homeport_machine_up", "machine=den,zone=home"] == up
    assert found["homeport_machine_state", f"machine=den,state={state},zone=home"] == 1


def test_of_a_machine_whose_hardware_is_not_known_none_is_told() -> None:
    found = samples(text(machine_families([machine("lost", hardware=None)], {"id-1": 90.0})))
    assert not any(name == "homeport_machine_cores" for name, _ in found)


def test_what_a_keeper_found_is_told() -> None:
    found = samples(text(keeper_families({"den": FIGURES})))
    at, gpu = "machine=den,replica=den/0", "gpu=GPU-1,machine=den"
    assert found["homeport_host_restarts_total", at] == 2
    assert found["homeport_slice_cpu_seconds_total", at] == 30.5
    assert found["homeport_foreign_cpu_seconds_total", at] == 4.25
    assert ("homeport_host_restarts_total", "machine=den,replica=den/1") not in found
    assert found["homeport_gpu_utilization_ratio", gpu] == 0.25
    assert found["homeport_gpu_memory_bytes", "gpu=GPU-1,kind=used,machine=den"] == 3
    assert found["homeport_gpu_power_watts", gpu] == 110.5
    assert found["homeport_gpu_temperature_celsius", gpu] == 61
    assert found["homeport_gpu_foreign_processes", gpu] == 1
    assert found["homeport_energy_joules_total", gpu] == 9000.5
    assert [key for name, key in found if name.startswith("homeport_gpu") and "GPU-2" in key] == [
        "gpu=GPU-2,machine=den"
    ], "what a GPU does not tell is left out"


def test_of_a_slot_that_was_never_looked_at_nothing_is_told() -> None:
    told = figures("den", {3: None}, {}, lambda _: None, {})
    assert told["replicas"] == [{"name": "den/3"}]


class Metered(OneMachine):
    """Its keeper tells figures that are others each time; nothing else of its report ever changes."""

    asked = 0

    async def report(self, machine: str, known: int, wait_s: float) -> dict[str, Any]:
        self.asked += 1
        told = await super().report(machine, known, min(wait_s, 0.1))
        restarts = {"name": "den/0", "restarts": self.asked}
        return {**told, "figures": {"version": "7.7", "replicas": [restarts], "gpus": {}}}


def get(running: Running, path: str, token: str | None = None) -> tuple[int, str]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{running.port}{path}",
        headers={"authorization": f"Bearer {token or running.token}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def restarts(told: str) -> float | None:
    return samples(told).get(("homeport_host_restarts_total", "machine=den,replica=den/0"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOMEPORT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOMEPORT_LOCKS", str(tmp_path / "locks"))
    return tmp_path


def test_the_controller_tells_of_machines_and_hands_on_what_keepers_tell(folder: Path) -> None:
    members = Metered()
    running = Running(folder, members)
    running.until("/claim", CLAIM, 200)
    status, own = get(running, "/metrics")
    assert status == 200
    assert samples(own)["homeport_machine_up", "machine=den,zone=default"] == 1
    assert "homeport_build_info" in own
    assert restarts(own) is None, "what is a keeper's is told by it, or where all is asked for"
    with_keepers = get(running, "/metrics?keepers")[1]
    assert "homeport_build_info" not in with_keepers, "of the process that is asked for all"
    assert (restarts(with_keepers) or 0) >= 1
    before = members.asked
    status, keeper = get(running, "/metrics?keeper=den")
    assert status == 200
    assert (restarts(keeper) or 0) > before, "it was asked now"
    assert 'homeport_build_info{version="7.7"}' in keeper
    assert get(running, "/metrics?keeper=attic")[0] == 404
    assert get(running, "/metrics", token="wrong")[0] == 401
    members.answers.clear()
    assert get(running, "/metrics?keeper=den")[0] == 503


def test_figures_are_no_news(folder: Path) -> None:
    members = Metered()
    running = Running(folder, members)
    running.until("/claim", CLAIM, 200)
    made: list[int] = []
    running.controller._assign = lambda: made.append(1)  # type: ignore[method-assign]
    before, text_ = members.asked, running.ask("/fleet")[1]
    while members.asked < before + 3:
        threading.Event().wait(0.02)
    assert made == []
    assert running.ask("/fleet")[1] == text_
    assert "figures" not in json.dumps(text_)


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    if len(measure({}).cores) < 1:
        pytest.skip("a host needs a core")
    monkeypatch.setattr("serving.slice_look.EVERY_S", 0.2)
    made = Machine(tmp_path, monkeypatch)
    try:
        yield made
    finally:
        made.keeper.close()
        end_everything(made.paths)


def test_a_keeper_tells_figures_with_every_report_and_makes_no_version_of_them(keeper: Machine) -> None:
    keeper.behaviours = [TALKS, TALKS]
    keeper.serve(1)
    keeper.lives(0, 1)

    def spent() -> tuple[float, float]:
        (told,) = keeper.keeper.report()["figures"]["replicas"]
        assert (told["name"], told["restarts"]) == ("den/0", 0)
        return told.get("cpu_s", 0.0), told.get("foreign_cpu_s", 0.0)

    keeper.until(0, lambda _: spent()[0] + spent()[1] > 0)
    keeper.keeper._foreign.of = lambda slot: []  # type: ignore[method-assign]  # other work on this machine is news
    keeper.keeper._publish()
    before, at = keeper.keeper.report(), spent()
    keeper.ask(0, 300)
    keeper.until(0, lambda _: spent()[0] > at[0])
    after = keeper.keeper.report()
    assert after["figures"] != before["figures"]
    assert {**after, "figures": None} == {**before, "figures": None}
