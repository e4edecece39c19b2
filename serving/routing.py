"""What a router says in a request's headers, and whether it means this host.

Authenticates nobody, and looks at no body and no journal.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from serving.asgi import Problem
from serving.pins import Pin, is_session

PinWord = Literal["new", "kept", "moved", "none"]
Rank = Literal["named", "guessed", "transient"]

MAX_CONTINUES = 16
MAX_PUBLIC = 100
"""Characters of a public id."""
MAX_MACHINES = 8000
"""Characters of the names of machines."""
WEIGHTS = (0.001, 1000.0)
"""The least and the largest weight of a key."""

Known = TypeVar("Known", bound=str)


@dataclass(frozen=True, slots=True)
class Ask:
    """One routed request. Without a session it is a transient: no pin, no hold, nothing left behind."""

    session: str | None
    generation: int
    pin: PinWord
    """What the router takes the session's pin for: made with this request, there before, or made anew because its
    home is lost."""
    claim_free: bool
    """The router took a place here for free, and wants a 421 if it is not."""
    request_id: str
    scope: str | None = None
    """Whose session this is: what is evaluated may be shared with others of the same scope; None: with none."""
    queue_left_s: float | None = None
    """How long it may still wait in line; None: as long as the replica lets it."""
    public: str = ""
    """The session's public id, kept with a pin that is made; empty: the router told none."""
    rank: Rank = "named"
    """Whether the client named its session, the router guessed it, or there is none."""
    history: str | None = None
    """Of a guess: the digest of all that the request says so far."""
    continues: tuple[str, ...] = ()
    """Of a guess: the histories that this request goes on from, longest first."""
    parent: str | None = None
    """The session that started this one."""
    places: int | None = None
    """How many turns of this key may run here at once; None: as many as there are places."""
    weight: float = 1.0
    """The key's, in the line."""
    machines: str | None = None
    """The only machines that the session may run on, joined by commas; None: it may be moved to any of its zone."""


def read_ask(headers: Mapping[str, str], request_id: str) -> Ask:
    """Read the router's headers. Raises Problem 400 for one that no router sends.

    `request_id` is used when the request has none of its own.
    """
    session = _digest(headers, "x-homeport-session-key")
    default: PinWord = "new" if session is not None else "none"
    pin = _word(headers, "x-homeport-pin", _PINS, default)
    left_ms = _whole(headers, "x-homeport-queue-left-ms", 0)
    ask = Ask(
        session=session,
        generation=_whole(headers, "x-homeport-generation", 1) or 1,
        pin=pin,
        claim_free=headers.get("x-homeport-claim") == "free",
        request_id=headers.get("x-request-id", request_id)[:200],
        scope=_digest(headers, "x-homeport-scope"),
        queue_left_s=left_ms / 1000 if left_ms is not None else None,
        public=_public(headers),
        rank=_word(headers, "x-homeport-rank", _RANKS, "named"),
        history=_digest(headers, "x-homeport-history"),
        continues=_digests(headers, "x-homeport-continues"),
        parent=_digest(headers, "x-homeport-parent-key"),
        places=_whole(headers, "x-homeport-key-places", 1),
        weight=_weight(headers, "x-homeport-weight"),
        machines=_machines(headers),
    )
    if pin == "none" or session is None:
        return as_transient(ask)
    if ask.rank == "named":
        return replace(ask, history=None, continues=())
    return ask


def as_transient(ask: Ask) -> Ask:
    """The same request without a session, whatever its headers say. Its key's places and weight stay."""
    return replace(
        ask,
        session=None,
        pin="none",
        claim_free=False,
        public="",
        rank="transient",
        history=None,
        continues=(),
        parent=None,
        machines=None,
    )


def check_home(headers: Mapping[str, str], replica: str, incarnation: int) -> None:
    """Raises Problem 421 when the request was meant for another replica or an earlier life of this one."""
    meant = headers.get("x-homeport-replica")
    if meant is not None and meant != replica:
        raise misdirected(f"this is the replica {replica}, not the one that was meant", "replica")
    life = headers.get("x-homeport-incarnation")
    if life is not None and life != str(incarnation):
        raise misdirected(f"{replica} has started anew: its incarnation is {incarnation}", "incarnation")


def misdirected(message: str, reason: str, pin: Pin | None = None) -> Problem:
    """421: the router's picture is old; it asks for a newer one and tries again."""
    homeport = {"reason": reason, "pin": pin.to_json() if pin is not None else None}
    return Problem(421, message + "; refresh and ask again", "misdirected", homeport=homeport)


_PINS: tuple[PinWord, ...] = ("new", "kept", "moved", "none")
_RANKS: tuple[Rank, ...] = ("named", "guessed")


def _word(headers: Mapping[str, str], name: str, known: tuple[Known, ...], default: Known) -> Known:
    text = headers.get(name, default)
    word = next((word for word in known if word == text), None)
    if word is None:
        raise _bad(f"{name} must be {', '.join(known[:-1])} or {known[-1]}")
    return word


def _whole(headers: Mapping[str, str], name: str, least: int) -> int | None:
    text = headers.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= least):
        raise _bad(f"{name} must be a whole number" + (f" from {least}" if least else ""))
    return int(text)


def _weight(headers: Mapping[str, str], name: str) -> float:
    try:
        weight = float(headers.get(name, "1"))
    except ValueError:
        weight = math.nan
    if not WEIGHTS[0] <= weight <= WEIGHTS[1]:
        raise _bad(f"{name} must be a number from {WEIGHTS[0]:g} to {WEIGHTS[1]:g}")
    return weight


def _digest(headers: Mapping[str, str], name: str) -> str | None:
    digest = headers.get(name)
    if digest is not None and not is_session(digest):
        raise _bad(f"{name} must be 64 lower-case hex digits")
    return digest


def _digests(headers: Mapping[str, str], name: str) -> tuple[str, ...]:
    digests = tuple(filter(None, (part.strip() for part in headers.get(name, "").split(","))))
    if len(digests) > MAX_CONTINUES or not all(map(is_session, digests)):
        raise _bad(f"{name} must be at most {MAX_CONTINUES} times 64 lower-case hex digits, comma separated")
    return digests


def _public(headers: Mapping[str, str]) -> str:
    public = headers.get("x-homeport-public", "")
    if not (public.isascii() and public.isprintable() and len(public) <= MAX_PUBLIC):
        raise _bad(f"x-homeport-public must be at most {MAX_PUBLIC} printable characters")
    return public


def _machines(headers: Mapping[str, str]) -> str | None:
    machines = headers.get("x-homeport-machines")
    if machines is not None and not (machines.isprintable() and 0 < len(machines) <= MAX_MACHINES):
        raise _bad(f"x-homeport-machines must be names of machines, at most {MAX_MACHINES} characters")
    return machines


def _bad(message: str) -> Problem:
    return Problem(400, message, "invalid_header")
