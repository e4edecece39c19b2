"""Which processes are ours, and how they end.

Ours are those that carry our mark in their environment, and those in a session of processes that we recorded:
Ray's workers overwrite the memory in which the kernel shows their environment. Starts nothing.
"""

import os
import signal
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import psutil

from cluster.group import look, runs
from cluster.paths import Paths, read_json
from cluster.record import boot_id

RUN = "HOMEPORT_RUN"
ROLE = "HOMEPORT_ROLE"
RAY_UP = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
"""What Ray's command runner exports before each command of a machine list."""
ROUNDS = 5
"""How often `end_all` looks again for what was started while it killed."""


@dataclass(frozen=True, slots=True)
class Ours:
    """One process that homeport started. `role` is parent, ray, router, host or models."""

    pid: int
    role: str
    name: str
    started: int
    """Clock ticks since boot: the time of day may be set meanwhile."""


def mark(paths: Paths, role: str) -> dict[str, str]:
    """What a process that we start has in its environment, to be found again."""
    return {
        RUN: paths.run_id,
        ROLE: role,
        "HOMEPORT_HOME": str(paths.home),
        "HOMEPORT_LOCKS": str(paths.locks),
    }


def ours(paths: Paths, *roles: str) -> list[Ours]:
    """Our living processes, of these roles or of all. Never this process or one that it descends from."""
    recorded = read_json(paths.ray_processes) or {}
    session = recorded.get("session") if recorded.get("boot") == boot_id() else None
    since = recorded.get("started", 0)
    self_and_above = _self_and_above()
    found = []
    for process in psutil.process_iter(["pid", "name"]):
        info = process.info
        if info["pid"] in self_and_above:
            continue
        if (seen := look(info["pid"])) is None or seen.zombie:
            continue
        role = _role(process, paths.run_id)
        if (
            role is None
            and session
            and seen.start_time >= since
            and seen.session == session
            and _is_rays(process, paths)
        ):
            role = "ray"
        if role and (not roles or role in roles):
            found.append(Ours(info["pid"], role, info["name"] or "", seen.start_time))
    return found


def tell(processes: Iterable[Ours], number: signal.Signals) -> list[Ours]:
    """Send them a signal. Returns those that were there."""
    return [process for process in processes if _signal(process, number)]


def left_after(processes: Iterable[Ours], seconds: float) -> list[Ours]:
    """Those that still live after so long; returns at once when none does."""
    alive = {process.pid: process for process in processes}
    _wait(alive, seconds)
    return list(alive.values())


def end(processes: Iterable[Ours], grace_s: float) -> list[Ours]:
    """SIGTERM, wait up to `grace_s`, SIGKILL, wait a second. Returns those that are still there."""
    told = tell(processes, signal.SIGTERM if grace_s > 0 else signal.SIGKILL)
    left = left_after(told, grace_s)
    tell(left, signal.SIGKILL)
    return left_after(left, 1.0)


def end_all(paths: Paths, *roles: str) -> list[Ours]:
    """Kill our processes of these roles, and those that they start meanwhile. Returns what could not be ended."""
    left = ours(paths, *roles)
    for _ in range(ROUNDS):
        if not left:
            break
        end(left, 0.0)
        left = ours(paths, *roles)
    return left


def port_is_free(address: str, port: int) -> bool:
    """Whether a server could listen there now; connections that only linger from an earlier one do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def ports_become_free(address: str, ports: Sequence[int], within_s: float) -> bool:
    """As `port_is_free`, of all of them: threads of a process that was killed may hold its ports for a moment after it
    counts as ended. Blocks for up to `within_s`."""
    deadline = time.monotonic() + within_s
    while not all(port_is_free(address, port) for port in ports):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def port_holder(port: int) -> str:
    """Who listens on a TCP port of this machine: `python3 (pid 123)`, or `another process`."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status != psutil.CONN_LISTEN or not connection.laddr or not connection.pid:
                continue
            if connection.laddr[1] == port:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        pass
    return "another process"


def clean_environment(env: Mapping[str, str]) -> dict[str, str]:
    """An environment without what would point a child at somebody else's Ray or at another replica's slice, without a
    join token, and without what `ray up` exports to every command for Ray's own sake. Who sets one of the two alone, or
    otherwise, keeps it."""
    dropped = (
        "RAY_",
        "HOMEPORT_INCARNATION",
        "HOMEPORT_LOCK_FDS",
        "HOMEPORT_LISTEN_FD",
        "HOMEPORT_JOIN_TOKEN",
    )
    rays = RAY_UP if RAY_UP.items() <= env.items() else {}
    return {name: value for name, value in env.items() if not name.startswith(dropped) and name not in rays}


def _self_and_above() -> set[int]:
    while True:
        try:
            return {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
        except psutil.NoSuchProcess:  # one of them ended while it was looked at
            continue


def _role(process: psutil.Process, run_id: str) -> str | None:
    try:
        environment = process.environ()
    except (psutil.Error, OSError):
        return None
    return environment.get(ROLE) if environment.get(RUN) == run_id else None


def _is_rays(process: psutil.Process, paths: Paths) -> bool:
    """Ray's workers call themselves `ray::NAME`; its other processes name its folder in their command line."""
    try:
        if process.uids().real != os.getuid():
            return False
        command = " ".join(process.cmdline())
    except (psutil.Error, OSError):
        return False
    return command.startswith("ray::") or str(paths.ray_folder) in command


def _signal(process: Ours, number: signal.Signals) -> bool:
    if not _alive(process):
        return False
    try:
        os.kill(process.pid, number)
    except OSError:
        return False
    return True


def _alive(process: Ours) -> bool:
    return runs(process.pid, process.started)


def _wait(alive: dict[int, Ours], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        for pid in [pid for pid, process in alive.items() if not _alive(process)]:
            del alive[pid]
        if not alive or time.monotonic() >= deadline:
            return
        psutil.wait_procs(list(filter(None, map(_found, alive))), timeout=0.1)


def _found(pid: int) -> psutil.Process | None:
    """None for one that has ended meanwhile."""
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None
