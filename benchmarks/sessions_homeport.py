"""A whole homeport to be asked and to be hurt, ended afterwards whatever happened; and its processes."""

import http.client
import json
import os
import select
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from cluster.processes import ours
from router.lifecycle import end_everything
from tests.e2e.installation import Homeport

ACTORS = {"controller": "ray::Controller", "keeper": "ray::Keeper"}


@contextmanager
def installation(**fields: Any) -> Iterator[Homeport]:
    """One that is not started yet. `fields`: of Homeport. Raises RuntimeError where it leaves a process behind."""
    with tempfile.TemporaryDirectory(prefix="homeport-bench-") as folder:
        installed = Homeport(Path(folder), **fields)
        try:
            yield installed
        finally:
            left = end_everything(installed.paths)
        if left:
            raise RuntimeError(f"could not be ended: {', '.join(left)}")


@contextmanager
def running(**fields: Any) -> Iterator[Homeport]:
    """One whose replicas are all ready."""
    with installation(**fields) as installed:
        installed.up()
        yield installed


def process(homeport: Homeport, part: str) -> psutil.Process:
    """The process that is the router, the controller or the keeper. Raises LookupError unless there is exactly one."""
    role = "ray" if part in ACTORS else part
    found = [p.pid for p in ours(homeport.paths, role) if ACTORS.get(part, "") in _title(p.pid)]
    if len(found) != 1:
        raise LookupError(f"there are {len(found)} processes that are the {part}")
    return psutil.Process(found[0])


def kill(pid: int) -> None:
    """SIGKILL, and wait until the process has ended, reaped or not. Raises RuntimeError where it does not."""
    descriptor = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        if not select.select([descriptor], [], [], 10)[0]:
            raise RuntimeError(f"process {pid} does not end")
    finally:
        os.close(descriptor)


def call(port: int, method: str, path: str, body: object = None, token: str = "") -> tuple[int, Any]:
    """One request with JSON both ways, to any of our servers: its status, and its body or None."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    if body is not None:
        headers["content-type"] = "application/json"
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else None
    finally:
        connection.close()


def cluster_token(homeport: Homeport) -> str:
    """What the controller wants to see."""
    return homeport.paths.cluster_token.read_text().strip()


def machine_token(homeport: Homeport) -> str:
    """What the hosts want to see."""
    return homeport.paths.machine_token.read_text().strip()


def replicas(port: int, token: str = "") -> list[dict[str, Any]]:
    """All replicas as the router on this port sees them now. Raises OSError where it does not answer."""
    status, fleet = call(port, "GET", "/api/fleet", token=token)
    if status != 200:
        raise OSError(f"the router answers {status}: {fleet}")
    return [replica for machine in fleet["machines"] for replica in machine["replicas"]]


def free(port: int) -> bool:
    """Whether this router sees no session in any replica."""
    return all(not (r["residents"] or r["running"] or r["waiting"]) for r in replicas(port))


def _title(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""
