"""What Prometheus sees of the router's own work. Labels come from the config and from the fleet, never from a client.

Counts at the end of a turn only; nothing here runs per chunk. Several workers count into files of one folder. What
hosts, keepers and the controller count, `scrape` asks of them.
"""

from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.multiprocess import MultiProcessCollector

from router.cells import Cell, cell_of, count_in_memory

FIRST_TOKEN_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
DURATION_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
PINS = frozenset({"new", "kept", "moved", "none"})
"""What a host says of a session's pin."""
OTHER = "other"
"""The model of a request that names none that is known."""
NOT_REFUSED = frozenset({"ok", "client_gone", "slow_client", "router_stopping", "session_ended"})
"""How turns end of which no pin was refused, also where no host has said anything of it."""


class _Bins:
    """One series of a histogram, found once. As the library's own `observe` in a sixth of the time."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, series: Any) -> None:
        self._bounds = series._upper_bounds
        self._counts = [cell_of(bucket) for bucket in series._buckets]
        self._total = cell_of(series._sum)

    def observe(self, value: float) -> None:
        cells, at = self._counts[bisect_left(self._bounds, value)]
        cells[at] += 1.0
        cells, at = self._total
        cells[at] += value


@dataclass(frozen=True, slots=True)
class _Series:
    """Where the turns of one kind are counted: finding that takes longer than counting."""

    requests: Cell
    pins: Cell | None
    duration: _Bins
    first_token: _Bins


class Metrics:
    """The router's series in `registry`.

    `folder`: after `count_in_files`, where the counts of all workers lie, of which the sum is told.
    """

    def __init__(self, registry: CollectorRegistry, version: str, folder: Path | None = None) -> None:
        cast(Any, disable_created_metrics)()  # when a series began, which is twice as many of them
        own = registry if folder is None else None
        if folder is None:
            count_in_memory()
        if folder is not None:
            cast(Any, MultiProcessCollector)(registry, path=str(folder))
        build = Gauge(
            "homeport_build_info",
            "Always 1; the label tells the version.",
            ["version"],
            registry=own,
            multiprocess_mode="max",
        )
        build.labels(version).set(1)
        self._requests = Counter(
            "homeport_requests",
            "Requests by outcome: ok, client_gone, or the code of the error; and by what became of the pin.",
            ["model", "machine", "status", "pin"],
            registry=own,
        )
        self._first_token = Histogram(
            "homeport_time_to_first_token_seconds",
            "From a stream's arrival to the engine's first event.",
            ["model"],
            buckets=FIRST_TOKEN_BUCKETS_S,
            registry=own,
        )
        self._duration = Histogram(
            "homeport_request_duration_seconds",
            "From a request's arrival to the end of its answer, also of one that failed.",
            ["model"],
            buckets=DURATION_BUCKETS_S,
            registry=own,
        )
        self._pin_outcomes = Counter(
            "homeport_pin_outcomes",
            "Turns of sessions by what became of the pin: refused with the code of the error.",
            ["pin", "reason"],
            registry=own,
        )
        self._of: dict[tuple[str | None, str, str, str | None, bool], _Series] = {}

    def ended(
        self,
        model: str | None,
        replica: str | None,
        status: str,
        pin: str | None,
        is_session: bool,
        took_s: float,
        first_token_s: float | None,
    ) -> None:
        """One turn has ended. `model` and `replica` are names of the config and the fleet; None where there is none.
        `pin`: what a host said of it. `is_session`: whether it was a session's."""
        kind = (model, replica or "", status, pin, is_session)
        series = self._of.get(kind)
        if series is None:
            series = self._of[kind] = self._series(*kind)
        cells, at = series.requests
        cells[at] += 1.0
        if series.pins is not None:
            cells, at = series.pins
            cells[at] += 1.0
        series.duration.observe(took_s)
        if first_token_s is not None:
            series.first_token.observe(first_token_s)

    def refused(self, status: str) -> None:
        """A request was not let in."""
        self._requests.labels(OTHER, "", status, "none").inc()

    def _series(
        self, model: str | None, replica: str, status: str, pin: str | None, is_session: bool
    ) -> _Series:
        model, became = model or OTHER, pin_of(status, pin, is_session)
        requests: Any = self._requests.labels(model, replica.rpartition("/")[0], status, became)
        pins: Any = None
        if pin is not None or is_session:
            pins = self._pin_outcomes.labels(became, status if became == "refused" else "")
        return _Series(
            cell_of(requests._value),
            None if pins is None else cell_of(pins._value),
            _Bins(self._duration.labels(model)),
            _Bins(self._first_token.labels(model)),
        )


def pin_of(status: str, pin: str | None, is_session: bool) -> str:
    """What became of a session's pin: as its host said; else `refused` where the turn was, else `none`."""
    if pin is not None:
        return pin if pin in PINS else "none"
    return "refused" if is_session and status not in NOT_REFUSED else "none"
