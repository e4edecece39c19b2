"""What `homeport up` does, without a word to the terminal, and who runs on this state folder.

`start` leaves the work to the parent process. Draws nothing (router/live.py) and parses no command line
(router/cli.py); `homeport down` is in cluster/ending.py.
"""

import errno
import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import machine_tls, restarting, tls
from cluster.build import ROOT, build_id
from cluster.ending import HOST_GRACE_S, end_everything
from cluster.fit import NoFit, fit
from cluster.inventory import measure
from cluster.join import LOOPBACK, enter, machine_name
from cluster.machine import Machine
from cluster.paths import Paths, read_json, secret, write_private
from cluster.processes import (
    clean_environment,
    end,
    end_all,
    mark,
    ours,
    port_holder,
    port_is_free,
    ports_become_free,
)
from cluster.proof import files_token, machine_token
from cluster.restarting import UP_LOCK_FD, running
from cluster.router_end import Say, end_routers
from router.refused import Refused
from serving.config import Config, MachineConfig, load
from serving.model import digest
from serving.source import content_digest

__all__ = [
    "Prepared",
    "UpRefused",
    "age_secrets",
    "end_everything",
    "give_list",
    "leave_former_cluster",
    "lock_or_run",
    "prepare",
    "release",
    "running",
    "settle",
    "start",
    "take_up_lock",
    "wanted_revision",
    "write_revision",
]

RELEASE_S = 5.0
PORT_S = 1.0
"""How long what was killed may hold a port."""
SAYS_S = 30.0
"""Within this an `up` has read its config, measured its machine and said what it starts."""
PARENT_GRACE_S = 1.0
FREE_BYTES_MIN = 64 * 1024**2


class UpRefused(Refused):
    """Nothing was started."""

    usual_code = 2


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked config on this machine's measured hardware; nothing is written or started yet."""

    config: Config
    machine: Machine


def prepare(
    paths: Paths,
    config_path: Path,
    env: Mapping[str, str],
    address: str | None = None,
    *,
    allow_script: bool = False,
) -> Prepared:
    """Read the config and fit it to this machine. Raises ConfigError, or UpRefused with reasons per machine.

    `address`: where other machines reach this one; else what the config says of this machine; else it is alone.
    `allow_script`: as `config.load` has it. What starts and restarts replicas later asks no more: a revision holds only
    what was allowed here.
    """
    if not str(paths.home).isascii():
        raise UpRefused(f"Ray needs a state folder in ASCII, not {paths.home}. Set HOMEPORT_HOME to another.")
    try:
        config = load(config_path, paths.home, allow_script=allow_script)
    except OSError as error:
        raise UpRefused(_disk_sentence(paths, error), code=1) from error
    if config.router.workers > 1 and sys.platform != "linux":
        raise UpRefused("Several processes share a port on Linux only. Set router.workers: 1.")
    hardware = measure(env)
    known = read_json(paths.machine) or {}
    entry = _entry(config, known.get("name"), address)
    address = address or entry.address or LOOPBACK
    _needs_address(address)
    reserve = entry.reserve(hardware)
    machine = Machine(known.get("id", ""), entry.name, entry.zone, address, hardware, reserve, "ready")
    fitted = fit([model.wish() for model in config.models], [machine])
    if isinstance(fitted, NoFit) and address == LOOPBACK:  # else it may fit on a machine that joins
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


def take_up_lock(paths: Paths) -> int | None:
    """The right to start a homeport on this state folder, as a descriptor that `start` hands to the parent.

    None where somebody has it, who starts or runs one. Raises UpRefused for a state folder that cannot be written.
    """
    try:
        return restarting.take_up_lock(paths)
    except OSError as error:
        raise UpRefused(_disk_sentence(paths, error), code=1) from error


def lock_or_run(paths: Paths) -> tuple[int | None, dict[str, Any]]:
    """The lock, as `take_up_lock` gives it, or None and what whoever has it starts or runs, as `run.json` says. One who
    has the lock and has not said that yet is waited for. Raises UpRefused."""
    deadline = time.monotonic() + SAYS_S
    while True:
        lock, run = take_up_lock(paths), read_json(paths.run) or {}
        if lock is not None or run or time.monotonic() > deadline:
            return lock, run
        time.sleep(0.1)


