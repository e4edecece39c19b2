"""What becomes of saved contexts: how much room they get, which give way, which residents are written. Pure.

Reads and writes nothing; parking.py, parking_disk.py and turns.py carry it out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

MARGIN_BYTES = 128 * 2**20
"""Left free of a replica's memory: for its requests, and for states on their way to disk."""
BEHIND_S = 60.0
"""A resident is written behind at most this often."""

Missing = Literal["never_parked", "evicted", "restore_failed", "engine_changed"]
"""Why a session has no saved state to come back to.

never_parked: none is known. evicted: it had to make room. restore_failed: it was damaged or could not be read, or the
engine refused it. engine_changed: another model, engine or layout wrote it.
"""


@dataclass(frozen=True, slots=True)
class Quiet:
    """A resident between turns whose context has changed since it was saved last."""

    session: str
    since_s: float
    written_s: float | None
    """When it was written behind last; None: never."""


def memory_budget(asked_bytes: int, slice_bytes: int, used_bytes: int) -> int:
    """Bytes that states may take in memory beside a loaded engine, which uses `used_bytes` of its slice."""
    return max(0, min(asked_bytes, slice_bytes - used_bytes - MARGIN_BYTES))


def gives_way(sizes: Mapping[str, int], budget: int, coming: int = 0, least: int = 0) -> tuple[str, ...]:
    """Who must go so that the rest and one that is `coming` fit the budget. `sizes` names the longest unused first;
    the `least` that come last stay whatever they take."""
    total = coming + sum(sizes.values())
    gone = []
    for session, size in list(sizes.items())[: len(sizes) - least]:
        if total <= budget:
            break
        gone.append(session)
        total -= size
    return tuple(gone)


def behind(quiet: Iterable[Quiet], hold_s: float, now: float) -> tuple[tuple[str, ...], float | None]:
    """Whose contexts are to be written behind now, and when somebody's next is (None: nobody's).

    A resident's is due once it was quiet for `hold_s`, but no sooner than BEHIND_S after it was due last.
    """
    due_s = {
        one.session: max(one.since_s + hold_s, one.written_s + BEHIND_S if one.written_s is not None else 0.0)
        for one in quiet
    }
    later = [due for due in due_s.values() if due > now]
    return tuple(session for session, due in due_s.items() if due <= now), min(later, default=None)
