"""`homeport service install | remove`: homeport from boot on, by the user's systemd.

Exit codes as in `router.cli`: 0 done, 1 it failed, 2 the input or the config is wrong (nothing was changed).
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from cluster import service_unit
from cluster.join import joined
from cluster.paths import Paths
from cluster.restarting import running
from router import following, lifecycle
from router.command_line import DEFAULT_CONFIG, FAILED, PLAIN, WRONG, err, out
from router.head_service import list_of
from router.join_head import read_list
from serving.config import ConfigError

app = typer.Typer(help="homeport from boot on, by the user's systemd.", no_args_is_help=True)


@app.command()
def install(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", envvar="HOMEPORT_CONFIG", help="What a head serves (homeport.yaml)."),
    ] = None,
) -> None:
    """Start homeport at every boot: on a machine that joined its part, elsewhere what `homeport up` starts."""
    paths = Paths.from_env(os.environ)
    unit = service_unit.unit_path(os.environ)
    try:
        role, command = _command(paths, config or DEFAULT_CONFIG)
        unit.parent.mkdir(parents=True, exist_ok=True)
        unit.write_text(service_unit.unit_text(paths, role, command))
    except (ConfigError, lifecycle.UpRefused) as refused:
        err.print(str(refused), style="red", **PLAIN)
        raise typer.Exit(getattr(refused, "code", WRONG)) from None
    except OSError as error:
        err.print(f"{error.filename or unit}: {error.strerror}. Nothing was installed.", style="red", **PLAIN)
        raise typer.Exit(FAILED) from None
    out.print(f"{unit} is written: {role}, at every boot.", **PLAIN)
    if _started():
        out.print("It is enabled. What runs now goes on; it takes over when that ends.", **PLAIN)
        return
    out.print("systemd could not be asked here. In a session of this user, run once:", **PLAIN)
    for line in service_unit.BY_HAND:
        out.print(f"  {line}", **PLAIN)


@app.command()
def remove() -> None:
    """Start homeport at boot no more. What runs under systemd ends its restarter; hosts go on until `homeport down`."""
    unit = service_unit.unit_path(os.environ)
    if not unit.exists():
        out.print("There is no unit; nothing is to be removed.", **PLAIN)
        return
    service_unit.systemctl("disable", "--now", service_unit.UNIT, env=os.environ)
    unit.unlink()
    service_unit.systemctl("daemon-reload", env=os.environ)
    out.print(f"{unit} is removed. `homeport down` ends what still runs.", **PLAIN)


def _command(paths: Paths, config: Path) -> tuple[str, list[str]]:
    """What this machine is, and what systemd runs for it. Raises ConfigError and UpRefused."""
    run = running(paths)
    is_worker = following.is_worker(run) if run else joined(paths) is not None
    if is_worker:
        return "a machine that joined", [sys.executable, "-m", "cluster.service", "--wait"]
    machines = list_of(paths)
    lifecycle.prepare(paths, config, os.environ, None if machines is None else read_list(machines).head)
    path = str(config.expanduser().resolve())
    return "a head", [sys.executable, "-m", "router.head_service", path]


def _started() -> bool:
    """Whether systemd took it."""
    if not service_unit.systemctl("daemon-reload", env=os.environ):
        return False
    if not service_unit.systemctl("enable", "--now", service_unit.UNIT, env=os.environ):
        return False
    if shutil.which("loginctl") is None:
        return True
    done = subprocess.run(["loginctl", "enable-linger"], capture_output=True, check=False)
    if done.returncode != 0:
        out.print("It starts when this user logs in; at boot after `loginctl enable-linger`.", **PLAIN)
    return True
