"""The processes of one host: its process group, seen through /proc and ended through pidfds.

Knows pids and start times only, no records and no locks (see `confine`). Where there is no /proc (macOS) it
asks psutil.
"""

import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

KILL_WAIT_S = 3.0
"""How long processes may take to vanish after SIGKILL: the kernel frees an engine's memory first."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One process, when it was looked at."""

    pid: int
    zombie: bool
    """All of it has ended: a process whose first thread has ended holds its ports until its last one has."""
    group: int
    session: int
    start_time: int
    """Clock ticks since boot. With the pid it names one process for as long as the machine runs."""


def look(pid: int) -> Seen | None:
    """What `pid` is now, or None when there is no such process."""
    if sys.platform != "linux":
        return _look_without_proc(pid)
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes().decode("ascii", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the command in parentheses and may hold anything, spaces and parentheses included.
    fields = text[text.rindex(")") + 2 :].split()
    has_ended = fields[0] in "ZXx" and int(fields[17]) <= 1  # of its threads
    return Seen(pid, has_ended, int(fields[2]), int(fields[3]), int(fields[19]))


def runs(pid: int, start_time: int) -> bool:
    """Whether this very process runs: same start time, and not a zombie."""
    seen = look(pid)
    return seen is not None and seen.start_time == start_time and not seen.zombie


def members(leader: int) -> list[Seen]:
    """All running processes of the group, and of the session, that `leader` leads or led. Zombies do not
    count."""
    return [
        seen
        for seen in _everyone()
        if leader in (seen.group, seen.session) and not seen.zombie and seen.pid != os.getpid()
    ]


def end(leader: int, start_time: int, grace_s: float, first: signal.Signals = signal.SIGTERM) -> bool:
    """End the group that this process leads or led: `first`, up to `grace_s`, then SIGKILL. True when it is
    empty.

    A leader that is gone leaves its number to no other process while members of its group live. So when the
    number belongs to a process with another start time, the group has long been empty, and nothing is
    signalled.
    """
    seen = look(leader)
    if seen is not None and seen.start_time != start_time:
        return True
    if grace_s > 0:
        _signal_until(leader, start_time, first, grace_s)
    return _signal_until(leader, start_time, signal.SIGKILL, KILL_WAIT_S)


def _signal_until(leader: int, start_time: int, number: signal.Signals, patience_s: float) -> bool:
    """Send `number` once to every member, also to those forked meanwhile. True as soon as there are none."""
    deadline = time.monotonic() + patience_s
    told: set[tuple[int, int]] = set()
    while found := [seen for seen in members(leader) if seen.start_time >= start_time]:
        fresh = [seen for seen in found if (seen.pid, seen.start_time) not in told]
        told.update((seen.pid, seen.start_time) for seen in fresh)
        if not _signal_and_wait(found, fresh, number, deadline):
            return False
    return True


def _signal_and_wait(
    found: Sequence[Seen], fresh: Sequence[Seen], number: signal.Signals, deadline: float
) -> bool:
    """Signal `fresh`, wait for all of `found`. False when the deadline passed first."""
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return _signal_and_wait_without_pidfd(found, fresh, number, deadline)
    poll = select.poll()
    waiting: set[int] = set()
    with ExitStack() as stack:
        for seen in found:
            try:
                descriptor = os.pidfd_open(seen.pid)
            except ProcessLookupError:
                continue
            stack.callback(os.close, descriptor)
            # The pidfd is open, so the pid cannot be given away any more: now make sure whose it is.
            if not runs(seen.pid, seen.start_time):
                continue
            if seen in fresh:
                try:
                    signal.pidfd_send_signal(descriptor, number)
                except ProcessLookupError:
                    continue
            poll.register(descriptor, select.POLLIN)
            waiting.add(descriptor)
        while waiting:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            for descriptor, _ in poll.poll(left_s * 1000):
                poll.unregister(descriptor)
                waiting.discard(descriptor)
    return True


def _everyone() -> Iterator[Seen]:
    if sys.platform == "linux":
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    else:
        import psutil

        pids = psutil.pids()
    for pid in pids:
        seen = look(pid)
        if seen is not None:
            yield seen


def _look_without_proc(pid: int) -> Seen | None:
    import psutil

    try:
        process = psutil.Process(pid)
        with process.oneshot():
            zombie = process.status() == psutil.STATUS_ZOMBIE
            started = int(process.create_time() * 100)
        return Seen(pid, zombie, os.getpgid(pid), os.getsid(pid), started)
    except (psutil.Error, OSError):
        return None


def _signal_and_wait_without_pidfd(
    found: Sequence[Seen], fresh: Sequence[Seen], number: signal.Signals, deadline: float
) -> bool:
    import psutil

    processes = []
    for seen in found:
        if not runs(seen.pid, seen.start_time):
            continue
        try:
            processes.append(psutil.Process(seen.pid))
            if seen in fresh:
                os.kill(seen.pid, number)
        except (psutil.Error, OSError):
            continue
    _, left = psutil.wait_procs(processes, timeout=max(0.0, deadline - time.monotonic()))
    return not left
