"""What a dashboard of homeport is made of, as plain values. Asks nobody and draws nothing (see `generate`).

Queries are PromQL with Grafana's variables: `$machine` and `$model` stand in regular expressions, `$__rate_interval` is
the time that a rate is told over.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["stat", "lines", "stack", "bars", "states", "heatmap"]
"""One figure, lines, areas on each other, a bar for each last value, on and off over time, a histogram over time."""
VariableName = Literal["machine", "model"]
COLUMNS = 24
"""Of Grafana's grid."""


@dataclass(frozen=True, slots=True)
class Query:
    expr: str
    legend: str = ""
    """With `{{label}}`; empty: there is one series, which the title names."""


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    kind: Kind
    queries: tuple[Query, ...]
    says: str
    """What to read from it, and what to do about it."""
    unit: str = "short"
    """One of Grafana's: s, bytes, percentunit, watt, …"""
    width: int = 8
    """Of COLUMNS."""
    bad_from: float | None = None
    """From this value on it is red."""

    @property
    def height(self) -> int:
        return 4 if self.kind == "stat" else 8


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the dashboard's head: the values of the label `name` in `source`."""

    name: VariableName
    source: str
    all: bool = True
    """Whether several, or all, can be chosen at once."""


@dataclass(frozen=True, slots=True)
class Board:
    name: str
    """Of its file, and in its address."""
    title: str
    says: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        return tuple(panel for row in self.rows for panel in row.panels)


def stat(
    title: str, expr: str, says: str, unit: str = "short", width: int = 4, bad_from: float | None = None
) -> Panel:
    return Panel(title, "stat", (Query(expr),), says, unit, width, bad_from)


def lines(title: str, expr: str, legend: str, says: str, unit: str = "short", width: int = 8) -> Panel:
    return Panel(title, "lines", (Query(expr, legend),), says, unit, width)


def stack(title: str, expr: str, legend: str, says: str, unit: str = "short", width: int = 8) -> Panel:
    return Panel(title, "stack", (Query(expr, legend),), says, unit, width)


def bars(title: str, expr: str, legend: str, says: str, unit: str = "short", width: int = 8) -> Panel:
    return Panel(title, "bars", (Query(expr, legend),), says, unit, width)


def states(title: str, expr: str, legend: str, says: str, width: int = 12) -> Panel:
    """Of series that are 0 or 1."""
    return Panel(title, "states", (Query(expr, legend),), says, width=width)


def quantiles(title: str, family: str, by: str, says: str, where: str = "", width: int = 8) -> Panel:
    """The median and the 99th hundredth of a histogram in seconds, by this label."""
    sums = f"sum by ({by}, le) (rate({family}_bucket{{{where}}}[$__rate_interval]))"
    queries = tuple(
        Query(f"histogram_quantile({share}, {sums})", f"p{percent} {{{{{by}}}}}")
        for share, percent in ((0.5, 50), (0.99, 99))
    )
    return Panel(title, "lines", queries, says, "s", width)


def rate(family: str, by: str, where: str = "") -> str:
    """PromQL: so much a second of a counter, a series for each value of this label."""
    return f"sum by ({by}) (rate({family}{{{where}}}[$__rate_interval]))"


def share(part: str, whole: str) -> str:
    """PromQL: nothing where the whole is 0."""
    return f"{part} / ({whole} > 0)"
