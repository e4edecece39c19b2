"""`homeport bench`: measures this machine, for `homeport fit` and `homeport advise`, and how little sessions notice of
each other on it. Exit codes as in `router.cli`."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cluster.paths import Paths
from router import bench_isolation
from router.command_line import FAILED, PLAIN, err, out, refuse, say
from serving.bench_kept import take
from serving.machine_bench import BenchFailed
from serving.machine_figures import MachineFigures

app = typer.Typer(help="Measure what this machine can do.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure what this machine can do."""


@app.command()
def machine(
    quick: Annotated[
        bool, typer.Option("--quick", help="Only try whether all of it runs: the figures are worth little.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Measure this machine's memory, disk and llama.cpp on its cores, and keep that. Takes a minute or more, by the
    size of its last cache; what else runs makes the figures worse."""
    paths = Paths.from_env(os.environ)
    shown = (
        (lambda _: None) if as_json else (lambda what: err.print(f"measuring {what}", style="dim", **PLAIN))
    )
    try:
        figures = take(paths, quick, shown)
    except BenchFailed as failed:
        refuse(f"{failed}. Free some memory and cores, then try again.", FAILED)
    except OSError as error:
        refuse(f"{error.filename or paths.home}: {error.strerror or error}.", FAILED)
    if as_json:
        print(json.dumps(figures.to_json()))
        return
    show(figures)
    say(f"Kept in {paths.bench}. `homeport fit MODEL` and `homeport advise` use it.")


@app.command()
def isolation(
    machine: Annotated[
        str | None, typer.Option("--machine", "-m", help="Which machine; this one if left out.")
    ] = None,
    neighbours: Annotated[
        int | None,
        typer.Option(
            "--neighbours", "-n", min=1, max=256, help="The most neighbours; as many as cores if left out."
        ),
    ] = None,
    agent: Annotated[
        bool, typer.Option("--agent", help="Neighbours are builds, as coding agents run them, not sessions.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only try whether all of it runs: the figures are worth little.")
    ] = False,
    folder: Annotated[
        Path, typer.Option("--out", "-o", help="Where the figures and pictures are put.")
    ] = Path("isolation"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Measure what a session on this machine notices of its neighbours: on shared cores, in slices of its own, with the
    CPU quota of containers and in virtual machines. Takes some five minutes on two cores; what else runs makes the
    figures worse."""
    order = bench_isolation.Order(neighbours, agent, quick)
    bench_isolation.isolation(Paths.from_env(os.environ), order, machine, folder, as_json)


def show(figures: MachineFigures) -> None:
    """What was measured, as tables."""
    memory = ", ".join(
        f"{rate / 1e9:.1f} GB/s with {count} core{'' if count == 1 else 's'}"
        for count, rate in figures.memory_bytes_s.items()
    )
    say(f"{figures.cpu or 'this machine'}: memory {memory}")
    say(
        f"disk {'not measured' if figures.disk_bytes_s is None else f'{figures.disk_bytes_s / 1e9:.1f} GB/s'}"
    )
    table = Table("weights", box=None, header_style="bold")
    for engine in figures.engine:
        table.add_column(f"decoding, {engine.cores} core{'' if engine.cores == 1 else 's'}", justify="right")
        table.add_column("prompts", justify="right")
    for kind in figures.engine[0].kinds:
        cells: list[str] = []
        for engine in figures.engine:
            rate = engine.kinds[kind]
            cells += [f"{rate.bytes_s / 1e9:.1f} GB/s", f"{rate.flops / 1e9:,.0f} GFLOP/s"]
        table.add_row(kind, *cells)
    out.print(table)
    for gpu in figures.gpus:
        speed = "unknown" if gpu.bytes_s is None else f"{gpu.bytes_s / 1e9:,.0f} GB/s by its driver"
        say(f"{gpu.name}: {gpu.memory_bytes / 2**30:.0f} GiB, memory {speed}; not measured")