def start(
    paths: Paths,
    prepared: Prepared,
    env: Mapping[str, str],
    owner: int | None,
    lock: int,
    machines: Path | None = None,
    say: Say = lambda _: None,
) -> subprocess.Popen[bytes]:
    """Write the revision and start the parent. Hosts that still live are left for the next keeper to adopt.

    `owner`: the process whose end ends everything (a foreground `up`); None: there is none. `lock`: from
    `take_up_lock`; it is the parent's from here on. `machines`: Ray's list of those that it is to set up. `say`
    is told what is waited for. Raises UpRefused for a taken port, a full or read-only state folder.
    """
    try:
        settle(paths, prepared, owner, machines, say)
        with (paths.logs / "parent.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "router.parent"],
                env={**clean_environment(env), **mark(paths, "parent"), UP_LOCK_FD: str(lock)},
                pass_fds=(lock,),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,  # the folder in which a person stands may be deleted
                start_new_session=True,
            )
    except OSError as error:
        raise UpRefused(_disk_sentence(paths, error), code=1) from error
    finally:
        os.close(lock)


def settle(
    paths: Paths,
    prepared: Prepared,
    owner: int | None,
    machines: Path | None = None,
    say: Say = lambda _: None,
) -> None:
    """All that `start` does before the parent begins; no other parent runs then. Raises UpRefused and OSError.

    A router that was left may take as long as its `router.drain`: `say` is told that.
    """
    config, network = prepared.config, prepared.config.network
    _needs_space(paths.home)
    leave_former_cluster(paths)
    end(ours(paths, "parent"), PARENT_GRACE_S)
    end_routers(paths, say)
    end_all(paths, "ray")
    _needs_port(config.router.host, config.router.port, "router.listen")
    _needs_port(prepared.machine.address, network.control, "network.control")
    is_tls = speaks_tls(config, prepared.machine)
    age_secrets(paths, prepared.machine.address, is_tls)
    for part in (paths.cluster_token, paths.digest_key, paths.ray_token):
        secret(part)
    machine = enter(
        paths,
        prepared.machine.name,
        prepared.machine.zone,
        prepared.machine.hardware,
        prepared.machine.reserve,
        (network.first, network.last),
        prepared.machine.address,
        prepared.config.machine(prepared.machine.name).yield_to,
        is_tls,
    )
    write_private(paths.machine_token, machine_token(secret(paths.cluster_token), machine.id))
    write_private(paths.files_token, files_token(secret(paths.cluster_token)))
    if is_tls:
        machine_tls.certify_head(paths, machine.id, machine.address, time.time())
    give_list(paths, machines)
    write_revision(paths, config, machine, (network.first, network.last))
    run = {
        "url": config.router.url,
        "keys": config.router.keys_file is not None,
        "owner": owner,
        "machine": machine.to_json(),
        "address": machine.address,
        "build": build_id(),
        "steps": {},
        "since": time.time(),
    }
    write_private(paths.run, json.dumps(run, indent=1))


def speaks_tls(config: Config, machine: Machine) -> bool:
    """Whether the machines of this head speak TLS: others reach it, in a network that is not declared private."""
    return not (config.network.private or ipaddress.ip_address(machine.address).is_loopback)


def age_secrets(paths: Paths, address: str, speaks_tls: bool) -> None:
    """Before there are new ones: take away what is no secret any more. Raises OSError."""
    known = read_json(paths.machine) or {}
    was_clear = known.get("address", LOOPBACK) != LOOPBACK and not known.get("tls")
    if not speaks_tls and address != LOOPBACK:
        paths.said_in_clear.touch(mode=0o600)  # from here on, also when it is alone in between
    elif speaks_tls and (was_clear or paths.said_in_clear.exists()):
        for part in (*paths.spoken, paths.said_in_clear):
            part.unlink(missing_ok=True)
        return
    if paths.cluster_token.exists() and not paths.machine_token.exists():
        paths.cluster_token.replace(paths.former_token)  # Every machine has it.


