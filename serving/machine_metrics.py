"""What the controller knows of machines and their keepers, for Prometheus: how each stands, what it has and promised,
and the figures that keepers tell beside their reports (keeper_figures.py).

Asks nobody and keeps nothing.
"""

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from prometheus_client import Metric

from serving.exposition import add, add_states, counter, gauge
from serving.standing import AWAY, Standing

Told = Mapping[str, Any]

STANDINGS = get_args(Standing)
REPLICA_STATES = ("starting", "loading", "ready", "draining", "stopping", "failed", "yielded", "unknown")
GPU_GAUGES = (
    ("utilization", "homeport_gpu_utilization_ratio", "Of the time, while the GPU did something."),
    ("power_w", "homeport_gpu_power_watts", "What the GPU takes now."),
    ("temperature_c", "homeport_gpu_temperature_celsius", "Of the GPU."),
    ("foreign_processes", "homeport_gpu_foreign_processes", "Processes on the GPU that no host started."),
)


def machine_families(machines: Iterable[Told], silent_s: Mapping[str, float]) -> list[Metric]:
    """`machines`: as the fleet lists them. `silent_s`: by id, for how long a keeper has not reported.

    Of what a machine has, `reserved` is left to its person, `promised` is in slices, and `used` in those of them whose
    host runs.
    """
    up = gauge("homeport_machine_up", "1 while the machine's keeper reports, 0 for one that is away.")
    state = gauge("homeport_machine_state", "1 for how the machine stands.")
    age = gauge("homeport_heartbeat_age_seconds", "Since the machine's keeper reported last.")
    cores = gauge("homeport_machine_cores", "Whole physical cores.")
    memory = gauge("homeport_machine_memory_bytes", "Memory.")
    gpus = gauge("homeport_machine_gpus", "GPUs that slices may have.")
    replicas = gauge("homeport_replica_state", "1 for how the replica stands, by its keeper's word.")
    for each in machines:
        name, told = each["name"], each["replicas"]
        labels = {"machine": name, "zone": each["zone"]}
        add(up, labels, float(each["state"] not in AWAY))
        add_states(state, labels, STANDINGS, each["state"])
        if (silent := silent_s.get(each["id"])) is not None:
            add(age, labels, round(silent, 3))
        for kind, (has_cores, has_bytes, has_gpus) in _shares(each).items():
            of_kind = {"machine": name, "kind": kind}
            add(cores, of_kind, has_cores)
            add(memory, of_kind, has_bytes)
            add(gpus, of_kind, has_gpus)
        for replica in told:
            own = {"model": replica["model"], "machine": name, "replica": replica["name"]}
            add_states(replicas, own, REPLICA_STATES, replica["state"])
    return [up, state, age, cores, memory, gpus, replicas]


def keeper_families(keepers: Mapping[str, Told]) -> list[Metric]:
    """`keepers`: by machine's name, its keeper's figures."""
    restarts = counter("homeport_host_restarts", "Starts of the replica's host after its first one.")
    own = counter("homeport_slice_cpu_seconds", "CPU that the replica's own processes took.")
    foreign = counter(
        "homeport_foreign_cpu_seconds",
        "CPU that all others took on the CPUs of the replica's slice, the kernel included.",
    )
    gauges = {key: gauge(name, about) for key, name, about in GPU_GAUGES}
    gpu_memory = gauge("homeport_gpu_memory_bytes", "Of the GPU.")
    energy = counter("homeport_energy_joules", "What the GPU took since its driver was loaded.")
    for machine, told in keepers.items():
        for replica in told["replicas"]:
            labels = {"machine": machine, "replica": replica["name"]}
            for key, family in (("restarts", restarts), ("cpu_s", own), ("foreign_cpu_s", foreign)):
                if key in replica:
                    add(family, labels, replica[key])
        for uuid, now in told["gpus"].items():
            labels = {"machine": machine, "gpu": uuid}
            for key, family in gauges.items():
                if key in now:
                    add(family, labels, now[key])
            for kind in ("total", "used"):
                if (size := now.get(f"{kind}_bytes")) is not None:
                    add(gpu_memory, {**labels, "kind": kind}, size)
            if "energy_j" in now:
                add(energy, labels, now["energy_j"])
    return [restarts, own, foreign, *gauges.values(), gpu_memory, energy]


def _shares(machine: Told) -> dict[str, tuple[int, int, int]]:
    """Cores, bytes of memory and GPUs, by kind."""
    hardware, reserve = machine.get("hardware"), machine.get("reserve")
    if not hardware or not reserve:
        return {}  # it was here before this controller, which does not know what it has
    usable = [gpu for gpu in hardware["gpus"] if gpu.get("kind") != "inventory only"]
    promised = [replica for replica in machine["replicas"] if replica.get("slice")]
    return {
        "total": (len(hardware["cores"]), hardware["memory_bytes"], len(usable)),
        "reserved": (reserve["cores"], reserve["memory_bytes"], 0),
        "promised": _sum(promised),
        "used": _sum([replica for replica in promised if replica.get("pid") is not None]),
    }


def _sum(replicas: Iterable[Told]) -> tuple[int, int, int]:
    slices = [replica["slice"] for replica in replicas]
    return (
        sum(len(each["cores"]) for each in slices),
        sum(each["memory_bytes"] for each in slices),
        len({uuid for each in slices for uuid in each["gpus"]}),  # two may share one
    )
