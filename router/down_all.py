"""`homeport down --all`: let every other machine of the cluster end its part, before the head ends its own."""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cluster.ending import end_router
from cluster.join import joined
from cluster.paths import Paths, read_json
from cluster.processes import ours
from cluster.restarting import running
from cluster.router_end import Say
from router import api_client
from serving.machine_book import MachineBook

ANSWER_S = 35.0
"""Longer than serving/leaving.py waits for a machine that was heard of late."""
END_S = 12.0
"""How long a machine may take to end its hosts."""
LOOK_S = 0.3
CONNECT_S = 1.0


class NotHere(Exception):
    """This machine is not the head. The message names the remedy."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """Machines by name: those that end their part, with their hosts' addresses, and those that could not be asked."""

    hosts: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    away: list[str] = field(default_factory=list)
    was_asked: bool = True
    """Whether there was a controller; else `away` may be gone already."""


def ask_all(paths: Paths, say: Say, hurried: Callable[[], bool]) -> Leaving:
    """End this head's router, since what is open in it needs the others' hosts, and ask the controller to let all
    others leave. Raises NotHere on a machine that serves a head elsewhere."""
    run = running(paths)
    known = joined(paths)
    if known is not None and (run is None or run.get("role") == "worker"):
        raise NotHere(
            f"This machine serves the head at {known.head}: run `homeport down --all` there, or `homeport down` here "
            "for this machine alone."
        )
    end_router(paths, say, hurried)
    if run is not None:
        say("asking the other machines to end their part")
    try:
        told = api_client.ask_control(paths, "POST", "/leave", {}, ANSWER_S)
        return Leaving({name: list(map(_host, hosts)) for name, hosts in told["hosts"].items()}, told["away"])
    except (api_client.Away, api_client.Refused, KeyError, TypeError, ValueError):
        was_asked = run is not None or bool(ours(paths, "ray"))
        return Leaving(away=_others(paths), was_asked=was_asked)


def still_there(leaving: Leaving) -> list[str]:
    """Those of which a host still takes connections, after they had time to end. Blocks until then."""
    deadline = time.monotonic() + END_S
    left = dict(leaving.hosts)
    while left:
        left = {name: hosts for name, hosts in left.items() if any(map(_listens, hosts))}
        if time.monotonic() > deadline:
            break
        if left:
            time.sleep(LOOK_S)
    return sorted(left)


def _others(paths: Paths) -> list[str]:
    """The names of the machines that were here, but for this one and those that were forgotten."""
    me: dict[str, Any] = read_json(paths.machine) or {}
    book = MachineBook(paths.revision.with_name("machines.json"))
    return sorted(known.name for id_, known in book.remembered().items() if id_ != me.get("id"))


def _host(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    return address, int(port)


def _listens(host: tuple[str, int]) -> bool:
    try:
        socket.create_connection(host, CONNECT_S).close()
    except OSError:
        return False
    return True
