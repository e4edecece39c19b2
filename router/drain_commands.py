"""`homeport cordon | uncordon | drain MACHINE`. Exit codes as in `router.cli`; 130: left by Ctrl-C, it goes on."""

import os
import re
import time
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import quote

import typer

from cluster.paths import Paths
from router import api_client, moves_words
from router.command_line import FAILED, INTERRUPTED, WRONG, refuse, say
from router.run_here import run_here
from serving.schema_values import SECONDS

LOOK_S = 1.0
SILENT_S = 60.0
"""How long the router may be away while a drain is followed."""
ACT_S = 10.0

Machine = Annotated[str, typer.Argument(help="A machine's name.")]


def cordon(machine: Machine) -> None:
    """Let a machine take no new sessions. Those that have their home there are served as before."""
    _act(run_here(), machine, "cordon")
    say(f"{machine} is cordoned: no new session gets its home there.")


def uncordon(machine: Machine) -> None:
    """Let a machine take new sessions again that was cordoned or drained. A drain ends; who moved stays moved."""
    _act(run_here(), machine, "uncordon")
    say(f"{machine} takes new sessions again.")


def drain(
    machine: Machine,
    deadline: Annotated[
        str, typer.Option(help="How long its sessions are served there: 10m, 90s, 2h; 0: at once.")
    ] = "10m",
) -> None:
    """Empty a machine: its sessions move within its zone, with their contexts where these can go along.

    Each is served there until the deadline; before it only those move that lose nothing by it. At the deadline
    turns that run are ended. Shows how far it is; Ctrl-C leaves it going on.
    """
    within_s = seconds(deadline)
    if within_s is None:
        refuse(f"{deadline!r} is not a duration. Write a number and a unit, for example 10m or 90s.", WRONG)
    run = run_here()
    _act(run, machine, "drain", {"within_s": within_s})
    try:
        raise typer.Exit(follow(lambda: _fleet(run), machine, say))
    except KeyboardInterrupt:
        say(
            f"It goes on by itself. `homeport status` shows how far it is, `homeport uncordon {machine}` ends it."
        )
        raise typer.Exit(INTERRUPTED) from None


def seconds(text: str) -> float | None:
    """A duration; None for what is none."""
    if text == "0":
        return 0.0
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]+)", text)
    return float(match[1]) * SECONDS[match[2]] if match and match[2] in SECONDS else None


def follow(
    fleet: Callable[[], dict[str, Any] | None],
    name: str,
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Tell each change until the machine is empty, or nothing more can be done; the exit code. `fleet` gives None while
    nobody answers."""
    said, heard_at = "", clock()
    while True:
        told = fleet()
        machines = {each["name"]: each for each in (told or {}).get("machines", ())}
        if told is None or name not in machines:
            if clock() - heard_at > SILENT_S:
                say(
                    "The router does not answer. The drain goes on without it; `homeport status` shows it later."
                )
                return FAILED
            sleep(LOOK_S)
            continue
        heard_at, machine = clock(), machines[name]
        if not machine.get("draining"):
            say(f"The drain of {name} was ended by `homeport uncordon`.")
            return FAILED
        words = moves_words.drained(machine)
        if words != said:
            said = words
            say(f"{name}: {words}")
        if moves_words.is_drained(machine):
            say(moves_words.what_next(name))
            return 0
        if moves_words.only_stay(machine):
            say(
                f"The sessions that are left wait for {name}: what they need is there only. `homeport uncordon {name}` "
                "lets it go on as before; `homeport end ID` ends one of them."
            )
            return FAILED
        sleep(LOOK_S)


def _fleet(run: dict[str, Any]) -> dict[str, Any] | None:
    try:
        fleet: dict[str, Any] = api_client.get(run["url"], "/api/fleet", secret=_secret())
    except (api_client.Away, api_client.Refused):
        return None
    return fleet


def _act(run: dict[str, Any], machine: str, act: str, body: Any = None) -> None:
    path = f"/api/machines/{quote(machine, safe='')}/{act}"
    try:
        api_client.ask(run["url"], "POST", path, body, secret=_secret(), timeout_s=ACT_S)
    except api_client.Refused as refused:
        refuse(str(refused), FAILED)
    except (api_client.Away, KeyError) as error:
        refuse(f"The router cannot answer: {error}", FAILED)


def _secret() -> str:
    return api_client.owners_secret(Paths.from_env(os.environ))
