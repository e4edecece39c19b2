"""Which processes that are not a replica's own run on its CPUs, and for how much of one. Pure.

Reads nothing: cluster/foreign_watch.py does, and says what was read of whom.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LEAST = 0.05
"""Of one CPU. A process that takes less is not told of."""
TOLD_MAX = 8
"""Programs of one replica that are told at most, the largest first."""
MOVED = 0.1
"""A share that differs by less from what was told last is no news: reports travel."""

Threads = Mapping[int, tuple[int, int]]
"""By thread: the ticks that it has run so far, and the CPU on which it ran last."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """Programs of one name. `share`: how much of one CPU they take of the slice; 1.5 is one and a half."""

    name: str
    share: float

    def to_json(self) -> dict[str, Any]:
        return {"program": self.name, "share": self.share}


@dataclass(frozen=True, slots=True)
class Use:
    """What one process ran within a period."""

    name: str
    owners: tuple[int, int]
    """Its process group and its session."""
    ticks: Mapping[int, float]
    """By CPU."""


@dataclass(frozen=True, slots=True)
class Place:
    """One replica's CPUs, and the pid of its host, which leads a group and a session; None: there is none."""

    cpus: frozenset[int]
    host: int | None


def spread(ticks: int, cpu: int, before: Threads | None, after: Threads) -> dict[int, float]:
    """`ticks` of a process by CPU: as its threads ran, each wholly where it ran last.

    `cpu`: where its first thread ran last, which stands for all of it where nothing is known of its threads.
    `before` None: its threads were not looked at a period ago; then what they ran in all their lives counts.
    """
    ran: dict[int, float] = {}
    for thread, (total, on) in after.items():
        more = total - (before or {}).get(thread, (0, 0))[0]
        if more > 0:
            ran[on] = ran.get(on, 0.0) + more
    whole = sum(ran.values())
    if whole <= 0:
        return {cpu: float(ticks)}
    return {on: ticks * part / whole for on, part in ran.items()}


def on_places(
    uses: Iterable[Use], places: Mapping[int, Place], period_ticks: float
) -> dict[int, tuple[Foreign, ...]]:
    """By slot: the foreign programs on its CPUs within the period, the largest share first."""
    found: dict[int, dict[str, float]] = {slot: {} for slot in places}
    for use in uses:
        for slot, place in places.items():
            if place.host is not None and place.host in use.owners:
                continue
            share = sum(ticks for cpu, ticks in use.ticks.items() if cpu in place.cpus) / period_ticks
            if share >= LEAST:
                found[slot][use.name] = found[slot].get(use.name, 0.0) + share
    return {slot: _told(shares) for slot, shares in found.items()}


def news(
    before: Mapping[int, tuple[Foreign, ...]], now: Mapping[int, tuple[Foreign, ...]]
) -> dict[int, tuple[Foreign, ...]]:
    """What is to be told: as before where nothing has come or gone and no share has moved much."""
    return {slot: _newer(before.get(slot, ()), found) for slot, found in now.items()}


@dataclass(frozen=True, slots=True)
class Lived:
    """What one process has run so far, in ticks."""

    ticks: int
    waited: int
    """By those of its children that ended and that it waited for, and theirs; counted at their end."""
    parent: int
    """Its pid."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What the CPUs of one place had run when it was looked, in ticks."""

    place: Place
    busy: int
    """In all, since the machine began."""
    own: Mapping[tuple[int, int], Lived]
    """By process of the host's, as pid and start time."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What a slice's CPUs have run since they were looked at first, in ticks; both only grow."""

    own: int = 0
    foreign: int = 0
    owed: int = 0
    """Ticks (0 or less) that were counted for processes and not yet for their CPUs, which the kernel counts apart."""


def spend(spent: Spent, before: Ran | None, now: Ran) -> Spent:
    """With what ran since the look before: what the CPUs ran and the host's processes did not is foreign, also of
    processes that came and went between two looks, and of the kernel.

    Where there was no look before, or one at another place or host, nothing is known. Where one of the host's
    processes has ended and none of the others waited for it, its last ticks are not known, and so what was foreign
    neither.
    """
    if before is None or before.place != now.place:
        return spent
    none = Lived(0, 0, 0)
    own = sum(max(0, each.ticks - before.own.get(process, none).ticks) for process, each in now.own.items())
    last = _last(before.own, now.own)
    if last is None:
        return Spent(spent.own + own, spent.foreign, spent.owed)
    busy = now.busy - before.busy
    own += min(last, max(0, busy))  # a child that was not of the host's group is counted with its whole life
    rest = spent.owed + busy - own
    return Spent(spent.own + own, spent.foreign + max(0, rest), min(0, rest))


def _last(before: Mapping[tuple[int, int], Lived], now: Mapping[tuple[int, int], Lived]) -> int | None:
    """Ticks that processes ran which have ended, since they were looked at or began; None: not known.

    Whoever waits for a process is told what it ran, and what those ran for which it waited itself.
    """
    by_pid = {process[0]: process for process in before}
    known: dict[tuple[int, int], int] = {}
    for process in before.keys() - now.keys():
        heir = by_pid.get(before[process].parent)
        while heir is not None and heir not in now:
            heir = by_pid.get(before[heir].parent)
        if heir is None:
            return None
        known[heir] = known.get(heir, 0) + before[process].ticks + before[process].waited
    last = 0
    for process, each in now.items():
        waited_before = before[process].waited if process in before else 0
        more = each.waited - waited_before - known.get(process, 0)
        if more < 0:
            return None
        last += more
    return last


def _newer(before: tuple[Foreign, ...], now: tuple[Foreign, ...]) -> tuple[Foreign, ...]:
    told = {each.name: each.share for each in before}
    same = told.keys() == {each.name for each in now}
    return before if same and all(abs(told[each.name] - each.share) < MOVED for each in now) else now


def _told(shares: Mapping[str, float]) -> tuple[Foreign, ...]:
    largest = sorted(shares.items(), key=lambda each: (-each[1], each[0]))[:TOLD_MAX]
    return tuple(Foreign(name, round(share, 2)) for name, share in largest)
