"""How long a session that nobody knows waits before it counts as new. Pure.

Only where no controller says so and a host that may be its home cannot be asked: see `homes`.
"""

PATIENCE_S = 3.0
"""While the controller is away that this router has heard before."""
UNHEARD_PATIENCE_S = 30.0
"""While it has heard none since it began: after a reboot of the head a router is there first, some 15 s before the
controller, and before the hosts of its own machine."""


def patience_s(queue_s: float, has_heard_controller: bool) -> float:
    """From the turn's arrival on; never more than half of what it may wait in all."""
    return min(PATIENCE_S if has_heard_controller else UNHEARD_PATIENCE_S, queue_s / 2)
