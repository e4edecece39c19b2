"""A machine enters the cluster: it asks the head, keeps what it is told, and has its part in Ray's books.

Starts nothing. What the head answers is decided in serving/joining.py.
"""

import ipaddress
import json
import os
import re
import secrets
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from cluster import machine_tls
from cluster.build import build_id
from cluster.call_head import (
    JOIN_PORT,
    LOOPBACK,
    NOT_YET,
    HeadAway,
    JoinRefused,
    kept_ca,
    no_homeport,
    post,
    refusal,
    trusted,
)
from cluster.inventory import measure
from cluster.machine import Hardware, Machine, Reserve, default_reserve
from cluster.paths import Paths, read_json, write_private
from cluster.proof import is_proven, key_of, proven
from cluster.record import boot_id
from cluster.slices import usable_cores

__all__ = [
    "JOIN_PORT",
    "LOOPBACK",
    "NOT_YET",
    "Answer",
    "Books",
    "HeadAway",
    "JoinRefused",
    "Joined",
    "RayIs",
    "ask",
    "books",
    "control_url",
    "enter",
    "is_same",
    "joined",
    "lasting",
    "local_address",
    "machine_id",
    "machine_name",
    "own_token",
    "ray_of",
    "settle",
]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the head says to a machine that may join; it has proven that it knows the token."""

    head: str
    """The address of the controller, as it was asked: `http://IP:PORT`, or https."""
    machine_token: str | None = field(repr=False)
    """This machine's own. None: it has it already, and asked with it."""
    files_token: str | None = field(repr=False)
    """For models' files of other machines. None: likewise."""
    ray_token: str | None = field(repr=False)
    """None: likewise."""
    ray: str
    """`IP:PORT`."""
    name: str
    zone: str
    address: str
    """This machine's own, as the head sees it."""
    reserve_cores: int | None
    """None: the default for the machine's hardware."""
    reserve_memory_bytes: int | None
    ports: tuple[int, int]
    yield_to: tuple[str, ...] = ()
    """Programs of its person's that it yields to."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """All that the head said of this machine, as it said it."""
    certificate: str | None = None
    """This machine's, as PEM. None: the network is declared private, and nobody speaks TLS."""
    ca: str | None = field(default=None, repr=False)
    """The certificate of the CA that the head was known by, as PEM."""


@dataclass(frozen=True, slots=True)
class RayIs:
    """What the head says to a machine that is in."""

    ray: str
    """`IP:PORT`."""
    is_heard: bool
    """Whether the head hears that machine's keeper."""
    machine: Mapping[str, Any] | None = None
    """What it would say of that machine, if it joined now; None: no word about that."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Which head this machine joined, and under which name."""

    head: str
    name: str
    told: Mapping[str, Any] | None = None
    """All that the head said of it; None where an earlier version did not keep that."""


@dataclass(frozen=True, slots=True)
class Books:
    """What a machine offers to Ray, and what its keeper takes of that: all but the reserve."""

    cpus: int
    gpus: int
    keeper_cpus: int
    keeper_gpus: int

    def labels(self, machine: Machine) -> dict[str, str]:
        """By these the controller finds the machine and knows how large its keeper is."""
        return {
            "machine": machine.id,
            "keeper-cpus": str(self.keeper_cpus),
            "keeper-gpus": str(self.keeper_gpus),
        }


def books(machine: Machine) -> Books:
    """Logical CPUs and GPUs of a machine for Ray."""
    cpus = sum(len(core.cpus) for core in machine.hardware.cores)
    kept = sum(len(core.cpus) for core in usable_cores(machine.hardware, machine.reserve))
    gpus = sum(gpu.usable for gpu in machine.hardware.gpus)
    return Books(cpus, gpus, kept, gpus)


def machine_name(host_name: str) -> str:
    """A host name as a machine's name: lower case letters, digits and hyphens; `machine` where nothing is left."""
    return re.sub(r"[^a-z0-9]+", "-", host_name.lower().split(".")[0]).strip("-") or "machine"


