"""`homeport pull`. Exit codes as in `router.cli`; 130: it was left by Ctrl-C."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cluster.paths import Paths
from cluster.restarting import running
from router import following, live, pulling
from router.command_line import DEFAULT_CONFIG, FAILED, INTERRUPTED, PLAIN, WRONG, err, out
from router.pulling import At, Show
from serving.config import ConfigError

GOES_ON = "It goes on by itself; `homeport status` shows how far it is."
STAYS = "It was ended. What is there stays: the same command goes on from there."


def pull(
    model: Annotated[
        str, typer.Argument(help="A model of the config, hf:OWNER/REPO:FILE, or hf:OWNER/REPO.")
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", envvar="HOMEPORT_CONFIG", help="Where the model stands; else what runs."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Fetch a model from Hugging Face ahead: once for each zone, and copy it to the machines that are to serve it."""
    paths = Paths.from_env(os.environ)
    run = running(paths)
    if run is not None and following.is_worker(run):
        err.print("This machine serves a head elsewhere. Run `homeport pull` there.", style="red", **PLAIN)
        raise typer.Exit(FAILED)
    try:
        chosen = config or (None if run is not None else DEFAULT_CONFIG)
        wanted = pulling.find(paths, model, chosen, run is not None)
        with _shown(as_json) as show:
            found = _pull(paths, wanted, show, run is not None)
    except (pulling.NotPulled, ConfigError) as refused:
        code = getattr(refused, "code", WRONG)
        (err if code else out).print(str(refused), style="red" if code else None, **PLAIN)
        raise typer.Exit(code) from None
    except OSError as error:
        err.print(f"{error.filename or paths.home}: {error.strerror or error}.", style="red", **PLAIN)
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        err.print(GOES_ON if run is not None else STAYS, **PLAIN)
        raise typer.Exit(INTERRUPTED) from None
    failed = {name: at for name, at in found.items() if at.state != "whole"}
    if as_json:
        machines = {name: at.to_json() for name, at in found.items()}
        print(json.dumps({"source": wanted.source, "done": not failed, "machines": machines}))
    else:
        for name, at in found.items():
            style = "red" if name in failed else None
            (err if name in failed else out).print(f"{name}: {at.detail}", style=style, **PLAIN)
    if failed:
        raise typer.Exit(FAILED)


def _pull(paths: Paths, wanted: pulling.Wanted, show: Show, runs: bool) -> dict[str, At]:
    return pulling.through_controller(paths, wanted, show) if runs else pulling.here(paths, wanted, show)


@contextmanager
def _shown(as_json: bool) -> Iterator[Show]:
    """A picture that changes on a terminal, else a line for every tenth; nothing where JSON comes at the end."""
    if as_json:
        yield lambda _: None
    elif out.is_terminal:
        with Live(console=out, auto_refresh=False, transient=True) as view:
            yield lambda found: view.update(_picture(found), refresh=True)
    else:
        yield _lines()


def _picture(found: Mapping[str, At]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for name, at in found.items():
        grid.add_row(name, Text(at.detail, style="red" if at.state == "failed" else ""))
    return grid


def _lines() -> Callable[[Mapping[str, At]], None]:
    said: set[str] = set()

    def show(found: Mapping[str, At]) -> None:
        for name, at in found.items():
            line = f"{name}: {live.tenths(at.detail)}"
            if at.state == "fetching" and line not in said:
                said.add(line)
                out.print(line, **PLAIN)

    return show
