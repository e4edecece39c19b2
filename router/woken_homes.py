"""Waiting for a machine that is woken: whose home sleeps, and who finds nobody awake. Pure.

Part of what choose.py decides. When a machine is asked for again, waking.py decides.
"""

from collections.abc import Sequence

from router.decision import Wait, machine_of
from router.snapshot import OUT_S, Replica, Snapshot
from router.waking import BOOTS_S, PATIENCE_S
from router.yields import is_yielded
from serving.model import WhenLost
from serving.pins import Pin
from serving.standing import AWAY

LOOK_S = 5.0
"""When to look again for one that is woken."""


def wakes(machine: str, fleet: Snapshot) -> bool:
    """Whether nothing is heard of it and it can be woken."""
    known = fleet.machines.get(machine)
    return known is not None and known.wakes and known.state in AWAY


def _may_come(
    machine: str, replica: Replica | None, fleet: Snapshot, now: float, patience_s: float = BOOTS_S
) -> bool:
    """Whether it sleeps or is away, can be woken, is not its person's, and has not had its time to come. One that
    falls silent just now may still be falling asleep: no packet wakes it yet. A controller that has just begun knows
    nobody yet."""
    woken = fleet.woken.get(machine)
    if not wakes(machine, fleet) or is_yielded(machine, fleet, now):
        return False
    if woken is not None and woken.is_over(now, patience_s):
        return False
    if replica is None:
        return True
    if fleet.machines[machine].state == "unknown":
        return replica.is_lost(now, OUT_S)
    return replica.reach(now) not in ("up", "suspect")


def home_woken(pin: Pin, when_lost: WhenLost, fleet: Snapshot, now: float) -> Wait | None:
    """The wait for a home that is woken; None where there is nothing to wake, or it did not come."""
    machine = machine_of(pin)
    patience_s = BOOTS_S if when_lost == "wait" else PATIENCE_S
    replica = fleet.replicas.get(pin.replica)
    if machine in fleet.forgotten or not _may_come(machine, replica, fleet, now, patience_s):
        return None
    does = "sleeps" if fleet.machines[machine].state == "asleep" else "is away"
    if not fleet.is_current:
        message = (
            f"This session's home is {pin.replica} on {machine}, which {does}, and the controller, which would have it "
            f"woken, does not answer. Ask again in a moment, or wake {machine} yourself."
        )
        return Wait("machine_unavailable", message, now + LOOK_S, pin.replica)
    message = (
        f"This session's home is {pin.replica} on {machine}, which {does} and is being woken. Ask again soon."
    )
    return Wait("machine_unavailable", message, now + LOOK_S, pin.replica, wake=machine)


def somebody_woken(replicas: Sequence[Replica], fleet: Snapshot, now: float) -> Wait | None:
    """The wait of a new session that only a machine can take which has to be woken; None: there is none.

    `replicas`: those that it may have, the best first. One that is being woken already comes before them.
    """
    asleep = [each for each in replicas if fleet.is_current and _may_come(each.machine, each, fleet, now)]
    if not asleep:
        return None
    best = min(asleep, key=lambda each: each.machine not in fleet.woken)
    message = (
        f"Every machine that could serve {best.model} is away; {best.machine} is being woken. Ask again soon."
    )
    return Wait("machine_unavailable", message, now + LOOK_S, wake=best.machine)
