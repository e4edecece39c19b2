"""How long a router waits for clients and hosts, and how much it takes in: keys of `router` in the config. Pure.

What each is compared with is the router's matter.
"""

from dataclasses import dataclass

BODY_BYTES_MAX = 2**30
"""The most that `max_body` can be, and so what a host takes in of a router."""

KEYS = {
    "drain_s": "drain",
    "slow_client_s": "slow_client",
    "first_token_s": "first_token",
    "between_bytes_s": "between_bytes",
    "max_body_bytes": "max_body",
}
"""By a field of RouterLimits, its key below `router`."""


@dataclass(frozen=True, slots=True)
class RouterLimits:
    """As the config says them, or its defaults."""

    drain_s: float = 30.0
    """How long open requests may go on after SIGTERM."""
    slow_client_s: float = 60.0
    """A client that reads nothing of what was written to it for so long is cut."""
    first_token_s: float = 600.0
    """How long a stream may take until the engine's first event, its time in line included."""
    between_bytes_s: float = 120.0
    """How long nothing may come of a stream, in which hosts say at least every 10 s that they live. A whole answer
    takes as long as it takes; a host that falls silent meanwhile is noticed by the fleet."""
    max_body_bytes: int = 32 * 2**20
    """A request's body that is larger is refused."""


USUAL = RouterLimits()
