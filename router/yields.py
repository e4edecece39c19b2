"""What becomes of turns for machines that are their persons' at present. Pure.

Pins stay where they are. Which machines are yielded, their keepers say.
"""

import math
from collections.abc import Set

from router.decision import Refuse, machine_of
from router.snapshot import Snapshot
from serving.pins import Pin

RETRY_S = 30.0
"""When to ask again where nobody knows when it is over."""


def is_yielded(machine: str, fleet: Snapshot, now: float) -> bool:
    """Whether its person has it. One that fell asleep meanwhile is theirs for as long as they said: nobody wakes it."""
    known = fleet.machines.get(machine)
    if known is None or known.state != "asleep":
        return known is not None and known.state == "yielded"
    return known.yielded and (known.free_at is None or now < known.free_at)


def home_yielded(pin: Pin, fleet: Snapshot, now: float) -> Refuse:
    """The person of its machine has it: the session stays there, and nobody takes it elsewhere."""
    machine = machine_of(pin)
    for_how_long, retry_s = _until(machine, fleet, now)
    message = (
        f"This session's home is {pin.replica} on {machine}, whose person has the machine for themselves "
        f"{for_how_long}. The session stays there with its context; ask again when that is over."
    )
    return Refuse(503, "machine_yielded", message, retry_s=retry_s, replica=pin.replica)


def _until(machine: str, fleet: Snapshot, now: float) -> tuple[str, float]:
    """For how long a machine is yielded yet, in words, and when to ask again."""
    known = fleet.machines.get(machine)
    if known is None or known.free_at is None:
        return "at present", RETRY_S
    left_s = max(1.0, known.free_at - now)
    return f"for {_span(left_s)} more", left_s


def _span(seconds: float) -> str:
    """Rounded up: `45 s`, `7 min`, `1 h 20 min`."""
    if seconds <= 90:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes <= 90 else f"{minutes // 60} h {minutes % 60} min"


def all_yielded(model: str, machines: Set[str], fleet: Snapshot, now: float) -> Refuse:
    """For a new session: every machine that it could go to is yielded."""
    spans = {machine: _until(machine, fleet, now) for machine in sorted(machines)}
    told = ", ".join(f"{machine} {span}" for machine, (span, _) in spans.items())
    message = f"Every machine that could serve {model} is its person's: {told}. Ask again when that is over."
    return Refuse(503, "machine_yielded", message, retry_s=min(wait_s for _, wait_s in spans.values()))
