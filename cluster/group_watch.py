"""Ends a group of processes when whoever started them is gone, however it went.

    python -m cluster.group_watch watch FOLDER     watches; told of the group on stdin
    python -m cluster.group_watch start COMMAND …  waits for a word on stdin, then is the command

The watch lives outside the session of those that it watches: what ends them does not end it. It hears by its stdin, a
pipe that closes with its starter; then it ends the group, and removes FOLDER and the shared memory that the group had
made. A line `PID START_TIME` names the group's leader; an empty one lets it look which shared memory there is, since
who was killed can no longer be asked. Standard library only.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

from cluster import group

SHARED = Path("/dev/shm")  # noqa: S108  where Linux keeps it
TRACKER = b"multiprocessing.resource_tracker"
TRACKER_S = 1.0
END_S = 5.0
"""Who does not end within so long after SIGKILL hangs in the kernel."""
ROOT = Path(__file__).resolve().parent.parent


class Watched:
    """A command in a process group of its own, and the watch that ends it. Made by `start_watched`; `end` it."""

    def __init__(self, process: "subprocess.Popen[bytes]", watch: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self._watch = watch
        seen = group.look(process.pid)
        self._start_time = 0 if seen is None else seen.start_time
        self._tell(f"{process.pid} {self._start_time}\n")

    def settled(self) -> None:
        """It has made what it will make of shared memory: the watch looks."""
        self._tell("\n")

    def pids(self) -> list[int]:
        return [seen.pid for seen in group.members(self.process.pid)]

    def end(self, grace_s: float) -> bool:
        """End all of it, and have the watch clean up. Whether nothing is left. Safe to call twice."""
        shared = shared_memory(self.pids())
        _end_but_trackers(self.process.pid, self._start_time)
        ended = group.end(self.process.pid, self._start_time, grace_s) if self._start_time else True
        _unlink(shared)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_S)
        if self._watch.stdin is not None and not self._watch.stdin.closed:
            with contextlib.suppress(OSError):
                self._watch.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._watch.wait(END_S)
        return ended

    def _tell(self, line: str) -> None:
        stdin = self._watch.stdin
        if stdin is None or stdin.closed:
            return
        try:
            stdin.write(line.encode())
            stdin.flush()
        except OSError:  # it was killed: nobody watches, and the group ends with its session
            return


def start_watched(argv: Sequence[str], env: Mapping[str, str], folder: Path, out: IO[bytes]) -> Watched:
    """Start `argv` in `folder`, which goes with it in the end; what it prints goes to `out`. Raises OSError."""
    ours = [sys.executable, "-P", "-m", "cluster.group_watch"]
    our_env = {**env, "PYTHONPATH": str(ROOT)}
    # Nobody's mark is on it, or `homeport down` would end it with those that it has to clean up after.
    unmarked = {name: value for name, value in our_env.items() if not name.startswith("HOMEPORT_")}
    watch = subprocess.Popen(
        [*ours, "watch", str(folder)],
        env=unmarked,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=out,
        start_new_session=True,
    )
    try:
        process = subprocess.Popen(
            [*ours, "start", str(folder), *argv],
            env=our_env,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            process_group=0,
        )
    except BaseException:
        watch.kill()
        watch.wait()
        raise
    watched = Watched(process, watch)
    assert process.stdin is not None
    try:
        process.stdin.write(b"\n")  # Until now it was nothing: it ends with its starter.
        process.stdin.close()
    except OSError:
        pass  # It has ended; who waits for it hears that.
    return watched


def shared_memory(pids: Iterable[int]) -> set[Path]:
    """The files of shared memory that these processes have mapped."""
    found = set()
    for pid in pids:
        try:
            maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
        except OSError:
            continue
        for line in maps.splitlines():
            name = line[line.find("/") :] if "/" in line else ""
            if name.startswith(f"{SHARED}/") and not name.endswith("(deleted)"):
                found.add(Path(name))
    return found


def _unlink(files: Iterable[Path]) -> None:
    for file in files:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def _end_but_trackers(leader: int, start_time: int) -> None:
    """Kill all of the group but Python's resource trackers: those then unlink what the others had made (semaphores
    too, which nobody has mapped any more), and end."""
    seen = [each for each in group.members(leader) if each.start_time >= start_time]
    trackers = [each.pid for each in seen if TRACKER in _command(each.pid)]
    for each in seen:
        if each.pid not in trackers and group.runs(each.pid, each.start_time):
            with contextlib.suppress(OSError):
                os.kill(each.pid, signal.SIGKILL)
    deadline = time.monotonic() + TRACKER_S
    while any(each.pid in trackers for each in group.members(leader)) and time.monotonic() < deadline:
        time.sleep(0.02)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _watch(folder: Path) -> None:
    leader: tuple[int, int] | None = None
    shared: set[Path] = set()
    for line in sys.stdin:
        if line.strip():
            pid, start_time = line.split()
            leader = int(pid), int(start_time)
        elif leader is not None:
            shared |= shared_memory(seen.pid for seen in group.members(leader[0]))
    if leader is not None:
        shared |= shared_memory(seen.pid for seen in group.members(leader[0]))
        _end_but_trackers(*leader)
        group.end(*leader, 0.0)
    _unlink(shared)
    shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, argv: list[str]) -> None:
    if not sys.stdin.buffer.read(1):
        sys.exit(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.chdir(folder)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        os.execve(argv[0], argv, env)  # noqa: S606
    except OSError as error:
        sys.exit(f"{argv[0]} cannot be started: {error.strerror}")


if __name__ == "__main__":
    if sys.argv[1] == "watch":
        _watch(Path(sys.argv[2]))
    else:
        _start(Path(sys.argv[2]), sys.argv[3:])
