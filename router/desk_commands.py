"""`homeport desk MACHINE`: a machine's desk on this screen. Exit codes as in `router.cli`."""

import os
import shutil
import subprocess
import sys
import webbrowser
from typing import Annotated
from urllib.parse import quote

import typer

from cluster.paths import Paths
from router import api_client
from router.command_line import FAILED, WRONG, refuse, say
from router.desk_browser import PROGRAMS, Nothing, Start, Usual, choose
from router.run_here import run_here

FAILS_WITHIN_S = 3.0
"""A browser that cannot show anything ends by then."""


def desk(
    machine: Annotated[str, typer.Argument(help="Whose desk: a machine's name.")],
    only_print: Annotated[bool, typer.Option("--print", help="Print the address; open nothing.")] = False,
) -> None:
    """Open a machine's desk: a full-screen chat that is answered on this machine and nowhere else."""
    url = _address(machine)
    if only_print:
        print(url)
        return
    found = {name: path for name in PROGRAMS if (path := shutil.which(name))}
    way = choose(found, os.environ, sys.platform, url, is_root=os.geteuid() == 0, has_usual=_has_usual())
    match way:
        case Start(command):
            _start(command, url)
        case Usual():
            if not webbrowser.open(url, new=1):
                refuse(f"The system's browser could not be started. The desk is at {url}", FAILED)
        case Nothing(why):
            refuse(f"The desk is at {url}\nIt is not opened: {why}.", FAILED)
    say(f"The desk of {machine} opens: {url}")


def _address(machine: str) -> str:
    """Where its desk is. Ends the command where there is no such machine."""
    run = run_here()
    try:
        fleet = api_client.get(
            run["url"], "/api/fleet", secret=api_client.owners_secret(Paths.from_env(os.environ))
        )
    except api_client.Refused as refused:
        refuse(str(refused), FAILED)
    except (api_client.Away, KeyError) as error:
        refuse(f"The router cannot answer: {error}", FAILED)
    names = sorted(each["name"] for each in fleet["machines"])
    if machine not in names:
        known = ", ".join(names) or "none"
        refuse(f"There is no machine {machine!r}; known: {known}.", WRONG)
    return f"{run['url']}/desk/{quote(machine, safe='')}"


def _has_usual() -> bool:
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def _start(command: tuple[str, ...], url: str) -> None:
    """Start it for itself: it stays when this ends. Ends the command where it fails at once."""
    try:
        browser = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        code = browser.wait(FAILS_WITHIN_S)
    except subprocess.TimeoutExpired:
        return
    except OSError as error:
        refuse(f"{command[0]} cannot be started: {error.strerror}. The desk is at {url}", FAILED)
    if code != 0:
        refuse(f"{command[0]} ended with {code}. The desk is at {url}; open it in another browser.", FAILED)