def machine_id(paths: Paths) -> str:
    """This machine's id, made and kept where it has none yet. Raises OSError."""
    known: dict[str, Any] = read_json(paths.machine) or {}
    if not known.get("id"):
        known["id"] = uuid.uuid4().hex
        paths.make()
        write_private(paths.machine, json.dumps(known, indent=1))
    return str(known["id"])


def enter(  # noqa: PLR0913, PLR0917 - what machine.json has
    paths: Paths,
    name: str,
    zone: str,
    hardware: Hardware,
    reserve: Reserve,
    ports: Sequence[int],
    address: str = LOOPBACK,
    yield_to: Sequence[str] = (),
    speaks_tls: bool = False,
) -> Machine:
    """Write `machine.json` for this machine and return it. An id that is there already stays for ever."""
    machine = Machine(
        id=machine_id(paths),
        name=name,
        zone=zone,
        address=address,
        hardware=hardware,
        reserve=reserve,
        state="ready",
    )
    kept = {
        "id": machine.id,
        "name": name,
        "zone": zone,
        "address": machine.address,
        "tls": speaks_tls,
        "reserve": reserve.to_json(),
        "ports": list(ports),
        "yield_to": list(yield_to),
    }
    write_private(paths.machine, json.dumps(kept, indent=1))
    return machine


def note_programs(paths: Paths, programs: Sequence[str]) -> None:
    """Have this machine yield to these programs from now on: its keeper sees it within a second. Raises OSError."""
    known: dict[str, Any] | None = read_json(paths.machine)
    if known is not None and tuple(known.get("yield_to", ())) != tuple(programs):
        write_private(paths.machine, json.dumps({**known, "yield_to": list(programs)}, indent=1))


def control_url(address: str) -> str:
    """The controller's address of a head that a person names as `IP` or `IP:PORT`. Raises JoinRefused."""
    host, colon, port = address.partition(":")
    try:
        ipaddress.IPv4Address(host)
        number = int(port) if colon else JOIN_PORT
        if not 1 <= number <= 65535:
            raise ValueError(port)
    except ValueError:
        message = (
            f"{address} is no address of a head. Write its IPv4 address, with its port where that is not {JOIN_PORT}: "
            "192.168.1.10 or 192.168.1.10:9090."
        )
        raise JoinRefused(message, "malformed") from None
    return f"http://{host}:{number}"


def is_same(head: str, other: str) -> bool:
    """Whether two URLs are of one head, whatever it speaks."""
    return urlsplit(head).netloc == urlsplit(other).netloc


def own_token(paths: Paths) -> str:
    """What this machine asks its head with, as it got it when it joined; empty where it has none."""
    for file in (paths.machine_token, paths.cluster_token):  # the latter: from before each had its own
        try:
            return file.read_text().strip()
        except (OSError, UnicodeDecodeError):
            continue
    return ""


def local_address(head: str) -> str | None:
    """This machine's address towards the head, given as a URL; None while no network leads there."""
    parts = urlsplit(head)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((parts.hostname or LOOPBACK, parts.port or JOIN_PORT))  # sends nothing
        except OSError:
            return None
        address: str = probe.getsockname()[0]
        return address


def joined(paths: Paths) -> Joined | None:
    """Which head this machine joined; None where it did not."""
    kept = read_json(paths.joined)
    try:
        head, name, told = str(kept["head"]), str(kept["name"]), kept.get("told")
        return Joined(head, name, told if isinstance(told, dict) else None)
    except (KeyError, TypeError):
        return None


def lasting(paths: Paths) -> dict[str, Any]:
    """What a keeper reads of `machine.json` when it begins, and what Ray's books say by it; other keys it looks at now
    and then."""
    kept: dict[str, Any] = read_json(paths.machine) or {}
    found = {key: kept.get(key) for key in ("name", "zone", "address", "reserve", "ports", "tls")}
    return {**found, "ca": kept_ca(paths) if kept.get("tls") else None}


