"""What Prometheus sees of the router's own work. Labels come from the config and from the fleet, never from a client.

Counts at the end of a turn only; nothing here runs per chunk. Several workers count into files of one folder. What
hosts, keepers and the controller count, `scrape` asks of them.
"""

import os
from pathlib import Path
from typing import Any, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, values
from prometheus_client.multiprocess import MultiProcessCollector

FIRST_TOKEN_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
DURATION_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
PINS = frozenset({"new", "kept", "moved", "none"})
"""What a host says of a session's pin."""
OTHER = "other"
"""The model of a request that names none that is known."""
GOOD = frozenset({"ok", "client_gone"})
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


class Metrics:
    """The router's series in `registry`.

    `folder`: after `count_in_files`, where the counts of all workers lie, of which the sum is told.
    """

    def __init__(self, registry: CollectorRegistry, version: str, folder: Path | None = None) -> None:
        cast(Any, disable_created_metrics)()  # when a series began, which is twice as many of them
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
        self._of: dict[tuple[Any, tuple[str, ...]], Any] = {}
        """Series by their labels: finding one takes longer than counting."""

    def ended(
        self,
        model: str | None,
        machine: str,
        status: str,
        took_s: float,
        first_token_s: float | None = None,
        pin: str | None = None,
        *,
        is_session: bool = False,
    ) -> None:
        """One turn has ended. `model` and `machine` are names of the config and the fleet; None and "" where there is
        none. `pin`: what a host said of it. `is_session`: whether it was a session's."""
        model, became = model or OTHER, pin_of(status, pin, is_session)
        self._series(self._requests, model, machine, status, became).inc()
        self._series(self._duration, model).observe(took_s)
        if first_token_s is not None:
            self._series(self._first_token, model).observe(first_token_s)
        if pin is not None or is_session:
            self._series(self._pin_outcomes, became, status if became == "refused" else "").inc()

    def refused(self, status: str) -> None:
        """A request was not let in."""
        self._series(self._requests, OTHER, "", status, "none").inc()

    def _series(self, family: Any, *labels: str) -> Any:
        found = self._of.get((family, labels))
        if found is None:
            found = self._of[family, labels] = family.labels(*labels)
        return found


def pin_of(status: str, pin: str | None, is_session: bool) -> str:
    """What became of a session's pin: as its host said; else `refused` where the turn was, else `none`."""
    if pin is not None:
        return pin if pin in PINS else "none"
    return "refused" if is_session and status not in GOOD else "none"
