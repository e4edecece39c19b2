"""Which session is this? Pure.

Names a session from what a request says of itself. Looks nothing up, and knows neither pins nor machines.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Source = Literal["header", "none"]

SESSION_HEADERS = (b"x-homeport-session", b"x-session-id")
"""The ladder: the first of these that a request carries names its session."""

LONGEST_NAME = 512
"""Characters in a session's name."""

_PUBLIC_ID = re.compile(r"hp_[0-9a-f]{24}")


class BadName(ValueError):
    """The request names its session in a way that cannot be used. The message says how to name it."""

    def __init__(self, header: str, message: str) -> None:
        super().__init__(message)
        self.header = header


@dataclass(frozen=True, slots=True)
class Identity:
    """The session of a request: 64 hex digits, or None where it names none; and what told so."""

    session: str | None
    source: Source


NOBODY = Identity(None, "none")
ANONYMOUS = "local"
"""The name of the one key that everybody has while there are no keys."""


def identify(headers: Iterable[tuple[bytes, bytes]], key_name: str = ANONYMOUS, scope: str = "") -> Identity:
    """The session that lower-case `headers` name, scoped to the API key's name and to a machine or zone.

    Raises BadName for a name that is empty, too long, not printable, given twice with different values, or a
    public id (those are answers; to send one back does not work yet).
    """
    named: dict[bytes, bytes] = {}
    for header, value in headers:
        if header in SESSION_HEADERS and named.setdefault(header, value) != value:
            text = header.decode()
            raise BadName(text, f"The header {text} is there twice with different values; send it once.")
    for header in SESSION_HEADERS:
        if header in named:
            return Identity(digest(key_name, scope, _name(header.decode(), named[header])), "header")
    return NOBODY


def digest(key_name: str, scope: str, name: str) -> str:
    """SHA-256 (hex) of the three parts, each behind its length: no two triples share the hashed bytes."""
    hashed = hashlib.sha256()
    for part in (key_name, scope, name):
        data = part.encode()
        hashed.update(len(data).to_bytes(8, "big"))
        hashed.update(data)
    return hashed.hexdigest()


def key_scope(key_name: str = ANONYMOUS) -> str:
    """Who may share what hosts have evaluated: 64 hex digits, the same for all requests of one key."""
    return digest(key_name, "", "")


def public_id(digest_key: bytes, session: str) -> str:
    """What a session is called towards people: `hp_` and 24 hex digits, the same while the key is."""
    return "hp_" + hmac.digest(digest_key, session.encode(), "sha256")[:12].hex()


def _name(header: str, value: bytes) -> str:
    try:
        name = value.decode()
    except UnicodeDecodeError:
        name = ""
    if not (1 <= len(name) <= LONGEST_NAME and name.isprintable()):
        raise BadName(
            header,
            f"The header {header} must hold 1 to {LONGEST_NAME} printable characters; "
            "send a shorter or plainer name.",
        )
    if _PUBLIC_ID.fullmatch(name):
        raise BadName(
            header,
            f"The header {header} holds a public id. Sending one back does not work yet in this version; "
            "send the name that the session was begun with.",
        )
    return name
