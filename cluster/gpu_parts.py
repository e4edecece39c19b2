"""What a slice holds of a GPU: all of it, or numbered parts of its memory, each with its lock. Pure.

Keeps nobody to it: a share is what a replica is told that it may use.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from cluster.machine import Gpu

PARTS = 20
"""Of every GPU that is shared: the same for all installations, so that they can share one."""


@dataclass(frozen=True, slots=True)
class GpuHold:
    """A GPU of a slice."""

    uuid: str
    memory_bytes: int
    """Of its memory, that the replica may use; 0 where the GPU does not tell how much it has."""
    parts: tuple[int, ...] = ()
    """Numbers from 0 to PARTS - 1, ascending; () where it is held whole."""

    @property
    def shared(self) -> bool:
        """Whether others may hold the rest of it."""
        return bool(self.parts)

    @property
    def share(self) -> float:
        """How much of it: 1 where it is held whole."""
        return len(self.parts) / PARTS if self.parts else 1.0

    def to_json(self) -> dict[str, Any]:
        return {
            "uuid": self.uuid,
            "memory_bytes": self.memory_bytes,
            "parts": list(self.parts),
            "shared": self.shared,
            "share": self.share,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(str(data["uuid"]), int(data["memory_bytes"]), tuple(int(part) for part in data["parts"]))


def hold_of(gpu: Gpu, count: int = 0, taken: Iterable[int] = ()) -> GpuHold:
    """All of a GPU; or `count` of its parts, the first that are not taken, of which there are enough."""
    free = [part for part in range(PARTS) if part not in set(taken)]
    memory = gpu.memory_bytes * count // PARTS if count else gpu.memory_bytes
    return GpuHold(gpu.uuid, memory, tuple(free[:count]))


def shared_parts(holds: Iterable[GpuHold]) -> dict[str, set[int]]:
    """By GPU: the parts that are held, of those that are shared."""
    found: dict[str, set[int]] = {}
    for hold in holds:
        if hold.shared:
            found.setdefault(hold.uuid, set()).update(hold.parts)
    return found


def gpu_texts(carved: Mapping[str, Any]) -> list[str]:
    """The GPUs of a slice, given as JSON, for a person: `GPU-…`, or `GPU-… (0.5, shared)`."""
    shared = {hold["uuid"]: hold["share"] for hold in carved.get("gpu_holds", ()) if hold["shared"]}
    return [f"{uuid} ({shared[uuid]:g}, shared)" if uuid in shared else uuid for uuid in carved["gpus"]]
