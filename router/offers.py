"""The models that a key may use, and what is known of each: its context, what it can, where it is at home. Pure."""

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

from router.errors import ApiError, Rejected
from router.keys import Key
from router.snapshot import Machine, Model, Replica, Snapshot


@dataclass(frozen=True, slots=True)
class Home:
    """A machine that has replicas of a model."""

    machine: str
    state: str
    """`ready` where one of them serves; else the machine's own state, a replica's, or how far its host is heard."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A model as one key may use it."""

    name: str
    """MODEL, or MODEL@MACHINE."""
    model: Model
    homes: tuple[Home, ...]
    abilities: frozenset[str] | None
    """As hosts tell them (serving/abilities.py); None: no host has yet."""

    @property
    def is_loaded(self) -> bool:
        return any(home.state == "ready" for home in self.homes)


@dataclass(frozen=True, slots=True)
class Offers:
    """What there is for one key at one moment, of one machine if the path names it."""

    snapshot: Snapshot
    key: Key
    now: float
    machine: str | None = None

    def each(self, with_machines: bool = False) -> list[Offer]:
        """By name. `with_machines`: each model is followed by its MODEL@MACHINE, but for a path that names a machine.
        Raises Rejected (404) for a machine that is not there for this key."""
        machines = self._machines()
        offers = []
        for name in self._names(machines):
            offers.append(self._offer(name, machines))
            if with_machines and self.machine is None:
                homes = [home.machine for home in offers[-1].homes]
                offers += [self._offer(name, {machine}, f"{name}@{machine}") for machine in homes]
        return offers

    def find(self, name: str) -> Offer:
        """MODEL, or MODEL@MACHINE for a machine that has it. Raises Rejected (404)."""
        machines = self._machines()
        names = self._names(machines)
        if name in names:
            return self._offer(name, machines)
        model, machine = split_model(name)
        if machine is not None and machine in machines and model in names:
            offer = self._offer(model, {machine}, name)
            if offer.homes:
                return offer
        message = f"There is no model of that name; known models: {', '.join(names) or 'none'}."
        raise Rejected(ApiError(404, "model_not_found", message, "model"))

    def _machines(self) -> Set[str]:
        mine = {m.name for m in self.snapshot.machines.values() if self.key.allows_place(m.name, m.zone)}
        if self.machine is None:
            return mine
        if self.machine not in mine:
            message = (
                f"There is no machine of that name; known machines: {', '.join(sorted(mine)) or 'none'}."
            )
            raise Rejected(ApiError(404, "machine_not_found", message))
        return {self.machine}

    def _names(self, machines: Set[str]) -> Sequence[str]:
        names = {name for name in self.snapshot.models if self.key.allows_model(name)}
        if self.machine is not None:
            names &= {each.model for each in self.snapshot.replicas.values() if each.machine in machines}
        return sorted(names)

    def _offer(self, model: str, machines: Set[str], name: str | None = None) -> Offer:
        replicas = [each for each in self.snapshot.of_model(model) if each.machine in machines]
        told = [each.abilities for each in replicas if each.abilities is not None]
        can = frozenset[str]().union(*told) if told else None
        return Offer(name or model, self.snapshot.models[model], tuple(self._homes(replicas)), can)

    def _homes(self, replicas: Iterable[Replica]) -> Iterator[Home]:
        by_machine: dict[str, list[Replica]] = {}
        for replica in replicas:
            by_machine.setdefault(replica.machine, []).append(replica)
        for machine in sorted(by_machine):
            yield Home(machine, _state(self.snapshot.machines[machine], by_machine[machine], self.now))


def split_model(name: str) -> tuple[str, str | None]:
    """MODEL@MACHINE in its two parts; no model's name has an @."""
    model, at, machine = name.partition("@")
    return (model, machine) if at and machine and model else (name, None)


def _state(machine: Machine, replicas: Sequence[Replica], now: float) -> str:
    if any(replica.serves(now) for replica in replicas):
        return "ready"
    if machine.state != "ready":
        return machine.state
    first = replicas[0]
    return first.reach(now) if first.state == "ready" else first.state
