"""What restarters share: the lock that says that one runs, its state, how long it waits."""

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from cluster.paths import Paths, read_json
from cluster.restarting import BACKOFF_S, Run, backoff_s, first_gone, gone, running, take_up_lock


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(tmp_path / "home", tmp_path / "locks")
    made.make()
    return made


def test_one_at_a_time_has_the_lock_and_is_seen_to_run(paths: Paths) -> None:
    assert running(paths) is None
    lock = take_up_lock(paths)
    assert lock is not None
    try:
        assert take_up_lock(paths) is None
        assert running(paths) == {"steps": {}}
        Run(paths, role="worker").step("ray", "ready", raylet=7)
        assert running(paths) == {
            "parent": os.getpid(),
            "role": "worker",
            "steps": {"ray": {"state": "ready", "detail": "", "raylet": 7}},
        }
    finally:
        os.close(lock)
    assert running(paths) is None


def test_a_step_that_says_the_same_again_is_not_written(paths: Paths) -> None:
    run = Run(paths)
    run.step("ray", "failed", "the head is away")
    paths.run.unlink()
    run.step("ray", "failed", "the head is away")
    assert read_json(paths.run) is None
    run.step("ray", "ready")
    assert read_json(paths.run)["steps"]["ray"]["state"] == "ready"


def test_a_state_folder_that_cannot_be_written_stops_no_restarter(tmp_path: Path) -> None:
    Run(Paths(tmp_path / "missing", tmp_path / "locks")).step("ray", "ready")


def test_patience_grows_to_an_end() -> None:
    waits = [backoff_s(failures) for failures in range(20)]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (0.0, BACKOFF_S[-1])


async def test_the_first_of_several_processes_that_ends_is_noticed() -> None:
    with (
        subprocess.Popen(["sleep", "60"]) as long,  # noqa: ASYNC220
        subprocess.Popen(["sleep", "0.1"]) as short,  # noqa: ASYNC220
    ):
        try:
            await asyncio.wait_for(first_gone([long.pid, short.pid]), 10)
            assert long.poll() is None
        finally:
            long.kill()
        await asyncio.wait_for(gone(long.pid), 10)
