"""How a machine stands towards the cluster. Pure.

Knows no reports and no book: serving/machine_roll.py asks it of each machine.
"""

from typing import Literal

Standing = Literal["unknown", "ready", "cordoned", "lost"]

LOST_AFTER_S = 30.0
"""Where the config does not say."""
AWAY: tuple[Standing, ...] = ("unknown", "lost")
"""Of a machine that stands so nothing is known but what it was."""


def standing(silent_s: float, has_reported: bool, is_cordoned: bool, lost_after_s: float) -> Standing:
    """How a machine stands whose keeper has been silent for so long; where it has not reported at all, since the
    controller began.

    1. silent for `lost_after_s` -> lost
    2. not reported yet          -> unknown: nobody is moved, nothing is started in its stead
    3. cordoned by a person      -> cordoned; so it is in 1 and 2 too, where that is not the word for it
    4. otherwise                 -> ready
    """
    if silent_s >= lost_after_s:
        return "lost"
    if not has_reported:
        return "unknown"
    return "cordoned" if is_cordoned else "ready"
