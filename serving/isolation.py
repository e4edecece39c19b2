"""How much a session notices of its neighbours: how they are placed, and the figures from when its tokens came. Pure.

Starts nothing and measures nothing (router/bench_isolation_run.py), and draws nothing.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal, Self, get_args

from cluster.machine import CpuCore
from cluster.slices import Slice

Regime = Literal["shared", "dedicated", "quota", "vm"]
REGIMES: tuple[Regime, ...] = get_args(Regime)
TITLES: Mapping[Regime, str] = {
    "shared": "shared cores",
    "dedicated": "dedicated slices",
    "quota": "CPU quota",
    "vm": "virtual machine",
}
BETTER_LEAST = 4.0
"""So many times smaller is the p99 gap beside a neighbour to be in slices than on shared cores."""
INTERFERENCE_MOST = 1.25
"""The p99 gap beside neighbours in slices of their own, divided by that without any."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One answer of the session that is watched. Seconds on one clock."""

    regime: Regime
    neighbours: int
    round: int
    asked_s: float
    times: tuple[float, ...]
    """When each piece of text came, at least two; a piece is mostly one token."""

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in itertools.pairwise(self.times)]

    @property
    def p99_s(self) -> float:
        return percentile(self.gaps, 0.99)

    @property
    def first_s(self) -> float:
        return self.times[0] - self.asked_s

    @property
    def tokens_per_s(self) -> float:
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one regime with so many neighbours: medians over the rounds, `max_s` the longest gap of all of them."""

    regime: Regime
    neighbours: int
    p50_s: float
    p99_s: float
    max_s: float
    tokens_per_s: float
    first_s: float
    interference: float
    """The p99 gap divided by that without neighbours in the same round and regime."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One claim, held against what was measured."""

    what: str
    target: str
    measured: float
    met: bool


@dataclass(frozen=True, slots=True)
class Report:
    """All of one run, as it is printed, drawn and kept."""

    machine: str
    """What was measured, in a line: its CPU, cores and memory."""
    date: str
    version: str
    """homeport's."""
    beside: str
    """What the neighbours are: `sessions`, or what an agent's task does."""
    rounds: int
    busy: float
    """Which share of all CPUs other programs took just before."""
    figures: tuple[Figures, ...]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]
    """What was done how, and what was not measured."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse. Raises KeyError or TypeError for data of another shape."""
        return cls(
            **{
                **data,
                "figures": tuple(Figures(**each) for each in data["figures"]),
                "verdicts": tuple(Verdict(**each) for each in data["verdicts"]),
                "notes": tuple(data["notes"]),
            }
        )

    def of(self, regime: Regime) -> tuple[Figures, ...]:
        """By neighbours, ascending; () for a regime that was not measured."""
        return tuple(each for each in self.figures if each.regime == regime)


HEADERS = (
    "regime", "neighbours", "p50 gap", "p99 gap", "longest", "tokens / s", "first token", "p99 / alone",
)  # fmt: skip


def rows(report: Report) -> list[tuple[str, ...]]:
    """The figures for a table under HEADERS."""
    return [
        (
            TITLES[each.regime],
            str(each.neighbours),
            *(f"{seconds * 1000:,.0f} ms" for seconds in (each.p50_s, each.p99_s, each.max_s)),
            f"{each.tokens_per_s:.1f}",
            f"{each.first_s * 1000:,.0f} ms",
            f"{each.interference:.2f} x",
        )
        for each in report.figures
    ]


def markdown(report: Report) -> str:
    """The machine in a line, the verdict, the table, the notes."""
    where = f"Measured on {report.date}, on {report.machine}; homeport {report.version}."
    lines = [
        f"{where} Neighbours: {report.beside}; medians over {report.rounds} rounds, the longest gap of all of them.",
        "",
        "| claim | target | measured | |",
        "| --- | --- | --- | --- |",
        *(
            f"| {each.what} | {each.target} | {each.measured:g} | {'met' if each.met else '**missed**'} |"
            for each in report.verdicts
        ),
        "",
        f"| {' | '.join(HEADERS)} |",
        f"| --- |{' ---: |' * (len(HEADERS) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows(report)),
        "",
        *(f"- {note}" for note in report.notes),
    ]
    return "\n".join(lines)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def neighbour_counts(most: int) -> tuple[int, ...]:
    """0, 1, 2, 4, 8 … and `most` itself: each costs time on every machine, and few say as much as all."""
    doubling = itertools.takewhile(lambda count: count < most, (2**power for power in itertools.count()))
    return tuple(sorted({0, *doubling, most}))


