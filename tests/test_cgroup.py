"""The control group of a host's memory goes with the host, in the kernel's own hierarchy, however the host ends."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import cgroup
from cluster.confine import end_group
from cluster.ending import end_everything
from cluster.group import look
from cluster.paths import Paths
from cluster.record import Limits, Record, write_record
from cluster.slices import Slice
from serving.host_watch import HostWatch


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Path]:
    """A control group (v2), as one for memory is made."""
    place = cgroup.unified()
    if place is None:
        pytest.skip("no control groups (v2) are mounted here")
    made = place.folder / f"homeport-test-{os.getpid()}-{tmp_path.name[-12:]}"
    try:
        made.mkdir()
    except OSError as error:
        pytest.skip(f"this user may make no control group: {error}")
    yield made
    cgroup.remove(made)
    assert not made.exists()


@pytest.fixture
def host(group: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process in the group that leads one of its own."""
    with in_group(group) as process:
        yield process
        process.kill()


def in_group(group: Path) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    (group / "cgroup.procs").write_text(str(process.pid))
    return process


def record_of(host: "subprocess.Popen[bytes]", group: Path) -> Record:
    seen = look(host.pid)
    assert seen is not None
    limits = Limits(("memory",), (), ceiling=group)
    return Record("den/0", host.pid, seen.start_time, host.pid, 1, 1, "d", Slice((), (), (), 1), limits)


def groups_beside(group: Path) -> list[Path]:
    return list(group.parent.iterdir())


def watch(folder: Path, record: Path) -> HostWatch:
    made = HostWatch(record, folder, "127.0.0.1", "token", lambda: None)
    made.find()
    return made


def test_a_host_that_is_ended_leaves_no_control_group(group: Path, host: "subprocess.Popen[bytes]") -> None:
    assert end_group(record_of(host, group), 5.0)
    assert not group.exists()


def test_a_control_group_stays_for_as_long_as_a_process_is_in_it(
    group: Path, host: "subprocess.Popen[bytes]"
) -> None:
    """One that the host started, and that left its process group."""
    record = record_of(host, group)
    with in_group(group) as stray:
        try:
            assert end_group(record, 5.0)
            assert str(stray.pid) in (group / "cgroup.procs").read_text().split()
        finally:
            stray.kill()
    assert end_group(record, 5.0)
    assert not group.exists()


async def test_a_host_that_died_leaves_no_control_group_to_its_keeper(
    tmp_path: Path, group: Path, host: "subprocess.Popen[bytes]"
) -> None:
    write_record(tmp_path / "record.json", record_of(host, group))
    watched = watch(tmp_path, tmp_path / "record.json")
    assert watched.lives
    host.send_signal(signal.SIGKILL)
    host.wait()
    await watched.look()
    assert watched.life == "absent"
    assert group not in groups_beside(group)


async def test_a_host_that_died_without_a_keeper_leaves_no_control_group_to_the_next_one(
    tmp_path: Path, group: Path, host: "subprocess.Popen[bytes]"
) -> None:
    write_record(tmp_path / "record.json", record_of(host, group))
    host.kill()
    host.wait()
    assert watch(tmp_path, tmp_path / "record.json").life == "absent"
    assert group not in groups_beside(group)


@pytest.mark.parametrize("lives", [True, False])
def test_down_leaves_no_control_group(
    tmp_path: Path, group: Path, host: "subprocess.Popen[bytes]", lives: bool
) -> None:
    paths = Paths(tmp_path / "home", tmp_path / "locks")
    paths.make()
    write_record(paths.record(0), record_of(host, group))
    if not lives:
        host.kill()
        host.wait()
    assert end_everything(paths) == []
    assert not group.exists()


def test_what_is_no_empty_control_group_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cgroup.remove(tmp_path)
    cgroup.remove(tmp_path / "gone")
    assert (tmp_path / "file").exists()
