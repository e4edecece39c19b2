"""`homeport yield`: a machine is its person's for a while, and the end of that.

On the machine itself it needs neither head nor keeper: the order is a file that the keeper finds, and hosts are ended
from here. Exit codes as in `router.cli`.
"""

import os
import re
import time
from typing import Annotated, Any
from urllib.parse import quote

import typer

from cluster.paths import Paths, read_json
from cluster.restarting import running
from router import api_client, following, live
from router.command_line import FAILED, NOT_RUNNING, WRONG, refuse, say
from serving.owner import end_hosts, write_order
from serving.yielding import LONGEST_S, Order

SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
ACT_S = 10.0
FREE_S = 8.0
"""A machine that was told to is free by then, and the fleet says so."""
LOOK_S = 0.2


def yield_machine(
    machine: Annotated[str | None, typer.Argument(help="Which machine; this one if left out.")] = None,
    for_: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="For so long, for example 2h; else until --end."),
    ] = None,
    end: Annotated[bool, typer.Option("--end", help="It is over: serve again.")] = False,
) -> None:
    """Let a machine's person have it: memory and GPU are free within 5 s, sessions stay and wait on its disk."""
    paths = Paths.from_env(os.environ)
    if end and for_ is not None:
        refuse("Either --for or --end, not both.", WRONG)
    for_s = None if for_ is None else _seconds(for_)
    own = (read_json(paths.machine) or {}).get("name")
    if machine in (None, own):
        _here(paths, own, for_s, end)
    else:
        _elsewhere(paths, str(machine), for_s, end)


def _here(paths: Paths, name: str | None, for_s: float | None, end: bool) -> None:
    if name is None:
        refuse("No homeport was ever started on this machine: there is nothing to yield.", NOT_RUNNING)
    began, now = time.monotonic(), time.time()
    try:
        write_order(paths, None if end else Order(now, None if for_s is None else now + for_s))
    except OSError as error:
        refuse(f"{error.filename or paths.yielded}: {error.strerror}. Nothing was changed.", FAILED)
    if end:
        when = "within seconds" if running(paths) else "once homeport runs here"
        say(f"{name} is no longer yielded: it serves {when}, or when a program that it yields to has ended.")
        return
    ended, left = end_hosts(paths)
    if left:
        refuse(f"Still there: {', '.join(left)}. End them with `homeport down`.", FAILED)
    say(_free(name, None if for_s is None else now + for_s, ended, time.monotonic() - began))


def _elsewhere(paths: Paths, name: str, for_s: float | None, end: bool) -> None:
    run = running(paths)
    if run is None:
        refuse(f"homeport does not run here. Say it on {name} itself: `homeport yield`.", NOT_RUNNING)
    if following.is_worker(run):
        refuse(
            f"{following.worker_line(paths, run)} For {name}, say it there or on the head; for this machine, "
            "`homeport yield` without a name.",
            FAILED,
        )
    began = time.monotonic()
    body: dict[str, Any] = {"end": True} if end else {} if for_s is None else {"for_s": for_s}
    path = f"/api/machines/{quote(name, safe='')}/yield"
    told = _ask(paths, run, "POST", path, body)["yielded"]
    if end:
        say(
            f"{name} is no longer yielded: its replicas start now."
            if told is None
            else f"{name} is still yielded to {told['by']}, until that program has ended."
        )
        return
    ended = 0
    while (left := _hosts(paths, run, name)) and time.monotonic() - began < FREE_S:
        ended = max(ended, left)
        time.sleep(LOOK_S)
    if left:
        refuse(
            f"{name} is yielded, and {left} of its replicas have not ended yet: `homeport status`.", FAILED
        )
    say(_free(name, told["until"] if told else None, ended, time.monotonic() - began))


def _hosts(paths: Paths, run: dict[str, Any], name: str) -> int:
    """How many processes of replicas are there."""
    fleet = _ask(paths, run, "GET", "/api/fleet", None)
    machine: dict[str, Any] = next((m for m in fleet["machines"] if m["name"] == name), {"replicas": ()})
    return sum(replica.get("pid") is not None for replica in machine["replicas"])


def _ask(paths: Paths, run: dict[str, Any], method: str, path: str, body: Any) -> Any:
    try:
        secret = api_client.owners_secret(paths)
        return api_client.ask(run["url"], method, path, body, ACT_S, secret)
    except api_client.Refused as refused:
        refuse(str(refused), FAILED)
    except (api_client.Away, KeyError) as error:
        refuse(f"The router cannot answer: {error}", FAILED)


def _free(name: str, until_s: float | None, ended: int, took_s: float) -> str:
    word = "replica has" if ended == 1 else "replicas have"
    what = f"{ended} {word} ended, memory free after {took_s:.1f} s" if ended else "no replica ran"
    until = "`homeport yield --end`" if until_s is None else live.until_text(until_s, time.time())
    return f"{name} is yielded until {until}: {what}. Its sessions stay there and wait."


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([smhd])", text)
    seconds = float(match[1]) * SECONDS[match[2]] if match else 0.0
    if not 0 < seconds <= LONGEST_S:
        refuse(f"{text} is no time. Write a number and a unit, for example 45m or 2h.", WRONG)
    return seconds
