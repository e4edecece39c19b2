"""Whether a machine that a turn waits for is to be woken, and for how long that is waited for. Pure.

What a waiting turn gets is choose.py's matter; wakings.py asks the controller.
"""

from dataclasses import dataclass

AGAIN_S = 30.0
"""A machine is asked for once in this time, however many turns wait for it."""
PATIENCE_S = 45.0
"""A machine that has not answered by then counts as lost to who may move, or is to fail. Less than `queue` by default:
the same turn still does it."""
BOOTS_S = 180.0
"""The same for who waits anyway: it may have to boot and join."""
FORGOTTEN_S = 300.0
"""After so long without a try the next one is a first one."""


@dataclass(frozen=True, slots=True)
class Woken:
    """When a machine was tried to be woken, on the router's clock."""

    first_at: float
    last_at: float

    def is_over(self, now: float, patience_s: float) -> bool:
        """Whether it had its time, and did not come."""
        return now - self.first_at >= patience_s and now - self.last_at < FORGOTTEN_S


def try_again(before: Woken | None, now: float) -> Woken | None:
    """What holds once the machine is asked for now; None: it was, of late, and is not to be again."""
    if before is None or now - before.last_at >= FORGOTTEN_S:
        return Woken(now, now)
    return None if now - before.last_at < AGAIN_S else Woken(before.first_at, now)
