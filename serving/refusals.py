"""What becomes of a turn that gets no lease, or loses it, in a client's words: who is busy, until about when, and what
to do next.

Decides nothing: admission refuses.
"""

import math
from typing import assert_never

from serving.admission_events import RefusalCode
from serving.asgi import Problem
from serving.desk import Desk

STOPPING_S = 5
"""When to ask a host again that ends: by then another may have started."""


def refusal(desk: Desk, code: RefusalCode, waited_s: float, about_s: float | None) -> Problem:
    """`about_s`: how long it would wait if it asked again now; None: nothing was measured yet."""
    match code:
        case "queue_timeout":
            wait_s = max(1, math.ceil(desk.turns.state.hold_s if about_s is None else about_s))
            message = (
                f"{desk.replica} on machine {desk.machine} is busy with other turns; waited {waited_s:.0f} s for "
                f"it. Try again in about {wait_s} s, or serve more replicas of '{desk.model.name}'"
            )
            return Problem(429, message, code, headers=_retry_after(wait_s))
        case "host_stopping":
            message = f"{desk.replica} is stopping; its sessions wait for it, try again"
            return Problem(503, message, code, headers=_retry_after(STOPPING_S))
        case "session_ended":
            message = (
                f"this session was ended on {desk.replica}, with its turns and its context; "
                "ask again to begin anew"
            )
            # Clients of OpenAI's API repeat a 409 by themselves, and whoever ended the session would see it again.
            return Problem(409, message, code, headers=(("x-should-retry", "false"),))
        case _:
            assert_never(code)


def _retry_after(wait_s: int) -> tuple[tuple[str, str], ...]:
    return (("retry-after", str(wait_s)),)