def leave_former_cluster(paths: Paths) -> None:
    """Where this machine served a head elsewhere: remove that, its secrets, and what runs with them.

    To be called under the lock of `take_up_lock`. Raises OSError.
    """
    if paths.joined.exists():
        end_all(paths, "ray")  # a keeper would start its hosts anew
        end(ours(paths, "host"), HOST_GRACE_S)
        secrets_ = (paths.cluster_token, paths.machine_token, paths.files_token, paths.ray_token)
        for secret_ in (*secrets_, paths.join_token, paths.ca, paths.certificate):
            secret_.unlink(missing_ok=True)
        paths.joined.unlink(missing_ok=True)  # last: who is interrupted does it again


def release(paths: Paths, parent: subprocess.Popen[bytes]) -> None:
    """Leave a started homeport running: from here on it no longer ends with its owner. Raises UpRefused."""
    parent.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + RELEASE_S
    while (read_json(paths.run) or {}).get("owner") is not None:
        if time.monotonic() > deadline or parent.poll() is not None:
            raise UpRefused(f"The parent process did not answer. Logs: {paths.logs}", code=1)
        time.sleep(0.02)


def give_list(paths: Paths, machines: Path | None) -> None:
    """Have Ray set up the machines of this list, which the parent looks at from time to time. Raises OSError."""
    if machines is None:
        paths.machine_list.unlink(missing_ok=True)
    else:
        write_private(paths.machine_list, str(machines.expanduser().absolute()))


def wanted_revision(
    paths: Paths, config: Config, machine: Machine, ports: tuple[int, int]
) -> tuple[int, dict[str, Any]]:
    """What is wanted of the machines, and its number, which grows only when something has changed. Writes nothing."""
    wanted = {
        "models": [
            {"spec": model.to_json(), "digest": digest(model, content_digest(model, paths.home))}
            for model in config.models
        ],
        "control": {
            "host": machine.address,
            "port": config.network.control,
            "tls": speaks_tls(config, machine),
            "lost_after_s": config.network.lost_after_s,
        },
        "files": {
            "port": config.network.files,
            "rate": config.network.copy_rate,
            "budget": config.network.models_disk,
        },
        "machines": [entry.to_json() for entry in config.machines],
        "machine": {
            "name": machine.name,
            "hardware": machine.hardware.to_json(),
            "reserve": machine.reserve.to_json(),
            "ports": list(ports),
        },
    }
    wanted = json.loads(json.dumps(wanted))  # tuples become lists, as those that were read
    known = read_json(paths.revision) or {"revision": 0}
    number = int(known.pop("revision"))
    return (number if known == wanted else number + 1), wanted


def write_revision(paths: Paths, config: Config, machine: Machine, ports: tuple[int, int]) -> None:
    """Keep what is wanted of the machines as a numbered revision."""
    number, wanted = wanted_revision(paths, config, machine, ports)
    if number != (read_json(paths.revision) or {}).get("revision"):
        # The router would serve from its last picture, which is of the former revision.
        paths.fleet.unlink(missing_ok=True)
    write_private(paths.revision, json.dumps({"revision": number, **wanted}, indent=1))
    is_tls = speaks_tls(config, machine)
    router = {
        **config.router.to_json(),
        "control_url": tls.url(machine.address, config.network.control, is_tls),
        "ca_file": str(paths.ca) if is_tls else None,
        "token_file": str(paths.cluster_token),
        "digest_key_file": str(paths.digest_key),
        "fleet_file": str(paths.fleet),
        "known_file": str(paths.known_pins),
        "workers_folder": str(paths.workers),
        "models": [model.to_json() for model in config.models],
    }
    write_private(paths.router_settings, json.dumps(router, indent=1))


def _entry(config: Config, known: str | None, address: str | None) -> MachineConfig:
    """What the config says of this machine: by its address, else by its host name, else by its last name."""
    if found := next((each for each in config.machines if address and each.address == address), None):
        return found
    host = machine_name(socket.gethostname())
    names = [entry.name for entry in config.machines]
    return config.machine(host if host in names or not known else known)


def _needs_address(address: str) -> None:
    if ipaddress.ip_address(address).is_loopback:
        return
    if not port_is_free(address, 0):
        raise UpRefused(
            f"{address} is no address of this machine at present. Look at `ip addr`, and correct the machine's address."
        )


def _needs_port(host: str, port: int, key: str) -> None:
    if not ports_become_free(host, [port], PORT_S):
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
