"""Starts a host as a process of nobody, confined to its slice before it execs, and finds and ends it again.

How a host starts: `launch` runs `python -m cluster.confine` with the order on its stdin. That launcher forks;
its child begins a session of its own, takes the locks of the slice, makes the socket on which the host is asked,
confines itself (its network too, see `network`), writes the record and execs the command. The launcher hears by a
pipe that closes on exec that it went well, prints the record and ends, so that the host is nobody's child and its
end is seen only by its pid.

How the locks live: `flock` belongs to the open file. The files stay open over that one exec; the host then
calls `adopt_locks`, so that programs which it or its engine starts do not inherit them, and the kernel frees
them when the host dies, however it dies. A child that is forked and never execs would hold them on: hosts do
not make such.

Imports the standard library only, so that a start costs little. Carves nothing (see `slices`), and restarts
nothing.
"""

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

from cluster import cgroup, group, network
from cluster.error_file import cap_file, tail
from cluster.locks import LOCK_FDS, LockTaken, adopt_locks, holds_locks, take_lock, take_slice
from cluster.paths import write_private
from cluster.record import Limits, Record, read_record, write_record
from cluster.slices import Slice
from cluster.sockets import recover_soon

__all__ = [
    "Launch",
    "LaunchFailed",
    "Limits",
    "LockTaken",
    "Record",
    "adopt_locks",
    "alive",
    "cap_file",
    "end_group",
    "free",
    "holds_locks",
    "launch",
    "lift",
    "read_record",
    "records",
    "slice_environment",
    "tail",
]

INCARNATION = "HOMEPORT_INCARNATION"
YIELD_SIGNAL = signal.SIGUSR1
"""To a host: end, and take up to 4 s to save what only it has. SIGTERM leaves it half of that."""
YIELD_GRACE_S = 4.2
"""After that signal; then it is killed."""
LAUNCH_TIMEOUT_S = 30.0

THREAD_COUNTS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "LLAMA_ARG_THREADS",
    "LLAMA_ARG_THREADS_BATCH",
)


class LaunchFailed(Exception):
    """The host did not start. The message says why."""


@dataclass(frozen=True, slots=True)
class Launch:
    """The order to start one host."""

    replica: str
    slice: Slice
    command: tuple[str, ...]
    env: Mapping[str, str]
    """The host's whole environment; threads, GPUs, incarnation and lock descriptors are added to it."""
    folder: Path
    """The replica's own folder, made if missing: `incarnation`, `host.err`, `host.err.1`, `host.lock`."""
    record: Path
    locks: Path
    port: int
    config_digest: str
    address: str | None = None
    """Where the host is asked: a socket that listens there, on `port`, is handed down. None: it makes its own, which
    nobody else reaches if it is isolated."""
    isolate: bool = True
    """Whether to take the network away, where that is permitted."""

    def to_json(self) -> dict[str, Any]:
        return {
            "replica": self.replica,
            "slice": self.slice.to_json(),
            "command": list(self.command),
            "env": dict(self.env),
            "folder": str(self.folder),
            "record": str(self.record),
            "locks": str(self.locks),
            "port": self.port,
            "config_digest": self.config_digest,
            "address": self.address,
            "isolate": self.isolate,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            data["replica"],
            Slice.from_json(data["slice"]),
            tuple(data["command"]),
            data["env"],
            Path(data["folder"]),
            Path(data["record"]),
            Path(data["locks"]),
            data["port"],
            data["config_digest"],
            data.get("address"),
            data.get("isolate", False),  # a keeper of an earlier version, below which the files were replaced
        )


