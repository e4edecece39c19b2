"""Which sessions of a machine that is drained move now, where to, which wait and which stay. Pure.

Moves nothing (draining.py does), and knows no contexts but whether they can go along.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

QUIET_S = 30.0
"""A session that has been quiet for so long may move before the deadline."""
LONGEST_DRAIN_S = 30 * 86400.0
"""How far off a deadline may be."""
NAMED = "their key names the machine"


@dataclass(frozen=True, slots=True)
class Resting:
    """One session whose home is on the machine."""

    session: str
    model: str
    replica: str
    generation: int
    busy: bool = False
    """A turn of it runs or waits."""
    quiet_s: float | None = None
    """Since its last turn; None: it is parked, and so quiet."""
    family: str | None = None
    """The session that began its family, if that is another one."""
    only: frozenset[str] | None = None
    """The machines that it may run on; None: all of its zone."""

    @property
    def root(self) -> str:
        return self.family or self.session


@dataclass(frozen=True, slots=True)
class Target:
    """A replica that may be the new home: of another machine of the zone, which takes new pins and serves."""

    replica: str
    machine: str
    model: str
    free: int = 0
    """Places that nobody has."""
    load: int = 0
    """Turns that run or wait there, and sessions that are to come."""
    carries: Mapping[str, bool] = field(default_factory=dict)
    """By replica of the machine that is drained: whether a context of that one can go along."""


@dataclass(frozen=True, slots=True)
class Go:
    """Move this session there now. `ends_turns`: those that are open end as a host that stops ends them."""

    session: Resting
    target: Target
    ends_turns: bool


@dataclass(frozen=True, slots=True)
class Plan:
    go: tuple[Go, ...]
    later: int
    """Sessions that are served where they are until the deadline, or until they have been quiet."""
    stays: Mapping[str, int]
    """By reason: sessions that nobody takes. They wait for the machine."""


def plan(resting: Iterable[Resting], targets: Sequence[Target], zone: str, left_s: float) -> Plan:
    """What is to be done now, `left_s` seconds before the deadline (0 or less: it is over).

    1. its key names the machine -> it stays, as on a machine that is away
    2. no other machine takes it -> it stays
    3. the deadline is over      -> it goes, its turns end
    4. it loses nothing by going -> it goes: it and its family have been quiet, its context goes along, and it is parked
                                    or there is a free place for it
    5. otherwise                 -> later

    A family goes to one home. Others go where their context goes along, then to the most free places, the least load,
    by rendezvous hash.
    """
    stays: Counter[str] = Counter()
    families: dict[tuple[str, str], list[Resting]] = {}
    for each in sorted(resting, key=lambda each: (each.root, each.family is not None, each.session)):
        if not (there := [target for target in targets if target.model == each.model]):
            stays[f"no machine in zone {zone} takes them"] += 1
        elif not any(map(lambda target, each=each: _may(each, target), there)):  # type: ignore[misc]
            stays[NAMED] += 1
        else:
            families.setdefault((each.root, each.model), []).append(each)
    now = {target.replica: target for target in targets}
    go: list[Go] = []
    later = 0
    for family in families.values():
        chosen = _chosen(family, [now[target.replica] for target in targets])
        if left_s > 0 and not all(_loses_nothing(each, target) for each, target in chosen):
            later += len(family)
            continue
        go += [Go(each, target, ends_turns=left_s <= 0) for each, target in chosen]
        for _, target in chosen:
            taken = now[target.replica]
            now[target.replica] = replace(taken, free=max(0, taken.free - 1), load=taken.load + 1)
    return Plan(tuple(go), later, dict(stays))


def _may(each: Resting, target: Target) -> bool:
    return target.model == each.model and (each.only is None or target.machine in each.only)


def _chosen(family: Sequence[Resting], targets: Sequence[Target]) -> list[tuple[Resting, Target]]:
    """One home for all of a family, as far as its members may go there."""
    common = [target for target in targets if all(_may(each, target) for each in family)]
    if common:
        home = min(common, key=lambda target: _rank(family[0], target))
        return [(each, home) for each in family]
    return [
        (each, min((t for t in targets if _may(each, t)), key=lambda target: _rank(each, target)))
        for each in family
    ]


def _rank(each: Resting, target: Target) -> tuple[bool, int, int, bytes]:
    word = f"{each.session}\0{target.replica}".encode()
    weight = hashlib.blake2b(word, digest_size=8).digest()
    return (not target.carries.get(each.replica, False), -target.free, target.load, weight)


def _loses_nothing(each: Resting, target: Target) -> bool:
    quiet = not each.busy and (each.quiet_s is None or each.quiet_s >= QUIET_S)
    return quiet and target.carries.get(each.replica, False) and (each.quiet_s is None or target.free > 0)
