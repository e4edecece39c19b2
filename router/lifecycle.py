"""What `homeport up` and `homeport down` do, without a word to the terminal.

`start` leaves the work to the parent process; `end_everything` needs neither Ray nor keeper nor parent. Draws
nothing (router/live.py) and parses no command line (router/cli.py).
"""

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import confine
from cluster.fit import NoFit, fit
from cluster.inventory import measure
from cluster.join import enter, machine_name
from cluster.machine import Machine
from cluster.paths import Paths, read_json, secret, write_private
from cluster.processes import clean_environment, end, end_all, mark, ours, port_holder, port_is_free
from serving.config import Config, load
from serving.model import digest
from serving.source import content_digest

HOST_GRACE_S = 3.0
RELEASE_S = 5.0
LOCK_TRIES = 5
UP_LOCK_FD = "HOMEPORT_UP_LOCK_FD"
"""Under this descriptor the parent has the lock that says that a homeport runs."""
ROUTER_GRACE_S = 1.0
FREE_BYTES_MIN = 64 * 1024**2


class UpRefused(Exception):
    """Nothing was started; the message says why and what to do. `code` is the exit code."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked config on this machine's measured hardware; nothing is written or started yet."""

    config: Config
    machine: Machine


def prepare(paths: Paths, config_path: Path, env: Mapping[str, str]) -> Prepared:
    """Read the config and fit it to this machine. Raises ConfigError, or UpRefused with reasons per machine."""
    if not str(paths.home).isascii():
        raise UpRefused(f"Ray needs a state folder in ASCII, not {paths.home}. Set HOMEPORT_HOME to another.")
    try:
        config = load(config_path, paths.home)
    except OSError as error:
        raise UpRefused(_disk_sentence(paths, error), code=1) from error
    hardware = measure(env)
    known = read_json(paths.machine) or {}
    host = machine_name(socket.gethostname())
    names = [entry.name for entry in config.machines]
    name = host if host in names or not known.get("name") else known["name"]
    entry = config.machine(name)
    reserve = entry.reserve(hardware)
    machine = Machine(known.get("id", ""), name, entry.zone, "127.0.0.1", hardware, reserve, "ready")
    fitted = fit([model.wish() for model in config.models], [machine])
    if isinstance(fitted, NoFit):
        lines = [
            f"  model {model} on {where or 'any machine'}: {reason}"
            for model, reasons in fitted.reasons.items()
            for where, reason in reasons.items()
        ]
        remedy = "Lower its needs, or choose other machines for it, in the config."
        raise UpRefused("\n".join([f"{config_path}: a model fits nowhere.", *lines, remedy]))
    return Prepared(config, machine)


