"""Which machines were ever here, where, which of them a person has forgotten, cordoned or drained, and which went to
sleep. Kept on the head's disk.

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
            self.asleep = set(map(str, kept.get("asleep", ())))
            self.draining = {str(id_): float(until) for id_, until in kept.get("draining", {}).items()}
            """With their deadlines, in seconds since the epoch."""
        except (KeyError, TypeError, AttributeError, ValueError):
            self.known, self.forgotten, self.cordoned = {}, {}, set()
            self.asleep, self.draining = set(), {}

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
        self.asleep -= set(ids)
        self.draining = {id_: until for id_, until in self.draining.items() if id_ not in ids}
        self._write()
        return ids

    def sleeps(self, machine: str, is_asleep: bool) -> None:
        """What it said last: that it goes to sleep, or something else. On disk when it returns. Raises OSError."""
        if is_asleep != (machine in self.asleep):
            self.asleep = self.asleep | {machine} if is_asleep else self.asleep - {machine}
            self._write()

    def cordon(self, name: str, is_cordoned: bool) -> None:
        """Let the machine of that name take no new pins, or take them again, which ends a drain too. On disk when it
        returns; again is nothing.

        Raises NoMachine and OSError.
        """
        ids = self._of_name(name)
        draining = (
            self.draining
            if is_cordoned
            else {id_: until for id_, until in self.draining.items() if id_ not in ids}
        )
        self._become(self.cordoned | ids if is_cordoned else self.cordoned - ids, draining)

    def drain(self, name: str, deadline_s: float) -> None:
        """Have the machine of that name take no new pins and be empty by then, in seconds since the epoch. On disk when
        it returns; another deadline takes the place of the first.

        Raises NoMachine and OSError.
        """
        self._become(self.cordoned, self.draining | dict.fromkeys(self._of_name(name), deadline_s))

    def _of_name(self, name: str) -> set[str]:
        known = self.remembered()
        ids = {machine for machine, each in known.items() if each.name == name}
        if (unknown := self.not_known(name)) is not None:
            raise unknown
        return ids

    def _become(self, cordoned: set[str], draining: dict[str, float]) -> None:
        before = self.cordoned, self.draining
        self.cordoned, self.draining = cordoned, draining
        if (cordoned, draining) == before:
            return
        try:
            self._write()
        except OSError:
            self.cordoned, self.draining = before
            raise

    def not_known(self, name: str) -> NoMachine | None:
        """What to raise where no machine of that name is remembered."""
        names = sorted({each.name for each in self.remembered().values()})
        if name in names:
            return None
        return NoMachine(f"There is no machine {name}; known: {', '.join(names) or 'none'}.")

    def remembered(self) -> dict[str, Known]:
        """Those that are not forgotten, by id."""
        return {machine: known for machine, known in self.known.items() if machine not in self.forgotten}

    def zone_of(self, replica: str) -> str | None:
        """The zone of a replica's machine; of two of that name, of the one that is not forgotten. None: none was ever
        here."""
        name = replica.rpartition("/")[0]
        for known in (self.remembered(), self.forgotten):
            if zone := next((each.zone for each in known.values() if each.name == name), None):
                return zone
        return None

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
            "asleep": sorted(self.asleep),
            "draining": self.draining,
        }
        write_private(self._path, json.dumps(kept, indent=1))


def _read(kept: dict[str, dict[str, Any]]) -> dict[str, Known]:
    return {
        machine: Known(str(told["name"]), str(told["zone"]), str(told.get("address", "")))
        for machine, told in kept.items()
    }


def _told(machines: dict[str, Known]) -> dict[str, dict[str, str]]:
    return {machine: asdict(known) for machine, known in machines.items()}
