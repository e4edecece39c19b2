"""Whether a host keeps its machine awake: while one of its turns holds a lease, and for a moment after. Pure.

How a machine is kept awake is staying_awake.py's matter.
"""

from dataclasses import dataclass

LINGER_S = 1.0
"""So long after the last lease: turns that follow one another ask logind once."""


@dataclass(frozen=True, slots=True)
class Wakefulness:
    """`until_s`: when it ends; None: not while leases are held, or it has ended."""

    held: bool = False
    until_s: float | None = None


def step(before: Wakefulness, has_leases: bool, now: float) -> Wakefulness:
    """What holds from now on.

    1. a lease is held                -> awake, without an end
    2. none, for less than `LINGER_S` -> awake until then
    3. otherwise                      -> not
    """
    if has_leases:
        return Wakefulness(True)
    if not before.held:
        return before
    until_s = now + LINGER_S if before.until_s is None else before.until_s
    return Wakefulness(True, until_s) if now < until_s else Wakefulness()
