"""What a router says in a request's headers, and whether it means this host.

Authenticates nobody, and looks at no body and no journal.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast

from serving.asgi import Problem
from serving.pins import Pin, is_session


@dataclass(frozen=True, slots=True)
class Ask:
    """One routed request. Without a session it is a transient: no pin, no hold, nothing left behind."""

    session: str | None
    generation: int
    pin: Literal["new", "kept", "none"]
    """What the router takes the session's pin for: made with this request, or there before."""
    claim_free: bool
    """The router took a place here for free, and wants a 421 if it is not."""
    request_id: str
    scope: str | None = None
    """Whose session this is: what is evaluated may be shared with others of the same scope; None: with none."""
    queue_left_s: float | None = None
    """How long it may still wait in line; None: as long as the replica lets it."""


def read_ask(headers: Mapping[str, str], request_id: str) -> Ask:
    """Read the router's headers. Raises Problem 400 for one that no router sends.

    `request_id` is used when the request has none of its own.
    """
    session = headers.get("x-homeport-session-key")
    if session is not None and not is_session(session):
        raise _bad("x-homeport-session-key must be 64 lower-case hex digits")
    generation = headers.get("x-homeport-generation", "1")
    if not (generation.isascii() and generation.isdigit() and len(generation) < 10 and int(generation) >= 1):
        raise _bad("x-homeport-generation must be a whole number from 1")
    pin = headers.get("x-homeport-pin", "new" if session is not None else "none")
    if pin not in ("new", "kept", "none"):
        raise _bad("x-homeport-pin must be new, kept or none")
    scope = headers.get("x-homeport-scope")
    if scope is not None and not is_session(scope):
        raise _bad("x-homeport-scope must be 64 lower-case hex digits")
    left = headers.get("x-homeport-queue-left-ms")
    if left is not None and not (left.isascii() and left.isdigit() and len(left) < 10):
        raise _bad("x-homeport-queue-left-ms must be a whole number")
    return Ask(
        session=session if pin != "none" else None,
        generation=int(generation),
        pin=cast(Literal["new", "kept", "none"], pin),
        claim_free=headers.get("x-homeport-claim") == "free",
        request_id=headers.get("x-request-id", request_id)[:200],
        scope=scope,
        queue_left_s=int(left) / 1000 if left is not None else None,
    )


def as_transient(ask: Ask) -> Ask:
    """The same request without a session, whatever its headers say."""
    return replace(ask, session=None, pin="none", claim_free=False)


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


def _bad(message: str) -> Problem:
    return Problem(400, message, "invalid_header")
