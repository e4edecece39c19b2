"""Families of metrics that are made of what is known when somebody asks, and their text for Prometheus.

Who counts as things happen has the library's own counters instead (router/metrics.py). Knows no names.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import metadata
from itertools import accumulate
from typing import Any, cast

from prometheus_client import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.utils import floatToGoString

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

Labels = dict[str, str]

_number = cast(Callable[[float], str], floatToGoString)


def text(families: Iterable[Metric]) -> bytes:
    """What Prometheus reads, as the library's `generate_latest` writes it, in a third of the time; a family without
    samples is left out. Thousands of samples are not for an event loop: some 2 microseconds each."""
    parts: list[str] = []
    written = _Written()
    for family in list(families):  # all of them stay, so that none has another's identity
        if not family.samples:
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        about = family.documentation.replace("\\", r"\\").replace("\n", r"\n")
        parts.append(f"# HELP {name} {about}\n# TYPE {name} {family.type}\n")
        parts += [
            f"{sample.name}{written.labels(sample.labels)} {_number(sample.value)}\n"
            for sample in family.samples
        ]
    return "".join(parts).encode()


class _Written:
    """Labels as text: many samples have the same, and most have some of the same."""

    def __init__(self) -> None:
        self._whole: dict[int, str] = {}
        """By identity."""
        self._each: dict[tuple[str, str], str] = {}

    def labels(self, labels: Mapping[str, str]) -> str:
        found = self._whole.get(id(labels))
        if found is None:
            each = ",".join([self._each.get(pair) or self._write(pair) for pair in sorted(labels.items())])
            found = self._whole[id(labels)] = f"{{{each}}}" if each else ""
        return found

    def _write(self, pair: tuple[str, str]) -> str:
        name, value = pair
        value = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
        text_ = self._each[pair] = f'{name}="{value}"'
        return text_


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
    bounds = (*map(_number, told["bounds"]), "+Inf")
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
