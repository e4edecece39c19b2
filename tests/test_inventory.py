"""Measuring: this machine for real, others from made-up sysfs trees and control groups."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from cluster import inventory
from cluster.cgroup import enter_ceiling, memory_limit
from cluster.inventory import InventoryError, cpu_list, measure, measure_cores
from cluster.machine import GIB, CpuCore, Gpu, Hardware

linux = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux's CPU affinity")


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def topology(root: Path, siblings: list[str], nodes: Mapping[int, int] | None = None) -> Path:
    for cpu, text in enumerate(siblings):
        write(root, {f"system/cpu/cpu{cpu}/topology/core_cpus_list": f"{text}\n"})
        (root / f"system/cpu/cpu{cpu}/node{(nodes or {}).get(cpu, 0)}").mkdir()
    return root


@linux
def test_this_machine_has_what_the_kernel_lets_us_use() -> None:
    hardware = measure({})
    cpus = [cpu for core in hardware.cores for cpu in core.cpus]
    assert sorted(cpus) == sorted(os.sched_getaffinity(0))
    assert all(core.id <= min(core.cpus) for core in hardware.cores)
    assert 0 < hardware.memory_bytes <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert not hardware.simulated
    assert Hardware.from_json(hardware.to_json()) == hardware


def test_siblings_are_one_core_on_its_node(tmp_path: Path) -> None:
    root = topology(tmp_path, ["0,2", "1,3", "0,2", "1,3"], nodes={1: 1, 3: 1})
    assert measure_cores(root, {0, 1, 2, 3}) == (
        CpuCore(0, (0, 2), "unknown", 0),
        CpuCore(1, (1, 3), "unknown", 1),
    )


def test_a_core_keeps_its_id_when_only_its_sibling_may_be_used(tmp_path: Path) -> None:
    root = topology(tmp_path, ["0,2", "1,3", "0,2", "1,3"])
    assert measure_cores(root, {2}) == (CpuCore(0, (2,), "unknown", 0),)


def test_intels_two_kinds_are_told_apart(tmp_path: Path) -> None:
    root = topology(tmp_path, ["0-1", "0-1", "2", "3"])
    write(root, {"cpu_core/cpus": "0-1\n", "cpu_atom/cpus": "2-3\n"})
    kinds = [core.kind for core in measure_cores(root, {0, 1, 2, 3})]
    assert kinds == ["performance", "efficiency", "efficiency"]


def test_arms_kinds_are_told_apart_by_capacity(tmp_path: Path) -> None:
    root = topology(tmp_path, ["0", "1", "2"])
    write(root, {f"system/cpu/cpu{n}/cpu_capacity": text for n, text in enumerate(["446", "871", "1024"])})
    assert [core.kind for core in measure_cores(root, {0, 1, 2})] == [
        "efficiency",
        "performance",
        "performance",
    ]


def test_without_a_topology_every_cpu_is_a_core(tmp_path: Path) -> None:
    assert measure_cores(tmp_path, {1, 4}) == (CpuCore(1, (1,), "unknown", 0), CpuCore(4, (4,), "unknown", 0))


def test_a_system_without_affinity_counts_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8 if logical else 4)
    assert [core.id for core in measure_cores()] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("text", "cpus"), [("", set()), ("3\n", {3}), ("0-2,8", {0, 1, 2, 8}), ("1,3-3", {1, 3})]
)
def test_the_kernels_lists_are_read(text: str, cpus: set[int]) -> None:
    assert cpu_list(text) == cpus


def test_an_inventory_file_is_used_instead_and_marked(tmp_path: Path) -> None:
    described = Hardware((CpuCore(0, (0, 8), "performance", 0),), 64 * GIB, (Gpu("GPU-1", "A card", GIB),))
    file = tmp_path / "machine.json"
    file.write_text(json.dumps(described.to_json()))
    hardware = measure({"HOMEPORT_INVENTORY": str(file)})
    assert hardware.simulated
    assert (hardware.cores, hardware.gpus) == (described.cores, described.gpus)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "No such file"),
        ("{", "Expecting"),
        ('{"memory_bytes": 1}', "'cores' is missing"),
        ('{"cores": [], "memory_bytes": "much"}', "much"),
        ("[]", "HOMEPORT_INVENTORY"),
    ],
)
def test_a_bad_inventory_file_is_told(tmp_path: Path, text: str | None, complaint: str) -> None:
    file = tmp_path / "machine.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InventoryError, match=complaint):
        measure({"HOMEPORT_INVENTORY": str(file)})


@pytest.fixture
def groups(tmp_path: Path) -> "Groups":
    return Groups(tmp_path)


class Groups:
    """Control groups as plain folders: v2 at `unified`, v1's memory controller at `memory`."""

    def __init__(self, root: Path) -> None:
        self.unified, self.memory, self.proc = root / "unified", root / "memory", root / "proc"
        self.unified.mkdir()
        self.memory.mkdir()

    def place(self, v2: str | None = None, v1: str | None = None, v1_root: str = "/") -> Path:
        mounts, own = ["21 1 0:1 / /proc rw - proc proc rw"], ["7:cpu,cpuacct:/elsewhere"]
        if v2 is not None:
            mounts.append(f"30 1 0:2 / {self.unified} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate")
            own.append(f"0::{v2}")
        if v1 is not None:
            mounts.append(f"31 1 0:3 {v1_root} {self.memory} rw - cgroup cgroup rw,memory")
            own.append(f"4:memory:{v1}")
        write(self.proc, {"self/mountinfo": "\n".join(mounts), "self/cgroup": "\n".join(own)})
        return self.proc


