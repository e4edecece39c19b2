"""`homeport bench isolation`: what a session notices of its neighbours, measured, printed and drawn.

Refuses where it would measure something else: on another machine, beside a running homeport, on a single core. What is
asked of whom says router/bench_isolation_run.py.
"""

import json
import os
import platform
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp

import psutil
import typer
from rich.table import Table

from cluster import kvm
from cluster.cpu import cpu_model
from cluster.cpu_quota import quota, remove_left
from cluster.guest import GUEST_BYTES, NoGuests, find
from cluster.inventory import measure_cores
from cluster.locks import LockTaken, take_slice
from cluster.machine import CpuCore
from cluster.paths import Paths, read_json
from cluster.restarting import running
from cluster.slices import bytes_text
from router import bench_isolation_agent, following
from router.bench_isolation_hosts import GROUP, Stage
from router.bench_isolation_run import FULL, QUICK, Say, measure
from router.command_line import FAILED, INTERRUPTED, PLAIN, WRONG, err, out, refuse, say
from serving.isolation import (
    HEADERS,
    REGIMES,
    Regime,
    Report,
    figures,
    neighbour_counts,
    rows,
    verdicts,
    whole,
)
from serving.machine_bench import BenchFailed
from serving.source import SourceError, bundled_model

ENGINE_BYTES = 2**29
"""What one host takes, generously."""
BUSY = 0.1
"""From this share of the CPUs on it is said that other programs run."""
GUEST_KERNEL = "HOMEPORT_GUEST_KERNEL"
"""Names a folder in which a kernel's package was unpacked, where `/` has no kernel for guests."""


class CannotMeasure(Exception):
    """Nothing was begun. The message says why, and what to do."""

    def __init__(self, message: str, code: int = WRONG) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Order:
    """What is wanted. `neighbours`: the most; None: as many as there are cores."""

    neighbours: int | None = None
    agent: bool = False
    quick: bool = False


def isolation(paths: Paths, order: Order, machine: str | None, folder: Path, as_json: bool) -> None:
    """Exit codes as in `router.cli`; 130 after Ctrl-C, which ends all that was started."""
    following.start_signals()
    shown: Say = (lambda _: None) if as_json else (lambda what: err.print(what, style="dim", **PLAIN))
    try:
        here(paths, machine)
        folder.mkdir(parents=True, exist_ok=True)
        report = take(paths, order, shown)
        files = keep(report, folder)
    except following.Ended:
        err.print("Ended; nothing of it is left.", **PLAIN)
        raise typer.Exit(INTERRUPTED) from None
    except CannotMeasure as refused:
        refuse(str(refused), refused.code)
    except BenchFailed as failed:
        refuse(f"{failed}. Free some memory and cores, then try again.", FAILED)
    except SourceError as error:
        refuse(str(error), FAILED)
    except OSError as error:
        refuse(f"{error.filename or folder}: {error.strerror or error}.", FAILED)
    if as_json:
        print(json.dumps({**report.to_json(), "files": [str(file) for file in files]}))
        return
    show(report)
    say(f"Drawn in {', '.join(str(file) for file in files)}.")


def here(paths: Paths, machine: str | None) -> None:
    """Raises CannotMeasure where another machine is meant: it is measured there, where its cores are."""
    own = (read_json(paths.machine) or {}).get("name")
    if machine not in (None, own, socket.gethostname(), "localhost"):
        raise CannotMeasure(
            f"{machine} is measured on {machine} itself, while homeport does not serve there: `homeport drain "
            f"{machine}` here, then there `homeport down`, `homeport bench isolation` and `homeport up` (over SSH, in "
            "the folder of its homeport)."
        )


def take(paths: Paths, order: Order, shown: Say) -> Report:
    """Measure this machine. Raises CannotMeasure, BenchFailed, SourceError and OSError; nothing is left of it in any
    case. Meanwhile it holds the locks of all cores, so that no homeport starts hosts beside it."""
    cores = measure_cores()
    counts = _counts(cores, order)
    model = bundled_model()
    with ExitStack() as stack:
        _hold(stack, paths, cores)
        remove_left(GROUP)
        with quota(f"{GROUP}{os.getpid()}-try", 1.0) as tried:
            kind = None if tried is None else tried.kind
        busy = psutil.cpu_percent(0.5 if order.quick else 2.0) / 100
        if busy > BUSY:
            shown(_busy(busy))
        stage = Stage(paths, Path(mkdtemp(prefix="homeport-bench-")), model, cores)
        stack.callback(stage.close)
        lacking = no_guests(stage, max(counts) + 1)
        regimes = _regimes(kind, lacking)
        effort = QUICK if order.quick else FULL
        cells = measure(stage, regimes, counts, order.agent, effort, shown)
    return Report(
        machine=_machine(cores),
        date=datetime.now(UTC).date().isoformat(),
        version=version("homeport"),
        beside=bench_isolation_agent.what() if order.agent else "sessions",
        rounds=effort.rounds,
        busy=round(busy, 3),
        figures=tuple(figures(cells)),
        verdicts=tuple(verdicts(cells, len(cores))),
        notes=_notes(cores, counts, order, kind, lacking, busy),
    )


