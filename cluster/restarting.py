"""What a restarter needs, be it a head's parent or a worker's service: a lock, its state for who looks on, patience.

Starts and ends nothing.
"""

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import time
from typing import Any, Literal

import psutil

from cluster.paths import Paths, read_json, write_private
from cluster.processes import ours

Step = Literal["starting", "ready", "failed"]
BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
HEALTHY_S = 30.0
"""What lived this long is started again at once."""
LOCK_TRIES = 5
UP_LOCK_FD = "HOMEPORT_UP_LOCK_FD"
"""Under this descriptor a restarter has the lock that says that a homeport runs."""

log = logging.getLogger(__name__)


class Run:
    """`run.json`, read once, then owned by this process: each step's state stands there."""

    def __init__(self, paths: Paths, **more: Any) -> None:
        self._path = paths.run
        self.data: dict[str, Any] = read_json(paths.run) or {}
        self.data |= {"parent": os.getpid(), "steps": {}, **more}

    def step(self, name: str, state: Step, detail: str = "", **more: Any) -> None:
        told = {"state": state, "detail": detail, **more}
        if self.data["steps"].get(name) != told:
            log.info("%s: %s %s", name, state, detail)
            self.data["steps"][name] = told
            self.write()

    def write(self) -> None:
        try:
            write_private(self._path, json.dumps(self.data, indent=1))
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error)


def backoff_s(failures: int) -> float:
    """How long to wait before what failed so often in a row is tried again."""
    return BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]


def take_up_lock(paths: Paths) -> int | None:
    """The right to start a homeport on this state folder, as a descriptor; None where somebody has it.

    Raises OSError for a state folder that cannot be written.
    """
    lock = _open_up_lock(paths)
    for _ in range(LOCK_TRIES):  # `running` holds it for an instant, to look
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return lock
    os.close(lock)
    return None


def wait_up_lock(paths: Paths) -> int:
    """As `take_up_lock`, once whoever has it ends. Raises OSError."""
    lock = _open_up_lock(paths)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _open_up_lock(paths: Paths) -> int:
    paths.make()
    return os.open(paths.up_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def inherited_up_lock() -> int | None:
    """The lock that this process was started with, from here on its own: what it starts does not inherit it."""
    descriptor = os.environ.pop(UP_LOCK_FD, None)
    if descriptor is None:
        return None
    os.set_inheritable(int(descriptor), False)
    return int(descriptor)


def running(paths: Paths) -> dict[str, Any] | None:
    """What runs on this state folder, as its restarter wrote it; None where none lives."""
    try:
        with paths.up_lock.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return read_json(paths.run) or {"steps": {}}
    except OSError:
        return None
    return None


def essential(paths: Paths, names: tuple[str, ...]) -> list[int]:
    """Our processes of Ray of these names, one each, in order; fewer where not all of them live."""
    found = {process.name: process.pid for process in ours(paths, "ray")}
    return [found[name] for name in names if name in found]


async def first_gone(pids: list[int]) -> None:
    """Until one of these processes has ended."""
    waits = [asyncio.create_task(gone(pid)) for pid in pids]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def gone(pid: int) -> None:
    """Until the process has ended, as a zombie too."""
    if hasattr(os, "pidfd_open"):
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
    else:
        with contextlib.suppress(psutil.NoSuchProcess):
            await asyncio.to_thread(psutil.Process(pid).wait)