def is_somewhere() -> bool:
    """Whether the current folder is there; Ray does not start in one that was deleted."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


def running(paths: Paths) -> dict[str, Any] | None:
    """What runs on this state folder, as its parent wrote it; None where no parent lives."""
    try:
        with paths.up_lock.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return read_json(paths.run) or {"steps": {}}
    except OSError:
        return None
    return None


def take_up_lock(paths: Paths) -> int | None:
    """The right to start a homeport on this state folder, as a descriptor that `start` hands to the parent.

    None where somebody has it, who starts or runs one. Raises UpRefused for a state folder that cannot be written.
    """
    try:
        paths.make()
        lock = os.open(paths.up_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UpRefused(_disk_sentence(paths, error), code=1) from error
    for _ in range(LOCK_TRIES):  # `running` holds it for an instant, to look
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return lock
    os.close(lock)
    return None


def start(
    paths: Paths, prepared: Prepared, env: Mapping[str, str], owner: int, lock: int
) -> subprocess.Popen[bytes]:
    """Write the revision and start the parent. Hosts that still live are left for the next keeper to adopt.

    `owner`: the process whose end ends everything (a foreground `up`). `lock`: from `take_up_lock`; it is the parent's
    from here on. Raises UpRefused for a taken port, a full or read-only state folder.
    """
    config, network = prepared.config, prepared.config.network
    try:
        _needs_space(paths.home)
        for part in (paths.cluster_token, paths.digest_key, paths.ray_token):
            secret(part)
        end(ours(paths, "parent", "router"), ROUTER_GRACE_S)
        end_all(paths, "ray")
        _needs_port(config.router.host, config.router.port, "router.listen")
        _needs_port("127.0.0.1", network.control, "network.control")
        machine = enter(
            paths,
            prepared.machine.name,
            prepared.machine.zone,
            prepared.machine.hardware,
            prepared.machine.reserve,
            (network.first, network.last),
        )
        write_revision(paths, config, machine, (network.first, network.last))
        run = {
            "url": config.router.url,
            "keys": config.router.keys_file is not None,
            "owner": owner,
            "machine": machine.to_json(),
            "steps": {},
            "since": time.time(),
        }
        write_private(paths.run, json.dumps(run, indent=1))
        with (paths.logs / "parent.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "router.parent"],
                env={**clean_environment(env), **mark(paths, "parent"), UP_LOCK_FD: str(lock)},
                pass_fds=(lock,),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    except OSError as error:
        raise UpRefused(_disk_sentence(paths, error), code=1) from error
    finally:
        os.close(lock)


def release(paths: Paths, parent: subprocess.Popen[bytes]) -> None:
    """Leave a started homeport running: from here on it no longer ends with its owner. Raises UpRefused."""
    parent.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + RELEASE_S
    while (read_json(paths.run) or {}).get("owner") is not None:
        if time.monotonic() > deadline or parent.poll() is not None:
            raise UpRefused(f"The parent process did not answer. Logs: {paths.logs}", code=1)
        time.sleep(0.02)


def write_revision(paths: Paths, config: Config, machine: Machine, ports: tuple[int, int]) -> None:
    """Keep what is wanted of this machine as a numbered revision; the number grows only when something changed."""
    wanted = {
        "models": [
            {"spec": model.to_json(), "digest": digest(model, content_digest(model, paths.home))}
            for model in config.models
        ],
        "control": {"host": "127.0.0.1", "port": config.network.control},
        "machine": {
            "name": machine.name,
            "hardware": machine.hardware.to_json(),
            "reserve": machine.reserve.to_json(),
            "ports": list(ports),
        },
    }
    known = read_json(paths.revision) or {"revision": 0}
    number = int(known.pop("revision"))
    if known != json.loads(json.dumps(wanted)):  # tuples come back as lists
        number += 1
        # The router would serve from its last picture, which is of the former revision.
        paths.fleet.unlink(missing_ok=True)
    write_private(paths.revision, json.dumps({"revision": number, **wanted}, indent=1))
    router = {
        **config.router.to_json(),
        "control_url": f"http://127.0.0.1:{config.network.control}",
        "token_file": str(paths.cluster_token),
        "digest_key_file": str(paths.digest_key),
        "fleet_file": str(paths.fleet),
        "models": [model.to_json() for model in config.models],
    }
    write_private(paths.router_settings, json.dumps(router, indent=1))


def end_everything(paths: Paths, say: Callable[[str], None] = lambda _: None) -> list[str]:
    """End all that this installation started, in any state, within some 8 s: restarters first, then Ray, then the rest.

    Returns the names of processes that could not be ended (none, but for a process in uninterruptible sleep).
    """
    if found := ours(paths, "parent"):
        say("ending the parent")
        end(found, 0.0)
    if ours(paths, "ray"):
        say("ending Ray, the controller and the keeper")
        end_all(paths, "ray")
    rest = ours(paths, "router", "host")
    if rest:
        say("ending the router and the hosts")
        end(rest, HOST_GRACE_S)
    left = end_all(paths)
    for record_path in paths.locks.glob(f"{paths.run_id}-*.json"):
        record = confine.read_record(record_path)
        if record is not None and confine.alive(record):
            confine.end_group(record, 0.0)
    paths.ray_processes.unlink(missing_ok=True)
    shutil.rmtree(paths.ray_folder, ignore_errors=True)
    return [f"{process.name} (pid {process.pid})" for process in left]


def _needs_port(host: str, port: int, key: str) -> None:
    if not port_is_free(host, port):
        raise UpRefused(f"Port {port} is taken by {port_holder(port)}. End it, or set another port in {key}.")


def _needs_space(home: Path) -> None:
    if shutil.disk_usage(home).free < FREE_BYTES_MIN:
        raise OSError(errno.ENOSPC, "less than 64 MiB free")


def _disk_sentence(paths: Paths, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"No space left for the state folder {paths.home}. Free some, or set HOMEPORT_HOME to another disk."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        where = error.filename or paths.home
        return f"{where} cannot be written. Change its owner, or set HOMEPORT_HOME (and HOMEPORT_LOCKS) elsewhere."
    return f"The state folder {paths.home} cannot be used: {error}. Set HOMEPORT_HOME to another folder."
