"""By which names this router may be called, against DNS rebinding and pages of other sites. Pure.

Looks no name up.
"""

import ipaddress
from dataclasses import dataclass
from functools import lru_cache

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Names:
    """`listen`: the address that is listened on. `machine`: this machine's host name. `more`: of the config."""

    listen: str = "127.0.0.1"
    machine: str = ""
    more: tuple[str, ...] = ()


@lru_cache(256)
def may_name(authority: bytes, names: Names) -> bool:
    """Whether a Host header (`name` or `name:port`) may name this router.

    On loopback: a loopback name, or one of the config. Else also an IP address and this machine's host name.
    """
    host = _host(authority)
    if host in LOOPBACK or host in names.more:
        return True
    elsewhere = not ipaddress.ip_address(names.listen).is_loopback
    try:
        return ipaddress.ip_address(host).is_loopback or elsewhere
    except ValueError:
        machine = names.machine.lower()
        short = machine.partition(".")[0]
        return elsewhere and bool(short) and host in (machine, short, f"{short}.local")


def may_come_from(origin: bytes, names: Names) -> bool:
    """Whether a page of this Origin may use this router: only one that a router of that name could have served."""
    scheme, _, authority = origin.partition(b"://")
    return scheme in (b"http", b"https") and may_name(authority, names)


def _host(authority: bytes) -> str:
    """Lower-case, without port, brackets and the dot of the root; "" for what no name can be."""
    name, colon, port = authority.lower().rpartition(b":")
    if not colon or not port.isdigit():
        name = authority.lower()
    if name.startswith(b"[") and name.endswith(b"]"):
        name = name[1:-1]
    return name.decode("latin-1").removesuffix(".")
