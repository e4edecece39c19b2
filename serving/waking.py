"""How a machine is woken, and who can do it: what the config says, and which machines are on its wire. Pure.

Sends nothing and runs nothing: serving/wake_machine.py does.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

SENDERS = 3
"""So many machines of a segment send: one of them may be about to sleep itself."""


@dataclass(frozen=True, slots=True)
class Wake:
    """What the config says of waking one machine: its network card's address, or a command of the head's."""

    mac: str | None = None
    """Six pairs of lower-case hex digits with colons between them."""
    command: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"mac": self.mac} if self.mac is not None else {"command": list(self.command)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Wake":
        return cls(data.get("mac"), tuple(data.get("command", ())))


@dataclass(frozen=True, slots=True)
class Sleeper:
    """The machine that is to be woken. An address that is empty was never told."""

    name: str
    zone: str
    address: str


@dataclass(frozen=True, slots=True)
class Awake:
    """A machine that could send. `networks`: its own addresses with their prefix lengths."""

    id: str
    name: str
    zone: str
    networks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sender:
    """Who is to send, on which of its networks."""

    id: str
    name: str
    networks: tuple[str, ...]


def entries(machines: Iterable[Mapping[str, Any]]) -> dict[str, Wake]:
    """By name, the machines of a revision that can be woken."""
    return {str(each["name"]): Wake.from_json(each["wake"]) for each in machines if each.get("wake")}


def senders(sleeper: Sleeper, awake: Iterable[Awake]) -> tuple[Sender, ...]:
    """Who sends, the first ones of `awake`; empty: nobody can.

    1. who is on the sleeper's segment                    -> sends there, and nowhere else
    2. nobody is, or its address is not known             -> who is in its zone sends on all its networks
    """
    others = [each for each in awake if each.name != sleeper.name]
    near = [
        Sender(each.id, each.name, on)
        for each in others
        if (on := tuple(own for own in each.networks if _holds(own, sleeper.address)))
    ]
    if near:
        return tuple(near[:SENDERS])
    return tuple(
        Sender(each.id, each.name, each.networks)
        for each in others
        if each.zone == sleeper.zone and each.networks
    )[:SENDERS]


def _holds(own: str, address: str) -> bool:
    """Whether that address is on the network of this interface."""
    try:
        return ipaddress.IPv4Address(address) in ipaddress.IPv4Interface(own).network
    except ValueError:
        return False
