"""Clocks that a suspended machine, a stopped process or a clock that is set do not mislead.

Decides nothing about what follows from the time. Not for more than one thread at once.
"""

import time
from collections.abc import Callable

SHARED_S = 3.0
"""What at most counts of the time between two looks at an AwakeClock."""

Clock = Callable[[], float]


def _now() -> float:
    return time.time()


def _monotonic() -> float:
    return time.monotonic()


def uptime() -> float:
    """Seconds that go on while the machine sleeps, and that nobody can set."""
    name = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if name is None else time.clock_gettime(name)


class AwakeClock:
    """Counts only time in which this process ran, so that its own silence is not taken for that of others.

    Has to be read at least every `step_s`: of a longer time between two reads, `step_s` counts.
    """

    def __init__(self, step_s: float = SHARED_S, monotonic: Clock = _monotonic) -> None:
        self._step_s = step_s
        self._monotonic = monotonic
        self._at = monotonic()
        self._now = 0.0

    def __call__(self) -> float:
        at = self._monotonic()
        self._now += min(at - self._at, self._step_s)
        self._at = at
        return self._now


class DayClock:
    """Seconds since the epoch, by a clock that people and NTP may set, and as it would be, had nobody set it since this
    process began."""

    def __init__(self, wall: Clock = _now, steady: Clock = uptime) -> None:
        self._wall = wall
        self._steady = steady
        self._began = wall() - steady()

    def steady(self) -> float:
        """What goes on however the clock is set."""
        return self._began + self._steady()

    def earliest(self) -> float:
        """For what becomes too old: nothing does because the clock was set forward."""
        return min(self._wall(), self.steady())

    def latest(self) -> float:
        """For what is newer than something else: it stays so where the clock was set back."""
        return max(self._wall(), self.steady())
