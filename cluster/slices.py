"""Carves disjoint slices out of a machine's hardware. Pure.

Decides which cores, GPUs and bytes a replica gets. Enforces nothing: `confine` does, and takes the locks.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from cluster.gpu_parts import PARTS, GpuHold, hold_of, shared_parts
from cluster.machine import GIB, CpuCore, Gpu, Hardware, Reserve

Take = Literal["needs", "rest"]


@dataclass(frozen=True, slots=True)
class Need:
    """The least that one replica takes."""

    cores: int
    memory_bytes: int
    gpus: float = 0
    """A whole number of GPUs; or less than 1, a multiple of 1 / PARTS: that share of the memory of one."""

    @property
    def gpu_count(self) -> int:
        """GPUs that a slice for it has, whole or shared."""
        return math.ceil(self.gpus)

    @property
    def gpu_parts(self) -> int:
        """Parts of the GPU that it shares; 0: it has whole ones, or none."""
        return round(self.gpus * PARTS) if 0 < self.gpus < 1 else 0

    def to_json(self) -> dict[str, Any]:
        return {"cores": self.cores, "memory_bytes": self.memory_bytes, "gpus": self.gpus}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        gpus = float(data["gpus"])
        return cls(int(data["cores"]), int(data["memory_bytes"]), int(gpus) if gpus.is_integer() else gpus)


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
    gpu_holds: tuple[GpuHold, ...] = ()
    """What it may use of each of these GPUs, in their order; () in a slice of an earlier version: all of them."""

    @property
    def shares_gpu(self) -> bool:
        """Whether other replicas may be on its GPU."""
        return any(hold.shared for hold in self.gpu_holds)

    def parts_of(self, uuid: str) -> tuple[int, ...]:
        """The parts that it holds of one of its GPUs; () where it holds it whole."""
        return next((hold.parts for hold in self.gpu_holds if hold.uuid == uuid), ())

    def to_json(self) -> dict[str, Any]:
        return {
            "cores": list(self.cores),
            "cpus": list(self.cpus),
            "gpus": list(self.gpus),
            "memory_bytes": self.memory_bytes,
            "gpu_holds": [hold.to_json() for hold in self.gpu_holds],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            tuple(int(core) for core in data["cores"]),
            tuple(int(cpu) for cpu in data["cpus"]),
            tuple(str(gpu) for gpu in data["gpus"]),
            int(data["memory_bytes"]),
            tuple(GpuHold.from_json(hold) for hold in data.get("gpu_holds", ())),
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing could be carved: one reason for each kind of hardware that falls short."""

    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join(self.reasons)


def overlap(one: Slice, other: Slice) -> bool:
    """Whether two slices have a core, a GPU or a part of a GPU in common, so that only one of them can be held."""
    return not set(one.cores).isdisjoint(other.cores) or any(
        _collide(one.parts_of(uuid), other.parts_of(uuid)) for uuid in set(one.gpus) & set(other.gpus)
    )


