"""Ray on this machine: start a head or a worker's node of our own, connect to it, turn plain classes into named
detached actors.

The only file that imports ray. Carries control only: no token, no prompt and no request passes through here.
Stopping is not Ray's matter: `ray stop` would end every Ray of the machine, so `homeport down` ends our own
processes by their mark (cluster/processes.py).
"""

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cluster import machine_tls
from cluster.build import build_id
from cluster.group import look
from cluster.join import LOOPBACK
from cluster.paths import Paths, read_json, secret, write_private
from cluster.processes import clean_environment, end, mark, ours, port_is_free, ports_become_free
from cluster.record import boot_id

NAMESPACE = "homeport"
HEAD_ADDRESS = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
"""Ray replaces 127.0.0.1 by the machine's address of the moment, which a laptop loses when it changes networks."""
OBJECT_STORE_BYTES = 80_000_000
"""Ray's least is 75 MB; nothing of ours passes through it."""
WORKER_PORTS = 60
BLOCK = 9
"""Ports that must be free: those that are named, and the first of Ray's workers."""
PORTS_S = 10.0
MONITOR = "ray.autoscaler._private.monitor"

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

CLUSTER = {
    # So long nodes and drivers wait for a head that is away; Ray's own minute would end every keeper.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    # The newer monitor does not set up machines of a list.
    "RAY_enable_autoscaler_v2": "0",
    # It would refuse a node whose Python differs in its last number; cluster/build.py compares the first two.
    "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL": "minor",
    # macOS: it would start a node for itself alone.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
}
"""Where other machines may join. Ray's processes and drivers on every machine have it."""


class RayFailed(Exception):
    """Ray did not start or could not be reached. The message says why and where its logs are."""


class ActorAway(RayFailed):
    """Ray is about to start the actor anew, or cannot reach it now."""


@dataclass(frozen=True, slots=True)
class Ports:
    """A block of free ports, so that nothing collides with a Ray, a Redis or a dashboard that runs already."""

    first: int

    @property
    def gcs(self) -> int:
        return self.first

    def arguments(self, *, head: bool) -> list[str]:
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
        return [
            *(f"--{name}={self.first + at}" for at, name in enumerate(names) if head or name != "port"),
            f"--min-worker-port={workers}",
            f"--max-worker-port={workers + WORKER_PORTS}",
        ]


@dataclass(frozen=True, slots=True)
class Kept:
    """What Ray's state on this machine belongs to: of another it is of no use. It has the actors' options too."""

    first_port: int
    address: str
    ray: str
    build: str


def free_ports() -> Ports:
    """A block of ports that nobody listens on at this moment. Raises RayFailed where there is none."""
    blocks = range(20000, 31000, 100)
    for first in random.sample(blocks, len(blocks)):
        if all(port_is_free("", port) for port in _block(first)):
            return Ports(first)
    raise RayFailed("Ray found no free block of ports between 20000 and 31000. End what holds them.")


def kept_ports(paths: Paths, address: str) -> Ports:
    """The ports of this machine's Ray, chosen once, so that others find it after a restart; anew where taken.

    With other ports, another address, another Ray or build its state is of no use, and is removed. Raises RayFailed,
    OSError.
    """
    known = read_json(paths.ray_ports) or {}
    first = known.get("first_port")
    ports = Ports(first) if first and ports_become_free("", _block(first), PORTS_S) else free_ports()
    kept = asdict(Kept(ports.first, address, version("ray"), build_id()))
    if kept != known:
        forget_state(paths)
        write_private(paths.ray_ports, json.dumps(kept))
    return ports


def forget_state(paths: Paths) -> None:
    """Remove the state that a head keeps. Workers whose Ray runs notice it and start theirs anew."""
    shutil.rmtree(paths.gcs, ignore_errors=True)


