"""Who may join the cluster, and under which name, in which zone, with which reserve. Pure.

Tokens are checked before this is asked (serving/join_tokens.py); what it decides is carried out in
serving/join_routes.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Code = Literal["is_head", "alone", "other_address", "other_build", "name_wrong", "name_taken", "id_taken"]

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
DEFAULT_ZONE = "default"


@dataclass(frozen=True, slots=True)
class Known:
    """A machine by what it was when it was here last. An address that is empty was never told."""

    name: str
    zone: str
    address: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the config says of one machine; None: nothing."""

    name: str
    address: str | None = None
    zone: str = DEFAULT_ZONE
    reserve_cores: int | None = None
    reserve_memory_bytes: int | None = None
    yield_to: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Entry":
        told = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
        return cls(**{**told, "yield_to": tuple(data.get("yield_to", ()))})


@dataclass(frozen=True, slots=True)
class Ask:
    """A machine that wants to join, with a token that is right."""

    id: str
    address: str
    """As the head sees it."""
    own_address: str
    """As it sees it itself."""
    build: str
    host_name: str
    """Made a machine's name already."""
    name: str | None = None
    """What its person wants to call it, or what it was called before."""
    boot: str = ""
    """Which boot of it this is; empty: not told."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the head knows when somebody asks."""

    head_id: str
    head: Known
    is_alone: bool
    """Whether nothing but the head's own machine reaches it: it listens on loopback."""
    build: str
    entries: tuple[Entry, ...] = ()
    known: Mapping[str, Known] = field(default_factory=dict)
    """By id: every machine that was ever here and is not forgotten."""
    boots: Mapping[str, str] = field(default_factory=dict)
    """By id, of those whose keeper is heard at present: which boot of the machine it runs in."""

    def entry(self, name: str) -> Entry | None:
        return next((entry for entry in self.entries if entry.name == name), None)

    def owner(self, name: str, but: str) -> Known | None:
        """Another machine than `but` that has this name."""
        others = {**self.known, self.head_id: self.head}
        return next((known for id_, known in others.items() if known.name == name and id_ != but), None)


@dataclass(frozen=True, slots=True)
class Join:
    """It may, as this machine."""

    name: str
    zone: str
    address: str
    reserve_cores: int | None
    """None: the default for its hardware."""
    reserve_memory_bytes: int | None
    yield_to: tuple[str, ...] = ()
    """Programs that it yields to."""


@dataclass(frozen=True, slots=True)
class Refused:
    """It may not; the message names the remedy."""

    code: Code
    message: str


def decide(ask: Ask, cluster: Cluster) -> Join | Refused:
    """May it join?

    1. the head serves its own machine alone, or this is that machine -> Refused
    2. it is not where it takes itself to be                          -> Refused
    3. it runs another build                                          -> Refused
    4. its id is that of a machine that is here at the same time       -> Refused
    5. its name is another machine's, or kept for another address     -> Refused
    6. otherwise -> Join: zone and reserve as the config says of that name
    """
    if cluster.is_alone:
        return Refused("alone", _ALONE)
    if ask.id == cluster.head_id or ask.address == cluster.head.address:
        return Refused(
            "is_head", "This machine is the head itself and serves already. Join from another one."
        )
    if ask.address != ask.own_address:
        message = (
            f"The head sees this machine at {ask.address}, and its own address is {ask.own_address}: something between "
            "them translates addresses, so that the head could not reach it. Join from a network that both are in."
        )
        return Refused("other_address", message)
    if ask.build != cluster.build:
        message = (
            f"The head runs homeport {cluster.build}, this machine {ask.build}. Bring both to the same one: "
            "copy the head's clone here and run `make setup`, or run `ray up` again."
        )
        return Refused("other_build", message)
    was = cluster.known.get(ask.id)
    boot = cluster.boots.get(ask.id, "")
    if was is not None and was.address != ask.address and boot and ask.boot and boot != ask.boot:
        return Refused("id_taken", _copied(ask, was))
    name = _name(ask, cluster)
    if not re.fullmatch(NAME, name):
        return Refused(
            "name_wrong", f"{name[:80]!r} cannot be a name. Use letters, digits and . _ -, at most 63."
        )
    by_config = any(entry.name == name and entry.address == ask.address for entry in cluster.entries)
    if (owner := cluster.owner(name, but=ask.id)) is not None:
        return Refused("name_taken", _taken(ask, cluster, name, owner, by_config))
    entry = cluster.entry(name) or Entry(name)
    has_it = was is not None and was.name == name
    if entry.address is not None and not by_config and not has_it:
        message = (
            f"The head's config keeps the name {name} for the machine at {entry.address}, and this one is at "
            f"{ask.address}. Join with --name NAME, or correct the address in the config."
        )
        return Refused("name_taken", message)
    reserve = entry.reserve_cores, entry.reserve_memory_bytes
    return Join(name, entry.zone, ask.address, *reserve, entry.yield_to)


def _name(ask: Ask, cluster: Cluster) -> str:
    """What the config calls the machine at its address; else what it is to be called, was called, or calls itself.

    A machine that was here before keeps its name when it comes with an address that the config gives to another one.
    """
    entry = next((entry for entry in cluster.entries if entry.address == ask.address), None)
    was = cluster.known.get(ask.id)
    if entry is not None:
        if was is None or was.name == entry.name:
            return entry.name
        roams = cluster.entry(was.name) is not None or cluster.owner(entry.name, but=ask.id) is not None
        if not roams:
            return entry.name
    return ask.name or (ask.host_name if was is None else was.name)


def _copied(ask: Ask, was: Known) -> str:
    return (
        f"{was.name} at {was.address} has the id of this machine, at {ask.address}, and is here: one disk is a copy of "
        "the other. On the copy run `homeport down`, remove machine.json and replicas/ from its state folder "
        "(~/.local/state/homeport), and join again with --name NAME. If it is one machine that was moved and started "
        "anew just now, ask again in half a minute."
    )


def _taken(ask: Ask, cluster: Cluster, name: str, owner: Known, by_config: bool) -> str:
    if owner is cluster.head:
        who, gone = "the head's machine", ""
    else:
        who = f"another machine, last at {owner.address}" if owner.address else "another machine"
        gone = f", or run `homeport forget {name}` on the head if that one is gone for good"
    if by_config:
        return (
            f"The head's config calls the machine at {ask.address} {name}, and {name} is {who}. Correct `machines` "
            f"in the config{gone}."
        )
    return f"{name} is {who}. Join with --name NAME{gone}."


_ALONE = (
    "The homeport there serves its own machine alone. In its config, give that machine its `address` below `machines`; "
    "then run `homeport down` and `homeport up` there."
)