def in_turns(regimes: Sequence[Regime], number: int) -> tuple[Regime, ...]:
    """The regimes in the order of one round: each round begins with another, so that none is always first."""
    first = number % len(regimes)
    return (*regimes[first:], *regimes[:first])


def place(regime: Regime, cores: Sequence[CpuCore], count: int, memory_bytes: int) -> tuple[Slice, ...]:
    """Where `count` engines run, the watched session's first. An engine has as many threads as its slice has cores.

    shared: each on all CPUs with a thread for every core, as several servers on one computer do. dedicated: a core of
    its own for each; who finds none waits in the line of a neighbour, so there are no more than cores. quota: a thread
    on any CPU, with as much CPU time as one core has. vm: a thread on the one virtual CPU of its guest, on any CPU.
    """
    ids, cpus = _all_of(cores)
    match regime:
        case "shared":
            return (Slice(ids, cpus, (), memory_bytes),) * count
        case "quota" | "vm":
            return (Slice(ids[:1], cpus, (), memory_bytes),) * count
        case "dedicated":
            ordered = sorted(cores, key=lambda core: (core.kind == "efficiency", core.id))
            return tuple(Slice((core.id,), core.cpus, (), memory_bytes) for core in ordered[:count])


def whole(cores: Sequence[CpuCore]) -> Slice:
    """All cores in one."""
    return Slice(*_all_of(cores), (), 0)


def neighbours_home(number: int, engines: int) -> int:
    """Which engine the neighbour `number`, from 1 on, asks: one of its own, or else it shares those of others, never
    that of the watched session, which is 0. Raises ValueError where that is the only one."""
    if engines < 2:
        raise ValueError("there is no engine for a neighbour")
    return 1 + (number - 1) % (engines - 1)


def figures(cells: Iterable[Cell]) -> list[Figures]:
    """By regime and neighbours. A regime without a round of no neighbours has no interference to tell: ValueError."""
    found = list(cells)
    alone = {(cell.regime, cell.round): cell.p99_s for cell in found if cell.neighbours == 0}
    grouped: dict[tuple[Regime, int], list[Cell]] = {}
    for cell in found:
        grouped.setdefault((cell.regime, cell.neighbours), []).append(cell)
        if (cell.regime, cell.round) not in alone:
            raise ValueError(f"{cell.regime} was not measured without neighbours in round {cell.round}")
    return [
        Figures(
            regime,
            count,
            median(percentile(cell.gaps, 0.5) for cell in of_it),
            median(cell.p99_s for cell in of_it),
            max(max(cell.gaps) for cell in of_it),
            median(cell.tokens_per_s for cell in of_it),
            median(cell.first_s for cell in of_it),
            median(cell.p99_s / alone[regime, cell.round] for cell in of_it),
        )
        for (regime, count), of_it in sorted(
            grouped.items(), key=lambda each: (REGIMES.index(each[0][0]), each[0][1])
        )
    ]


def verdicts(cells: Iterable[Cell], cores: int) -> list[Verdict]:
    """What is claimed, with as many neighbours as were measured and have a core of their own; ratios within a round,
    median over the rounds. () where shared cores, slices, or a neighbour are missing."""
    p99 = {(cell.regime, cell.neighbours, cell.round): cell.p99_s for cell in cells}
    counts = {neighbours for regime, neighbours, _ in p99 if regime == "dedicated"}
    most = max((count for count in counts if 0 < count < cores), default=0)
    rounds = sorted({number for regime, count, number in p99 if (regime, count) == ("dedicated", most)})
    if not most or any(("shared", most, number) not in p99 for number in rounds):
        return []
    beside = f"beside {most} neighbour{'' if most == 1 else 's'}"
    better = median(p99["shared", most, number] / p99["dedicated", most, number] for number in rounds)
    noticed = median(p99["dedicated", most, number] / p99["dedicated", 0, number] for number in rounds)
    return [
        Verdict(
            f"p99 token gap {beside}: shared cores / dedicated slices",
            f">= {BETTER_LEAST:g}",
            round(better, 2),
            better >= BETTER_LEAST,
        ),
        Verdict(
            f"p99 token gap in dedicated slices: {beside} / alone",
            f"<= {INTERFERENCE_MOST:g}",
            round(noticed, 2),
            noticed <= INTERFERENCE_MOST,
        ),
    ]


def _all_of(cores: Sequence[CpuCore]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    ids = tuple(sorted(core.id for core in cores))
    return ids, tuple(sorted(cpu for core in cores for cpu in core.cpus))
