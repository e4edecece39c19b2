"""N new sessions at the same moment, through two routers, N free exclusive replicas: N homes?"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.report import Figure
from benchmarks.sessions_ask import Ask, Said, at_once, until, user
from benchmarks.sessions_homeport import call, free, replicas, running
from cluster.paths import read_json, write_private
from cluster.processes import clean_environment, mark
from tests.e2e.installation import Homeport
from tests.ports import free_port


def measure(rounds: int) -> list[Figure]:
    """Between two rounds the sessions are ended, and both routers see all replicas free."""
    with running() as homeport, _another_router(homeport) as other:
        ports = (homeport.ports["router"], other)
        until(lambda: all(len(replicas(port)) >= 2 for port in ports), 30, "two replicas at both routers")
        places = len(replicas(other))
        right = sum(_round(ports, places, number) for number in range(rounds))
    return [
        Figure(
            "N simultaneous new sessions, 2 routers, N free replicas",
            "N homes, always",
            f"N homes in {right} of {rounds} rounds, N = {places}",
            right == rounds,
            "all sent in the same moment on open connections, in turn through the one router and the other; the "
            "sessions ended after each round by DELETE /api/sessions/{id}",
        )
    ]


def _round(ports: tuple[int, int], places: int, number: int) -> bool:
    """Whether as many sessions as places got a home each of its own."""
    until(lambda: all(free(port) for port in ports), 30, "all replicas are free", 0.05)
    said = at_once(
        [
            Ask(ports[(number + each) % 2], f"at-once-{number}-{each}", user("Name three rivers."), 8)
            for each in range(places)
        ]
    )
    if broken := [one.error for one in said if one.error is not None]:
        raise RuntimeError(f"a turn failed: {broken}")
    homes = [str(one.home) for one in said]
    waited = max(int(one.headers.get("x-homeport-waited-ms", "0")) for one in said)
    if len(set(homes)) != places:
        print(f"  round {number}: {', '.join(sorted(homes))}, waited {waited} ms", flush=True)
    for one in said:
        _end(ports[0], one)
    return len(set(homes)) == places


def _end(port: int, said: Said) -> None:
    status, told = call(port, "DELETE", f"/api/sessions/{said.headers['x-homeport-session']}")
    if status >= 300:
        raise RuntimeError(f"the session was not ended: {status} {told}")


@contextmanager
def _another_router(homeport: Homeport) -> Iterator[int]:
    """A second router with the first one's settings; its port."""
    settings = read_json(homeport.paths.router_settings)
    settings["port"] = free_port()
    settings["fleet_file"] = str(homeport.folder / "fleet-2.json")
    file = homeport.folder / "router-2.json"
    write_private(file, json.dumps(settings))
    with (homeport.folder / "router-2.log").open("wb") as log:
        router = subprocess.Popen(
            [sys.executable, "-m", "router.app", "--config-json", str(file)],
            env={**clean_environment(os.environ), **mark(homeport.paths, "router")},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        port = int(settings["port"])
        until(lambda: call(port, "GET", "/ready")[0] == 200, 30, "the second router is ready")
        yield port
    finally:
        router.kill()
        router.wait()
