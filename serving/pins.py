"""Pins: the durable tie of a session, for one model, to its home replica.

Pure. It stores nothing (journal.py does) and never decides where a session should live (the router does).
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PUBLIC_ID = re.compile(r"hp_[0-9a-f]{24}")


@dataclass(frozen=True, slots=True)
class Pin:
    """One session's home for one model. It never changes: a new home is a new Pin, one generation higher."""

    session: str
    """64 hex digits: a digest of the session's scoped name, never the name itself."""
    model: str
    replica: str
    """`machine/slot`."""
    generation: int
    """Counts the homes this session has had, from 1."""
    created_s: float
    """Seconds since the epoch on the clock of the machine that made it."""

    def __post_init__(self) -> None:
        if not is_session(self.session):
            raise ValueError("a pin's session is 64 lower-case hex digits")
        if self.generation < 1:
            raise ValueError(f"a pin's generation counts from 1, not {self.generation}")

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def is_session(text: str) -> bool:
    """Whether `text` is a session digest as pins carry it."""
    return _DIGEST.fullmatch(text) is not None


def is_public_id(text: str) -> bool:
    """Whether `text` is what a session is called towards people."""
    return text.startswith("hp_") and _PUBLIC_ID.fullmatch(text) is not None


def pin_from_json(data: Mapping[str, object]) -> Pin:
    """The Pin that `to_json` wrote. Raises ValueError for anything else."""
    session, model, replica = data.get("session"), data.get("model"), data.get("replica")
    generation, created_s = data.get("generation"), data.get("created_s")
    if not (isinstance(session, str) and isinstance(model, str) and isinstance(replica, str)):
        raise ValueError("a pin needs session, model and replica as texts")
    if isinstance(generation, bool) or not isinstance(generation, int):
        raise ValueError("a pin needs generation as a whole number")
    if isinstance(created_s, bool) or not isinstance(created_s, int | float):
        raise ValueError("a pin needs created_s as a number")
    return Pin(session, model, replica, generation, float(created_s))


def merge(a: Pin, b: Pin) -> Pin:
    """The one that holds when two pins of one session and model meet, in whatever order.

    The higher generation wins, then the earlier creation, then the replica's name in text order.
    Raises ValueError for pins of different sessions or models.
    """
    if (a.session, a.model) != (b.session, b.model):
        raise ValueError("pins of different sessions or models do not merge")
    return min(a, b, key=lambda pin: (-pin.generation, pin.created_s, pin.replica))
