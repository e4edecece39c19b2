"""The slots of one machine: which model has which slice and port. Pure.

A slot keeps its number, slice and port for as long as its model is wanted and the slice still fits, so that the
sessions whose home it is find it again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.machine import Hardware, Reserve
from cluster.slices import Refusal, Slice, carve, gpus_exactly, still_fits
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
    free_ports: Sequence[int],
    numbers: Mapping[int, str],
) -> tuple[list[Slot], dict[str, Refusal]]:
    """The machine's slots for `wishes`, and what was refused, by model.

    Slots that are wanted and still fit stay as they are (with the model's new settings); what is wanted beyond them
    is carved from what is left. Where that does not suffice, everything is carved anew in the order of the wishes, as
    cluster/fit.py did. A number stays its model's for ever (`numbers`: those that were ever given), since sessions
    have their homes under it.
    """
    slots, refused = _fill(
        _kept(current, wishes, hardware, reserve), current, wishes, hardware, reserve, free_ports, numbers
    )
    if refused:
        anew, still_refused = _fill([], current, wishes, hardware, reserve, free_ports, numbers)
        if len(still_refused) < len(refused):
            return anew, still_refused
    return slots, refused


def in_range(slots: Iterable[Slot], ports: tuple[int, int]) -> list[Slot]:
    """Those that keep their port: the first and the last one that a host may have are given."""
    return [slot for slot in slots if ports[0] <= slot.port <= ports[1]]


def digest_here(slot: Slot | None, digest: str, slice_: Slice, port: int) -> str | None:
    """The digest under which a host runs; None where the slot was carved anew since, so that a restart is needed."""
    return digest if slot is None or (slot.slice, slot.port) == (slice_, port) else None


def _kept(
    current: Sequence[Slot], wishes: Sequence[Wish], hardware: Hardware, reserve: Reserve
) -> list[Slot]:
    kept: list[Slot] = []
    memory = hardware.memory_bytes - reserve.memory_bytes
    for wish in wishes:
        fitting = [
            slot
            for slot in current
            if slot.model.name == wish.model.name
            and _as_large(slot.slice, wish)
            and still_fits(slot.slice, hardware, reserve, wish.model.need)
        ]
        for slot in fitting[: wish.count]:
            # Each fits by itself; a reserve that grew may leave too little for all of them.
            if slot.slice.memory_bytes <= memory:
                kept.append(replace(slot, model=wish.model, digest=wish.digest))
                memory -= slot.slice.memory_bytes
    return kept


def _fill(
    kept: Sequence[Slot],
    current: Sequence[Slot],
    wishes: Sequence[Wish],
    hardware: Hardware,
    reserve: Reserve,
    free_ports: Sequence[int],
    numbers: Mapping[int, str],
) -> tuple[list[Slot], dict[str, Refusal]]:
    slots = list(kept)
    refused: dict[str, Refusal] = {}
    for wish in wishes:
        have = sum(slot.model.name == wish.model.name for slot in slots)
        for _ in range(wish.count - have):
            carved = carve(hardware, reserve, [s.slice for s in slots], wish.model.need, wish.model.take)
            number = _number(slots, wish.model.name, numbers)
            port = _port(slots, current, number, free_ports)
            if isinstance(carved, Refusal):
                refused[wish.model.name] = carved
            elif port is None:
                refused[wish.model.name] = Refusal(("no free port left in network.ports",))
            else:
                slots.append(Slot(number, wish.model, carved, port, wish.digest))
    return sorted(slots, key=lambda slot: slot.number), refused


def _number(slots: Sequence[Slot], model: str, numbers: Mapping[int, str]) -> int:
    """The lowest number that is this model's already and is not used, else the lowest that nobody ever had."""
    used = {slot.number for slot in slots}
    own = [number for number, owner in numbers.items() if owner == model and number not in used]
    taken = used | set(numbers)
    return min(own) if own else next(n for n in range(len(taken) + 1) if n not in taken)


def _port(
    slots: Sequence[Slot], current: Sequence[Slot], number: int, free_ports: Sequence[int]
) -> int | None:
    """The port that this number has, else the first that is free."""
    used = {slot.port for slot in slots}
    before = [slot.port for slot in current if slot.number == number and slot.port not in used]
    held = used | {slot.port for slot in current}
    return before[0] if before else next((port for port in free_ports if port not in held), None)


def _as_large(slice_: Slice, wish: Wish) -> bool:
    """A slice that was carved for other needs is carved anew; one that took the rest may stay larger."""
    need = wish.model.need
    return wish.model.take == "rest" or (
        len(slice_.cores) == need.cores
        and gpus_exactly(slice_, need)
        and slice_.memory_bytes == need.memory_bytes
    )
