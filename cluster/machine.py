"""Machines and their hardware as plain values. Pure.

Measures nothing (see `inventory`) and promises nothing (see `slices`): this is only the vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

CoreKind = Literal["performance", "efficiency", "unknown"]
State = Literal["joining", "ready", "cordoned", "draining", "lost"]
GpuState = Literal["ok", "lost", "hung"]
GpuKind = Literal["card", "mig", "inventory only"]

GIB = 1024**3

STATES: tuple[State, ...] = get_args(State)
MOVES: Mapping[State, frozenset[State]] = {
    "joining": frozenset({"ready", "lost"}),
    "ready": frozenset({"cordoned", "draining", "lost"}),
    "cordoned": frozenset({"ready", "draining", "lost"}),
    "draining": frozenset({"ready", "cordoned", "lost"}),
    "lost": frozenset({"joining"}),
}
"""From each state, where a machine may go next. A lost machine that is heard from again joins anew."""


def legal(before: State, after: State) -> bool:
    """Whether a machine may go from `before` to `after`. Staying is not a move."""
    return after in MOVES[before]


@dataclass(frozen=True, slots=True)
class CpuCore:
    """One whole physical core."""

    id: int
    """The lowest logical CPU number of the core on this machine, usable or not: the same for every
    installation."""
    cpus: tuple[int, ...]
    """The core's logical CPUs (SMT siblings) that may be used, ascending, never empty."""
    kind: CoreKind
    """`unknown` where the machine tells no difference between its cores."""
    numa: int

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "cpus": list(self.cpus), "kind": self.kind, "numa": self.numa}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        kind = data.get("kind", "unknown")
        if kind not in get_args(CoreKind):
            raise ValueError(
                f"core {data['id']}: kind {kind!r} is not one of {', '.join(get_args(CoreKind))}"
            )
        cpus = tuple(sorted(int(cpu) for cpu in data["cpus"]))
        if not cpus:
            raise ValueError(f"core {data['id']} has no cpus")
        return cls(int(data["id"]), cpus, kind, int(data.get("numa", 0)))


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, known by the UUID that its driver gives it."""

    uuid: str
    name: str
    memory_bytes: int
    """0 where it has none of its own, or does not tell."""
    numa: int | None = None
    """The NUMA node that it is nearest to; None where the machine does not say."""
    kind: GpuKind = "card"
    """`mig`: an instance of a card that is cut into several. `inventory only`: no slice ever has it."""
    state: GpuState = "ok"
    """`lost`: it does not work. `hung`: a call about it never returned."""
    reason: str = ""
    """Why it is not ok."""
    card: str = ""
    """Of an instance: the UUID of its card."""

    @property
    def usable(self) -> bool:
        """Whether a slice may have it."""
        return self.state == "ok" and self.kind != "inventory only"

    def to_json(self) -> dict[str, Any]:
        return {
            "uuid": self.uuid,
            "name": self.name,
            "memory_bytes": self.memory_bytes,
            "numa": self.numa,
            "kind": self.kind,
            "state": self.state,
            "reason": self.reason,
            "card": self.card,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        numa = data.get("numa")
        kind, state = data.get("kind", "card"), data.get("state", "ok")
        for value, known in ((kind, get_args(GpuKind)), (state, get_args(GpuState))):
            if value not in known:
                raise ValueError(f"GPU {data['uuid']}: {value!r} is not one of {', '.join(known)}")
        return cls(
            str(data["uuid"]),
            str(data["name"]),
            int(data["memory_bytes"]),
            None if numa is None else int(numa),
            kind,
            state,
            str(data.get("reason", "")),
            str(data.get("card", "")),
        )


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a machine was measured to have, as far as this installation may use it."""

    cores: tuple[CpuCore, ...]
    """Ascending by id."""
    memory_bytes: int
    gpus: tuple[Gpu, ...]
    simulated: bool = False
    """True when it was read from a file instead of measured."""
    gpu_driver: str = ""
    """The version of NVIDIA's driver; "" where there is none."""
    gpu_trouble: str = ""
    """Why there are no GPUs, or fewer than cards; "" where nothing is wrong."""

    def to_json(self) -> dict[str, Any]:
        return {
            "cores": [core.to_json() for core in self.cores],
            "memory_bytes": self.memory_bytes,
            "gpus": [gpu.to_json() for gpu in self.gpus],
            "simulated": self.simulated,
            "gpu_driver": self.gpu_driver,
            "gpu_trouble": self.gpu_trouble,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError when the data are not of this
        shape."""
        cores = tuple(sorted((CpuCore.from_json(core) for core in data["cores"]), key=lambda core: core.id))
        seen: set[int] = set()
        for core in cores:
            if not seen.isdisjoint(core.cpus):
                raise ValueError(f"core {core.id} shares a cpu with another core")
            seen.update(core.cpus)
        if len({core.id for core in cores}) != len(cores):
            raise ValueError("two cores have the same id")
        gpus = tuple(Gpu.from_json(gpu) for gpu in data.get("gpus", ()))
        if len({gpu.uuid for gpu in gpus}) != len(gpus):
            raise ValueError("two GPUs have the same uuid")
        return cls(
            cores,
            int(data["memory_bytes"]),
            gpus,
            bool(data.get("simulated", False)),
            str(data.get("gpu_driver", "")),
            str(data.get("gpu_trouble", "")),
        )


@dataclass(frozen=True, slots=True)
class Reserve:
    """What homeport leaves to the machine's person, to Ray and to the router."""

    cores: int
    memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {"cores": self.cores, "memory_bytes": self.memory_bytes}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(int(data["cores"]), int(data["memory_bytes"]))


def default_reserve(hardware: Hardware) -> Reserve:
    """One core on machines with four or more, else none; 1 GiB or a tenth of the memory, whichever is
    less."""
    return Reserve(1 if len(hardware.cores) >= 4 else 0, min(GIB, hardware.memory_bytes // 10))


@dataclass(frozen=True, slots=True)
class Machine:
    """One physical computer of the cluster."""

    id: str
    """Random, kept on its disk; stays when the name changes."""
    name: str
    zone: str
    address: str
    hardware: Hardware
    reserve: Reserve
    state: State

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "zone": self.zone,
            "address": self.address,
            "hardware": self.hardware.to_json(),
            "reserve": self.reserve.to_json(),
            "state": self.state,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        if data["state"] not in STATES:
            raise ValueError(f"state {data['state']!r} is not one of {', '.join(STATES)}")
        return cls(
            str(data["id"]),
            str(data["name"]),
            str(data["zone"]),
            str(data["address"]),
            Hardware.from_json(data["hardware"]),
            Reserve.from_json(data["reserve"]),
            data["state"],
        )
