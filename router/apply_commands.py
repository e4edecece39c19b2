"""`homeport apply`. Exit codes as in `router.cli`; 130: it was left by Ctrl-C and goes on."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cluster.paths import Paths
from router import applying
from router.command_line import DEFAULT_CONFIG, FAILED, WRONG, AllowScript, refuse, say
from router.lifecycle import UpRefused
from serving.config import ConfigError


def apply(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", envvar="HOMEPORT_CONFIG", help="What to serve (homeport.yaml)."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would happen, and do nothing.")
    ] = False,
    allow_script: AllowScript = False,
) -> None:
    """Serve what the config says now: show what starts, stops and changes, ask, and do it, one machine at a time."""
    paths = Paths.from_env(os.environ)
    try:
        proposal = applying.propose(paths, config or DEFAULT_CONFIG, os.environ, allow_script=allow_script)
        for line in applying.describe(proposal):
            say(line)
        if proposal.is_empty or dry_run:
            return
        if proposal.renewal.is_new and not yes and not _agrees():
            say("Nothing was changed.")
            return
        code = applying.carry_out(paths, proposal, say)
    except (applying.NotApplied, UpRefused, ConfigError) as refused:
        refuse(str(refused), getattr(refused, "code", WRONG))
    except OSError as error:
        refuse(f"{error.filename or paths.home}: {error.strerror}. Nothing was changed.", FAILED)
    raise typer.Exit(code)


def _agrees() -> bool:
    if not _has_terminal():
        refuse(
            "There is no terminal to ask on. Run it with --yes to do this, or with --dry-run to look.", WRONG
        )
    return typer.confirm("Do this?")


def _has_terminal() -> bool:
    return sys.stdin.isatty()
