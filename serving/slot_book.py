"""What one machine's hardware is carved into. It lies in `slots.json`, so that a keeper needs no controller to keep its
hosts alive. How it is carved, serving/slots.py decides; starts and stops nothing.
"""

import json
from collections.abc import Mapping
from itertools import islice
from typing import Any

from cluster.machine import Hardware, Reserve
from cluster.paths import Paths, read_json, write_private
from cluster.processes import port_is_free
from serving.model import ModelSpec
from serving.slots import Slot, Wish, assign, in_range


class SlotBook:
    """`slots` is replaced whole, never changed: it is read on other threads."""

    def __init__(self, paths: Paths, machine: Mapping[str, Any], hardware: Hardware) -> None:
        """`machine`: the words of `machine.json`."""
        self._path = paths.slots
        self._address = machine["address"]
        self.hardware = hardware
        self.reserve = Reserve.from_json(machine["reserve"])
        first, last = machine["ports"]
        self.ports: tuple[int, int] = (first, last)
        self.refused: dict[str, list[str]] = {}
        """By model: why there are fewer of it than the share says."""
        kept = read_json(self._path) or {"revision": 0, "slots": [], "numbers": {}}
        self.revision: int = kept["revision"]
        self.head: str = kept.get("head", "")
        """Id of the machine whose revision that is: each head counts its own."""
        if kept.get("carved_for", self._carved_for()) != self._carved_for():
            self.revision = 0  # its share is given again, to be carved from what there is now
        self.slots: dict[int, Slot] = {slot.number: slot for slot in map(Slot.from_json, kept["slots"])}
        self.numbers: dict[int, str] = {int(number): model for number, model in kept["numbers"].items()}
        """Which model a slot's number belongs to, also when it is not wanted at present."""

    def take(self, revision: int, wishes: list[dict[str, Any]], head: str) -> bool:
        """Carve the slots for this share anew, and keep that; whether it is another one than before. Raises OSError.

        `wishes`: [{"model": ModelSpec as JSON, "digest": str, "count": int}].
        """
        if (head, revision) == (self.head, self.revision):
            return False
        wanted = [Wish(ModelSpec.from_json(w["model"]), w["digest"], w["count"]) for w in wishes]
        slots, refused = assign(
            in_range(self.slots.values(), self.ports),
            wanted,
            self.hardware,
            self.reserve,
            self._free_ports(),
            self.numbers,
        )
        self.refused = {model: list(refusal.reasons) for model, refusal in refused.items()}
        self.slots = {slot.number: slot for slot in slots}
        self.numbers = self.numbers | {slot.number: slot.model.name for slot in slots}
        self.revision, self.head = revision, head  # last: nobody reads it with the slots of before
        self._write()
        return True

    def report(self) -> dict[str, Any]:
        """For the controller, as part of what the keeper reports."""
        return {
            "revision": self.revision,
            "head": self.head,
            "hardware": self.hardware.to_json(),
            "reserve": self.reserve.to_json(),
            "refused": self.refused,
            "ports": list(self.ports),
            "numbers": {str(number): model for number, model in self.numbers.items()},
        }

    def _write(self) -> None:
        slots = [slot.to_json() for slot in self.slots.values()]
        kept = {"revision": self.revision, "head": self.head, "slots": slots, "numbers": self.numbers}
        kept["carved_for"] = self._carved_for()
        write_private(self._path, json.dumps(kept, indent=1))

    def _carved_for(self) -> dict[str, Any]:
        """What of this machine its slots depend on, beside its hardware."""
        return {"reserve": self.reserve.to_json(), "ports": list(self.ports)}

    def _free_ports(self) -> list[int]:
        """Ports of the range that nobody listens on, as many as this machine could ever need."""
        first, last = self.ports
        free = (port for port in range(first, last + 1) if port_is_free(self._address, port))
        return list(islice(free, len(self.slots) + len(self.hardware.cores) + 1))
