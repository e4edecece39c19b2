"""A group of processes that ends with its starter, however that ends."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import group
from cluster.group_watch import shared_memory, start_watched

PARENT = """
import multiprocessing, subprocess, sys, time
multiprocessing.set_start_method("spawn")
from multiprocessing import resource_tracker, shared_memory
lock = multiprocessing.Lock()
shared = shared_memory.SharedMemory(create=True, size=4096)
resource_tracker.unregister(shared._name, "shared_memory")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
time.sleep(0.5)  # until its tracker is one
print(shared.name, child.pid, lock._semlock.name, flush=True)
time.sleep(100)
"""
STARTER = """
import os, sys, time
from pathlib import Path
from cluster.group_watch import start_watched
folder = Path(sys.argv[1]); folder.mkdir()
with open(sys.argv[2], "wb") as out:
    watched = start_watched([sys.executable, "-c", sys.argv[3]], dict(os.environ), folder, out)
print(watched.process.pid, watched._watch.pid, flush=True)
for line in sys.stdin:
    watched.settled()
"""


def wait_until(done: object, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def starter(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    out, folder = tmp_path / "out", tmp_path / "own"
    command = [sys.executable, "-c", textwrap.dedent(STARTER), str(folder), str(out), PARENT]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
        # Whose tracker was killed with it leaves a semaphore of 32 bytes: nothing tells whose that was.
        for lock in out.read_text().split()[2:]:
            (Path("/dev/shm") / f"sem.{lock.removeprefix('/')}").unlink(missing_ok=True)


def read(starter: subprocess.Popen[bytes], tmp_path: Path) -> tuple[int, int, Path, int]:
    """The leader, its watch, its shared memory, its child."""
    assert starter.stdout is not None
    leader, watch = map(int, starter.stdout.readline().split())
    wait_until(lambda: len((tmp_path / "out").read_text().split()) == 3)
    name, child, _ = (tmp_path / "out").read_text().split()
    return leader, watch, Path("/dev/shm") / name, int(child)


def test_who_is_killed_takes_all_with_it_and_leaves_no_shared_memory(
    starter: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    leader, watch, shared, child = read(starter, tmp_path)
    assert shared in shared_memory([leader])
    assert {seen.pid for seen in group.members(leader)} >= {leader, child}
    starter.send_signal(signal.SIGKILL)
    wait_until(lambda: not group.members(leader) and not shared.exists() and not (tmp_path / "own").exists())
    wait_until(lambda: group.look(watch) is None or group.look(watch).zombie)  # type: ignore[union-attr]


def test_shared_memory_goes_also_where_the_group_was_killed_first(
    starter: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    leader, _, shared, _ = read(starter, tmp_path)
    assert starter.stdin is not None
    starter.stdin.write(b"\n")
    starter.stdin.flush()
    time.sleep(3)  # until the watch has begun, and has looked
    os.killpg(leader, signal.SIGKILL)
    starter.send_signal(signal.SIGKILL)
    wait_until(lambda: not shared.exists() and not (tmp_path / "own").exists())


def test_the_watch_is_not_ended_with_what_homeport_started(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    with (tmp_path / "out").open("wb") as file:
        watched = start_watched(
            [sys.executable, "-c", PARENT], {**os.environ, "HOMEPORT_RUN": "x"}, folder, file
        )
    try:
        marked = Path(f"/proc/{watched.process.pid}/environ")
        wait_until(lambda: b"HOMEPORT_RUN=x" in marked.read_bytes())
        watch = Path(f"/proc/{watched._watch.pid}/environ")
        wait_until(lambda: b"PYTHONPATH" in watch.read_bytes())
        assert b"HOMEPORT_RUN" not in watch.read_bytes()
    finally:
        watched.end(0.0)


def test_its_session_is_its_starters_and_its_group_its_own(
    starter: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    leader, watch, _, _ = read(starter, tmp_path)
    seen = group.look(leader)
    assert seen is not None
    assert (seen.session, seen.group) == (os.getsid(starter.pid), leader)
    assert os.getsid(watch) != seen.session


def test_an_end_is_the_end_of_all_and_may_be_asked_for_twice(tmp_path: Path) -> None:
    folder, out = tmp_path / "own", tmp_path / "out"
    folder.mkdir()
    with out.open("wb") as file:
        watched = start_watched([sys.executable, "-c", PARENT], dict(os.environ), folder, file)
    wait_until(lambda: len(out.read_text().split()) == 3)
    name, _, lock = out.read_text().split()
    made = [Path("/dev/shm") / name, Path("/dev/shm") / f"sem.{lock.removeprefix('/')}"]
    assert all(file.exists() for file in made)
    assert watched.end(0.0)
    assert not folder.exists()
    assert not any(file.exists() for file in made)
    assert watched.pids() == []
    assert watched.end(0.0)


def test_what_cannot_be_started_says_so_and_ends(tmp_path: Path) -> None:
    folder, out = tmp_path / "own", tmp_path / "out"
    folder.mkdir()
    with out.open("wb") as file:
        watched = start_watched([str(tmp_path / "nothing")], dict(os.environ), folder, file)
    assert watched.process.wait(10) == 1
    assert "cannot be started: No such file" in out.read_text()
    assert watched.end(0.0)
