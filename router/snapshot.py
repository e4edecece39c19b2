"""The router's picture of machines and replicas at one moment. Pure.

Frozen data and what follows from it. How it is learned is `fleet`'s matter, what to do with it is `choose`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from router.waking import Woken
from serving.model import WhenLost
from serving.standing import LOST_AFTER_S

Reach = Literal["up", "suspect", "out", "unknown"]

SUSPECT_S = 3.0
"""A host that has been silent this long gets no new work."""
OUT_S = 5.0
"""A host that has been silent this long is out of routing."""


@dataclass(frozen=True, slots=True)
class Resident:
    """A session whose context is in a replica's engine."""

    session: str
    quiet_s: float
    busy: bool
    tokens: int


@dataclass(frozen=True, slots=True)
class Replica:
    """What is known of one replica. `heard_at` and `now` are on the router's own clock, in seconds."""

    name: str
    machine: str
    model: str
    address: str
    port: int
    state: str = "unknown"
    """The host's word, else the keeper's: starting, loading, ready, draining, stopping, failed."""
    progress: float = 0.0
    detail: str = ""
    incarnation: int = 0
    places: int = 1
    running: int = 0
    waiting: int = 0
    residents: tuple[Resident, ...] = ()
    abilities: frozenset[str] | None = None
    """What its model can (serving/abilities.py), by its host's word; None: it has not said so."""
    heard_at: float | None = None
    """When the host itself last answered; None: never since this router started."""
    refused: bool = False
    """Whether the last connection to it was refused."""
    known_at: float = 0.0
    """Since when this router has known of it: what it never heard counts as silence from then on."""

    def reach(self, now: float) -> Reach:
        """up; suspect after 3 s of silence; out after 5 s or refused; unknown before the first answer."""
        if self.refused:
            return "out"
        if self.heard_at is None:
            return "unknown"
        silent_s = now - self.heard_at
        if silent_s < SUSPECT_S:
            return "up"
        return "suspect" if silent_s < OUT_S else "out"

    def serves(self, now: float) -> bool:
        return self.state == "ready" and self.reach(now) == "up"

    def is_lost(self, now: float, lost_after_s: float) -> bool:
        """Whether nothing has been heard of it for so long that its sessions are not to wait in line for it."""
        return now - (self.known_at if self.heard_at is None else self.heard_at) >= lost_after_s

    def free(self, open_turns: int) -> int:
        """Places that nobody has, as far as this router knows; `open_turns` are its own turns there."""
        transients = max(0, self.running - sum(resident.busy for resident in self.residents))
        return max(0, self.places - len(self.residents) - transients - self.unseen(open_turns))

    def line(self, open_turns: int) -> int:
        """Turns that run or wait there."""
        return self.running + self.waiting + self.unseen(open_turns)

    def unseen(self, open_turns: int) -> int:
        """Turns of this router that the host's last answer cannot have counted yet, at least."""
        return max(0, open_turns - self.running - self.waiting)


@dataclass(frozen=True, slots=True)
class Machine:
    name: str
    state: str = "ready"
    """As the controller says; serving/standing.py has the words."""
    zone: str = "default"
    cordoned: bool = False
    """By a person, whether it is there or not."""
    free_at: float | None = None
    """Of one that is yielded: when it is to be back, on the router's clock; None: nobody knows."""
    wakes: bool = False
    """Whether it can be woken."""
    yielded: bool = False
    """Whether it is its person's, by its keeper's last word."""


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    context: int
    engine: str
    when_lost: WhenLost = "wait"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All of it. `open_turns` counts this router's own turns by replica; a replica without any is absent."""

    models: Mapping[str, Model]
    machines: Mapping[str, Machine] = field(default_factory=dict)
    replicas: Mapping[str, Replica] = field(default_factory=dict)
    open_turns: Mapping[str, int] = field(default_factory=dict)
    is_current: bool = True
    """Whether the controller answers, so that what it leaves out is not there."""
    forgotten: Mapping[str, str | None] = field(default_factory=dict)
    """Machines that are gone for good, with their zones as far as these are known."""
    lost_after_s: float = LOST_AFTER_S
    """A host that has been silent this long is lost: its sessions wait, move or fail, as their model says."""
    woken: Mapping[str, Woken] = field(default_factory=dict)
    """Machines that this router has tried to wake and that have not been heard since."""

    def of_model(self, model: str) -> list[Replica]:
        return [replica for replica in self.replicas.values() if replica.model == model]

    def zone_of(self, machine: str) -> str | None:
        """None for a machine that is not known."""
        known = self.machines.get(machine)
        return self.forgotten.get(machine) if known is None else known.zone
