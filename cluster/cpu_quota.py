"""A ceiling of CPU time for processes: what a container runtime sets for `--cpus`, without one.

A control group with a quota (v2's `cpu.max`, v1's `cpu.cfs_quota_us`) for each 100 ms. Changes no group that was not
made here. Not part of how homeport confines hosts: it is what slices are measured against.
"""

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.cgroup import PROC, place_in, unified

PERIOD_US = 100_000
"""The default of container runtimes."""
LEAVE_S = 2.0
"""How long processes that were killed may take to leave their group."""


@dataclass(frozen=True, slots=True)
class Quota:
    """A group that was made. `kind`: the file that sets it."""

    folder: Path
    kind: str

    def take_in(self, pid: int) -> None:
        """From now on this process and what it starts have the ceiling. Raises OSError."""
        (self.folder / "cgroup.procs").write_text(str(pid))


@contextmanager
def quota(name: str, cpus: float, proc: Path = PROC) -> Iterator[Quota | None]:
    """A group that may use `cpus` of the CPUs' time together, removed afterwards; None where that is not permitted.
    Who is in it must have ended by then."""
    made = _make(name, cpus, proc)
    try:
        yield made
    finally:
        if made is not None:
            _remove(made.folder)


def remove_left(prefix: str, proc: Path = PROC) -> None:
    """Remove the empty groups called `prefix`, a pid and more, that a process which is no more could not remove."""
    for parent, _ in _parents(proc):
        for folder in parent.glob(f"{prefix}*"):
            pid = folder.name.removeprefix(prefix).partition("-")[0]
            if pid.isdecimal() and not psutil.pid_exists(int(pid)):
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _make(name: str, cpus: float, proc: Path) -> Quota | None:
    for parent, kind in _parents(proc):
        folder = parent / name
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            if kind == "cpu.max":
                (folder / kind).write_text(f"{round(cpus * PERIOD_US)} {PERIOD_US}")
            else:
                (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (folder / kind).write_text(str(round(cpus * PERIOD_US)))
        except OSError:
            _remove(folder)
            continue
        return Quota(folder, kind)
    return None


def _parents(proc: Path) -> Iterator[tuple[Path, str]]:
    """Where a group with a quota may be made, and by which file."""
    if place := unified(proc):
        for folder in place.upwards():
            with contextlib.suppress(OSError):
                if "cpu" in (folder / "cgroup.subtree_control").read_text().split():
                    yield folder, "cpu.max"
    if place := place_in(proc, "cgroup", "cpu"):
        yield place.folder, "cpu.cfs_quota_us"


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + LEAVE_S
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                return
            time.sleep(0.05)
        else:
            return
