"""Kernel locks on cores and GPUs: who holds a part of this machine, across all installations.

A lock is `flock` on a file that is never removed; it lives as long as the file is open somewhere, so the
kernel frees it when its holder dies, however it dies. `confine` says how a host comes by its locks. Starts
nothing.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

from cluster.slices import Slice

LOCK_FDS = "HOMEPORT_LOCK_FDS"
LOCK_PATIENCE_S = 0.25
"""A probe (`holds_locks`) has a lock for an instant, and a host that was just killed may be about to free its
own."""


class LockTaken(Exception):
    """Somebody else holds a part of the slice. `what` is `core 3`, `GPU …` or a folder, `holder` who has
    it."""

    def __init__(self, what: str, holder: str) -> None:
        super().__init__(f"{what} is held by {holder}")
        self.what = what
        self.holder = holder


def holds_locks(locks: Path, carved: Slice) -> bool:
    """Whether every core and GPU of the slice is held by some process. False for a slice without any."""
    names = [name for name, lock in _lock_names(carved).items() if not lock.shared]
    return bool(names) and all(_held(locks / name) for name in names)


def adopt_locks(environ: MutableMapping[str, str] | None = None) -> tuple[int, ...]:
    """Called by the host before it starts anything: the locks are its own now, and programs it execs get
    none.

    Returns the descriptors, which stay open until the host dies; () when this process was not launched with
    locks.
    """
    env = os.environ if environ is None else environ
    descriptors = tuple(int(number) for number in env.pop(LOCK_FDS, "").split(",") if number)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return descriptors


def take_slice(locks: Path, carved: Slice, replica: str) -> list[int]:
    """Lock every core and GPU of the slice for `replica`, in the order of their names, or raise LockTaken.

    Returns the descriptors. After LockTaken those that were taken stay open: the caller ends its process.
    """
    return [
        take_lock(locks / name, lock.what, replica, 0o666, shared=lock.shared)
        for name, lock in _lock_names(carved).items()
    ]


def take_lock(path: Path, what: str, replica: str, mode: int, *, shared: bool = False) -> int:
    """The open, locked file (close-on-exec), or LockTaken. In it stands who has it, for whom it is
    refused. Many may have a `shared` one, while nobody has it alone."""
    descriptor = _open_lock(path, mode)
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise LockTaken(what, _holder(descriptor)) from None
            time.sleep(0.02)
    # Who shares it writes nothing of its own: it may go before the others.
    holder = {"shared": True} if shared else {"replica": replica, "pid": os.getpid()}
    with contextlib.suppress(OSError):  # opened for reading only, when another user made it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    return descriptor


def _open_lock(path: Path, mode: int) -> int:
    # First without O_CREAT: where all may write, the kernel refuses it for a file of another user.
    for flags in (os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        try:
            descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        except (FileNotFoundError, PermissionError):
            if flags == os.O_RDONLY:
                raise
            continue
        if flags & os.O_CREAT:
            os.fchmod(descriptor, mode)
        return descriptor
    raise AssertionError("unreachable")


def _holder(descriptor: int) -> str:
    try:
        data = json.loads(os.pread(descriptor, 4096, 0))
        if data.get("shared"):
            return "replicas that share it"
        return f"{data['replica']} (pid {int(data['pid'])})"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "another process"


@dataclass(frozen=True, slots=True)
class _Lock:
    what: str
    shared: bool = False


def _lock_names(carved: Slice) -> dict[str, _Lock]:
    """File name -> what it stands for, in the order in which they are taken.

    Who has parts of a GPU shares the lock of all of it with others that do, and has each part's alone: so nobody
    takes it whole meanwhile, of an earlier version either.
    """
    names = {f"core-{core}.lock": _Lock(f"core {core}") for core in sorted(carved.cores)}
    for uuid in sorted(carved.gpus):
        file, parts = f"gpu-{uuid.replace('/', '_')}", carved.parts_of(uuid)
        names[f"{file}.lock"] = _Lock(f"GPU {uuid}", shared=bool(parts))
        names |= {f"{file}.part-{part}.lock": _Lock(f"part {part} of GPU {uuid}") for part in parts}
    return names


def _held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
