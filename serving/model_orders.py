"""Who fetches a model from outside, who copies it, and from whom. Pure.

One machine of a zone fetches; the others copy from those of their zone that have it whole. Nothing crosses zones. Keeps
nothing: asked again with newer reports, it says the same or goes on from there.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.model_files import Content

SAME_ELSEWHERE = ("not_found", "changed", "not_served", "no_model", "too_large")
"""Troubles that every machine would have."""
FAILURES = 2
"""So often a machine may fail before another one of its zone fetches in its stead."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """From Hugging Face. `content`: what it has to be, where that is known."""

    content: Content | None

    def to_json(self) -> dict[str, Any]:
        return {"do": "fetch", "content": self.content and self.content.to_json()}


@dataclass(frozen=True, slots=True)
class Copy:
    """From these machines of the zone, (name, address of the file server), the first one first."""

    content: Content
    givers: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "do": "copy",
            "content": self.content.to_json(),
            "givers": [list(each) for each in self.givers],
        }


@dataclass(frozen=True, slots=True)
class Wait:
    """Until this machine has it. `trouble`: why it does not get it, as it said last."""

    machine: str
    trouble: Mapping[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        return {"do": "wait", "who": self.machine, "trouble": self.trouble and dict(self.trouble)}


Order = Fetch | Copy | Wait


@dataclass(frozen=True, slots=True)
class Seat:
    """One machine that is here, as its keeper reports. By source: what it has whole, how many bytes it has of what is
    on its way, how often that failed in a row and why last."""

    id: str
    name: str
    zone: str
    url: str | None = None
    """Of its file server; None: it does not listen yet."""
    is_mute: bool = False
    """Whether it cannot listen."""
    held: Mapping[str, Content] = field(default_factory=dict)
    got: Mapping[str, int] = field(default_factory=dict)
    fetches: frozenset[str] = frozenset()
    """What it was told to fetch from outside."""
    failures: Mapping[str, int] = field(default_factory=dict)
    troubles: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def orders(
    needs: Mapping[str, Iterable[str]], seats: Sequence[Seat], known: Mapping[str, Content]
) -> dict[str, dict[str, Order]]:
    """By machine id and source, what is to be done there. `needs`: by machine id, the sources that it is to have.

    1. it has the source            -> nothing
    2. others of its zone have it   -> Copy from them
    3. it is the zone's fetcher     -> Fetch
    4. otherwise                    -> Wait for that one
    """
    found: dict[str, dict[str, Order]] = {seat.id: {} for seat in seats}
    for zone in sorted({seat.zone for seat in seats}):
        here = [seat for seat in seats if seat.zone == zone]
        for source in sorted({source for seat in here for source in needs.get(seat.id, ())}):
            lacking = [s for s in here if source in needs.get(s.id, ()) and source not in s.held]
            holders = [s for s in here if _gives(s, source, known)]
            for seat in lacking:
                found[seat.id][source] = _order(seat, source, holders, lacking, known)
    return found


def _gives(seat: Seat, source: str, known: Mapping[str, Content]) -> bool:
    """Whether it has what the cluster takes this source to be, and can give it."""
    content = seat.held.get(source)
    return content is not None and content.is_known and content == known.get(source) and not seat.is_mute


def _order(
    seat: Seat, source: str, holders: Sequence[Seat], lacking: Sequence[Seat], known: Mapping[str, Content]
) -> Order:
    if holders:
        givers = [(holder.name, holder.url) for holder in _spread(seat, holders) if holder.url is not None]
        return Copy(known[source], tuple((n, u) for n, u in givers if u)) if givers else Wait(holders[0].name)
    fetcher = min(lacking, key=lambda each: _rank(each, source))
    if fetcher is seat:
        return Fetch(known.get(source))
    return Wait(fetcher.name, fetcher.troubles.get(source))


def _rank(seat: Seat, source: str) -> tuple[int, bool, int, str, str]:
    """The one that failed least where another could succeed; then the one that does it already; then the one that has
    most of it; then by name."""
    code = seat.troubles.get(source, {}).get("code")
    failures = 0 if code in SAME_ELSEWHERE else seat.failures.get(source, 0) // FAILURES
    return failures, source not in seat.fetches, -seat.got.get(source, 0), seat.name, seat.id


def _spread(seat: Seat, holders: Sequence[Seat]) -> list[Seat]:
    """For each machine in another order, so that not all copy from one."""
    return sorted(holders, key=lambda each: hashlib.sha256(f"{seat.id}\0{each.id}".encode()).digest())


def key_of(message: Mapping[str, Any]) -> str:
    """16 hex digits for a whole message to a keeper: it says by them which one it has."""
    return hashlib.sha256(json.dumps(message, sort_keys=True).encode()).hexdigest()[:16]