def ask(head: str, token: str, paths: Paths, name: str | None, timeout_s: float) -> Answer:
    """Ask the controller at `http://IP:PORT` to be let in. Raises JoinRefused, HeadAway or OSError (own disk).

    A token that carries a fingerprint, or a head that was https when this machine joined, is asked over TLS alone. The
    token does not travel, and nothing is taken from who does not know it.
    """
    head, ca = trusted(head, token, paths, timeout_s)
    key, nonce = key_of(token), _nonce()
    asked = {
        "nonce": nonce,
        "id": machine_id(paths),
        "name": name,
        "build": build_id(),
        "host_name": socket.gethostname(),
        "boot": boot_id(),
    }
    if ca is not None:
        asked["csr"] = machine_tls.request(paths, machine_id(paths))
    status, told = post(
        head, "/join", lambda mine: proven(key, "join", {**asked, "address": mine}), timeout_s, ca
    )
    if status != 200:
        raise refusal(head, status, told)
    if not is_proven(key, "joined", told, nonce):
        raise no_homeport(head, "it does not prove that it knows the token of this machine")
    try:
        machine = told["machine"]
        if (ca is None) != (told.get("certificate") is None):
            raise KeyError("certificate")
        first, last = machine["ports"]
        cores, memory = machine["reserve_cores"], machine["reserve_memory_bytes"]
        return Answer(
            head=head,
            machine_token=_text(told.get("machine_token")),
            files_token=_text(told.get("files_token")),
            ray_token=_text(told.get("ray_token")),
            ray=str(told["ray"]),
            name=str(machine["name"]),
            zone=str(machine["zone"]),
            address=str(machine["address"]),
            reserve_cores=None if cores is None else int(cores),
            reserve_memory_bytes=None if memory is None else int(memory),
            ports=(int(first), int(last)),
            yield_to=tuple(map(str, machine.get("yield_to", ()))),
            told=dict(machine),
            certificate=_text(told.get("certificate")),
            ca=ca,
        )
    except (KeyError, TypeError, ValueError):
        raise no_homeport(head, "its answer is of another shape") from None


def ray_of(head: str, token: str, machine: str, timeout_s: float, paths: Paths | None = None) -> RayIs | None:
    """Where the head's Ray is, and whether the head hears the machine of this id. `paths`: where the CA lies.

    None where nobody answers who proves to know this machine's token, or Ray is not up there.
    """
    key, nonce = key_of(token), _nonce()
    asked = proven(key, "ray", {"nonce": nonce, "id": machine})
    ca = None if paths is None or not head.startswith("https:") else kept_ca(paths)
    try:
        status, told = post(head, "/ray", lambda _: asked, timeout_s, ca)
    except (JoinRefused, HeadAway):
        return None
    if status != 200 or not is_proven(key, "ray_is", told, nonce):
        return None
    machine_ = told.get("machine")
    return RayIs(
        str(told.get("ray")), told.get("is_heard") is True, machine_ if isinstance(machine_, dict) else None
    )


def settle(paths: Paths, answer: Answer, env: Mapping[str, str] = os.environ) -> Machine:
    """Keep what the head said: the cluster's secrets, who this machine is, which head it joined. Raises OSError."""
    paths.make()
    for file, told in (
        (paths.machine_token, answer.machine_token),
        (paths.files_token, answer.files_token),
        (paths.ray_token, answer.ray_token),
    ):
        if told is not None:
            write_private(file, told)
    paths.cluster_token.unlink(missing_ok=True)  # it is the head's alone
    if answer.certificate is not None and answer.ca is not None:
        machine_tls.keep(paths, answer.certificate, answer.ca)
    hardware = measure(env)
    usual = default_reserve(hardware)
    reserve = Reserve(
        usual.cores if answer.reserve_cores is None else answer.reserve_cores,
        usual.memory_bytes if answer.reserve_memory_bytes is None else answer.reserve_memory_bytes,
    )
    machine = enter(
        paths,
        answer.name,
        answer.zone,
        hardware,
        reserve,
        answer.ports,
        answer.address,
        answer.yield_to,
        answer.certificate is not None,
    )
    write_private(
        paths.joined, json.dumps({"head": answer.head, "name": answer.name, "told": answer.told}, indent=1)
    )
    return machine


def _nonce() -> str:
    return secrets.token_hex(16)


def _text(told: object) -> str | None:
    return None if told is None else str(told)
