"""The slots of one machine: which model has which slice and port. Pure.

A slot keeps its number, slice and port for as long as its model is wanted and the slice still fits, so that the
sessions whose home it is find it again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.machine import Hardware, Reserve
from cluster.slices import Refusal, Slice, carve, still_fits
from serving.model import ModelSpec


@dataclass(frozen=True, slots=True)
class Slot:
    """One place for a replica. Its name is `machine/number`."""

    number: int
    model: ModelSpec
    slice: Slice
    port: int
    digest: str
    """Digest of what needs a restart of the host when it changes."""

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "model": self.model.to_json(),
            "slice": self.slice.to_json(),
            "port": self.port,
            "digest": self.digest,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Slot":
        return cls(
            number=data["number"],
            model=ModelSpec.from_json(data["model"]),
            slice=Slice.from_json(data["slice"]),
            port=data["port"],
            digest=data["digest"],
        )


@dataclass(frozen=True, slots=True)
class Wish:
    """So many replicas of this model on this machine."""

    model: ModelSpec
    digest: str
    count: int


def assign(
    current: Sequence[Slot],
    wishes: Sequence[Wish],
    hardware: Hardware,
    reserve: Reserve,
    free_ports: Iterable[int],
) -> tuple[list[Slot], dict[str, Refusal]]:
    """The machine's slots for `wishes`, and what was refused, by model.

    Slots that are wanted and still fit stay as they are (with the model's new settings); what is wanted beyond them
    is carved from what is left, under the lowest free number and the next of `free_ports`.
    """
    kept: list[Slot] = []
    missing: list[Wish] = []
    for wish in wishes:
        mine = [
            slot
            for slot in current
            if slot.model.name == wish.model.name
            and _as_large(slot.slice, wish)
            and still_fits(slot.slice, hardware, reserve, wish.model.need)
        ][: wish.count]
        kept += [replace(slot, model=wish.model, digest=wish.digest) for slot in mine]
        missing += [wish] * (wish.count - len(mine))
    refused: dict[str, Refusal] = {}
    ports = iter(free_ports)
    for wish in missing:
        carved = carve(hardware, reserve, [slot.slice for slot in kept], wish.model.need, wish.model.take)
        if isinstance(carved, Refusal):
            refused[wish.model.name] = carved
            continue
        port = next(ports, None)
        if port is None:
            refused[wish.model.name] = Refusal(("no free port left in network.ports",))
            continue
        number = next(n for n in range(len(kept) + 1) if all(slot.number != n for slot in kept))
        kept.append(Slot(number, wish.model, carved, port, wish.digest))
    return sorted(kept, key=lambda slot: slot.number), refused


def _as_large(slice_: Slice, wish: Wish) -> bool:
    """A slice that was carved for other needs is carved anew; one that took the rest may stay larger."""
    need = wish.model.need
    exact = len(slice_.cores) == need.cores and len(slice_.gpus) == need.gpus
    return exact if wish.model.take == "needs" else True
