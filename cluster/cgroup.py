"""Memory limits of control groups: what already holds for this process, and a ceiling for one that starts.

Never changes a group that it did not make, and never leads a process out of a limit that holds for it.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process is in one hierarchy. `folder` is `mount` or lies below it."""

    mount: Path
    folder: Path

    def upwards(self) -> list[Path]:
        """`folder` and the folders above it, up to the mount point."""
        inner = self.folder.relative_to(self.mount)
        return [self.mount / inner, *(self.mount / above for above in inner.parents if above != inner)]


def memory_limit(proc: Path = PROC) -> int | None:
    """The lowest memory limit in bytes that a control group (v1 or v2) sets on this process; None without
    one."""
    limits = []
    for place, name in ((unified(proc), "memory.max"), (_memory_v1(proc), "memory.limit_in_bytes")):
        for folder in place.upwards() if place else ():
            limit = _number(folder / name)
            if limit is not None:
                limits.append(limit)
    return min(limits, default=None)


def enter_ceiling(name: str, memory_bytes: int, proc: Path = PROC) -> Path | None:
    """Move this process into a cgroup v2 group `name` that may use `memory_bytes`. The group, which outlives the
    process (see `remove`); None when that is not permitted.

    A machine that denies any step leaves the process where it is, and no group.
    """
    group = ceiling(name, proc)
    return group if group is not None and _enter(group, memory_bytes) else None


def ceiling(name: str, proc: Path = PROC) -> Path | None:
    """Where a group of that name is made: under the nearest group above this process that hands out the memory
    controller. None where there is none, or a limit would be crossed on the way."""
    try:
        place = unified(proc)
        for parent in place.upwards() if place else ():
            if "memory" in (parent / "cgroup.subtree_control").read_text().split():
                return parent / name
            if _number(parent / "memory.max") is not None:
                return None
    except OSError:
        pass
    return None


def remove(group: Path) -> None:
    """Remove a group that was made here. One in which a process still is stays: the kernel sees to that."""
    with contextlib.suppress(OSError):
        group.rmdir()


def unified(proc: Path = PROC) -> Place | None:
    """This process's place in the v2 hierarchy, or None where there is none."""
    return place_in(proc, "cgroup2", "")


def _memory_v1(proc: Path) -> Place | None:
    return place_in(proc, "cgroup", "memory")


def _enter(group: Path, memory_bytes: int) -> bool:
    try:
        made = not group.exists()
        group.mkdir(exist_ok=True)
    except OSError:
        return False
    try:
        (group / "memory.max").write_text(str(memory_bytes))
        # The ceiling holds without these two: swap would only soften it, and a lone child be ended first.
        for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
            with contextlib.suppress(OSError):
                (group / name).write_text(value)
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        if made:
            remove(group)
        return False
    return True


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def place_in(proc: Path, kind: str, controller: str) -> Place | None:
    """This process's place in a mounted hierarchy. `kind`: `cgroup2`, or `cgroup` with a v1 `controller`, "" for v2."""
    try:
        mounts = (proc / "self" / "mountinfo").read_text().splitlines()
        memberships = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return None
    own = None
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            own = path
    for line in mounts:
        fields = line.split()
        dash = fields.index("-")
        if own is None or fields[dash + 1] != kind:
            continue
        if controller and controller not in fields[dash + 3].split(","):
            continue
        root, mount = fields[3], Path(fields[4])
        inner = own[len(root) :] if root != "/" and own.startswith(root) else own
        folder = mount / inner.lstrip("/")
        # In a container the path may be the host's, which is not mounted here: then the mount point is ours.
        return Place(mount, folder if ".." not in folder.parts and folder.is_dir() else mount)
    return None