def test_the_lowest_limit_on_the_way_up_counts(groups: Groups) -> None:
    write(groups.unified, {"a/memory.max": f"{2 * GIB}\n", "a/b/memory.max": "max\n"})
    write(groups.memory, {"c/memory.limit_in_bytes": f"{3 * GIB}\n", "memory.limit_in_bytes": f"{2**63}\n"})
    assert memory_limit(groups.place(v2="/a/b")) == 2 * GIB
    assert memory_limit(groups.place(v1="/c")) == 3 * GIB
    assert memory_limit(groups.place(v2="/a/b", v1="/c")) == 2 * GIB


def test_without_control_groups_there_is_no_limit(groups: Groups, tmp_path: Path) -> None:
    assert memory_limit(groups.place()) is None
    assert memory_limit(tmp_path / "nowhere") is None


def test_a_container_that_sees_only_its_own_group_is_limited_by_it(groups: Groups) -> None:
    write(groups.memory, {"memory.limit_in_bytes": f"{GIB}\n"})
    assert memory_limit(groups.place(v1="/docker/123", v1_root="/docker/123")) == GIB
    assert memory_limit(groups.place(v1="/docker/123")) == GIB


def test_measured_memory_is_what_the_group_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "memory_limit", lambda: 123)
    assert measure({}).memory_bytes == 123


def test_a_ceiling_is_made_under_the_group_that_hands_out_memory(groups: Groups) -> None:
    write(groups.unified, {"cgroup.subtree_control": "cpu\n"})
    write(
        groups.unified, {"app/cgroup.subtree_control": "cpu memory\n", "app/x/cgroup.subtree_control": "\n"}
    )
    assert enter_ceiling("homeport-0", 5 * GIB, groups.place(v2="/app/x"))
    made = groups.unified / "app" / "homeport-0"
    assert (made / "memory.max").read_text() == str(5 * GIB)
    assert (made / "memory.swap.max").read_text() == "0"
    assert (made / "cgroup.procs").read_text() == str(os.getpid())


def test_a_ceiling_never_leads_out_of_a_limit(groups: Groups) -> None:
    write(groups.unified, {"app/cgroup.subtree_control": "memory\n"})
    write(groups.unified, {"app/x/cgroup.subtree_control": "\n", "app/x/memory.max": f"{GIB}\n"})
    assert not enter_ceiling("homeport-0", 5 * GIB, groups.place(v2="/app/x"))
    assert not (groups.unified / "app" / "homeport-0").exists()


def test_without_permission_there_is_no_ceiling(groups: Groups) -> None:
    assert not enter_ceiling("homeport-0", GIB, groups.place())
    write(groups.unified, {"cgroup.subtree_control": "memory\n", "homeport-0": "in the way"})
    assert not enter_ceiling("homeport-0", GIB, groups.place(v2="/"))
