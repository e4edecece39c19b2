"""Ray on this machine: start a head of our own, connect to it, turn plain classes into named detached actors.

The only file that imports ray. Carries control only: no token, no prompt and no request passes through here.
Stopping is not Ray's matter: `ray stop` would end every Ray of the machine, so `homeport down` ends our own
processes by their mark (cluster/processes.py).
"""

import asyncio
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.paths import Paths, secret, write_private
from cluster.processes import clean_environment, end, mark, ours
from cluster.record import boot_id

NAMESPACE = "homeport"
HEAD_ADDRESS = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
"""Ray replaces 127.0.0.1 by the machine's address of the moment, which a laptop loses when it changes networks."""
OBJECT_STORE_BYTES = 80_000_000
"""Ray's least is 75 MB; nothing of ours passes through it."""
WORKER_PORTS = 60

QUIET = {
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_event_stats": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_metrics_report_interval_ms": "60000",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_raylet_check_gc_period_milliseconds": "10000",
    "RAY_gcs_pull_resource_loads_period_milliseconds": "5000",
    "RAY_kill_idle_workers_interval_ms": "5000",
    "RAY_debug_dump_period_milliseconds": "0",
    "RAY_io_context_event_loop_lag_collection_interval_ms": "0",
    "RAY_task_events_report_interval_ms": "0",
}
"""What Ray does ten times a second and nobody here needs. Its memory monitor would kill actors, not hosts."""


class RayFailed(Exception):
    """Ray did not start or could not be reached. The message says why and where its logs are."""


@dataclass(frozen=True, slots=True)
class Ports:
    """A block of free ports, so that nothing collides with a Ray, a Redis or a dashboard that runs already."""

    first: int

    @property
    def gcs(self) -> int:
        return self.first

    def arguments(self) -> list[str]:
        names = (
            "port",
            "node-manager-port",
            "object-manager-port",
            "dashboard-port",
            "dashboard-agent-listen-port",
            "dashboard-agent-grpc-port",
            "runtime-env-agent-port",
            "metrics-export-port",
        )
        workers = self.first + len(names)
        return [f"--{name}={self.first + offset}" for offset, name in enumerate(names)] + [
            f"--min-worker-port={workers}",
            f"--max-worker-port={workers + WORKER_PORTS}",
        ]


def free_ports() -> Ports:
    """A block of ports that nobody listens on at this moment. Raises RayFailed where there is none."""
    blocks = range(20000, 31000, 100)
    for first in random.sample(blocks, len(blocks)):
        if all(_is_free(port) for port in range(first, first + 9)):
            return Ports(first)
    raise RayFailed("Ray found no free block of ports between 20000 and 31000. End what holds them.")


def environment(paths: Paths, env: Mapping[str, str]) -> dict[str, str]:
    """The environment of Ray's processes and of everyone who connects to them."""
    return {
        **clean_environment(env),
        **mark(paths, "ray"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(paths.ray_token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
        **QUIET,
        # Ray would give its actors, and so the hosts that a keeper starts, the niceness 15.
        "RAY_worker_niceness": "0",
        "PYTHONUNBUFFERED": "1",
    }


def start_head(paths: Paths, env: Mapping[str, str], cpus: int, gpus: int, labels: Mapping[str, str]) -> str:
    """Start a head whose node offers `cpus` and `gpus` under `labels`. Returns its address, `host:port`.

    Blocks until it runs (8 to 11 s on two cores). Raises RayFailed. What is left of an earlier head of ours must
    have been ended before; its folder is emptied here, since a stale note in it would make Ray refuse.
    """
    secret(paths.ray_token)
    shutil.rmtree(paths.ray_folder, ignore_errors=True)
    paths.ray_folder.mkdir(mode=0o700, parents=True)
    ports = free_ports()
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        f"--node-ip-address={HEAD_ADDRESS}",
        *ports.arguments(),
        "--include-dashboard=false",
        "--include-log-monitor=false",
        "--no-monitor",
        "--disable-usage-stats",
        f"--temp-dir={paths.ray_folder}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--num-cpus={cpus}",
        f"--num-gpus={gpus}",
        "--labels",
        ",".join(f"{name}={value}" for name, value in labels.items()),
    ]
    log = paths.logs / "ray-start.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            env=environment(paths, env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        write_private(
            paths.ray_processes, json.dumps({"session": process.pid, "since": time.time(), "boot": boot_id()})
        )
        code = process.wait()
    if code != 0:
        raise RayFailed(
            f"Ray did not start (exit code {code}): {_last_words(log)} The whole of it is in {log}."
        )
    _end_dashboard(paths)
    return f"{HEAD_ADDRESS}:{ports.gcs}"


def connect(paths: Paths, address: str) -> None:
    """Make this process a driver of our Ray. Raises RayFailed."""
    os.environ.update({k: v for k, v in environment(paths, os.environ).items() if k.startswith("RAY_")})
    import ray

    try:
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level="ERROR",
            _node_ip_address=HEAD_ADDRESS,
        )
    except Exception as error:
        raise RayFailed(f"Ray at {address} cannot be reached: {error}") from error


def disconnect() -> None:
    """Leave Ray; detached actors stay."""
    import ray

    ray.shutdown()


def detach(
    cls: type,
    name: str,
    cpus: float,
    gpus: float,
    label: tuple[str, str] | None,
    *args: Any,
    threads: int = 1,
) -> Any:
    """The actor `name`, made from `cls(*args)` where it does not exist yet: detached, restarted by Ray for ever.

    `threads` of its methods may run at once. Raises RayFailed.
    """
    import ray

    options: dict[str, Any] = {
        "name": name,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "max_task_retries": 0,
        "num_cpus": cpus,
        "num_gpus": gpus,
        "max_concurrency": threads,
    }
    if label is not None:
        options["label_selector"] = {label[0]: label[1]}
    try:
        return ray.remote(cls).options(**options).remote(*args)
    except ray.exceptions.RayError as error:
        raise RayFailed(f"actor {name}: {error}") from error


async def ask(actor: Any, method: str, *args: Any, timeout_s: float) -> Any:
    """Call an actor's method. Raises TimeoutError, or RayFailed where the actor is dead or away."""
    import ray

    try:
        reference = getattr(actor, method).remote(*args)
        return await asyncio.wait_for(asyncio.wrap_future(reference.future()), timeout_s)
    except ray.exceptions.RayError as error:
        raise RayFailed(f"{method}: {error}") from error


def members() -> list[dict[str, str]]:
    """The labels of every machine that Ray counts as alive."""
    import ray

    return [node.get("Labels", {}) for node in ray.nodes() if node.get("Alive")]


def _end_dashboard(paths: Paths) -> None:
    """Even with its dashboard off Ray leaves an idle process of 100 MB that would only report usage."""
    import psutil

    for process in ours(paths, "ray"):
        try:
            if any(part.endswith("dashboard/dashboard.py") for part in psutil.Process(process.pid).cmdline()):
                end([process], 0.0)
        except psutil.Error:
            continue


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing."
