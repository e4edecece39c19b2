"""What Prometheus sees of the router. Labels come from the config and from the fleet, never from a client.

Counts at the end of a turn only; nothing here runs per chunk. Several workers count into files of one folder.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

FIRST_TOKEN_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
PIN_OUTCOMES = frozenset({"new", "kept", "moved", "none"})
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
ROOM_BYTES = 1 << 20
"""A file of counts begins with so many. The library makes it of holes, and who fills one on a full disk is killed."""


def count_in_files(folder: Path, worker: int) -> None:
    """Let this process keep its counts in `folder`, where every worker reads them. To be called before there are any.

    The files are the worker's and not the process's: the next process of that worker goes on with them. Raises OSError.
    """
    os.environ[FOLDER] = str(folder)
    for kind in ("counter", "gauge_max", "histogram"):
        file = folder / f"{kind}_{worker}.db"
        if not file.exists():
            whole = file.with_suffix(".new")  # A full disk leaves it short.
            whole.write_bytes(bytes(ROOM_BYTES))
            whole.replace(file)
    library = cast(Any, values)
    library.ValueClass = library.MultiProcessValue(lambda: worker)


class _Pins(Collector):
    def __init__(self, pins: Callable[[], Mapping[str, int]]) -> None:
        self._pins = pins

    def collect(self) -> Iterable[Any]:
        # prometheus_client leaves its constructor untyped
        family = cast(Any, GaugeMetricFamily)(
            "homeport_pins", "Pins in a host's journal.", labels=["replica"]
        )
        for replica, count in self._pins().items():
            family.add_metric([replica], count)
        yield family


class _Foreign(Collector):
    """Names no program: those are their person's matter."""

    def __init__(self, shares: Callable[[], Mapping[str, float]]) -> None:
        self._shares = shares

    def collect(self) -> Iterable[Any]:
        family = cast(Any, GaugeMetricFamily)(
            "homeport_foreign_cpu_share",
            "What processes that are not the replica's take of its cores, in cores.",
            labels=["machine", "replica"],
        )
        for replica, share in self._shares().items():
            family.add_metric([replica.rpartition("/")[0], replica], share)
        yield family


class Metrics:
    """The router's series in `registry`. `pins` and `foreign` give each replica's when scraped.

    `folder`: after `count_in_files`, where the counts of all workers lie, of which the sum is told.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        version: str,
        pins: Callable[[], Mapping[str, int]],
        foreign: Callable[[], Mapping[str, float]] = dict,
        folder: Path | None = None,
    ) -> None:
        own = registry if folder is None else None
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
            "Requests by outcome: ok, client_gone, or the code of the error.",
            ["model", "replica", "outcome"],
            registry=own,
        )
        self._first_token = Histogram(
            "homeport_time_to_first_token_seconds",
            "From the request's arrival to the engine's first event.",
            ["model", "replica"],
            buckets=FIRST_TOKEN_BUCKETS_S,
            registry=own,
        )
        self._pin_outcomes = Counter(
            "homeport_pin_outcomes",
            "Answers by what became of the session's pin.",
            ["pin"],
            registry=own,
        )
        self._of: dict[tuple[Any, tuple[str, ...]], Any] = {}
        """Series by their labels: finding one takes longer than counting."""
        registry.register(_Pins(pins))
        registry.register(_Foreign(foreign))

    def ended(
        self,
        model: str,
        replica: str,
        outcome: str,
        first_token_s: float | None = None,
        pin: str | None = None,
    ) -> None:
        """One request has ended. `model` and `replica` are names of the config and the fleet, or empty."""
        self._series(self._requests, model, replica, outcome).inc()
        if first_token_s is not None:
            self._series(self._first_token, model, replica).observe(first_token_s)
        if pin is not None and pin in PIN_OUTCOMES:
            self._series(self._pin_outcomes, pin).inc()

    def _series(self, family: Any, *labels: str) -> Any:
        found = self._of.get((family, labels))
        if found is None:
            found = self._of[family, labels] = family.labels(*labels)
        return found
