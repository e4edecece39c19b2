"""Whose turn it is to take a new revision: one machine at a time. Pure.

A machine on which nothing runs disturbs nobody and goes at once; one that is away holds nobody up, and has its turn
when it is back. What the turn changes is the keeper's matter (slots.py, reconcile.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LIMIT_S = 180.0
"""How long the others wait for a machine whose replicas are not ready with the new revision."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one machine is. `given_at` and `now` are on the caller's clock, in seconds."""

    id: str
    name: str
    revision: int
    is_here: bool
    is_empty: bool
    """Whether no replica runs there."""
    unready: tuple[str, ...] = ()
    """Its replicas that do not yet serve what is wanted of them, with the reason where there is one."""
    given_at: float | None = None
    """When it was given its last revision; None where that is not known."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Who is given the revision now, who waits for whom, and whom the others no longer wait for."""

    give: tuple[str, ...] = ()
    """Ids."""
    busy: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Machines that are in the middle of it, with their replicas that are not ready."""
    waiting: tuple[str, ...] = ()
    """Names of those whose turn is still to come."""
    passed: Mapping[str, str] = field(default_factory=dict)
    """By name, why nobody waits for it any more."""

    def to_json(self) -> dict[str, Any]:
        return {
            "busy": {name: list(unready) for name, unready in self.busy.items()},
            "waiting": list(self.waiting),
            "passed": dict(self.passed),
        }


def next_turn(wanted: int, machines: Sequence[Progress], now: float) -> Turn:
    """In the order of `machines`. It gives nothing any more once every machine that is here has the wanted revision."""
    here = [each for each in machines if each.is_here]
    behind = [each for each in here if each.revision < wanted]
    unready = [each for each in here if each.revision >= wanted and each.unready]
    late = {each.name: each for each in unready if each.given_at is None or now - each.given_at >= LIMIT_S}
    busy = {each.name: each.unready for each in unready if each.name not in late}
    give = [each for each in behind if each.is_empty]
    others = [each for each in behind if not each.is_empty]
    if others and not busy:
        give.append(others.pop(0))
    passed = {
        name: f"not ready after {LIMIT_S:.0f} s: {', '.join(each.unready)}" for name, each in late.items()
    }
    return Turn(tuple(each.id for each in give), busy, tuple(each.name for each in others), passed)


def unready(report: Mapping[str, Any], excused: frozenset[tuple[str, str]] = frozenset()) -> tuple[str, ...]:
    """The replicas of a keeper's report that do not serve what is wanted of them.

    `excused`: those (name, digest) that had failed before already: a revision that leaves them as they were waits for
    none of them. Nobody waits for a machine that is its person's: it has the revision, and serves it in the end.
    """
    found: list[str] = []
    if report.get("yielded"):
        return ()
    for replica in report["replicas"]:
        name, digest = replica["name"], replica.get("config_digest", "")
        if replica["state"] == "failed":
            if (name, digest) not in excused:
                found.append(f"{name} failed ({replica.get('detail') or 'no reason'})")
        elif replica["state"] != "ready" or replica.get("running_digest", digest) != digest:
            found.append(f"{name} {'is ' + replica['state'] if replica['state'] != 'ready' else 'restarts'}")
    return tuple(found)


def failed(report: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """The replicas, with their digests, that were given up."""
    return frozenset(
        (replica["name"], replica.get("config_digest", ""))
        for replica in report["replicas"]
        if replica["state"] == "failed"
    )
