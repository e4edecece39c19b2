"""What a turn asks for, and what may be decided about it: plain values. Pure.

Decides nothing: `choose` does.
"""

from dataclasses import dataclass
from typing import Literal

import msgspec

from router.keys import LOCAL, Key
from serving.model import WhenLost
from serving.pin_index import Candidate
from serving.pins import Pin

PinOutcome = Literal["new", "kept", "moved", "none"]
Rank = Literal["named", "guessed"]


class Ask(msgspec.Struct, frozen=True, gc=False):
    """One turn that wants a replica. `request_id` stands for the session where there is none.

    Structs, here and elsewhere, are what is made for every request: a frozen dataclass takes ten times as long.
    """

    model: str
    session: str | None
    request_id: str
    machine: str | None = None
    """The only one that it may run on, where the request names one."""
    zone: str | None = None
    """The same for a zone."""
    when_lost: WhenLost = "wait"
    key: Key = LOCAL
    """Whose it is: the zones and machines that it is limited to hold in every path."""
    rank: Rank = "named"
    family: str | None = None
    """The session that began this one."""
    parent: Pin | None = None
    """That one's home, once it is found: a child has its home there."""


class Home(msgspec.Struct, frozen=True, gc=False):
    """A session's pin. `fresh`: just claimed, so that no host is known to have written it down."""

    pin: Pin
    fresh: bool


class Send(msgspec.Struct, frozen=True, gc=False):
    """Send the turn there. `claim_free`: a new session counts on a free place, which the host may refute."""

    replica: str
    incarnation: int
    generation: int
    pin: PinOutcome
    claim_free: bool


@dataclass(frozen=True, slots=True)
class Wait:
    """Nobody can serve it now, but that should change: look again by `until` (the router's clock).

    `replica` is the home that is waited for; None for a turn that could go to any.
    """

    reason: Literal["machine_unavailable"]
    message: str
    until: float
    replica: str | None = None
    wake: str | None = None
    """A machine to be woken meanwhile."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nobody will serve it. `reasons`: one sentence a replica, or the names that are known.

    `retry_s`: when asking again makes sense; None: not before something else has changed.
    """

    status: int
    code: str
    message: str
    reasons: tuple[str, ...] = ()
    param: str | None = None
    retry_s: float | None = None
    replica: str | None = None
    """The home that it is about."""
    wake: str | None = None
    """A machine to be woken all the same, for whoever asks again."""


@dataclass(frozen=True, slots=True)
class Move:
    """The home is lost, and the session may have another one: claim it among `ranked`.

    `otherwise`: what becomes of the turn where nobody can say that it is still there.
    """

    lost: Pin
    ranked: tuple[Candidate, ...]
    otherwise: Refuse


Routed = Send | Wait | Refuse
Decision = Routed | Move


def machine_of(pin: Pin) -> str:
    """The machine of its home."""
    return pin.replica.rpartition("/")[0]
