"""Which machines were ever here, where, and which of them a person has forgotten or cordoned. Kept on the head's disk.

Whether one is here now, the caller knows.
"""

import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.paths import read_json, write_private
from serving.joining import Known


class NoMachine(Exception):
    """No machine of that name is known. The message names those that are."""


class NotForgotten(Exception):
    """The machine cannot be forgotten. The message names the remedy; `known`: whether there is such a machine."""

    def __init__(self, message: str, known: bool) -> None:
        super().__init__(message)
        self.known = known


class MachineBook:
    """Machines by their ids. A file that is missing or broken is an empty book."""

    def __init__(self, path: Path) -> None:
        self._path = path
        kept = read_json(path)
        try:
            self.known = _read(kept["known"])
            self.forgotten = _read(kept["forgotten"])
            self.cordoned = set(map(str, kept.get("cordoned", ())))
        except (KeyError, TypeError, AttributeError):
            self.known, self.forgotten, self.cordoned = {}, {}, set()

    def here(self, machine: str, name: str, zone: str, address: str = "") -> bool:
        """It is here, under that name, and so not forgotten. Whether that is news. Raises OSError."""
        known = Known(name, zone, address)
        if self.known.get(machine) == known and machine not in self.forgotten:
            return False
        self.known[machine] = known
        self.forgotten.pop(machine, None)
        self._write()
        return True

    def forget(self, name: str, here: Collection[str]) -> tuple[str, ...]:
        """Forget the machine of that name for good: its ids. On disk when it returns; again is nothing.

        `here`: ids of those that are here. Raises NotForgotten and OSError.
        """
        ids = tuple(machine for machine, known in self.known.items() if known.name == name)
        if not ids:
            names = ", ".join(sorted({known.name for known in self.known.values()})) or "none"
            raise NotForgotten(f"no machine {name} was ever here; those that were: {names}", known=False)
        if any(machine in here for machine in ids):
            message = (
                f"{name} is here; only a machine that is gone can be forgotten. Stop homeport on it with "
                "`homeport down`, and ask again once it is gone, which takes up to a minute to be noticed"
            )
            raise NotForgotten(message, known=True)
        self.forgotten |= {machine: self.known[machine] for machine in ids}
        self.cordoned -= set(ids)
        self._write()
        return ids

    def cordon(self, name: str, is_cordoned: bool) -> None:
        """Let the machine of that name take no new pins, or take them again. On disk when it returns; again is nothing.

        Raises NoMachine and OSError.
        """
        known = self.remembered()
        ids = {machine for machine, each in known.items() if each.name == name}
        if not ids:
            names = ", ".join(sorted({each.name for each in known.values()})) or "none"
            raise NoMachine(f"There is no machine {name}; known: {names}.")
        before = set(self.cordoned)
        self.cordoned = before | ids if is_cordoned else before - ids
        if self.cordoned == before:
            return
        try:
            self._write()
        except OSError:
            self.cordoned = before
            raise

    def remembered(self) -> dict[str, Known]:
        """Those that are not forgotten, by id."""
        return {machine: known for machine, known in self.known.items() if machine not in self.forgotten}

    def list_forgotten(self) -> list[dict[str, str]]:
        """As the fleet tells it."""
        return [
            {"id": machine, "name": known.name, "zone": known.zone}
            for machine, known in self.forgotten.items()
        ]

    def _write(self) -> None:
        kept = {
            "known": _told(self.known),
            "forgotten": _told(self.forgotten),
            "cordoned": sorted(self.cordoned),
        }
        write_private(self._path, json.dumps(kept, indent=1))


def _read(kept: dict[str, dict[str, Any]]) -> dict[str, Known]:
    return {
        machine: Known(str(told["name"]), str(told["zone"]), str(told.get("address", "")))
        for machine, told in kept.items()
    }


def _told(machines: dict[str, Known]) -> dict[str, dict[str, str]]:
    return {machine: asdict(known) for machine, known in machines.items()}
