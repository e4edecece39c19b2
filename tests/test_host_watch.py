"""When a keeper takes a host that does not answer for one that hangs."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import confine
from cluster.clocks import AwakeClock
from cluster.group import look
from cluster.record import Limits, Record, write_record
from cluster.slices import Slice
from serving.host_watch import LOOK_S, SILENT_S, HostWatch
from serving.reconcile import restart_at


class Hands:
    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """One that lives and listens nowhere."""
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True
    ) as p:
        yield p
        p.kill()


def watch(folder: Path, process: subprocess.Popen[bytes], hands: Hands) -> HostWatch:
    seen = look(process.pid)
    assert seen is not None
    slice_ = Slice(cores=(), cpus=(), memory_bytes=1, gpus=())
    record = Record("den/0", process.pid, seen.start_time, process.pid, 1, 1, "d", slice_, Limits((), ()))
    write_record(folder / "record.json", record)
    clock = AwakeClock(LOOK_S, hands)
    made = HostWatch(folder / "record.json", folder, "127.0.0.1", "token", lambda: None, clock)
    made.find()
    return made


async def test_a_keeper_that_stood_still_does_not_end_its_host(
    tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    """Both were stopped, and the host is a little later than its keeper's patience for one answer."""
    hands = Hands()
    host = watch(tmp_path, process, hands)
    assert host.life == "alive"
    for _ in range(int(SILENT_S / LOOK_S)):
        hands.at += 3600.0
        await host.look()
        assert (host.life, process.poll()) == ("alive", None)
    hands.at += 1.0
    await host.look()
    assert host.report(0.0)["pid"] is None, "one that hangs is ended all the same"
    process.wait(5.0)


async def test_a_host_that_ends_has_its_pid_until_it_is_gone(
    tmp_path: Path, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for its memory looks at that."""
    may_end = threading.Event()
    monkeypatch.setattr(confine, "free", lambda _: may_end.wait(10.0))
    host = watch(tmp_path, process, Hands())
    freeing = asyncio.create_task(host.free())
    await asyncio.sleep(0)
    told = host.report(0.0)
    assert (told["state"], told["pid"]) == ("stopping", process.pid)
    may_end.set()
    await freeing
    assert host.report(0.0)["pid"] is None


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
async def test_a_host_that_died_is_started_again_however_the_clock_is_set(
    tmp_path: Path, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    import time

    host = watch(tmp_path, process, Hands())
    process.kill()
    process.wait()
    await host.look()
    assert host.life == "absent"
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + jump_s)
    due = restart_at(host.deaths, time.monotonic())
    assert due is not None
    assert due <= time.monotonic() + 5.0
