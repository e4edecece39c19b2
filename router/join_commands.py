"""`homeport join` and `homeport join-token`: how machines come into a cluster.

Exit codes as in `router.cli`: 0 done, 1 it failed, 2 the input is wrong (nothing was changed), 3 homeport does not run.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from cluster.join import JOIN_PORT, LOOPBACK
from cluster.paths import Paths, read_json
from cluster.restarting import running
from router import following, join_head, join_worker
from router.command_line import (
    DEFAULT_CONFIG,
    FAILED,
    INTERRUPTED,
    NOT_RUNNING,
    PLAIN,
    WRONG,
    AllowScript,
    err,
    out,
    refuse,
    say,
)
from router.lifecycle import UpRefused
from serving import join_tokens
from serving.config import ConfigError


def join(
    address: Annotated[
        str | None,
        typer.Argument(
            help="The head's address: IP, or IP:PORT of network.control. Without it: the head that this machine joined "
            "before, or with a token the one that is announced in the same network segment."
        ),
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="From `homeport join-token` on the head; needed once.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with the token; - reads it from stdin.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What this machine is called; else its host name.")] = None,
    head: Annotated[
        Path | None, typer.Option(metavar="LIST", help="Be the head of this machine list of Ray's.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", envvar="HOMEPORT_CONFIG", help="With --head: what to serve."),
    ] = None,
    stay: Annotated[
        bool, typer.Option("--stay", help="Stay in the foreground; Ctrl-C ends this machine's part.")
    ] = False,
    allow_script: AllowScript = False,
) -> None:
    """Let this machine serve a head, from now on. Safe to run again; then neither address nor token is needed."""
    paths = Paths.from_env(os.environ)
    if address is not None and head is not None:
        refuse(
            "Give the head's address, or with --head a machine list of which this machine is the head; not both.",
            WRONG,
        )
    if head is not None and (token, token_file, name, stay) != (None, None, None, False):
        refuse(
            "--token, --token-file, --name and --stay are for a machine that joins; the head needs none.",
            WRONG,
        )
    if token is not None and token_file is not None:
        refuse("Give --token or --token-file, not both.", WRONG)
    try:
        if head is not None:
            raise typer.Exit(_be_head(paths, head, config or DEFAULT_CONFIG, allow_script))
        given = join_worker.Given(token, token_file, name)
        if stay:
            following.start_signals()
        done = join_worker.join_head(paths, address, given, os.environ, say)
    except (UpRefused, ConfigError, join_worker.NotJoined) as refused:
        refuse(str(refused), getattr(refused, "code", WRONG))
    except following.Ended:
        following.end(paths)
        raise typer.Exit(INTERRUPTED) from None
    except OSError as error:
        refuse(
            f"{error.filename or paths.home}: {error.strerror}. See to it, or set HOMEPORT_HOME to another folder.",
            FAILED,
        )
    else:
        out.print(done, **PLAIN)
        if stay:
            raise typer.Exit(following.stay(paths))


def join_token() -> None:
    """Make a token with which one machine can join this head within ten minutes, and print it once."""
    paths = Paths.from_env(os.environ)
    run = running(paths)
    if run is None:
        refuse("homeport does not run here. Run this on the head, after `homeport up`.", NOT_RUNNING)
    if following.is_worker(run):
        refuse(following.worker_line(paths, run) + " Make the token there.", WRONG)
    if run.get("address", LOOPBACK) == LOOPBACK:
        refuse(
            "homeport serves this machine alone here. Give it its `address` below `machines` in the config, then run "
            "`homeport down` and `homeport up`.",
            WRONG,
        )
    control = (read_json(paths.revision) or {}).get("control", {})
    try:
        token = join_tokens.make(paths, join_tokens.Now.here(), bool(control.get("tls")))
    except OSError as error:
        refuse(f"{paths.join_tokens}: {error.strerror}. Run as its owner.", FAILED)
    port = control.get("port", JOIN_PORT)
    where = run["address"] if port == JOIN_PORT else f"{run['address']}:{port}"
    print(token)
    minutes = f"{join_tokens.TOKEN_S / 60:.0f} minutes"
    err.print(
        f"For one machine, within {minutes}. On it: homeport join {where} --token-file - (paste it there). In the same "
        "network segment the address can be left out: until then this head is announced there.",
        **PLAIN,
    )


def _be_head(paths: Paths, head: Path, config: Path, allow_script: bool) -> int:
    following.start_signals()
    try:
        listed = join_head.read_list(head)
        return join_head.make_head(paths, listed, config, os.environ, say, allow_script=allow_script)
    except following.Ended:
        return 130  # What was started in this call is ended by make_head; a homeport that ran before goes on.
