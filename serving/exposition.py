"""Families of metrics that are made of what is known when somebody asks, and their text for Prometheus.

Who counts as things happen has the library's own counters instead (router/metrics.py). Knows no names.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import metadata
from itertools import accumulate
from typing import Any

from prometheus_client import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

CONTENT_TYPE = CONTENT_TYPE_LATEST

Labels = dict[str, str]


class _Made(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def text(families: Iterable[Metric]) -> bytes:
    """What Prometheus reads; a family without samples is left out. Some 10 microseconds a sample: with thousands of
    them it is not for an event loop."""
    return generate_latest(_Made(each for each in families if each.samples))


def counter(name: str, about: str) -> Metric:
    """`name` without its `_total`."""
    return Metric(name, about, "counter")


def gauge(name: str, about: str) -> Metric:
    return Metric(name, about, "gauge")


def histogram(name: str, about: str) -> Metric:
    return Metric(name, about, "histogram")


def add(family: Metric, labels: Labels, value: float) -> None:
    """One series of a counter or a gauge."""
    name = f"{family.name}_total" if family.type == "counter" else family.name
    family.add_sample(name, labels, value)


def add_states(family: Metric, labels: Labels, states: Iterable[str], now: str) -> None:
    """A series for each state that there is: 1 for the one that holds, 0 for the others."""
    for state in states:
        family.add_sample(family.name, {**labels, "state": state}, float(state == now))


def add_histogram(family: Metric, labels: Labels, told: Mapping[str, Any]) -> None:
    """`told`: as serving/counts.py reports it."""
    bounds = (*map(floatToGoString, told["bounds"]), "+Inf")
    sums = list(accumulate(told["counts"]))
    for bound, count in zip(bounds, sums, strict=True):
        family.add_sample(f"{family.name}_bucket", {**labels, "le": bound}, count)
    family.add_sample(f"{family.name}_count", labels, sums[-1])
    family.add_sample(f"{family.name}_sum", labels, told["sum"])


@cache
def version() -> str:
    """The installed distribution's."""
    try:
        return metadata.version("homeport")
    except metadata.PackageNotFoundError:
        return "unknown"


def build_info(version_: str) -> Metric:
    family = gauge("homeport_build_info", "Always 1; the label tells the version.")
    add(family, {"version": version_}, 1.0)
    return family
