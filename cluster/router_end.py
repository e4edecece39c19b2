"""The end of routers: they take nothing new, and what is open may end first, as long as `router.drain` says.

Knows a router by its process, its connections and its settings file. That nobody starts it anew is the caller's matter.
"""

import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from cluster.paths import Paths, read_json
from cluster.processes import Ours, end, left_after, ours, tell

GRACE_S = 5.0
"""What a router may take beside `router.drain`: to tell those that it cuts, and to end."""
LOOK_S = 0.2
HURRY = signal.SIGUSR1
"""To a router: end, and cut what is open. SIGTERM leaves that its time, however often and by whomever it is sent."""

Say = Callable[[str], None]


def end_routers(paths: Paths, say: Say = lambda _: None, hurried: Callable[[], bool] | None = None) -> None:
    """End them once nothing is open in them any more, `router.drain` is over, or somebody is `hurried`.

    Returns when they are gone: within some ten seconds where nothing is open, whatever state they are in.
    """
    left = tell(ours(paths, "router"), signal.SIGTERM)
    if not left:
        return
    say("ending the router")
    drain_s, port = _settings(paths)
    began = now = time.monotonic()
    left, waits_for = left_after(left, LOOK_S), 0
    is_hurried = hurried or (lambda: False)
    while left and now < began + drain_s and not is_hurried():
        seen = open_requests(left, port)
        if seen and not waits_for:
            hint = "" if hurried is None else ", or until Ctrl-C"
            say(f"waiting for {_requests(seen)} to end, at most {drain_s:g} s{hint}")
        waits_for = seen or 0
        if seen == 0 and now > began + GRACE_S:
            break
        left = left_after(left, LOOK_S)
        now = time.monotonic()
    if left and waits_for:
        say(f"{_requests(waits_for)} cut")
    if is_hurried():
        tell(left, HURRY)
    end(left_after(left, GRACE_S), 0.0)


def open_requests(routers: Sequence[Ours], port: int) -> int | None:
    """How many connections of clients these routers have, who close those on which nothing is asked. None where that
    cannot be seen."""
    try:
        return sum(_connections(router.pid, port) for router in routers)
    except psutil.Error:
        return None


def _connections(router: int, port: int) -> int:
    try:
        found = psutil.Process(router).net_connections(kind="tcp")
    except psutil.NoSuchProcess:
        return 0
    return sum(each.status == psutil.CONN_ESTABLISHED and each.laddr.port == port for each in found)


def _settings(paths: Paths) -> tuple[float, int]:
    """What the routers that run were started with: their `drain` in seconds, and their port; 0 for what is not told."""
    told: Any = read_json(paths.router_settings)
    try:
        return float(told["limits"]["drain_s"]), int(told["port"])
    except (KeyError, TypeError, ValueError):
        return 0.0, 0


def _requests(count: int) -> str:
    return "1 open request" if count == 1 else f"{count} open requests"
