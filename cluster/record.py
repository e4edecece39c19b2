"""The record of a host: what is needed to find it again, to trust that it is the one, and to end it.

Reads and writes that one file. Does not look at processes (see `group`) or locks (see `locks`).
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cluster.paths import read_json, write_private
from cluster.slices import Slice


@dataclass(frozen=True, slots=True)
class Limits:
    """Which limits of the slice the kernel (or the driver) keeps, and which are only looked at."""

    enforced: tuple[str, ...]
    watched: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """Why some are not kept: `network: unshare: Operation not permitted`."""
    ceiling: Path | None = None
    """The control group that keeps its memory, which is there until somebody removes it."""

    def to_json(self) -> dict[str, Any]:
        return {
            "enforced": list(self.enforced),
            "watched": list(self.watched),
            "notes": list(self.notes),
            "ceiling": None if self.ceiling is None else str(self.ceiling),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        ceiling = data.get("ceiling")
        return cls(
            tuple(data["enforced"]),
            tuple(data["watched"]),
            tuple(data.get("notes", ())),
            None if ceiling is None else Path(ceiling),
        )


@dataclass(frozen=True, slots=True)
class Record:
    """What is needed to find a host again, to trust that it is the one, and to end it."""

    replica: str
    pid: int
    start_time: int
    """Clock ticks from boot to its start; it does not change with exec."""
    pgid: int
    port: int
    incarnation: int
    config_digest: str
    slice: Slice
    limits: Limits

    def to_json(self) -> dict[str, Any]:
        return {
            "replica": self.replica,
            "pid": self.pid,
            "start_time": self.start_time,
            "pgid": self.pgid,
            "port": self.port,
            "incarnation": self.incarnation,
            "config_digest": self.config_digest,
            "slice": self.slice.to_json(),
            "limits": self.limits.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            str(data["replica"]),
            int(data["pid"]),
            int(data["start_time"]),
            int(data["pgid"]),
            int(data["port"]),
            int(data["incarnation"]),
            str(data["config_digest"]),
            Slice.from_json(data["slice"]),
            Limits.from_json(data["limits"]),
        )


def read_record(path: Path) -> Record | None:
    """The record in `path`; None when it is missing, broken, of an earlier boot, or somebody else's.

    The folder of locks is open to all users of the machine.
    """
    try:
        if path.lstat().st_uid != os.getuid():
            return None
        data = read_json(path)
        return Record.from_json(data) if data["boot"] == boot_id() else None
    except (OSError, KeyError, TypeError, ValueError):
        return None


def write_record(path: Path, record: Record) -> None:
    """Replace the record in `path` whole, mode 0600, with the boot of the machine in which its pid means
    something."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, json.dumps({**record.to_json(), "boot": boot_id()}))


def boot_id() -> str:
    """What tells one boot of this machine from the next; "" where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