def _collide(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether who has these parts of a GPU, () for all of it, is in the way of the other."""
    return not one or not other or not set(one).isdisjoint(other)


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

    `take="needs"` gives exactly the need, `"rest"` all that is left; a share of a GPU stays what it is. Cores come
    from the nodes of its GPUs, from one NUMA node where one has enough, then performance cores first. The same
    arguments give the same slice.
    """
    taken_cores = {core for other in taken for core in other.cores}
    taken_cpus = {cpu for other in taken for cpu in other.cpus}
    cores = [
        core
        for core in usable_cores(hardware, reserve)
        if core.id not in taken_cores and taken_cpus.isdisjoint(core.cpus)
    ]
    memory = hardware.memory_bytes - reserve.memory_bytes - sum(other.memory_bytes for other in taken)
    reasons = []
    if len(cores) < need.cores:
        reasons.append(_short("core", need.cores, len(cores), min(reserve.cores, len(hardware.cores))))
    if memory < need.memory_bytes:
        kept = f" ({bytes_text(reserve.memory_bytes)} reserved)" if reserve.memory_bytes else ""
        reasons.append(
            f"needs {bytes_text(need.memory_bytes)} of memory, {bytes_text(max(0, memory))} free{kept}"
        )
    gpus = _gpus(hardware, taken, need, take, cores)
    if isinstance(gpus, str):
        return Refusal((*reasons, gpus))
    if reasons:
        return Refusal(tuple(reasons))
    if take == "rest":
        return _slice(cores, gpus, memory)
    nodes = {gpu.numa for gpu in hardware.gpus if gpu.uuid in {hold.uuid for hold in gpus}}
    return _slice(_near(cores, nodes, need.cores), gpus, need.memory_bytes)


def _gpus(
    hardware: Hardware, taken: Sequence[Slice], need: Need, take: Take, cores: Sequence[CpuCore]
) -> tuple[GpuHold, ...] | str:
    """What it gets of the GPUs, or why not."""
    usable = [gpu for gpu in hardware.gpus if gpu.usable]
    held = {uuid for other in taken for uuid in other.gpus if not other.parts_of(uuid)}
    parts = shared_parts(hold for other in taken for hold in other.gpu_holds)
    ill = [gpu for gpu in hardware.gpus if gpu.state != "ok" and gpu.kind != "inventory only"]
    lost = f" ({len(ill)} lost or hung)" if ill else ""
    if need.gpu_parts:
        free = {gpu.uuid: PARTS - len(parts.get(gpu.uuid, ())) for gpu in usable if gpu.uuid not in held}
        enough = [gpu for gpu in usable if free.get(gpu.uuid, 0) >= need.gpu_parts]
        if not enough:
            return f"needs {need.gpus:g} of a GPU, {max(free.values(), default=0) / PARTS:g} free{lost}"
        # One that is shared already first, so that whole ones stay.
        best = min(enough, key=lambda gpu: free[gpu.uuid])
        return (hold_of(best, need.gpu_parts, parts.get(best.uuid, ())),)
    whole = [gpu for gpu in usable if gpu.uuid not in held and gpu.uuid not in parts]
    cards = [gpu for gpu in whole if gpu.kind == "card"]
    # CUDA gives a process one MIG instance at most (NVIDIA's MIG user guide, "CUDA device enumeration").
    offered = whole if need.gpus == 1 and take == "needs" else cards or whole[:1]
    if len(offered) < need.gpus:
        cut = len(whole) - len(cards)
        only = f" ({cut} instances of cut cards, of which a process can use one)" if cut else ""
        return f"{_short('GPU', need.gpu_count, len(cards), 0)}{only}{lost}"
    chosen = offered if take == "rest" else _together(offered, need.gpu_count, cores, need.cores)
    return tuple(hold_of(gpu) for gpu in chosen)


def _together(gpus: Sequence[Gpu], count: int, cores: Sequence[CpuCore], need_cores: int) -> Sequence[Gpu]:
    """`count` of these, at least as many: the first that are on one node with cores enough, else on one node."""
    nodes = dict.fromkeys(gpu.numa for gpu in gpus)
    near = {node: [gpu for gpu in gpus if gpu.numa == node] for node in nodes}
    roomy = [node for node in nodes if sum(core.numa == node for core in cores) >= need_cores]
    return next((near[node][:count] for node in (*roomy, *nodes) if len(near[node]) >= count), gpus[:count])


def gpus_exactly(carved: Slice, need: Need) -> bool:
    """Whether a slice has as much of the GPUs as `need` says, whole ones or a share."""
    return len(carved.gpus) == need.gpu_count and _parts_held(carved) == need.gpu_parts


def _parts_held(carved: Slice) -> int:
    return sum(len(hold.parts) for hold in carved.gpu_holds)


def still_fits(carved: Slice, hardware: Hardware, reserve: Reserve, need: Need) -> bool:
    """Whether a slice that was carved earlier is still whole, outside the reserve, and enough for `need`.

    False when a core or GPU of it is gone, lost or now reserved, when a core's usable CPUs changed, or when its
    memory no longer fits the machine. Says nothing about other slices.
    """
    usable = {core.id: core for core in usable_cores(hardware, reserve)}
    if not usable.keys() >= set(carved.cores):
        return False
    cpus = sorted(cpu for core in carved.cores for cpu in usable[core].cpus)
    return (
        tuple(cpus) == carved.cpus
        and {gpu.uuid for gpu in hardware.gpus if gpu.usable} >= set(carved.gpus)
        and len(carved.cores) >= need.cores
        and len(carved.gpus) >= need.gpus
        and _parts_held(carved) == need.gpu_parts
        and need.memory_bytes <= carved.memory_bytes <= hardware.memory_bytes - reserve.memory_bytes
    )


def _short(what: str, need: int, free: int, reserved: int) -> str:
    kept = f" ({reserved} reserved)" if reserved else ""
    return f"needs {need} {what}{'' if need == 1 else 's'}, {free} free{kept}"


def _slice(cores: Iterable[CpuCore], gpus: tuple[GpuHold, ...], memory_bytes: int) -> Slice:
    chosen = sorted(cores, key=lambda core: core.id)
    cpus = sorted(cpu for core in chosen for cpu in core.cpus)
    return Slice(
        tuple(core.id for core in chosen), tuple(cpus), tuple(hold.uuid for hold in gpus), memory_bytes, gpus
    )


def _near(cores: Sequence[CpuCore], nodes: Collection[int | None], count: int) -> list[CpuCore]:
    """`count` of `cores`, those of these NUMA nodes first."""
    near = [core for core in cores if core.numa in nodes]
    if len(near) >= count:
        return _choose(near, count)
    return near + _choose([core for core in cores if core.numa not in nodes], count - len(near))


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
