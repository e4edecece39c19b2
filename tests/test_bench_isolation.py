"""`homeport bench isolation` with real hosts and few tokens: what it leaves, refuses and draws."""

import _thread
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import confine, kvm
from cluster.cpu_quota import Quota
from cluster.ending import end_everything
from cluster.guest import PROGRAM, NoGuests
from cluster.inventory import measure_cores
from cluster.locks import holds_locks, take_lock
from cluster.paths import Paths
from cluster.processes import ours
from router import bench_isolation_hosts, bench_isolation_run
from router.bench_isolation import GUEST_KERNEL, CannotMeasure, Order, here, no_guests, show, take
from router.bench_isolation_agent import BEGAN
from router.bench_isolation_agent import main as work
from router.bench_isolation_hosts import ROLE, Stage
from router.bench_isolation_picture import draw
from router.bench_isolation_run import Neighbour, watch
from router.command_line import out
from serving.isolation import REGIMES, Figures, Regime, Report, Verdict, place, whole
from serving.source import bundled_model
from tests.e2e.installation import eventually
from tests.guests import guests, kernel_folder

CORES = measure_cores()
needs_two_cores = pytest.mark.skipif(len(CORES) < 2, reason="this needs two cores")
REPORT = Report(
    "2 cores of a test",
    "2026-11-29",
    "0.1.0",
    "sessions",
    1,
    0.0,
    (
        Figures("shared", 0, 0.014, 0.020, 0.030, 70.0, 0.4, 1.0),
        Figures("shared", 1, 0.050, 0.600, 2.0, 14.0, 2.0, 30.0),
        Figures("dedicated", 0, 0.014, 0.018, 0.020, 70.0, 0.4, 1.0),
        Figures("dedicated", 1, 0.015, 0.019, 0.021, 68.0, 0.4, 1.06),
    ),
    (Verdict("p99 token gap", ">= 4", 31.6, True),),
    (),
)


def lacks_guests() -> str | None:
    """Why no guest here runs a host at the machine's own speed; None: it does."""
    try:
        guests()
    except NoGuests as lacking:
        return str(lacking)
    return kvm.why_not()


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[Paths]:
    made = Paths(tmp_path / "home", tmp_path / "locks")
    made.make()
    yield made
    assert ours(made, ROLE) == []


