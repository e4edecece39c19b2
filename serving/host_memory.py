"""What a host knows of its own process: memory, its ceiling, when it started.

Only reports: it limits and ends nothing.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

_CGROUPS = Path("/sys/fs/cgroup")


class MemoryWatch:
    """Compares the memory of the process, and of what its engine runs in processes of its own, with its slice's."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.enforced = _ceiling_of_cgroup(limit_bytes)
        self._process = psutil.Process()
        self._loaded_bytes = 0
        self._above = False
        self._children_bytes = 0

    def report(self) -> Mapping[str, Any]:
        """`rss_bytes` now, `loaded_bytes` when the engine had been loaded (0: not yet), `limit_bytes`, and whether
        the kernel enforces the limit."""
        rss_bytes = self._used()
        return {
            "rss_bytes": rss_bytes,
            "loaded_bytes": self._loaded_bytes,
            "limit_bytes": self.limit_bytes,
            "enforced": self.enforced,
        }

    def note_loaded(self) -> int:
        """The engine is loaded: what the process takes with it. Any thread."""
        self.look()
        self._loaded_bytes = self._used()
        return self._loaded_bytes

    def check(self) -> str | None:
        """A warning when memory has come above the limit since the last check; else None."""
        rss_bytes = self._used()
        was_above, self._above = self._above, rss_bytes > self.limit_bytes
        if not self._above or was_above:
            return None
        limit = f"{self.limit_bytes / 2**20:.0f} MiB of its slice; raise `needs.memory` of its model"
        return f"this host uses {rss_bytes / 2**20:.0f} MiB, more than the {limit}"

    def look(self) -> None:
        """See what its engine's processes take: the kernel counts that page by page, since what they share is nobody's
        alone. Any thread."""
        with suppress(psutil.Error):
            self._children_bytes = sum(map(used_bytes, self._process.children(recursive=True)))

    def _used(self) -> int:
        """Bytes of them all, as seen last."""
        return int(self._process.memory_info().rss) + self._children_bytes


def used_bytes(process: psutil.Process) -> int:
    """What a process takes, what it shares with others in parts; 0 of one that is gone."""
    try:
        memory = process.memory_full_info()
    except psutil.Error:
        return 0
    return int(getattr(memory, "pss", memory.rss))


def start_time() -> int:
    """When this process started, in clock ticks since boot; 0 where the system does not tell."""
    try:
        stat = Path("/proc/self/stat").read_text()
    except OSError:
        return 0
    # The name, in brackets, may hold blanks; the 22nd field is the 20th after it.
    return int(stat.rpartition(")")[2].split()[19])


def _ceiling_of_cgroup(limit_bytes: int) -> bool:
    """Whether this process's own cgroup (v2) has a memory ceiling at or below the limit."""
    try:
        line = next(
            text for text in Path("/proc/self/cgroup").read_text().splitlines() if text.startswith("0::")
        )
        ceiling = (_CGROUPS / line.removeprefix("0::").lstrip("/") / "memory.max").read_text().strip()
    except (OSError, StopIteration):
        return False
    return ceiling != "max" and int(ceiling) <= limit_bytes
