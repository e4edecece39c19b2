"""Which model runs on which machine, how often: needs x machines -> assignment. Pure.

Looks at hardware only, not at states: a machine that is lost or cordoned keeps what was assigned to it,
because a machine that has not reported is unknown, never absent. Starts nothing (see `serving.reconcile`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cluster.machine import Machine
from cluster.slices import Need, Refusal, Slice, Take, carve


@dataclass(frozen=True, slots=True)
class ZoneOf:
    """All machines of one zone."""

    zone: str


Where = Literal["all"] | tuple[str, ...] | ZoneOf
Replicas = int | Literal["fill"]


@dataclass(frozen=True, slots=True)
class Wish:
    """One model of the config: what a replica needs, where, and how many on each of those machines."""

    model: str
    need: Need
    take: Take
    machines: Where
    replicas: Replicas


@dataclass(frozen=True, slots=True)
class Assignment:
    """From `fit`: every model has at least one replica somewhere. From `fit_each`: those that fit anywhere."""

    machines: Mapping[str, tuple[tuple[str, int], ...]]
    """By machine name: (model, count > 0) in config order. Machines with nothing to do are there with ()."""
    left_out: Mapping[str, Mapping[str, str]]
    """By model, by machine: why it does not run there although its wish includes that machine. As in `NoFit`, "" is for
    no machine at all."""


@dataclass(frozen=True, slots=True)
class NoFit:
    """Some models cannot run as wished. Nothing should be started."""

    reasons: Mapping[str, Mapping[str, str]]
    """By model, by machine: why not. A model for which there is no machine at all has the key "" with the
    reason."""


def fit(wishes: Sequence[Wish], machines: Sequence[Machine]) -> Assignment | NoFit:
    """Carve for each wish in config order, on each of its machines.

    A wish holds on a machine when all of its `replicas` fit there ("fill": at least one). It must hold on
    every machine that it names; of `all` or of a zone one is enough, the others are told in `left_out`. An
    earlier model has precedence: one that takes the rest leaves nothing to those below it.
    """
    taken: dict[str, list[Slice]] = {machine.name: [] for machine in machines}
    counts: dict[str, list[tuple[str, int]]] = {machine.name: [] for machine in machines}
    greedy: dict[str, str] = {}
    left_out: dict[str, Mapping[str, str]] = {}
    refused: dict[str, Mapping[str, str]] = {}
    for wish in wishes:
        reasons, held = _unknown(wish, machines), False
        for machine in _included(wish, machines):
            slices, refusal = _carve_all(wish, machine, taken[machine.name])
            if refusal is not None:
                by = greedy.get(machine.name)
                remedy = f"; model {by!r} above it takes all that is left here: put it last" if by else ""
                reasons[machine.name] = f"{refusal}{remedy}"
                continue
            held = True
            taken[machine.name].extend(slices)
            counts[machine.name].append((wish.model, len(slices)))
            if wish.take == "rest" or wish.replicas == "fill":
                greedy.setdefault(machine.name, wish.model)
        if not held or (isinstance(wish.machines, tuple) and reasons):
            refused[wish.model] = reasons or {"": _nowhere(wish, machines)}
        elif reasons:
            left_out[wish.model] = reasons
    if refused:
        return NoFit(refused)
    return Assignment({name: tuple(models) for name, models in counts.items()}, left_out)


def fit_each(wishes: Sequence[Wish], machines: Sequence[Machine]) -> Assignment:
    """Each machine by itself: what does not fit on one, or names one that is not here, is left out there only.

    So nothing changes on a machine because another one comes or goes.
    """
    counts: dict[str, tuple[tuple[str, int], ...]] = {}
    left_out = absent(wishes, machines)
    for machine in machines:
        counts[machine.name], reasons = fit_one(wishes, machine)
        for model, reason in reasons.items():
            left_out.setdefault(model, {})[machine.name] = reason
    return Assignment(counts, left_out)


def fit_one(
    wishes: Sequence[Wish], machine: Machine
) -> tuple[tuple[tuple[str, int], ...], Mapping[str, str]]:
    """What one machine serves, (model, count > 0) in config order; and by model, why it does not run there although its
    wish includes the machine."""
    own = [replace(wish, machines=(machine.name,)) for wish in wishes if _included(wish, [machine])]
    fitted, left_out = fit(own, [machine]), dict[str, str]()
    if isinstance(fitted, NoFit):
        left_out = {model: reasons[machine.name] for model, reasons in fitted.reasons.items()}
        # Again without those: they took nothing from the others.
        fitted = fit([wish for wish in own if wish.model not in left_out], [machine])
    assert isinstance(fitted, Assignment)
    return fitted.machines[machine.name], left_out


def absent(wishes: Sequence[Wish], machines: Sequence[Machine]) -> dict[str, dict[str, str]]:
    """By model: the machines that it names and that are not there, with that as the reason; "" where its wish includes
    none that is there."""
    found: dict[str, dict[str, str]] = {}
    for wish in wishes:
        reasons = _unknown(wish, machines)
        if not reasons and not _included(wish, machines):
            reasons = {"": _nowhere(wish, machines)}
        if reasons:
            found[wish.model] = reasons
    return found


def _included(wish: Wish, machines: Sequence[Machine]) -> list[Machine]:
    match wish.machines:
        case "all":
            return list(machines)
        case ZoneOf(zone):
            return [machine for machine in machines if machine.zone == zone]
        case names:
            return [machine for machine in machines if machine.name in names]


def _unknown(wish: Wish, machines: Sequence[Machine]) -> dict[str, str]:
    if not isinstance(wish.machines, tuple):
        return {}
    known = {machine.name for machine in machines}
    listed = ", ".join(sorted(known)) or "none"
    return {name: f"no such machine (known: {listed})" for name in wish.machines if name not in known}


def _nowhere(wish: Wish, machines: Sequence[Machine]) -> str:
    if isinstance(wish.machines, ZoneOf):
        zones = ", ".join(sorted({machine.zone for machine in machines})) or "none"
        return f"no machine in zone {wish.machines.zone!r} (zones: {zones})"
    return "there are no machines"


def _carve_all(wish: Wish, machine: Machine, taken: Sequence[Slice]) -> tuple[list[Slice], str | None]:
    """The slices for all replicas on this machine, or none and the reason."""
    slices: list[Slice] = []
    while wish.replicas == "fill" or len(slices) < wish.replicas:
        match carve(machine.hardware, machine.reserve, [*taken, *slices], wish.need, wish.take):
            case Refusal() as refusal:
                if wish.replicas == "fill" and slices:
                    break
                if slices:
                    return [], f"{wish.replicas} replicas wanted, {len(slices)} fit: one more {refusal}"
                return [], str(refusal)
            case Slice() as carved:
                slices.append(carved)
        if not (wish.need.cores or wish.need.gpus or wish.need.memory_bytes):
            break
    return slices, None
