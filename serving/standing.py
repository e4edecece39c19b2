"""How a machine stands towards the cluster. Pure.

Knows no reports and no book: serving/machine_roll.py asks it of each machine.
"""

from typing import Literal

Standing = Literal["unknown", "ready", "cordoned", "draining", "yielded", "asleep", "lost"]

LOST_AFTER_S = 30.0
"""Where the config does not say."""
AWAY: tuple[Standing, ...] = ("unknown", "asleep", "lost")
"""Of a machine that stands so nothing is known but what it was."""


def standing(
    silent_s: float,
    has_reported: bool,
    is_cordoned: bool,
    lost_after_s: float,
    *,
    is_yielded: bool = False,
    is_asleep: bool = False,
    is_draining: bool = False,
) -> Standing:
    """How a machine stands whose keeper has been silent for so long; where it has not reported at all, since the
    controller began.

    1. it said last that it goes to sleep -> asleep, for as long as that is its last word
    2. silent for `lost_after_s`          -> lost
    3. not reported yet                   -> unknown: nobody is moved, nothing is started in its stead
    4. its keeper says that its person has it -> yielded
    5. drained by a person                -> draining; so it is in 1 to 4 too, where that is not the word for it
    6. cordoned by a person               -> cordoned; likewise
    7. otherwise                          -> ready
    """
    if is_asleep:
        return "asleep"
    if silent_s >= lost_after_s:
        return "lost"
    if not has_reported:
        return "unknown"
    if is_yielded:
        return "yielded"
    if is_draining:
        return "draining"
    return "cordoned" if is_cordoned else "ready"