def environment(paths: Paths, env: Mapping[str, str], *, cluster: bool = False) -> dict[str, str]:
    """The environment of Ray's processes and of everyone who connects to them. `cluster`: others may join."""
    return {
        **clean_environment(env),
        **mark(paths, "ray"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(paths.ray_token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
        **QUIET,
        **({**CLUSTER, **_tls(paths)} if cluster else {}),
        # Ray would give its actors, and so the hosts that a keeper starts, the niceness 15.
        "RAY_worker_niceness": "0",
        "PYTHONUNBUFFERED": "1",
    }


def _tls(paths: Paths) -> dict[str, str]:
    """Ray's processes speak with each other over TLS, and only with those whose certificate our CA has signed too.

    They listen on every interface all the same: Ray 2.60 has no option for that.
    """
    if not machine_tls.is_on(paths):
        return {}
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(paths.certificate),
        "RAY_TLS_SERVER_KEY": str(paths.key),
        "RAY_TLS_CA_CERT": str(paths.ca),
    }


def node_address(address: str) -> str:
    """What Ray on a machine of this address is told about where it is."""
    return HEAD_ADDRESS if address == LOOPBACK else address


def start_head(
    paths: Paths,
    env: Mapping[str, str],
    cpus: int,
    gpus: int,
    labels: Mapping[str, str],
    address: str = HEAD_ADDRESS,
) -> str:
    """Start a head whose node offers `cpus` and `gpus` under `labels`. Returns its address, `host:port`.

    On another address than HEAD_ADDRESS workers may join: it has its ports and its state again after a restart, so that
    they and their actors go on.

    Blocks until it runs (8 to 11 s on two cores). Raises RayFailed. What is left of an earlier head of ours must
    have been ended before; its folder is emptied here, since a stale note in it would make Ray refuse.
    """
    cluster = address != HEAD_ADDRESS
    ports = kept_ports(paths, address) if cluster else free_ports()
    started = environment(paths, env, cluster=cluster)
    if cluster:
        paths.gcs.mkdir(mode=0o700, parents=True, exist_ok=True)
        started |= {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(paths.gcs)}
    head = ["--head", *ports.arguments(head=True), "--include-dashboard=false", "--no-monitor"]
    _start(paths, started, [*head, *_node(address, cpus, gpus, labels)])
    _end_dashboard(paths)
    return f"{address}:{ports.gcs}"


def start_worker(
    paths: Paths,
    env: Mapping[str, str],
    ray: str,
    address: str,
    cpus: int,
    gpus: int,
    labels: Mapping[str, str],
) -> None:
    """Start a node on this machine, which is reached at `address`, of the head at `ray`. As `start_head` otherwise."""
    ports = kept_ports(paths, address)
    node = [f"--address={ray}", *ports.arguments(head=False), *_node(address, cpus, gpus, labels)]
    _start(paths, environment(paths, env, cluster=True), node)


def monitor_command(paths: Paths, ray: str, machines: Path) -> list[str]:
    """What sets up the machines of Ray's list over SSH, for as long as it runs. The head's parent keeps it running,
    since Ray would not."""
    logs = paths.ray_folder / "session_latest" / "logs"
    return [
        sys.executable,
        "-m",
        MONITOR,
        f"--logs-dir={logs}",
        f"--gcs-address={ray}",
        f"--autoscaling-config={machines}",
    ]


def connect(paths: Paths, address: str, node: str = HEAD_ADDRESS) -> None:
    """Make this process a driver of our Ray, whose node on this machine is at `node`. Raises RayFailed."""
    settings = environment(paths, os.environ, cluster=node != HEAD_ADDRESS)
    os.environ.update({k: v for k, v in settings.items() if k.startswith("RAY_")})
    import ray

    try:
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level="ERROR",
            _node_ip_address=node,
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


def kill_others(prefix: str, name: str) -> None:
    """End for good the actors `prefix` and `prefix:…`, but for the one called `name`. Raises RayFailed."""
    import ray
    from ray.util import list_named_actors

    try:
        for other in list_named_actors():
            if other != name and (other == prefix or other.startswith(f"{prefix}:")):
                ray.kill(ray.get_actor(other, NAMESPACE), no_restart=True)
    except ValueError:
        pass  # it ended meanwhile; what else is left is found next time
    except ray.exceptions.RayError as error:
        raise RayFailed(f"actors of {prefix}: {error}") from error


async def ask(actor: Any, method: str, *args: Any, timeout_s: float) -> Any:
    """Call an actor's method. Raises TimeoutError, or RayFailed where the actor is dead, ActorAway where it is away."""
    import ray

    try:
        reference = getattr(actor, method).remote(*args)
        return await asyncio.wait_for(asyncio.wrap_future(reference.future()), timeout_s)
    except ray.exceptions.ActorUnavailableError as error:
        raise ActorAway(f"{method}: {error}") from error
    except ray.exceptions.RayError as error:
        raise RayFailed(f"{method}: {error}") from error


def members() -> list[dict[str, str]]:
    """The labels of every machine that Ray counts as alive."""
    import ray

    return [node.get("Labels", {}) for node in ray.nodes() if node.get("Alive")]


def _node(address: str, cpus: int, gpus: int, labels: Mapping[str, str]) -> list[str]:
    return [
        f"--node-ip-address={address}",
        f"--num-cpus={cpus}",
        f"--num-gpus={gpus}",
        "--labels",
        ",".join(f"{name}={value}" for name, value in labels.items()),
    ]


def _start(paths: Paths, env: Mapping[str, str], arguments: list[str]) -> None:
    """`ray start` to its end, in a session of processes that is written down. Raises RayFailed."""
    secret(paths.ray_token)
    shutil.rmtree(paths.ray_folder, ignore_errors=True)
    paths.ray_folder.mkdir(mode=0o700, parents=True)
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        *arguments,
        "--include-log-monitor=false",
        "--disable-usage-stats",
        f"--temp-dir={paths.ray_folder}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
    ]
    log = paths.logs / "ray-start.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        seen = look(process.pid)
        started = 0 if seen is None else seen.start_time
        written = {"session": process.pid, "started": started, "boot": boot_id()}
        write_private(paths.ray_processes, json.dumps(written))
        code = process.wait()
    if code != 0:
        raise RayFailed(
            f"Ray did not start (exit code {code}): {_last_words(log)} The whole of it is in {log}."
        )


def _end_dashboard(paths: Paths) -> None:
    """Even with its dashboard off Ray leaves an idle process of 100 MB that would only report usage."""
    import psutil

    for process in ours(paths, "ray"):
        try:
            if any(part.endswith("dashboard/dashboard.py") for part in psutil.Process(process.pid).cmdline()):
                end([process], 0.0)
        except psutil.Error:
            continue


def _block(first: int) -> range:
    return range(first, first + BLOCK)


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing."
