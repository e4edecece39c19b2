"""A ceiling of CPU time by control groups, v2 and v1, on made-up trees; and on this machine where it permits that."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.cpu_quota import quota, remove_left

ENDLESS = "while True: pass"


def tree(folder: Path, *mounts: tuple[str, str, str]) -> Path:
    """A /proc of a process that is in `/` of these hierarchies: (mount point, kind, v1 controller)."""
    (folder / "self").mkdir(parents=True)
    lines = [
        f"1 1 0:1 / {folder / point} rw - {kind} cgroup rw,{controller}" for point, kind, controller in mounts
    ]
    (folder / "self" / "mountinfo").write_text("\n".join(lines))
    (folder / "self" / "cgroup").write_text("\n".join(f"{n}:{m[2]}:/" for n, m in enumerate(mounts)))
    for point, _, _ in mounts:
        (folder / point).mkdir()
    return folder


def empty(folder: Path) -> None:
    """A real group's files vanish with it."""
    for file in folder.iterdir():
        file.unlink()


def test_a_group_of_v2_has_the_time_of_so_many_cpus(tmp_path: Path) -> None:
    proc = tree(tmp_path, ("two", "cgroup2", ""))
    (tmp_path / "two" / "cgroup.subtree_control").write_text("cpu memory\n")
    with quota("bench", 2.0, proc) as made:
        assert made is not None
        assert (made.folder / "cpu.max").read_text() == "200000 100000"
        made.take_in(4711)
        assert (made.folder / "cgroup.procs").read_text() == "4711"
        empty(made.folder)
    assert not made.folder.exists()


def test_where_v2_hands_out_no_cpu_time_v1_does(tmp_path: Path) -> None:
    proc = tree(tmp_path, ("two", "cgroup2", ""), ("one", "cgroup", "cpu"))
    (tmp_path / "two" / "cgroup.subtree_control").write_text("memory\n")
    with quota("bench", 1.0, proc) as made:
        assert made is not None
        assert made.kind == "cpu.cfs_quota_us"
        assert (made.folder / "cpu.cfs_quota_us").read_text() == "100000"
        empty(made.folder)


def test_without_control_groups_there_is_none(tmp_path: Path) -> None:
    with quota("bench", 1.0, tree(tmp_path)) as made:
        assert made is None


def test_empty_groups_of_processes_that_are_no_more_are_removed(tmp_path: Path) -> None:
    proc = tree(tmp_path, ("one", "cgroup", "cpu"))
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    stay = {f"b-{os.getpid()}-0", f"b-{process.pid}-full", f"c-{process.pid}-0", "b-x"}
    for name in (*stay, f"b-{process.pid}-0"):
        (tmp_path / "one" / name).mkdir()
    (tmp_path / "one" / f"b-{process.pid}-full" / "cgroup.procs").touch()
    remove_left("b-", proc)
    assert {path.name for path in (tmp_path / "one").iterdir()} == stay


def test_a_process_of_the_group_gets_no_more_on_this_machine() -> None:
    with quota(f"homeport-test-{os.getpid()}", 0.2) as made:
        if made is None:
            pytest.skip("this user may not make a control group with a CPU quota")
        process = subprocess.Popen([sys.executable, "-S", "-c", ENDLESS])
        try:
            made.take_in(process.pid)
            began = time.monotonic()
            time.sleep(1.0)
            taken = time.monotonic() - began
            times = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        finally:
            process.kill()
            process.wait()
    used_s = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
    assert used_s < 0.6 * taken
    assert not made.folder.exists()
