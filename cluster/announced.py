"""What a head says of itself in its network while machines may join, and which head a machine takes of those it heard.
Pure.

Everybody in the network can say it, so nothing of it is believed: a token says by which CA to know its head, and both
sides prove that they know the token (cluster/proof.py).
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

NAME_MAX = 63


@dataclass(frozen=True, slots=True)
class Announced:
    """A head, as it says."""

    address: str
    """IPv4."""
    port: int
    name: str
    """Its machine's."""
    fingerprint: str | None = None
    """Of its CA; None: its network is declared private, and it speaks no TLS."""

    @property
    def at(self) -> str:
        return f"{self.address}:{self.port}"

    def told(self) -> dict[str, str]:
        """What is said beside address and port."""
        return {"name": self.name} | ({} if self.fingerprint is None else {"ca": self.fingerprint})


@dataclass(frozen=True, slots=True)
class Several:
    """A token that names no CA may be of any of these heads."""

    heads: tuple[Announced, ...]


def read(address: str, port: int | None, told: Mapping[str, str | None]) -> Announced | None:
    """What somebody said; None where it cannot be a head. The name may be printed."""
    try:
        ipaddress.IPv4Address(address)
    except ValueError:
        return None
    if not port:
        return None
    name = re.sub(r"[^A-Za-z0-9._-]", "?", (told.get("name") or "")[:NAME_MAX])
    return Announced(address, port, name or address, told.get("ca") or None)


def choose(heard: Iterable[Announced], fingerprint: str | None) -> Announced | Several | None:
    """The head that a token is of, by the fingerprint that the token carries; None: it was not heard.

    A token without one is of a head without TLS: such a head is taken where it is the only one.
    """
    mine = {each.at: each for each in heard if each.fingerprint == fingerprint}
    if len(mine) > 1:
        return Several(tuple(sorted(mine.values(), key=lambda each: each.at)))
    return next(iter(mine.values()), None)
