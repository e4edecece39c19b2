"""A machine enters the cluster: its id, its name, and what Ray's books say of it. Starts nothing."""

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.machine import Hardware, Machine, Reserve
from cluster.paths import Paths, read_json, write_private
from cluster.slices import usable_cores

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Books:
    """What a machine offers to Ray, and what its keeper takes of that: all but the reserve."""

    cpus: int
    gpus: int
    keeper_cpus: int
    keeper_gpus: int

    def labels(self, machine: Machine) -> dict[str, str]:
        """By these the controller finds the machine and knows how large its keeper is."""
        return {
            "machine": machine.id,
            "keeper-cpus": str(self.keeper_cpus),
            "keeper-gpus": str(self.keeper_gpus),
        }


def books(machine: Machine) -> Books:
    """Logical CPUs and GPUs of a machine for Ray."""
    cpus = sum(len(core.cpus) for core in machine.hardware.cores)
    kept = sum(len(core.cpus) for core in usable_cores(machine.hardware, machine.reserve))
    gpus = len(machine.hardware.gpus)
    return Books(cpus, gpus, kept, gpus)


def machine_name(host_name: str) -> str:
    """A host name as a machine's name: lower case letters, digits and hyphens; `machine` where nothing is left."""
    return re.sub(r"[^a-z0-9]+", "-", host_name.lower().split(".")[0]).strip("-") or "machine"


def enter(
    paths: Paths, name: str, zone: str, hardware: Hardware, reserve: Reserve, ports: Sequence[int]
) -> Machine:
    """Write `machine.json` for this machine and return it. An id that is there already stays for ever."""
    known: dict[str, Any] = read_json(paths.machine) or {}
    machine = Machine(
        id=known.get("id") or uuid.uuid4().hex,
        name=name,
        zone=zone,
        address=LOOPBACK,
        hardware=hardware,
        reserve=reserve,
        state="ready",
    )
    kept = {"id": machine.id, "name": name, "zone": zone, "address": machine.address}
    write_private(
        paths.machine, json.dumps({**kept, "reserve": reserve.to_json(), "ports": list(ports)}, indent=1)
    )
    return machine
