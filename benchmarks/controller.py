"""`python -m benchmarks.controller [QUESTION ...]`: what 50 machines with 400 replicas cost the head.

With no question all are asked and the table of README.md is written. `--quick` only tries whether all of it runs.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import psutil

import serving.controller
from benchmarks import fifty
from benchmarks.questions import ask
from benchmarks.report import Figure
from cluster import ray_cluster
from cluster.join import enter
from cluster.paths import Paths, secret, write_private
from cluster.processes import clean_environment, end_all, mark, ours
from serving.controller import Controller
from tests.ports import free_port

SETTLE_S = 20.0
"""By then every keeper has reported twice and nothing is new any more."""
RECONCILE_MS = 50.0
IDLE_PERCENT = 2.0
SIZE = f"{fifty.MACHINES} machines, {fifty.MACHINES * fifty.REPLICAS} replicas"


def reconcile(rounds: int) -> list[Figure]:
    """What the controller does between two awaits, in its own code: of a new revision, and of one report with news."""
    with home() as paths, mock.patch.object(serving.controller, "threading", _no_threads()):
        write_revision(paths, 0)
        made = Controller(fifty.FiftyMembers)
        made._read_revision()
        reports = [fifty.report(number) for number in range(fifty.MACHINES)]
        made._here = {each["id"] for each in reports}
        for each in reports:
            made._heard(each["id"], each)
        news, revisions = list[float](), list[float]()
        for number in range(rounds):
            at = number % fifty.MACHINES
            changed = fifty.report(at, 2 + number)
            news.append(_ms(lambda: _one_report(made, changed)))  # noqa: B023 called at once
            write_revision(paths, 0, number + 2)
            revisions.append(_ms(lambda: _new_revision(made)))
        text = len(made._fleet())
    worst = max(*news, *revisions)
    return [
        Figure(
            f"controller, {SIZE}: a reconcile",
            f"<= {RECONCILE_MS:.0f} ms",
            f"a new revision {statistics.median(revisions):.1f} ms (at most {max(revisions):.1f}), a report with news "
            f"{statistics.median(news):.1f} ms (at most {max(news):.1f})",
            worst <= RECONCILE_MS,
            "wall time of the controller's own code: every machine's share worked out from the revision (of a report: "
            "that one's, as far as its hardware is new), whose turn it is, and the fleet's text for routers "
            f"({text // 1000} kB) made anew; median of {rounds}",
        )
    ]


def idle(watch_s: float) -> list[Figure]:
    """The controller as Ray's actor, asked by one router a second, fifty keepers with nothing new."""
    with home() as paths, _ray(paths) as address:
        port = free_port()
        write_revision(paths, port)
        ray_cluster.connect(paths, address)
        try:
            here = ray_cluster.detach(Controller, "controller", 0, 0, None, fifty.FiftyMembers)
            asyncio.run(ray_cluster.ask(here, "ping", timeout_s=60.0))
            process = _process("ray::Controller")
            _poll(port, secret(paths.cluster_token), SETTLE_S)
            before = cpu_s(process)
            told = _poll(port, secret(paths.cluster_token), watch_s)
            percent = (cpu_s(process) - before) / watch_s * 100
        finally:
            ray_cluster.disconnect()
    if len(told) != fifty.MACHINES or any(each["state"] != "ready" for each in told):
        raise RuntimeError(f"not every machine is ready: {len(told)} told")
    return [
        Figure(
            f"controller, {SIZE}: idle",
            f"<= {IDLE_PERCENT:.0f} % of a core",
            f"{percent:.1f} %",
            percent <= IDLE_PERCENT,
            f"CPU time of the actor's process over {watch_s:.0f} s, Ray's own loop in it; each keeper is asked over "
            "Ray for news, 10 s at a time (all keepers are one actor of another process), and one router asks for the "
            "fleet every second",
        )
    ]


def router(watch_s: float) -> list[Figure]:
    """A router that polls 400 hosts once a second, and nobody asks it anything."""
    with home() as paths, mock.patch.object(serving.controller, "threading", _no_threads()):
        write_revision(paths, 0)
        made = Controller(fifty.FiftyMembers)
        made._read_revision()
        made._here = {fifty.machine_id(number) for number in range(fifty.MACHINES)}
        for number in range(fifty.MACHINES):
            made._heard(fifty.machine_id(number), fifty.report(number))
        fleet = paths.home / "fleet.json"
        fleet.write_bytes(made._fleet())
        port = free_port()
        with running(paths, [sys.executable, "-m", "benchmarks.fifty", str(fleet)]) as hosts:
            assert hosts.stdout is not None
            hosts.stdout.readline()
            settings = router_settings(paths, port)
            with running(
                paths, [sys.executable, "-m", "router.app", "--config-json", str(settings)]
            ) as under:
                process = psutil.Process(under.pid)
                time.sleep(SETTLE_S / 2)
                before = cpu_s(process)
                time.sleep(watch_s)
                percent = (cpu_s(process) - before) / watch_s * 100
                up = sum(
                    replica["reach"] == "up"
                    for machine in get(f"http://127.0.0.1:{port}/api/fleet", "")["machines"]
                    for replica in machine["replicas"]
                )
    if up != fifty.MACHINES * fifty.REPLICAS:
        raise RuntimeError(f"only {up} replicas were up")
    return [
        Figure(
            f"router, {SIZE}: idle",
            "said, without a target",
            f"{percent:.1f} % of a core",
            True,
            f"CPU time over {watch_s:.0f} s; it asks every host and the controller once a second (stand-ins that "
            "answer at once, in another process)",
        )
    ]


