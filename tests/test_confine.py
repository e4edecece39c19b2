"""Confinement with real processes on this machine's real cores.

Every host of these tests is ended with its whole group by the fixture, whatever the test did.
"""

import json
import os
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import cgroup, group
from cluster.confine import (
    Launch,
    LaunchFailed,
    Limits,
    LockTaken,
    Record,
    adopt_locks,
    alive,
    cap_file,
    end_group,
    holds_locks,
    launch,
    read_record,
    slice_environment,
    tail,
)
from cluster.gpu_parts import GpuHold
from cluster.inventory import measure_cores
from cluster.machine import GIB
from cluster.slices import Slice

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 20.0

# What each host runs first: the locks become its own, and `say` writes a line that the test waits for.
PROLOGUE = """
import json, os, signal, subprocess, sys, threading
from cluster.confine import adopt_locks
def is_open(number):
    try: os.fstat(number)
    except OSError: return False
    return True
inherited = [number for number in range(64) if is_open(number)]
locks = adopt_locks()
def say(word):
    with open(os.environ["SAY"], "w") as pipe:
        print(json.dumps(word), file=pipe)
"""
IDLE = "say('ready'); signal.pause()"
THREADS = """
barrier = threading.Barrier(5)
def work():
    sum(range(200_000)); barrier.wait(); threading.Event().wait()
for _ in range(4): threading.Thread(target=work, daemon=True).start()
child = subprocess.Popen(["sleep", "60"])
barrier.wait(); say(child.pid); signal.pause()
"""
TELLS = """
print("to stdout"); print("to stderr", file=sys.stderr); sys.stdout.flush()
with open("/proc/self/status") as file:
    status = {key: value for key, _, value in (line.partition(":") for line in file)}
say({"env": dict(os.environ), "fds": inherited, "locks": locks, "stdin": os.readlink("/proc/self/fd/0"),
     "ppid": os.getppid(), "session": os.getsid(0), "ignored": int(status["SigIgn"], 16),
     "blocked": int(status["SigBlk"], 16)})
signal.pause()
"""
STUBBORN = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
nest = "echo $$; sh -c 'echo $$; sleep 60 & echo $!; wait; wait'; wait"
child = subprocess.Popen(["sh", "-c", nest], stdout=subprocess.PIPE, text=True, process_group=GROUP)
say([os.getpid(), *(int(child.stdout.readline()) for _ in range(3))])
while True: signal.pause()
"""


class Laboratory:
    """Launches hosts in folders of its own, and remembers what it has to end."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.locks = root / "locks"
        self.records: list[Record] = []
        self.strays: list[int] = []
        self.cores = measure_cores()

    def slice(self, *which: int) -> Slice:
        """The real cores of these positions, as a slice."""
        cores = [self.cores[n] for n in which]
        cpus = sorted(cpu for core in cores for cpu in core.cpus)
        return Slice(tuple(core.id for core in cores), tuple(cpus), (), GIB)

    def order(self, slot: int, part: Slice, program: str, env: Mapping[str, str] | None = None) -> Launch:
        pipe = self.root / f"say-{slot}"
        if not pipe.exists():
            os.mkfifo(pipe)
        return Launch(
            replica=f"den/{slot}",
            slice=part,
            command=(sys.executable, "-c", PROLOGUE + program),
            env={"SAY": str(pipe), "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], **(env or {})},
            folder=self.root / "replicas" / str(slot),
            record=self.locks / f"home-{slot}.json",
            locks=self.locks,
            port=8100 + slot,
            config_digest="digest",
        )

    def launch(self, order: Launch) -> Record:
        record = launch(order)
        self.records.append(record)
        return record

    def hear(self, slot: int) -> object:
        """The next word of the host in this slot."""
        with (self.root / f"say-{slot}").open("rb+", buffering=0) as pipe:
            poll = select.poll()
            poll.register(pipe, select.POLLIN)
            words = b""
            while not words.endswith(b"\n"):
                assert poll.poll(PATIENCE_S * 1000), (
                    f"the host said nothing; its errors: {tail(self.root / f'replicas/{slot}/host.err', 20)}"
                )
                words += os.read(pipe.fileno(), 65536)
        word: object = json.loads(words)
        return word

    def host(self, slot: int, part: Slice, program: str = IDLE) -> tuple[Record, object]:
        record = self.launch(self.order(slot, part, program))
        return record, self.hear(slot)

    def close(self) -> None:
        on_disk = [read_record(path) for path in self.locks.glob("*.json")]
        for record in [*self.records, *(record for record in on_disk if record)]:
            assert end_group(record, 0)
        for pid in self.strays:
            if group.look(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Laboratory]:
    laboratory = Laboratory(tmp_path)
    yield laboratory
    laboratory.close()


def wait_for_end(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert poll.poll(PATIENCE_S * 1000), f"process {pid} goes on"
    finally:
        os.close(descriptor)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)


def gone(pid: int) -> bool:
    seen = group.look(pid)
    return seen is None or seen.zombie


def allowed_cpus(pid: int) -> list[str]:
    """Cpus_allowed_list of every thread."""
    lists = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = (task / "status").read_text()
        lists.append(status.split("Cpus_allowed_list:\t")[1].split("\n")[0])
    return lists


def test_every_thread_and_child_stays_on_the_cores_of_its_slice(lab: Laboratory) -> None:
    last = len(lab.cores) - 1
    record, child = lab.host(0, lab.slice(last), THREADS)
    assert isinstance(child, int)
    only = str(lab.cores[last].cpus[0]) if len(lab.cores[last].cpus) == 1 else None
    threads = allowed_cpus(record.pid)
    assert len(threads) >= 5
    assert len(set(threads + allowed_cpus(child))) == 1
    assert only is None or threads[0] == only
    assert os.sched_getaffinity(record.pid) == set(lab.slice(last).cpus)
    assert "cores" in record.limits.enforced


def test_two_hosts_have_disjoint_cores(lab: Laboratory) -> None:
    if len(lab.cores) < 2:
        pytest.skip("needs two cores")
    first, _ = lab.host(0, lab.slice(0), THREADS)
    second, _ = lab.host(1, lab.slice(1), THREADS)
    assert set(allowed_cpus(first.pid)).isdisjoint(allowed_cpus(second.pid))
    assert os.sched_getaffinity(first.pid).isdisjoint(os.sched_getaffinity(second.pid))


def test_a_taken_core_is_refused_and_its_holder_named(lab: Laboratory) -> None:
    record, _ = lab.host(0, lab.slice(0))
    order = lab.order(1, lab.slice(0), IDLE)
    with pytest.raises(LockTaken) as refusal:
        lab.launch(order)
    assert refusal.value.what == f"core {lab.cores[0].id}"
    assert refusal.value.holder == f"den/0 (pid {record.pid})"
    assert not order.record.exists()
    assert not (order.folder / "incarnation").exists()
    assert alive(record)


def test_a_refused_launch_leaves_the_free_part_of_its_slice_free(lab: Laboratory) -> None:
    if len(lab.cores) < 2:
        pytest.skip("needs two cores")
    lab.host(0, lab.slice(1))
    with pytest.raises(LockTaken):
        lab.launch(lab.order(1, lab.slice(0, 1), IDLE))
    assert not holds_locks(lab.locks, lab.slice(0))
    assert not holds_locks(lab.locks, lab.slice(0, 1)), "a part is not the whole"
    lab.host(2, lab.slice(0))
    assert holds_locks(lab.locks, lab.slice(0, 1))


def test_a_taken_gpu_is_refused(lab: Laboratory) -> None:
    card = Slice((), (), ("GPU-1234",), GIB)
    lab.host(0, card)
    with pytest.raises(LockTaken, match="GPU GPU-1234 is held by den/0"):
        lab.launch(lab.order(1, card, IDLE))


def part_of_card(*parts: int) -> Slice:
    return Slice((), (), ("GPU-1234",), GIB, (GpuHold("GPU-1234", GIB, parts),))


def test_a_shared_gpu_has_as_many_hosts_as_parts_and_each_part_one(lab: Laboratory) -> None:
    """Installations share the folder of locks, so that this holds across them."""
    record, _ = lab.host(0, part_of_card(0, 1))
    lab.host(1, part_of_card(2))
    with pytest.raises(LockTaken, match="part 1 of GPU GPU-1234 is held by den/0"):
        lab.launch(lab.order(2, part_of_card(1), IDLE))
    assert holds_locks(lab.locks, part_of_card(0, 1, 2))
    assert not holds_locks(lab.locks, part_of_card(3))
    assert ("gpus" in record.limits.watched, "gpus" in record.limits.enforced) == (True, False)
    assert any("share its GPU" in note for note in record.limits.notes)


def test_a_gpu_is_either_held_whole_or_shared(lab: Laboratory) -> None:
    whole = Slice((), (), ("GPU-1234",), GIB, (GpuHold("GPU-1234", GIB),))
    record, _ = lab.host(0, part_of_card(0))
    with pytest.raises(LockTaken, match="GPU GPU-1234 is held by replicas that share it"):
        lab.launch(lab.order(1, whole, IDLE))
    end_group(record, 5.0)
    held, _ = lab.host(2, whole)
    assert "gpus" in held.limits.enforced
    with pytest.raises(LockTaken, match="GPU GPU-1234 is held by den/2"):
        lab.launch(lab.order(3, part_of_card(5), IDLE))


def test_one_folder_has_one_host_whatever_its_slice(lab: Laboratory) -> None:
    if len(lab.cores) < 2:
        pytest.skip("needs two cores")
    record, _ = lab.host(0, lab.slice(0))
    with pytest.raises(LockTaken, match=r"the folder .* is held by den/0"):
        lab.launch(lab.order(0, lab.slice(1), IDLE))
    assert read_record(lab.locks / "home-0.json") == record


KEEPER = """
import json, os, signal, sys
from cluster.confine import Launch, launch
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
print(json.dumps(launch(Launch.from_json(json.load(sys.stdin))).to_json()), flush=True)
signal.pause()
"""


def test_a_host_is_nobodys_child_and_outlives_the_keeper_that_launched_it(lab: Laboratory) -> None:
    order = lab.order(0, lab.slice(0), TELLS)
    with subprocess.Popen(
        [sys.executable, "-c", KEEPER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as keeper:
        try:
            assert keeper.stdin
            assert keeper.stdout
            keeper.stdin.write(json.dumps(order.to_json()).encode())
            keeper.stdin.close()
            record = Record.from_json(json.loads(keeper.stdout.readline()))
            lab.records.append(record)
            told = lab.hear(0)
            above = ancestors(record.pid)
            assert keeper.pid not in above
            assert os.getpid() not in above or is_subreaper_of_tests(above)
        finally:
            os.killpg(keeper.pid, signal.SIGKILL)
    assert alive(record)
    assert isinstance(told, dict)
    assert told["session"] == record.pid == record.pgid
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        assert not told["ignored"] & 1 << (number - 1), "what the keeper ignored is not ignored by the host"
    assert told["blocked"] == 0


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def is_subreaper_of_tests(above: list[int]) -> bool:
    """Orphans go to the nearest process that asked for them; that may be one around the tests."""
    return above[0] != os.getpid()


def test_the_host_gets_its_slice_in_its_environment_and_nothing_of_the_launchers(
    lab: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_SOMETHING", "secret")
    part = replace(lab.slice(0), gpus=("GPU-b", "GPU-a"))
    _, told = lab.host(0, part, TELLS)
    assert isinstance(told, dict)
    env = told["env"]
    assert "RAY_SOMETHING" not in env
    assert env["OMP_NUM_THREADS"] == env["OPENBLAS_NUM_THREADS"] == env["MKL_NUM_THREADS"] == "1"
    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-b,GPU-a"
    assert env["HOMEPORT_INCARNATION"] == "1"
    assert "HOMEPORT_LOCK_FDS" not in env, "adopt_locks took it out"
    assert len(told["locks"]) == 4, "folder, core, two GPUs"
    assert set(told["fds"]) == {0, 1, 2, *told["locks"]}, "nothing else was left open"
    assert told["stdin"] == "/dev/null"


def test_an_instance_of_a_cut_card_is_visible_by_its_own_uuid() -> None:
    part = Slice((0,), (0,), ("MIG-c1a0",), GIB, (GpuHold("MIG-c1a0", GIB),))
    assert slice_environment(part)["CUDA_VISIBLE_DEVICES"] == "MIG-c1a0"


def test_a_slice_without_gpus_hides_them_all() -> None:
    assert slice_environment(Slice((0, 1, 2), (0, 1, 2), (), GIB))["CUDA_VISIBLE_DEVICES"] == ""
    assert slice_environment(Slice((0, 1, 2), (0, 1, 2), (), GIB))["OMP_NUM_THREADS"] == "3"


def test_the_record_is_right_and_private(lab: Laboratory) -> None:
    order = lab.order(3, lab.slice(0), IDLE)
    record = lab.launch(order)
    lab.hear(3)
    seen = group.look(record.pid)
    assert seen is not None
    assert record == Record(
        replica="den/3",
        pid=record.pid,
        start_time=seen.start_time,
        pgid=record.pid,
        port=8103,
        incarnation=1,
        config_digest="digest",
        slice=order.slice,
        limits=record.limits,
    )
    assert sorted(record.limits.enforced + record.limits.watched) == [
        "cores",
        "gpus",
        "memory",
        "network",
        "threads",
    ]
    assert read_record(order.record) == record
    assert stat.S_IMODE(order.record.stat().st_mode) == 0o600
    assert stat.S_IMODE((order.folder / "host.err").stat().st_mode) == 0o600
    assert list(lab.locks.glob(".*")) == [], "nothing half-written is left"


HAS_CEILINGS = cgroup.ceiling("homeport-test") is not None
needs_ceilings = pytest.mark.skipif(
    not HAS_CEILINGS, reason="no control group (v2) above this process hands out the memory controller"
)


def order_of_its_own(lab: Laboratory) -> Launch:
    """The control group of no other test has its name."""
    order = lab.order(0, lab.slice(0), IDLE)
    return replace(order, record=lab.locks / f"ceiling-{os.getpid()}-0.json")


@needs_ceilings
def test_a_ceiling_of_memory_is_there_for_as_long_as_its_host(lab: Laboratory) -> None:
    record = lab.launch(order_of_its_own(lab))
    lab.hear(0)
    ceiling = record.limits.ceiling
    if ceiling is None:
        pytest.skip("this user may make no control group")
    assert "memory" in record.limits.enforced
    assert int((ceiling / "memory.max").read_text()) == GIB
    assert (ceiling / "cgroup.procs").read_text().split() == [str(record.pid)]
    assert end_group(record, 5)
    assert not ceiling.exists()


@needs_ceilings
def test_a_host_that_cannot_start_leaves_no_ceiling(lab: Laboratory) -> None:
    order = order_of_its_own(lab)
    with pytest.raises(LaunchFailed):
        lab.launch(replace(order, command=("/no/such/program",)))
    left = cgroup.ceiling(f"homeport-{order.record.stem}")
    assert left is not None
    assert not left.exists()


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"pid": 1}', "null"])
def test_a_missing_or_broken_record_is_none(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "home-0.json"
    if text is not None:
        path.write_text(text)
    assert read_record(path) is None


def test_a_record_of_an_earlier_boot_is_none(lab: Laboratory) -> None:
    lab.host(0, lab.slice(0))
    path = lab.locks / "home-0.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "boot": "another"}))
    assert read_record(path) is None


def test_a_pid_that_was_given_away_is_not_the_host_and_is_left_alone(lab: Laboratory) -> None:
    record, _ = lab.host(0, lab.slice(0))
    stranger = replace(record, start_time=record.start_time - 1)
    assert not alive(stranger)
    assert end_group(stranger, 1)
    assert alive(record)


def test_a_zombie_is_not_alive() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        seen = group.look(child.pid)
        assert seen is not None
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        record = Record("den/0", child.pid, seen.start_time, child.pid, 1, 1, "", NOTHING, Limits((), ()))
        assert group.look(child.pid) is not None
        assert not alive(record)


NOTHING = Slice((), (), (), 0)


def test_locks_are_free_when_the_host_was_killed(lab: Laboratory) -> None:
    record, _ = lab.host(0, lab.slice(0))
    assert holds_locks(lab.locks, lab.slice(0))
    kill(record.pid)
    assert not alive(record)
    assert not holds_locks(lab.locks, lab.slice(0))
    again, _ = lab.host(0, lab.slice(0))
    assert again.incarnation == record.incarnation + 1


LEAKY = """
child = subprocess.Popen(["sleep", "60"], close_fds=False, start_new_session=True)
say(child.pid); signal.pause()
"""


def test_locks_are_not_held_on_by_a_program_that_the_host_started(lab: Laboratory) -> None:
    """As an engine in C would start it: every descriptor that is not close-on-exec goes along."""
    record, child = lab.host(0, lab.slice(0), LEAKY)
    assert isinstance(child, int)
    lab.strays.append(child)
    kill(record.pid)
    assert not gone(child)
    assert not holds_locks(lab.locks, lab.slice(0))
    lab.host(0, lab.slice(0))


def test_probing_neither_takes_nor_makes_a_lock(lab: Laboratory) -> None:
    lab.locks.mkdir()
    assert not holds_locks(lab.locks, lab.slice(0))
    assert list(lab.locks.iterdir()) == []
    assert not holds_locks(lab.locks, NOTHING)


def test_adopting_without_locks_is_nothing() -> None:
    assert adopt_locks({}) == ()
    assert adopt_locks({"HOMEPORT_LOCK_FDS": ""}) == ()


def test_a_polite_host_ends_on_sigterm_with_its_group(lab: Laboratory) -> None:
    record, child = lab.host(0, lab.slice(0), THREADS)
    assert isinstance(child, int)
    assert end_group(record, PATIENCE_S)
    assert gone(record.pid)
    assert gone(child)
    assert end_group(record, PATIENCE_S), "again is fine"


@pytest.mark.parametrize("own_group", ["None", "0"])
def test_grandchildren_that_ignore_sigterm_are_ended_too(lab: Laboratory, own_group: str) -> None:
    """In the host's group, and in a group of their own within the host's session."""
    record, pids = lab.host(0, lab.slice(0), STUBBORN.replace("GROUP", own_group))
    assert isinstance(pids, list)
    assert len(set(pids)) == 4
    assert not any(gone(pid) for pid in pids)
    assert end_group(record, 0.2)
    assert all(gone(pid) for pid in pids)


def test_a_group_whose_leader_died_is_ended(lab: Laboratory) -> None:
    record, pids = lab.host(0, lab.slice(0), STUBBORN.replace("GROUP", "None"))
    assert isinstance(pids, list)
    kill(record.pid)
    assert not gone(pids[-1])
    assert not alive(record)
    assert end_group(record, 0.2)
    assert all(gone(pid) for pid in pids)


def test_a_program_that_does_not_exist_is_told_and_leaves_nothing(lab: Laboratory) -> None:
    order = replace(lab.order(0, lab.slice(0), IDLE), command=("/nowhere/python", "-c", "pass"))
    with pytest.raises(LaunchFailed, match="the program /nowhere/python does not exist"):
        lab.launch(order)
    assert not order.record.exists()
    assert not holds_locks(lab.locks, lab.slice(0))


def test_a_program_that_is_none_is_told(lab: Laboratory) -> None:
    text = lab.root / "text"
    text.write_text("hello")
    text.chmod(0o755)
    order = replace(lab.order(0, lab.slice(0), IDLE), command=(str(text),))
    with pytest.raises(LaunchFailed, match="Exec format error"):
        lab.launch(order)


def test_a_folder_that_cannot_be_made_is_told(lab: Laboratory) -> None:
    (lab.root / "replicas").write_text("in the way")
    with pytest.raises(LaunchFailed, match=r"replicas/0: Not a directory"):
        lab.launch(lab.order(0, lab.slice(0), IDLE))


def test_a_full_disk_is_told(lab: Laboratory, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount")
    try:
        order = replace(lab.order(0, lab.slice(0), IDLE), folder=small / "0")
        (small / "filler").write_bytes(bytes(4096))
        with pytest.raises(LaunchFailed, match="no space left on the disk of"):
            lab.launch(order)
        assert not holds_locks(lab.locks, lab.slice(0))
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_errors_are_kept_and_those_of_the_host_before(lab: Laboratory) -> None:
    record, _ = lab.host(0, lab.slice(0), TELLS)
    errors = lab.root / "replicas/0/host.err"
    assert set(tail(errors, 9)) == {"to stdout", "to stderr"}
    assert end_group(record, PATIENCE_S)
    lab.host(0, lab.slice(0))
    assert tail(errors, 9) == ()
    assert set(tail(errors.with_name("host.err.1"), 9)) == {"to stdout", "to stderr"}


def test_the_incarnation_grows_and_survives_a_broken_file(lab: Laboratory) -> None:
    numbers = []
    for damage in (None, None, "garbage"):
        if damage:
            (lab.root / "replicas/0/incarnation").write_text(damage)
        record, _ = lab.host(0, lab.slice(0))
        numbers.append(record.incarnation)
        assert end_group(record, PATIENCE_S)
    assert numbers[:2] == [1, 2]
    assert numbers[2] > 2


def test_cores_that_this_machine_lacks_are_only_watched(lab: Laboratory) -> None:
    record, _ = lab.host(0, Slice((9000,), (9000,), (), GIB))
    assert "cores" in record.limits.watched
    assert holds_locks(lab.locks, Slice((9000,), (9000,), (), GIB))


def test_a_file_beyond_its_cap_keeps_its_last_lines_and_its_writer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "host.err"
    with path.open("a") as writer:
        for number in range(1000):
            writer.write(f"line {number}\n")
        writer.flush()
        assert cap_file(path, 4000)
        assert path.stat().st_size <= 2000
        writer.write("after\n")
        writer.flush()
    lines = path.read_text().splitlines()
    assert lines[-2:] == ["line 999", "after"]
    assert all(line.startswith("line ") for line in lines[:-1]), "no torn line, no hole"
    assert not cap_file(path, 4000)
    assert not cap_file(tmp_path / "missing", 4000)


def test_the_tail_of_a_file_is_its_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "host.err"
    assert tail(path, 3) == ()
    path.write_bytes(b"one\ntwo \xff\nthree\nfour")
    assert tail(path, 2) == ("three", "four")
    assert tail(path, 9)[1] == "two \ufffd"
    assert tail(path, 0) == ()
