"""What a host has counted since it began: waits, gaps between tokens, leases, tokens, contexts. Pure.

All of it only grows. How it is called for Prometheus is host_metrics.py's matter; what there is now (sessions, places,
memory) is no count and stands elsewhere in the host's state.
"""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, get_args

from serving.admission_events import RefusalCode
from serving.engine import Usage

GAP_BOUNDS_S = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
WAIT_BOUNDS_S = (0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 180.0, 600.0)

Lease = Literal["granted", "client_gone"] | RefusalCode
LEASES: tuple[Lease, ...] = ("granted", "client_gone", *get_args(RefusalCode))


class Histogram:
    """How many values were at most each bound and above the one before; the last count is of those above all."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def note(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def report(self) -> dict[str, Any]:
        """`bounds` go along: who reads it may be of another version."""
        return {"bounds": self.bounds, "counts": list(self.counts), "sum": round(self.total, 6)}


@dataclass(slots=True)
class Transfers:
    """Contexts that were saved or loaded."""

    count: int = 0
    seconds: float = 0.0
    size: int = 0
    """Bytes."""

    def note(self, seconds: float, size: int) -> None:
        self.count += 1
        self.seconds += seconds
        self.size += size

    def report(self) -> dict[str, Any]:
        return {"count": self.count, "seconds": round(self.seconds, 6), "bytes": self.size}


class Counts:
    """One host's. For one thread."""

    def __init__(self) -> None:
        self.gaps = Histogram(GAP_BOUNDS_S)
        """Seconds between two events of one turn that carry text, as its client sees them: of several tokens in one
        event, and of several choices of one answer, there is the gap between the events only."""
        self.waits = Histogram(WAIT_BOUNDS_S)
        """Seconds in the line, until the lease, a refusal, or the client left."""
        self.leases: Counter[Lease] = Counter(dict.fromkeys(LEASES, 0))
        self.cached = 0
        """Tokens of prompts that had not to be evaluated."""
        self.evaluated = 0
        self.generated = 0
        self.parks = Transfers()
        """Of sessions that gave way: from the order until the state has come from the engine."""
        self.resumes = Transfers()
        """From looking for the state until the engine has it loaded."""

    def text(self, tokens: int, gap_s: float | None) -> None:
        """Text came, with so many tokens behind it. `gap_s`: since the turn's text before it; None: it is the first."""
        self.generated += tokens
        if gap_s is not None:
            self.gaps.note(gap_s)

    def ended(self, usage: Usage, seen: int) -> None:
        """A turn ended. `seen`: the tokens behind its text, which were counted as that came."""
        self.cached += usage.reused
        self.evaluated += usage.evaluated
        self.generated += max(0, usage.generated - seen)

    def left_line(self, how: Lease, waited_s: float) -> None:
        self.leases[how] += 1
        self.waits.note(waited_s)

    def report(self) -> dict[str, Any]:
        """For the host's state."""
        return {
            "gaps": self.gaps.report(),
            "waits": self.waits.report(),
            "leases": dict(self.leases),
            "tokens": {"cached": self.cached, "evaluated": self.evaluated, "generated": self.generated},
            "parks": self.parks.report(),
            "resumes": self.resumes.report(),
        }