QUESTIONS: dict[str, Callable[[bool], list[Figure]]] = {
    "reconcile": lambda quick: reconcile(5 if quick else 100),
    "idle": lambda quick: idle(5.0 if quick else 60.0),
    "router": lambda quick: router(5.0 if quick else 60.0),
}


def _one_report(made: Controller, changed: dict[str, Any]) -> None:
    made._heard(changed["id"], changed)
    asyncio.run(made._giving.step())
    made._fleet()


def _new_revision(made: Controller) -> None:
    made._read_revision()
    made._giving._progress(made.ping(), time.monotonic())
    made._fleet()


def _ms(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def _no_threads() -> Any:
    return SimpleNamespace(Thread=lambda **_more: SimpleNamespace(start=lambda: None))


@contextmanager
def home() -> Iterator[Paths]:
    """An installation of its own, whose processes are ended with the block."""
    with tempfile.TemporaryDirectory(prefix="hp-") as folder:
        paths = Paths(Path(folder) / "home", Path(folder) / "locks")
        paths.make()
        env = {"HOMEPORT_HOME": str(paths.home), "HOMEPORT_LOCKS": str(paths.locks)}
        with mock.patch.dict(os.environ, env):
            try:
                yield paths
            finally:
                end_all(paths)


@contextmanager
def _ray(paths: Paths) -> Iterator[str]:
    enter(paths, "head", "zone-0", fifty.HARDWARE, fifty.RESERVE, (8100, 8199))
    machine = paths.machine.read_text()
    paths.machine.unlink()  # Its keepers' revisions are of no head.
    try:
        yield ray_cluster.start_head(paths, os.environ, 1, 0, {"machine": json.loads(machine)["id"]})
    finally:
        end_all(paths, "ray")


@contextmanager
def running(paths: Paths, command: list[str]) -> Iterator[subprocess.Popen[str]]:
    env = {**clean_environment(os.environ), **mark(paths, "router")}
    process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def write_revision(
    paths: Paths,
    port: int,
    number: int = fifty.REVISION,
    host: str = "127.0.0.1",
    models: list[dict[str, Any]] | None = None,
) -> None:
    control = {"host": host, "port": port}
    wanted = {"revision": number, "models": models or fifty.models(), "control": control}
    write_private(paths.revision, json.dumps(wanted))


def router_settings(paths: Paths, port: int, models: list[dict[str, Any]] | None = None) -> Path:
    """The file with them, of a router before the stand-ins of `fifty`."""
    secret(paths.cluster_token)
    secret(paths.digest_key)
    settings = {
        "host": "127.0.0.1",
        "port": port,
        "keys_file": None,
        "names": [],
        "identity": {"headers": [], "fields": []},
        "control_url": f"http://{fifty.ADDRESS}:{fifty.CONTROL_PORT}",
        "token_file": str(paths.cluster_token),
        "digest_key_file": str(paths.digest_key),
        "fleet_file": str(paths.fleet),
        "models": [model["spec"] for model in models or fifty.models()],
    }
    write_private(paths.router_settings, json.dumps(settings))
    return paths.router_settings


def _poll(port: int, token: str, seconds: float) -> list[dict[str, Any]]:
    """As a router does, once a second; the machines that were told last."""
    told: list[dict[str, Any]] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with suppress(ConnectionError, urllib.error.URLError):  # it does not listen yet
            told = get(f"http://127.0.0.1:{port}/fleet", token)["machines"]
        time.sleep(1.0)
    return told


def get(url: str, token: str) -> Any:
    asked = urllib.request.Request(url, headers={"authorization": f"Bearer {token}"})  # noqa: S310
    with urllib.request.urlopen(asked, timeout=5) as answer:  # noqa: S310
        return json.load(answer)


def _process(title: str) -> psutil.Process:
    paths = Paths.from_env(os.environ)
    found = [psutil.Process(each.pid) for each in ours(paths, "ray")]
    return next(each for each in found if each.cmdline()[0].startswith(title))


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    sys.exit(ask("controller", __doc__, QUESTIONS))
