"""`homeport wake MACHINE`: have a machine woken, and see it come.

Exit codes as in `router.cli`: 0 it is awake (--no-wait: what wakes it is on its way), 1 it failed, 3 not running here.
"""

import os
import time
from typing import Annotated
from urllib.parse import quote

import typer

from cluster.paths import Paths
from router import api_client
from router.command_line import FAILED, PLAIN, out, refuse
from router.run_here import run_here
from serving.standing import AWAY

ACT_S = 45.0
"""How long the answer may take: a command that wakes a machine may run for 30 s."""
COMES_S = 180.0
"""How long a machine may take to be heard: one that was off has to boot."""
LOOK_S = 1.0


def wake(
    machine: Annotated[str, typer.Argument(help="A machine that sleeps, or is off.")],
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return once the packets are out, or the command has ended.")
    ] = False,
) -> None:
    """Wake a machine as the config says, and wait until it is heard."""
    run = run_here()
    secret = api_client.owners_secret(Paths.from_env(os.environ))
    try:
        path = f"/api/machines/{quote(machine, safe='')}/wake"
        done = api_client.ask(run["url"], "POST", path, secret=secret, timeout_s=ACT_S)
    except api_client.Refused as refused:
        refuse(str(refused), FAILED)
    except (api_client.Away, KeyError) as error:
        refuse(f"The router cannot answer: {error}", FAILED)
    if done["awake"]:
        out.print(f"{machine} is awake.", **PLAIN)
        return
    how = f"its magic packet is out, sent by {', '.join(done['by'])}" if done["by"] else "its command has run"
    out.print(f"{machine}: {how}.", **PLAIN)
    if not no_wait:
        _follow(machine, run["url"], secret)


def _follow(machine: str, url: str, secret: str) -> None:
    """Until its keeper is heard."""
    began = time.monotonic()
    while time.monotonic() - began < COMES_S:
        try:
            fleet = api_client.get(url, "/api/fleet", secret=secret)
        except (api_client.Away, api_client.Refused):
            fleet = {}
        states = [each["state"] for each in fleet.get("machines", ()) if each["name"] == machine]
        if states and states[0] not in AWAY:
            out.print(f"{machine} is awake, after {time.monotonic() - began:.0f} s.", **PLAIN)
            return
        time.sleep(LOOK_S)
    refuse(
        f"{machine} has not been heard within {COMES_S:.0f} s. Is waking by network switched on in its firmware, and "
        "for its network card (`ethtool` says `Wake-on: g`)? Does homeport start there (`homeport service install`)?",
        FAILED,
    )
