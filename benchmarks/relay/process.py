"""Processes that are measured: started on their core, watched, ended with all that they started."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from benchmarks.cores import starting_on

GRACE_S = 2.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Watched:
    """One process and its descendants."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self._process = process
        self._log = log

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def first_thread_s(self) -> float:
        """CPU time of the process's own first thread so far, to the nanosecond."""
        return int(Path(f"/proc/{self._process.pid}/schedstat").read_text().split()[0]) / 1e9

    def cpu_s(self) -> float:
        """User and system time of the tree so far, of those that have ended too."""
        return sum(_cpu_ticks(pid) for pid in self._tree()) / TICKS_PER_S

    def memory_bytes(self) -> int:
        """Proportional set size of the tree. What the kernel holds for its sockets is not in it."""
        return sum(_pss_bytes(pid) for pid in self._tree())

    def last_words(self) -> str:
        """The end of what it has printed, on one line."""
        return " ".join(self._log.read_text(errors="replace").split())[-300:]

    def end(self) -> None:
        """Ends all of it: asked first, so that it reaps its own children, then killed."""
        left = [psutil.Process(pid) for pid in self._tree() if psutil.pid_exists(pid)]
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_S)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()

    def _tree(self) -> list[int]:
        try:
            children = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [self._process.pid, *(child.pid for child in children)]


@contextmanager
def running(
    command: Sequence[str], env: Mapping[str, str], cpus: Sequence[int], log: Path
) -> Iterator[Watched]:
    """On these CPUs for as long as the block lasts, in a process group of its own, printing to `log`."""
    with log.open("wb") as out, starting_on(cpus) as around:
        process = subprocess.Popen(
            command,
            env={**around, **env},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    watched = Watched(process, log)
    try:
        yield watched
    finally:
        watched.end()


def _cpu_ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(map(int, fields[11:15]))


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
