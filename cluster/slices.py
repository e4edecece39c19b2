"""Carves disjoint slices out of a machine's hardware. Pure.

Decides which cores, GPUs and bytes a replica gets. Enforces nothing: `confine` does, and takes the locks.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from cluster.machine import GIB, CpuCore, Hardware, Reserve

Take = Literal["needs", "rest"]


@dataclass(frozen=True, slots=True)
class Need:
    """The least that one replica takes."""

    cores: int
    memory_bytes: int
    gpus: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"cores": self.cores, "memory_bytes": self.memory_bytes, "gpus": self.gpus}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(int(data["cores"]), int(data["memory_bytes"]), int(data["gpus"]))


@dataclass(frozen=True, slots=True)
class Slice:
    """A share of one machine's hardware that one replica holds."""

    cores: tuple[int, ...]
    """Core ids, ascending."""
    cpus: tuple[int, ...]
    """All logical CPUs of these cores, ascending."""
    gpus: tuple[str, ...]
    """GPU UUIDs in the machine's order."""
    memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {
            "cores": list(self.cores),
            "cpus": list(self.cpus),
            "gpus": list(self.gpus),
            "memory_bytes": self.memory_bytes,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            tuple(int(core) for core in data["cores"]),
            tuple(int(cpu) for cpu in data["cpus"]),
            tuple(str(gpu) for gpu in data["gpus"]),
            int(data["memory_bytes"]),
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing could be carved: one reason for each kind of hardware that falls short."""

    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join(self.reasons)


def overlap(one: Slice, other: Slice) -> bool:
    """Whether two slices share a core or a GPU, so that only one of them can be held."""
    return not (set(one.cores).isdisjoint(other.cores) and set(one.gpus).isdisjoint(other.gpus))


def bytes_text(count: int) -> str:
    """`count` bytes for a person: `1 GiB`, `1.5 GiB`, `300 MiB`, `12 bytes`."""
    for size, unit in ((GIB, "GiB"), (1024**2, "MiB"), (1024, "KiB")):
        if abs(count) >= size:
            return f"{count / size:.1f}".removesuffix(".0") + f" {unit}"
    return f"{count} bytes"


def usable_cores(hardware: Hardware, reserve: Reserve) -> tuple[CpuCore, ...]:
    """The cores that may be sliced, the best first.

    Efficiency cores come after the others, within a kind the order is by id. The reserve is the last ones, so
    it is made of efficiency cores where a machine has them, else of those with the highest ids.
    """
    ordered = sorted(hardware.cores, key=lambda core: (core.kind == "efficiency", core.id))
    return tuple(ordered[: max(0, len(ordered) - reserve.cores)])


def carve(
    hardware: Hardware, reserve: Reserve, taken: Sequence[Slice], need: Need, take: Take = "needs"
) -> Slice | Refusal:
    """A slice of at least `need` that overlaps neither the reserve nor any slice in `taken`, or why there is
    none.

    `take="needs"` gives exactly the need, `"rest"` all that is left. Cores come from one NUMA node where one
    has enough, then performance cores first. The same arguments give the same slice.
    """
    taken_cores = {core for other in taken for core in other.cores}
    taken_cpus = {cpu for other in taken for cpu in other.cpus}
    taken_gpus = {gpu for other in taken for gpu in other.gpus}
    cores = [
        core
        for core in usable_cores(hardware, reserve)
        if core.id not in taken_cores and taken_cpus.isdisjoint(core.cpus)
    ]
    gpus = [gpu.uuid for gpu in hardware.gpus if gpu.uuid not in taken_gpus]
    memory = hardware.memory_bytes - reserve.memory_bytes - sum(other.memory_bytes for other in taken)
    reasons = []
    if len(cores) < need.cores:
        reasons.append(_short("core", need.cores, len(cores), min(reserve.cores, len(hardware.cores))))
    if memory < need.memory_bytes:
        kept = f" ({bytes_text(reserve.memory_bytes)} reserved)" if reserve.memory_bytes else ""
        reasons.append(
            f"needs {bytes_text(need.memory_bytes)} of memory, {bytes_text(max(0, memory))} free{kept}"
        )
    if len(gpus) < need.gpus:
        reasons.append(_short("GPU", need.gpus, len(gpus), 0))
    if reasons:
        return Refusal(tuple(reasons))
    if take == "rest":
        return _slice(cores, gpus, memory)
    return _slice(_choose(cores, need.cores), gpus[: need.gpus], need.memory_bytes)


def still_fits(carved: Slice, hardware: Hardware, reserve: Reserve, need: Need) -> bool:
    """Whether a slice that was carved earlier is still whole, outside the reserve, and enough for `need`.

    False when a core or GPU of it is gone or now reserved, when a core's usable CPUs changed, or when its
    memory no longer fits the machine. Says nothing about other slices.
    """
    usable = {core.id: core for core in usable_cores(hardware, reserve)}
    if not usable.keys() >= set(carved.cores):
        return False
    cpus = sorted(cpu for core in carved.cores for cpu in usable[core].cpus)
    return (
        tuple(cpus) == carved.cpus
        and {gpu.uuid for gpu in hardware.gpus} >= set(carved.gpus)
        and len(carved.cores) >= need.cores
        and len(carved.gpus) >= need.gpus
        and need.memory_bytes <= carved.memory_bytes <= hardware.memory_bytes - reserve.memory_bytes
    )


def _short(what: str, need: int, free: int, reserved: int) -> str:
    kept = f" ({reserved} reserved)" if reserved else ""
    return f"needs {need} {what}{'' if need == 1 else 's'}, {free} free{kept}"


def _slice(cores: Iterable[CpuCore], gpus: Iterable[str], memory_bytes: int) -> Slice:
    chosen = sorted(cores, key=lambda core: core.id)
    cpus = sorted(cpu for core in chosen for cpu in core.cpus)
    return Slice(tuple(core.id for core in chosen), tuple(cpus), tuple(gpus), memory_bytes)


def _choose(cores: Sequence[CpuCore], count: int) -> list[CpuCore]:
    """`count` of `cores` (best first, at least as many): from one NUMA node if one suffices.

    Of the nodes that suffice: the one with the fewest efficiency cores in the choice, then the fullest (so
    that large gaps stay), then the lowest number. Otherwise the nodes with most free cores are used up first.
    """
    nodes: dict[int, list[CpuCore]] = {}
    for core in cores:
        nodes.setdefault(core.numa, []).append(core)
    sufficient = [node for node in nodes.values() if len(node) >= count]
    if sufficient:
        best = min(
            sufficient,
            key=lambda node: (
                sum(core.kind == "efficiency" for core in node[:count]),
                len(node),
                node[0].numa,
            ),
        )
        return best[:count]
    by_room = sorted(nodes.values(), key=lambda node: (-len(node), node[0].numa))
    return [core for node in by_room for core in node][:count]
