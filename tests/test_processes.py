"""Which processes count as ours, and that they end."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster import processes
from cluster.group import look
from cluster.paths import Paths, write_private
from cluster.processes import (
    RAY_UP,
    Ours,
    clean_environment,
    end,
    end_all,
    mark,
    ours,
    port_holder,
    port_is_free,
)
from cluster.record import boot_id

SLEEP = "import time; print('up', flush=True); time.sleep(60)"
FIRST_THREAD_ENDS = """
import ctypes, os, socket, threading, time
server = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=time.sleep, args=(60,)).start()
print(server.getsockname()[1], flush=True)
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(tmp_path / "home", tmp_path / "locks")
    made.make()
    return made


@pytest.fixture
def started(paths: Paths) -> Iterator[list[subprocess.Popen[str]]]:
    made: list[subprocess.Popen[str]] = []
    yield made
    for process in made:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def start(
    started: list[subprocess.Popen[str]], env: dict[str, str], program: str = SLEEP, session: bool = False
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=session,
    )
    started.append(process)
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    return process


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell nothing of threads")
def test_a_process_is_there_until_its_last_thread_has_ended(
    paths: Paths, started: list[subprocess.Popen[str]]
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FIRST_THREAD_ENDS],
        stdout=subprocess.PIPE,
        text=True,
        env=mark(paths, "router"),
    )
    started.append(process)
    assert process.stdout
    port = int(process.stdout.readline())
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    seen = look(process.pid)
    assert seen
    assert not seen.zombie
    assert not port_is_free("127.0.0.1", port)
    assert end([Ours(process.pid, "router", "", seen.start_time)], 0.0) == []
    assert port_is_free("127.0.0.1", port)


def test_our_mark_in_the_environment_makes_a_process_ours(
    paths: Paths, started: list[subprocess.Popen[str]]
) -> None:
    router = start(started, mark(paths, "router"))
    start(started, {})
    start(started, mark(Paths(paths.home / "other", paths.locks), "router"))
    assert [(p.pid, p.role) for p in ours(paths)] == [(router.pid, "router")]
    assert ours(paths, "host") == []


def record_session(paths: Paths, session: int, later: int, boot: str) -> None:
    """Its leader began `later` ticks after the process that has its number."""
    seen = look(session)
    assert seen is not None
    written = {"session": session, "started": seen.start_time + later, "boot": boot}
    write_private(paths.ray_processes, json.dumps(written))


def test_a_worker_without_the_mark_is_ours_in_rays_recorded_session(
    paths: Paths, started: list[subprocess.Popen[str]]
) -> None:
    worker = start(started, {}, SLEEP + f"  # {paths.ray_folder}", session=True)
    record_session(paths, worker.pid, 0, boot_id())
    assert [(p.pid, p.role) for p in ours(paths)] == [(worker.pid, "ray")]


@pytest.mark.parametrize(
    ("note", "later", "boot"),
    [("", 0, None), ("{folder}", 1, None), ("{folder}", 0, "an earlier boot")],
)
def test_a_stranger_in_a_session_whose_number_was_given_anew_is_not_ours(
    paths: Paths, started: list[subprocess.Popen[str]], note: str, later: int, boot: str | None
) -> None:
    """It does not look like Ray's, or is older than the record, or the record is of an earlier boot."""
    program = SLEEP + "  # " + note.format(folder=paths.ray_folder)
    stranger = start(started, {}, program, session=True)
    record_session(paths, stranger.pid, later, boot or boot_id())
    assert ours(paths) == []


def test_a_process_that_ignores_sigterm_is_killed(paths: Paths, started: list[subprocess.Popen[str]]) -> None:
    process = start(started, mark(paths, "host"), STUBBORN)
    assert end(ours(paths), grace_s=0.2) == []
    process.wait(timeout=5)  # raises where it still runs; psutil may have reaped it before


def test_a_process_that_ends_while_it_is_looked_for_is_ended(
    paths: Paths, started: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(started, mark(paths, "host"))
    (found,) = ours(paths)
    is_alive = processes._alive

    def alive_until_now(each: Ours) -> bool:
        was = is_alive(each)
        process.kill()
        process.wait()
        return was

    monkeypatch.setattr(processes, "_alive", alive_until_now)
    monkeypatch.setattr(psutil, "pid_exists", lambda _pid: True)
    alive = {found.pid: found}
    processes._wait(alive, 5.0)
    assert alive == {}


def test_end_all_leaves_other_roles_alone(paths: Paths, started: list[subprocess.Popen[str]]) -> None:
    router, ray = start(started, mark(paths, "router")), start(started, mark(paths, "ray"))
    assert end_all(paths, "ray") == []
    ray.wait(timeout=5)  # raises where it still runs
    assert router.poll() is None


def test_whoever_asks_is_never_among_those_that_end(
    paths: Paths, started: list[subprocess.Popen[str]]
) -> None:
    program = (
        "from cluster.paths import Paths; from cluster.processes import end_all; import os; "
        "print('up', flush=True); end_all(Paths.from_env(os.environ)); print('alive', flush=True)"
    )
    process = start(
        started, {**mark(paths, "parent"), "PYTHONPATH": str(Path(__file__).parent.parent)}, program
    )
    assert process.wait(timeout=20) == 0


def test_an_environment_is_cleaned_of_another_rays_settings() -> None:
    dirty = {"RAY_ADDRESS": "10.0.0.1:6379", "HOMEPORT_LOCK_FDS": "3", "PATH": "/bin", "HOMEPORT_HOME": "/h"}
    assert clean_environment(dirty) == {"PATH": "/bin", "HOMEPORT_HOME": "/h"}


def test_what_ray_up_exports_for_its_own_sake_goes_no_further() -> None:
    rays = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "RAY_HEAD_IP": "10.0.0.1"}
    assert clean_environment({"PATH": "/bin", **rays}) == {"PATH": "/bin"}
    for own in ({"OMP_NUM_THREADS": "1"}, {"PYTHONWARNINGS": "ignore"}, {**RAY_UP, "OMP_NUM_THREADS": "4"}):
        assert clean_environment(own) == own, "who sets one alone, or otherwise, keeps it"


def test_ray_up_still_exports_what_we_drop() -> None:
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    runner = Path(spec.origin).parent / "autoscaler" / "_private" / "command_runner.py"
    assert " ".join(f"{name}={value}" for name, value in RAY_UP.items()) in runner.read_text()


def test_the_holder_of_a_port_is_named() -> None:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert f"(pid {os.getpid()})" in port_holder(listener.getsockname()[1])