def keep(report: Report, folder: Path) -> list[Path]:
    """Write the figures and draw them; returns the files."""
    from router.bench_isolation_picture import draw

    told = folder / "isolation.json"
    told.write_text(json.dumps(report.to_json(), indent=1) + "\n")
    return [*draw(report, folder), told]


def show(report: Report) -> None:
    """The table, and what it comes to."""
    say(f"{report.machine}; neighbours: {report.beside}; medians over {report.rounds} rounds")
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    for number, header in enumerate(HEADERS):
        table.add_column(header, justify="left" if number == 0 else "right", no_wrap=number < 2)
    for row in rows(report):
        table.add_row(*row)
    out.print(table)
    for each in report.verdicts:
        word, style = ("met", "green") if each.met else ("MISSED", "red")
        out.print(f"{word:<7}{each.what}: {each.measured:g} (target {each.target})", style=style, **PLAIN)
    for note in report.notes:
        out.print(note, style="dim", **PLAIN)


def _counts(cores: Sequence[CpuCore], order: Order) -> tuple[int, ...]:
    if sys.platform != "linux":
        raise CannotMeasure("This is measured on Linux only: other systems keep no process to its cores.")
    if len(cores) < 2:
        raise CannotMeasure("This machine has one core for homeport: there is nothing to keep apart.")
    most = len(cores) if order.neighbours is None else order.neighbours
    free = psutil.virtual_memory().available
    if (most + 1) * ENGINE_BYTES > free:
        fits = max(1, free // ENGINE_BYTES - 1)
        raise CannotMeasure(
            f"{most + 1} engines need {bytes_text((most + 1) * ENGINE_BYTES)} of memory, {bytes_text(free)} are free. "
            f"Try --neighbours {fits}."
        )
    return (0, min(most, len(cores) - 1)) if order.quick else neighbour_counts(most)


def no_guests(stage: Stage, engines: int) -> str | None:
    """Why virtual machines are not measured; None once `stage` has what they need, and a host served in one."""
    needed, free = engines * GUEST_BYTES, psutil.virtual_memory().available
    if needed > free:
        return f"{engines} guests need {bytes_text(needed)} of memory, {bytes_text(free)} are free"
    if (why := kvm.why_not()) is not None:
        return why
    try:
        stage.guests = find(Path(os.environ.get(GUEST_KERNEL, "/")))
        with stage.engines("vm", 1):
            return None
    except (NoGuests, BenchFailed) as refused:
        return str(refused)


def _regimes(kind: str | None, lacking: str | None) -> tuple[Regime, ...]:
    permitted = {"quota": kind is not None, "vm": lacking is None}
    return tuple(regime for regime in REGIMES if permitted.get(regime, True))


def _hold(stack: ExitStack, paths: Paths, cores: Sequence[CpuCore]) -> None:
    """Hold all cores until `stack` ends."""
    remedy = "`homeport down` first (sessions keep their homes), or measure another machine (--machine)."
    if running(paths):
        raise CannotMeasure(f"homeport runs here: {remedy}", FAILED)
    paths.make()
    try:
        held = take_slice(paths.locks, whole(cores), "homeport bench isolation")
    except LockTaken as taken:
        raise CannotMeasure(f"{taken}: {remedy}", FAILED) from None
    for descriptor in held:
        stack.callback(os.close, descriptor)


def _machine(cores: Sequence[CpuCore]) -> str:
    memory = bytes_text(psutil.virtual_memory().total)
    return f"{len(cores)} cores of {cpu_model() or platform.machine()}, {memory}, {platform.system()}"


def _notes(
    cores: Sequence[CpuCore],
    counts: Sequence[int],
    order: Order,
    kind: str | None,
    lacking: str | None,
    busy: float,
) -> tuple[str, ...]:
    many, count = max(counts) >= len(cores), len(cores)
    waits = "it waits for a slice" if order.agent else "it waits in the line of another neighbour"
    size = len(cores[0].cpus)
    notes = [
        f"shared cores: every engine on all {count} cores with {count} threads",
        "dedicated slices: each engine on a core of its own with one thread, as homeport starts its hosts"
        + (f"; where there is no core left for a neighbour, {waits}" if many else ""),
        f"CPU quota: a control group ({kind}) with the CPU time of a core for each, on any core, one thread: what "
        f"`docker run --cpus={size}` sets, without a container runtime"
        if kind
        else "CPU quota, as containers have: not measured here; this user may not make a control group with one",
        "virtual machine: each engine in a guest of its own (QEMU, KVM) with one virtual CPU that may run on any core, "
        "asked over a forwarded port"
        if lacking is None
        else f"virtual machine: not measured here: {lacking}",
        "a gap is the time between two tokens as they arrive at the client's socket, by the kernel's clock",
    ]
    if busy > BUSY:
        notes.append(_busy(busy))
    return tuple(notes)


def _busy(busy: float) -> str:
    return (
        f"other programs took {busy:.0%} of the CPUs before it began: the figures are theirs too. Close them, and "
        "measure again"
    )