def bench(paths: Paths, *words: str) -> "subprocess.Popen[str]":
    env = {**os.environ, "HOMEPORT_HOME": str(paths.home), "HOMEPORT_LOCKS": str(paths.locks)}
    if kernel_folder().is_dir():
        env[GUEST_KERNEL] = str(kernel_folder())
    return subprocess.Popen(
        [sys.executable, "-m", "router.cli", "bench", "isolation", *words],
        env={**env, "TMPDIR": str(paths.home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@needs_two_cores
def test_it_measures_all_regimes_draws_them_and_leaves_nothing(paths: Paths, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said, errors = bench(paths, "--quick", "--neighbours", "1", "--json", "--out", str(out)).communicate()
    told = json.loads(said or errors)
    measured = {(each["regime"], each["neighbours"]) for each in told["figures"]}
    assert {("shared", 0), ("shared", 1), ("dedicated", 0), ("dedicated", 1)} <= measured
    assert len(told["verdicts"]) == 2
    assert all(each["p50_s"] <= each["p99_s"] <= each["max_s"] for each in told["figures"])
    assert any(each.startswith("virtual machine: ") for each in told["notes"])
    assert (("vm", 1) in measured) == (lacks_guests() is None)
    assert json.loads((out / "isolation.json").read_text())["figures"] == told["figures"]
    assert (out / "isolation.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "isolation-dark.svg").read_text()
    assert not list(paths.home.glob("homeport-bench-*"))
    assert not holds_locks(paths.locks, whole(CORES))


@needs_two_cores
def test_an_interrupt_ends_all_of_it(paths: Paths, tmp_path: Path) -> None:
    process = bench(paths, "--quick", "--out", str(tmp_path / "out"))
    try:
        eventually(lambda: ours(paths, ROLE), 60.0)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60.0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.communicate()
    assert process.returncode == 130
    assert "nothing of it is left" in errors
    assert not list(paths.home.glob("homeport-bench-*"))


@needs_two_cores
def test_after_a_sigkill_down_ends_what_it_left(paths: Paths, tmp_path: Path) -> None:
    process = bench(paths, "--quick", "--out", str(tmp_path / "out"))
    try:
        eventually(lambda: ours(paths, ROLE), 60.0)
    finally:
        process.kill()
        process.communicate()
    eventually(lambda: any("python" in each.name for each in ours(paths, ROLE)), 10.0)
    assert end_everything(paths) == []


@needs_two_cores
def test_where_a_replica_holds_a_core_it_refuses_and_says_what_to_do(paths: Paths, tmp_path: Path) -> None:
    descriptor = take_lock(paths.locks / f"core-{CORES[-1].id}.lock", "core", "den/0", 0o666)
    try:
        with pytest.raises(CannotMeasure, match=r"held by den/0 .*`homeport down` first.*--machine"):
            take(paths, Order(quick=True), lambda _: None)
    finally:
        os.close(descriptor)


def test_another_machine_is_measured_there() -> None:
    paths = Paths(Path("/nowhere"), Path("/nowhere"))
    here(paths, None)
    here(paths, socket.gethostname())
    with pytest.raises(CannotMeasure, match=r"den-pc itself.*`homeport down`, `homeport bench isolation`"):
        here(paths, "den-pc")


def test_more_neighbours_than_memory_are_refused(paths: Paths) -> None:
    with pytest.raises(CannotMeasure, match=r"Try --neighbours \d+"):
        take(paths, Order(neighbours=10**6), lambda _: None)


@needs_two_cores
@pytest.mark.parametrize("regime", ["dedicated", "shared"])
def test_an_agents_build_stays_in_its_slice_and_ends(paths: Paths, tmp_path: Path, regime: Regime) -> None:
    folder = tmp_path / "stage"
    folder.mkdir()
    stage = Stage(paths, folder, bundled_model(), CORES)
    wanted = place(regime, CORES, 2, 0)[1]
    try:
        with stage.agents(regime, 1, 60.0):
            compiling = eventually(lambda: [each for each in ours(paths, ROLE) if "python" not in each.name])
            allowed = {
                tuple(sorted(os.sched_getaffinity(each.pid)))
                for each in compiling
                if psutil.pid_exists(each.pid)
            }
        assert allowed == {wanted.cpus}
        assert ours(paths, ROLE) == []
    finally:
        stage.close()
    assert not folder.exists()


def test_a_host_in_a_virtual_machine_streams_and_the_machine_ends_with_it(
    paths: Paths, tmp_path: Path
) -> None:
    if (why := lacks_guests()) is not None:
        pytest.skip(f"no virtual machine here: {why}")
    (tmp_path / "stage").mkdir()
    stage = Stage(paths, tmp_path / "stage", bundled_model(), CORES, guests())
    try:
        with stage.engines("vm", 1) as (engine,):
            asked, times = watch(engine, "watched", 0.5, 10)
            assert [each.name for each in ours(paths, ROLE)] == [PROGRAM]
        assert asked < times[0] < times[-1]
        assert ours(paths, ROLE) == []
    finally:
        stage.close()


def test_a_build_in_a_virtual_machine_works_until_down_ends_it(paths: Paths, tmp_path: Path) -> None:
    """Its CPU is emulated: that is possible everywhere."""
    try:
        emulated = replace(guests(), accelerator="tcg")
    except NoGuests as lacking:
        pytest.skip(str(lacking))
    (tmp_path / "stage").mkdir()
    stage = Stage(paths, tmp_path / "stage", bundled_model(), CORES, emulated)
    try:
        with stage.agents("vm", 1, 60.0):
            assert [each.name for each in ours(paths, ROLE)] == [PROGRAM]
            assert end_everything(paths) == []
            assert ours(paths) == []
    finally:
        stage.close()


def test_a_machine_without_memory_for_guests_measures_the_rest(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(paths, tmp_path, bundled_model(), CORES)
    assert re.match(r"1000000 guests need .* of memory, .* are free", no_guests(stage, 10**6) or "")
    monkeypatch.setattr(kvm, "why_not", lambda: None)
    monkeypatch.setenv(GUEST_KERNEL, str(tmp_path))
    assert "apt-get install" in (no_guests(stage, 1) or "")


@pytest.mark.parametrize("what", ["engines", "agents"])
def test_a_launch_that_a_signal_breaks_into_is_over_before_its_group_goes(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    happened = list[str]()
    ended = threading.Event()

    @contextmanager
    def quota(name: str, cpus: float) -> Iterator[Quota]:
        try:
            yield Quota(tmp_path / name, "cpu.max")
        finally:
            happened.append("group gone")
            ended.set()

    def launch(_stage: Stage, *_told: Any) -> str:
        _thread.interrupt_main()
        ended.wait(0.3)
        happened.append("launched")
        return "it"

    monkeypatch.setattr(bench_isolation_hosts, "quota", quota)
    monkeypatch.setattr(Stage, "_launch" if what == "agents" else "_engine", launch)
    monkeypatch.setattr(Stage, "end", lambda _: happened.append("ended"))
    monkeypatch.setattr(
        confine, "end_group", lambda record, _: happened.append("ended") if record == "it" else None
    )
    stage = Stage(paths, tmp_path, tmp_path, CORES[:1] * 2)
    begin = stage.engines("quota", 1) if what == "engines" else stage.agents("quota", 1, 1.0)
    with pytest.raises(KeyboardInterrupt), begin:
        pass
    assert happened == ["launched", "ended", "group gone"]


def test_a_neighbour_that_stops_while_it_connects_waits_for_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connecting, read = threading.Event(), list[bool]()

    class Slow:
        def __init__(self, *_: Any) -> None:
            connecting.set()
            assert neighbour._stopped.wait(10.0)

        def read(self) -> tuple[bytes, float]:
            read.append(True)
            return b"", 0.0

        def close(self) -> None:
            pass

    monkeypatch.setattr(bench_isolation_run, "Turn", Slow)
    neighbour = Neighbour(None, 1)  # type: ignore[arg-type]
    neighbour.start()
    assert connecting.wait(10.0)
    neighbour.stop()
    assert read == []


def test_a_build_ends_by_itself_where_nobody_ends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work(1, 0.0, tmp_path)
    assert capsys.readouterr().out == f"{BEGAN}\n"


def test_the_table_fits_a_terminal_of_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = [Figures(regime, 16, 3.5, 3.5, 9.9, 104.2, 3.5, 199.96) for regime in REGIMES]
    monkeypatch.setattr(out, "width", 80)
    show(replace(REPORT, figures=tuple(wide), verdicts=(), notes=()))
    _, *table = capsys.readouterr().out.splitlines()
    assert not any("…" in line for line in table)
    assert [line.split()[0] for line in table[-4:]] == ["shared", "dedicated", "CPU", "virtual"]


def test_a_picture_is_the_same_for_the_same_figures(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    files, again = draw(REPORT, tmp_path), draw(REPORT, tmp_path / "again")
    assert [file.name for file in files] == [
        "isolation.svg",
        "isolation.png",
        "isolation-dark.svg",
        "isolation-dark.png",
    ]
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
