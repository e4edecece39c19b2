"""Measures this machine: whole cores with their SMT siblings, NUMA nodes, memory, GPUs.

Only what this process may use counts (CPU affinity, memory limits of control groups). Shares out nothing.
"""

import json
import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import psutil

from cluster.cgroup import memory_limit
from cluster.gpus import measure_gpus
from cluster.machine import CoreKind, CpuCore, Hardware

SYSFS = Path("/sys/devices")
INVENTORY = "HOMEPORT_INVENTORY"


class InventoryError(Exception):
    """The file that HOMEPORT_INVENTORY names cannot be used. The message says why."""


def measure(env: Mapping[str, str]) -> Hardware:
    """The hardware of this machine, or with HOMEPORT_INVENTORY in `env` what that file says, marked as
    simulated.

    A GPU that does not work is marked, and a driver that does not answer is told of (cluster/gpus.py). Raises
    InventoryError for a bad file only.
    """
    if path := env.get(INVENTORY):
        return _simulated(Path(path))
    memory = psutil.virtual_memory().total
    found = measure_gpus()
    return Hardware(
        measure_cores(),
        min(memory, memory_limit() or memory),
        found.gpus,
        gpu_driver=found.driver,
        gpu_trouble=found.trouble,
    )


def measure_cores(sysfs: Path = SYSFS, usable: Collection[int] | None = None) -> tuple[CpuCore, ...]:
    """The cores of which at least one logical CPU is usable, ascending by id.

    `usable` defaults to this process's affinity. Without a topology in sysfs (macOS) the cores are only
    counted.
    """
    if usable is None:
        if sys.platform != "linux":
            return _counted_cores()
        usable = os.sched_getaffinity(0)
    kinds = _kinds(sysfs, usable)
    cores: dict[int, CpuCore] = {}
    for cpu in sorted(usable):
        siblings = _siblings(sysfs, cpu)
        core = min(siblings)
        if core not in cores:
            cpus = tuple(sorted(siblings & set(usable)))
            cores[core] = CpuCore(core, cpus, kinds.get(cpu, "unknown"), _numa(sysfs, cpu))
    return tuple(cores[core] for core in sorted(cores))


def cpu_list(text: str) -> set[int]:
    """The kernel's notation for sets of CPUs: `0-2,8` is {0, 1, 2, 8}; an empty text is the empty set."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def _simulated(path: Path) -> Hardware:
    try:
        return replace(Hardware.from_json(json.loads(path.read_text())), simulated=True)
    except OSError as failure:
        raise InventoryError(f"{INVENTORY}: {path}: {failure.strerror}") from failure
    except KeyError as missing:
        raise InventoryError(f"{INVENTORY}: {path}: {missing} is missing") from missing
    except (ValueError, TypeError, AttributeError) as broken:
        raise InventoryError(f"{INVENTORY}: {path}: {broken}") from broken


def _counted_cores() -> tuple[CpuCore, ...]:
    count = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    return tuple(CpuCore(number, (number,), "unknown", 0) for number in range(count))


def _siblings(sysfs: Path, cpu: int) -> set[int]:
    for name in ("core_cpus_list", "thread_siblings_list"):
        if siblings := _cpus_in(sysfs / f"system/cpu/cpu{cpu}/topology/{name}"):
            return siblings
    return {cpu}


def _numa(sysfs: Path, cpu: int) -> int:
    nodes = sorted((sysfs / f"system/cpu/cpu{cpu}").glob("node[0-9]*"))
    return int(nodes[0].name.removeprefix("node")) if nodes else 0


def _kinds(sysfs: Path, usable: Collection[int]) -> dict[int, CoreKind]:
    """By CPU, where the machine has cores of two kinds: Intel's lists, or differing capacities (Arm)."""
    kinds: dict[int, CoreKind] = dict.fromkeys(_cpus_in(sysfs / "cpu_core/cpus"), "performance")
    kinds.update(dict.fromkeys(_cpus_in(sysfs / "cpu_atom/cpus"), "efficiency"))
    if kinds:
        return kinds
    capacities = {cpu: _number_in(sysfs / f"system/cpu/cpu{cpu}/cpu_capacity") for cpu in usable}
    most, least = max(capacities.values(), default=0), min(capacities.values(), default=0)
    if most == least:
        return {}
    # Between the two ends of a three-kind machine: nearer to the strongest counts as performance.
    return {
        cpu: "performance" if capacity * 2 > most + least else "efficiency"
        for cpu, capacity in capacities.items()
    }


def _cpus_in(path: Path) -> set[int]:
    try:
        return cpu_list(path.read_text())
    except (OSError, ValueError):
        return set()


def _number_in(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
