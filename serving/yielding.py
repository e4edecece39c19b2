"""Whether this machine is its person's at present: what was ordered x the programs that run -> for whom, until when.
Pure.

Looks at no process and keeps nothing on disk: serving/owner.py does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PERSON = "person"
QUIET_S = 10.0
"""A program that ended may be starting again: so long after that the machine is its person's still."""

LONGEST_S = 366 * 86400.0


@dataclass(frozen=True, slots=True)
class Order:
    """A person's word, in seconds since the epoch. `until_s` None: until it is taken back."""

    given_s: float
    until_s: float | None

    def to_json(self) -> dict[str, Any]:
        return {"given": self.given_s, "until": self.until_s}

    @classmethod
    def from_json(cls, data: Any) -> "Order":
        """Raises KeyError, TypeError or ValueError."""
        until = data["until"]
        return cls(float(data["given"]), None if until is None else float(until))


@dataclass(frozen=True, slots=True)
class Yielded:
    """The machine is its person's. `by`: `person`, or the program that they run."""

    by: str
    until_s: float | None = None
    """Seconds since the epoch; None: nobody knows."""

    def to_json(self) -> dict[str, Any]:
        return {"by": self.by, "until": self.until_s}


@dataclass(frozen=True, slots=True)
class Programs:
    """What was seen of the programs for which a machine yields. The default: nobody has looked yet."""

    running: tuple[str, ...] | None = None
    """At the last look; None: there was none."""
    name: str | None = None
    """For which one the machine is its person's."""
    seen_s: float = field(default=0.0)
    """When that one was seen last."""


def wanted_yield(body: Any) -> tuple[float | None, bool]:
    """What `{"for_s": …}`, `{"end": true}` or `{}` asks for: for how long (None: until it is ended); and does it end?

    Raises ValueError.
    """
    told = body if isinstance(body, dict) else {"?": None}
    for_s, ends = told.get("for_s"), told.get("end", False)
    is_time = isinstance(for_s, int | float) and not isinstance(for_s, bool) and 0 < for_s <= LONGEST_S
    if told.keys() - {"for_s", "end"} or not isinstance(ends, bool) or not (for_s is None or is_time):
        raise ValueError('Say {"for_s": SECONDS}, up to a year; {} for until it is ended; or {"end": true}.')
    if ends and for_s is not None:
        raise ValueError("Either for_s or end, not both.")
    return (None if for_s is None else float(for_s)), ends


def looked(before: Programs, running: Sequence[str], now: float) -> Programs:
    """One look more. `running`: those of the config's programs that run, in its order; `now`: a monotonic clock.

    A program counts from the second look in a row on, since one that asks for its version runs for a moment only; at
    the very first look at once, since a keeper that starts anew is not to start its hosts beside it. One that ended
    counts for `QUIET_S` more.
    """
    found = tuple(running)
    if before.name in found:
        return Programs(found, before.name, now)
    known = found if before.running is None else before.running
    if (name := next((each for each in found if each in known), None)) is not None:
        return Programs(found, name, now)
    if before.name is not None and now - before.seen_s < QUIET_S:
        return Programs(found, before.name, before.seen_s)
    return Programs(found)


def yielded(order: Order | None, programs: Programs, wall_s: float) -> Yielded | None:
    """For whom the machine is, now; None: homeport may serve.

    1. a person has ordered it, and the time is not over -> the person
    2. a program of the config runs, or did a moment ago -> that program
    3. otherwise                                         -> None
    """
    if order is not None and (order.until_s is None or wall_s < order.until_s):
        return Yielded(PERSON, order.until_s)
    return None if programs.name is None else Yielded(programs.name)
