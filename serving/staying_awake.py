"""Keeps this machine awake for a host: holds logind's lock against sleep exactly as long as wakefulness.py says.

The lock is a descriptor of this process: logind takes it back when the process dies, however it dies, and it needs
neither keeper nor Ray. A machine without logind, or a user who may not, sleeps as it ever did; `report` says so.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cluster.logind import NoLogind, inhibit
from serving.wakefulness import Wakefulness, step

WHY = "A model is answering"
AGAIN_S = 60.0
"""When logind is asked again after it could not be."""
WHATS = ("sleep:idle", "idle")
"""What is kept off, the best first: who has no session on this machine's screen may only keep it from idling."""
ONLY_IDLE = "while turns run it is kept from falling asleep by itself, not from being put to sleep"


def _say(text: str) -> None:
    print(f"homeport: {text}", file=sys.stderr, flush=True)


class StayAwake:
    """Its methods are called on one loop; logind is asked on a thread of its own."""

    def __init__(
        self,
        take: Callable[[str, str, str], int] = inhibit,
        say: Callable[[str], None] = _say,
    ) -> None:
        self.held: str | None = None
        """What is kept off now."""
        self.detail = ""
        """Why less is than could be; empty: nothing is known of that."""
        self._take_lock = take
        self._say = say
        self._state = Wakefulness()
        self._thread = ThreadPoolExecutor(1, "awake")
        self._lock: int | None = None
        self._again_at = 0.0
        self._alarm: asyncio.TimerHandle | None = None

    def leases(self, has_leases: bool) -> None:
        """Whether any lease is held from now on."""
        loop = asyncio.get_running_loop()
        before, now = self._state, loop.time()
        after = self._state = step(before, has_leases, now)
        if after.held != before.held:
            self._thread.submit(self._take if after.held else self._give)
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if after.until_s is not None:
            self._alarm = loop.call_later(max(0.0, after.until_s - now), self.leases, False)

    def report(self) -> dict[str, Any]:
        """For /state."""
        return {"held": self.held, "detail": self.detail}

    def close(self) -> None:
        """Give the lock back, and end the thread, soon: logind is not waited for."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._thread.submit(self._give)
        self._thread.shutdown(wait=False)

    def _take(self) -> None:
        if self._lock is not None or time.monotonic() < self._again_at:
            return
        detail = ""
        for what in WHATS:
            try:
                self._lock, self.held = self._take_lock(what, WHY, "block"), what
            except NoLogind as error:
                detail = str(error)
                if not error.denied:
                    break
            else:
                detail = "" if what == WHATS[0] else f"{ONLY_IDLE} ({detail})"
                break
        if self._lock is None:
            self._again_at = time.monotonic() + AGAIN_S
            detail = f"nothing keeps it awake while turns run ({detail})"
        if detail and detail != self.detail:
            self._say(f"this machine: {detail}")
        self.detail = detail

    def _give(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
        self._lock = self.held = None
