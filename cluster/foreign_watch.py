"""Reads /proc for who runs on which CPU, and which programs run. Cheap: of a process that is idle no thread is read.

What follows from it is cluster/foreign.py's matter. Where there is no /proc (macOS), programs are found through psutil,
and of foreign processes nothing is told.
"""

import os
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.foreign import (
    LEAST,
    Foreign,
    Lived,
    Place,
    Ran,
    Spent,
    Threads,
    Use,
    news,
    on_places,
    spend,
    spread,
)
from cluster.group import look

NAME_MAX = 15
"""The kernel keeps so many characters of a program's name."""
THREADS_MAX = 256
"""Of one process that are looked at."""
KERNEL_THREAD = 0x00200000
STAT_BYTES = 1 << 16
"""Of /proc/stat, which has the CPUs in its first lines."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class _Process:
    name: str
    parent: int
    group: int
    session: int
    ticks: int
    waited: int
    """Ticks of its children that ended."""
    threads: int
    cpu: int


class ForeignWatch:
    """Of one machine. `look` every few seconds: what it tells is of the time since the look before."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = str(proc)
        self._at: float | None = None
        self._before: dict[tuple[int, int], int] = {}
        """By pid and start time: ticks so far."""
        self._threads: dict[tuple[int, int], Threads] = {}
        """Of those that were busy."""
        self._told: dict[int, tuple[Foreign, ...]] = {}
        self._ran: dict[int, Ran] = {}
        self._spent: dict[int, Spent] = {}

    def spent_s(self, slot: int) -> tuple[float, float] | None:
        """Seconds of CPU on a slot's CPUs since it was looked first: of its host's processes, and of all else. None: it
        was never looked, or there is no /proc."""
        spent = self._spent.get(slot)
        return None if spent is None else (spent.own / TICKS_PER_S, spent.foreign / TICKS_PER_S)

    def look(self, places: Mapping[int, Place], now: float) -> dict[int, tuple[Foreign, ...]]:
        """By slot. `now`: a monotonic clock. Nothing at the first look."""
        if sys.platform != "linux":
            return {}
        seen = self._processes()
        period = 0.0 if self._at is None else (now - self._at) * TICKS_PER_S
        uses, threads = [], dict[tuple[int, int], Threads]()
        for key, process in seen.items() if period > 0 else ():
            ticks = process.ticks - self._before.get(key, process.ticks)
            if ticks < LEAST * period:
                continue
            known = threads[key] = self._threads_of(key[0]) if process.threads > 1 else {}
            ran = spread(ticks, process.cpu, self._threads.get(key), known)
            uses.append(Use(process.name, (process.group, process.session), ran))
        self._spend(places, seen)
        self._at, self._threads = now, threads
        self._before = {key: process.ticks for key, process in seen.items()}
        self._told = news(self._told, on_places(uses, places, period)) if period > 0 else {}
        return self._told

    def _spend(self, places: Mapping[int, Place], seen: Mapping[tuple[int, int], _Process]) -> None:
        busy = self._busy()
        if not busy:
            return
        ran = {}
        for slot, place in places.items():
            own = {
                key: Lived(process.ticks, process.waited, process.parent)
                for key, process in seen.items()
                if place.host is not None and place.host in (process.group, process.session)
            }
            ran[slot] = Ran(place, sum(busy.get(cpu, 0) for cpu in place.cpus), own)
            self._spent[slot] = spend(self._spent.get(slot, Spent()), self._ran.get(slot), ran[slot])
        self._ran = ran

    def _busy(self) -> dict[int, int]:
        """By CPU: ticks in which it ran something, since the machine began. What its hypervisor took is not known."""
        found = {}
        for line in _read(f"{self._proc}/stat", STAT_BYTES).splitlines():
            name, *fields = line.split()
            if name.startswith(b"cpu") and name != b"cpu" and len(fields) >= 7:
                user, nice, system, _idle, _iowait, irq, softirq = map(int, fields[:7])
                found[int(name[3:])] = user + nice + system + irq + softirq
        return found

    def _processes(self) -> dict[tuple[int, int], _Process]:
        """All but the kernel's own."""
        found = {}
        for pid in pids(self._proc):
            text = _read(f"{self._proc}/{pid}/stat")
            # The name may hold anything, spaces and parentheses included.
            start, end = text.find(b"("), text.rfind(b")")
            fields = text[end + 2 :].split()
            if len(fields) < 37 or int(fields[6]) & KERNEL_THREAD:
                continue
            name = text[start + 1 : end].decode(errors="replace")
            parent, group, session = map(int, fields[1:4])
            user, kernel, waited_user, waited_kernel = map(int, fields[11:15])
            found[pid, int(fields[19])] = _Process(
                name,
                parent,
                group,
                session,
                user + kernel,
                waited_user + waited_kernel,
                int(fields[17]),
                int(fields[36]),
            )
        return found

    def _threads_of(self, pid: int) -> dict[int, tuple[int, int]]:
        found = {}
        for thread in pids(f"{self._proc}/{pid}/task")[:THREADS_MAX]:
            text = _read(f"{self._proc}/{pid}/task/{thread}/stat")
            fields = text[text.rfind(b")") + 2 :].split()
            if len(fields) >= 37:
                found[thread] = int(fields[11]) + int(fields[12]), int(fields[36])
        return found


def running(
    names: Collection[str], is_ours: Callable[[int], bool] = lambda _: False, proc: str = "/proc"
) -> list[str]:
    """Those of the programs that run, in their order, by the names that `ps -e` shows.

    `is_ours`: whether a process, by its pid, does not count.
    """
    if not names:
        return []
    if sys.platform != "linux":
        return _running_without_proc(names)
    short = {name.encode()[:NAME_MAX]: name for name in names}
    found = set()
    for pid in pids(proc):
        name = short.get(_read(f"{proc}/{pid}/comm").rstrip(b"\n"))
        if name is None or name in found:
            continue
        seen = look(pid)
        if seen is not None and not seen.zombie and not is_ours(pid):
            found.add(name)
    return [name for name in names if name in found]


def pids(folder: str) -> list[int]:
    """The processes in /proc, or the threads of one; none where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return [int(entry.name) for entry in entries if entry.name.isdigit()]
    except OSError:
        return []


def is_marked(pid: int, name: str, proc: str = "/proc") -> bool:
    """Whether a process has this variable in its environment, as far as that can be read."""
    return f"\0{name}=".encode() in b"\0" + _read(f"{proc}/{pid}/environ", 1 << 17)


def session_of(pid: int) -> int | None:
    """None for a process that is gone."""
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _read(path: str, most: int = 4096) -> bytes:
    """What is in it; b"" for a process that is gone, or somebody else's secret."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, most)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _running_without_proc(names: Collection[str]) -> list[str]:
    import psutil

    seen = {process.info["name"] for process in psutil.process_iter(["name"])}
    return [name for name in names if name in seen or name[:NAME_MAX] in seen]