def launch(order: Launch) -> Record:
    """Start a host. Returns once it has exec'd its command, which may still fail by itself afterwards.

    Raises LockTaken when a part of the slice, or the replica's folder, is held by another process, and
    LaunchFailed when anything else went wrong. After either nothing runs and no lock is held.
    """
    root = str(Path(__file__).resolve().parent.parent)
    quick = ("-S",) if sys.platform == "linux" else ()  # elsewhere psutil is needed
    try:
        done = subprocess.run(
            [sys.executable, "-P", *quick, "-m", "cluster.confine"],
            input=json.dumps(order.to_json()).encode(),
            capture_output=True,
            timeout=LAUNCH_TIMEOUT_S,
            env={**os.environ, "PYTHONPATH": root},
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        raise LaunchFailed(f"the launcher did not answer within {LAUNCH_TIMEOUT_S:.0f} s") from late
    try:
        answer = json.loads(done.stdout)
    except ValueError as broken:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise LaunchFailed(f"the launcher ended with code {done.returncode}: {last}") from broken
    if "record" in answer:
        return Record.from_json(answer["record"])
    if answer["kind"] == "lock":
        raise LockTaken(answer["what"], answer["holder"])
    raise LaunchFailed(answer["error"])


def alive(record: Record) -> bool:
    """Whether the recorded process runs: its pid exists with the same start time and is no zombie."""
    return group.runs(record.pid, record.start_time)


def end_group(record: Record, grace_s: float, first: signal.Signals = signal.SIGTERM) -> bool:
    """End the host and all that it started: `first`, `grace_s` seconds, SIGKILL. True when nothing is
    left; then its control group is removed too."""
    is_ended = group.end(record.pid, record.start_time, grace_s, first)
    if is_ended:
        lift(record)
    return is_ended


def lift(record: Record) -> None:
    """Remove the control group of a host that has ended, if it had one. Does nothing while a process is in it."""
    if record.limits.ceiling is not None:
        cgroup.remove(record.limits.ceiling)


def free(record: Record) -> bool:
    """The same within 5 s, for a person who wants the machine: its contexts are saved as far as that allows."""
    return end_group(record, YIELD_GRACE_S, YIELD_SIGNAL)


def records(locks: Path, run_id: str) -> list[Record]:
    """Of the hosts of one installation that live."""
    found = (read_record(path) for path in sorted(locks.glob(f"{run_id}-*.json")))
    return [record for record in found if record is not None and alive(record)]


def main() -> int:
    """The launcher: the order on stdin, one JSON line on stdout, then the end."""
    order = Launch.from_json(json.load(sys.stdin))
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _become_host(order, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        message = pipe.read()
    record = read_record(order.record)
    if message:
        answer = json.loads(message)
    elif record is not None and record.pid == pid:
        answer = {"record": record.to_json()}
    else:
        answer = {"error": "the host was ended before it could start", "kind": "launch"}
    if message and answer["kind"] == "launch":
        os.waitpid(pid, 0)  # it may be in its control group, which goes when that is empty
        if (left := cgroup.ceiling(_group_name(order))) is not None:
            cgroup.remove(left)
    print(json.dumps(answer))
    return 0 if "record" in answer else 1


def _become_host(order: Launch, pipe: int) -> NoReturn:
    """In the forked child: exec the host, or tell the launcher why not and end."""
    wrote_record = False
    try:
        os.setsid()
        _reset_signals()
        os.umask(0o077)
        order.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        order.locks.mkdir(parents=True, exist_ok=True)
        folder = f"the folder {order.folder}"
        descriptors = [take_lock(order.folder / "host.lock", folder, order.replica, 0o600)]
        descriptors += take_slice(order.locks, order.slice, order.replica)
        listener = _listen(order)
        incarnation = _next_incarnation(order.folder / "incarnation")
        limits = _confine(order)
        _redirect(order.folder / "host.err")
        write_record(order.record, _record(order, incarnation, limits))
        wrote_record = True
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        env = {
            **order.env,
            **slice_environment(order.slice),
            INCARNATION: str(incarnation),
            LOCK_FDS: ",".join(str(descriptor) for descriptor in descriptors),
            **({} if listener is None else network.hand_down(listener)),
        }
        os.execvpe(order.command[0], order.command, env)  # noqa: S606
    except LockTaken as taken:
        answer = {"kind": "lock", "error": str(taken), "what": taken.what, "holder": taken.holder}
    except Exception as failure:  # noqa: BLE001  whatever went wrong has to reach the launcher
        answer = {"kind": "launch", "error": _reason(failure, order)}
    if wrote_record:
        with contextlib.suppress(OSError):
            order.record.unlink()
    with contextlib.suppress(OSError):
        os.write(pipe, json.dumps(answer).encode())
    os._exit(1)


def _listen(order: Launch) -> socket.socket | None:
    if order.address is None:
        return None
    try:
        return recover_soon(network.listen(order.address, order.port))
    except OSError as error:
        where = f"{order.address}:{order.port}"
        raise LaunchFailed(f"cannot listen on {where} ({error.strerror}); end what listens there") from error


def slice_environment(carved: Slice) -> dict[str, str]:
    """What keeps libraries to the slice: a thread a core, and its GPUs by UUID ("" hides all)."""
    threads = str(max(1, len(carved.cores)))
    return {**dict.fromkeys(THREAD_COUNTS, threads), "CUDA_VISIBLE_DEVICES": ",".join(carved.gpus)}


def _reset_signals() -> None:
    """What the launcher's parents blocked or ignored shall not be so for the host."""
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP) and signal.getsignal(number) is not signal.SIG_DFL:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _next_incarnation(path: Path) -> int:
    """One more than the number in `path`, which is replaced durably. A broken file never lowers it."""
    before = 0
    with contextlib.suppress(FileNotFoundError):
        text = path.read_text().strip()
        before = int(text) if text.isdigit() else int(time.time())
    write_private(path, f"{before + 1}\n")
    return before + 1


def _confine(order: Launch) -> Limits:
    """Put this process into the slice. Threads and GPUs are kept by the variables that are set at exec."""
    ceiling = cgroup.enter_ceiling(_group_name(order), order.slice.memory_bytes)
    kept: dict[str, Callable[[], bool]] = {
        "cores": lambda: _set_affinity(order.slice.cpus),
        "threads": lambda: True,
        "gpus": lambda: not order.slice.shares_gpu,
        "memory": lambda: ceiling is not None,
    }
    done = {name: keep() for name, keep in kept.items()}
    why_not = network.leave() if order.isolate else "network.isolate is false in the config"
    done["network"] = why_not is None
    notes = [] if why_not is None else [f"network: {why_not}"]
    if order.slice.shares_gpu:
        notes.append("gpus: others share its GPU, and nothing but the replica itself keeps it to its share")
    return Limits(
        tuple(name for name, kept in done.items() if kept),
        tuple(name for name, kept in done.items() if not kept),
        tuple(notes),
        ceiling,
    )


def _group_name(order: Launch) -> str:
    """One for each slot of an installation."""
    return f"homeport-{order.record.stem}"


def _set_affinity(cpus: tuple[int, ...]) -> bool:
    """False where the system has no affinity, or not these CPUs (a simulated machine)."""
    if sys.platform != "linux" or not cpus:
        return False
    try:
        os.sched_setaffinity(0, cpus)
    except OSError:
        return False
    return os.sched_getaffinity(0) == set(cpus)


def _redirect(errors: Path) -> None:
    """Nothing on stdin; stdout and stderr appended to a fresh `errors`, the one before it kept as `….1`."""
    with contextlib.suppress(FileNotFoundError):
        errors.replace(errors.with_name(errors.name + ".1"))
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    for descriptor in {nothing, log} - {0, 1, 2}:
        os.close(descriptor)


def _record(order: Launch, incarnation: int, limits: Limits) -> Record:
    seen = group.look(os.getpid())
    assert seen is not None, "a running process is seen"
    return Record(
        replica=order.replica,
        pid=seen.pid,
        start_time=seen.start_time,
        pgid=seen.group,
        port=order.port,
        incarnation=incarnation,
        config_digest=order.config_digest,
        slice=order.slice,
        limits=limits,
    )


def _reason(failure: Exception, order: Launch) -> str:
    match failure:
        case LaunchFailed():
            return str(failure)
        case FileNotFoundError(filename=str(name)) if name == order.command[0]:
            return f"the program {name} does not exist"
        case OSError(errno=errno.ENOSPC):
            return f"no space left on the disk of {failure.filename or order.folder}"
        case OSError(filename=str(name)):
            return f"{name}: {failure.strerror}"
        case _:
            return f"{type(failure).__name__}: {failure}"


if __name__ == "__main__":
    sys.exit(main())
