"""What a revision would change: wanted x the fleet as told -> steps, machine by machine. Pure.

Works with what controller and keepers themselves decide by (cluster/fit.py, slots.py, reconcile.py), so that it says
what they will do. Run again once they have done it, it returns no change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.fit import fit_each
from cluster.gpu_parts import gpu_texts
from cluster.machine import Machine
from cluster.slices import Need, Slice
from serving.model import ModelSpec
from serving.model_changes import LIVE, RESTARTS, changes
from serving.reconcile import Drain as Outdated
from serving.reconcile import Seen
from serving.reconcile import Start as Missing
from serving.reconcile import Stop as Unwanted
from serving.reconcile import plan as reconcile
from serving.slots import Slot, Wish, assign, digest_here, in_range
from serving.standing import AWAY as UNHEARD

AWAY = "it is away: what it serves is worked out when it is back"


@dataclass(frozen=True, slots=True)
class Start:
    """A replica that is new, or that was given up and is tried again."""

    machine: str
    replica: str
    model: str
    digest: str
    gpus: tuple[str, ...] = ()
    """As a person reads them, with what is shared."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Nobody wants this replica any more. Its turns end; its journal stays."""

    machine: str
    replica: str
    model: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Finishes its turns and starts again in its slot; pins survive."""

    machine: str
    replica: str
    model: str
    digest: str
    changed: tuple[str, ...]
    """What needs the restart: `context 2048 -> 4096`."""
    gpus: tuple[str, ...] = ()
    """Those that it has then."""


@dataclass(frozen=True, slots=True)
class Live:
    """Takes new settings while it runs."""

    machine: str
    replica: str
    model: str
    changed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Keep:
    """Nothing."""

    machine: str
    replica: str
    model: str


Step = Start | Stop | Drain | Live | Keep


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Why a model does not run on a machine that its wish includes; "" is for no machine at all."""

    model: str
    machine: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    steps: tuple[Step, ...]
    """By machine and slot."""
    left_out: tuple[LeftOut, ...]
    nowhere: tuple[str, ...]
    """Models of which no replica would run anywhere, as far as machines are known."""
    away: tuple[str, ...]
    """Machines for which their steps come when they are back."""
    yielded: tuple[str, ...] = ()
    """Machines that are their persons': the same when that is over."""

    @property
    def changes(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if not isinstance(step, Keep))


@dataclass(frozen=True, slots=True)
class Shares:
    """What each machine, by id, is to serve: what its keeper is given. And by model and machine, what is left out."""

    machines: Mapping[str, list[dict[str, Any]]]
    left_out: Mapping[str, Mapping[str, str]]


def shares(models: Sequence[Mapping[str, Any]], machines: Sequence[Machine]) -> Shares:
    """`models` as a revision has them: [{"spec", "digest"}]."""
    by_name = {model["spec"]["name"]: model for model in models}
    specs = [ModelSpec.from_json(model["spec"]) for model in by_name.values()]
    fitted = fit_each([spec.wish() for spec in specs], machines)
    wanted = {
        machine.id: [
            {"model": by_name[name]["spec"], "digest": by_name[name]["digest"], "count": count}
            for name, count in fitted.machines[machine.name]
        ]
        for machine in machines
    }
    return Shares(wanted, fitted.left_out)


def plan(wanted: Mapping[str, Any], before: Mapping[str, Any], fleet: Mapping[str, Any]) -> Plan:
    """`wanted` and `before` are revisions, `fleet` is what the controller tells."""
    listed = sorted(fleet["machines"], key=lambda report: str(report["name"]))
    reports = [report for report in listed if "hardware" in report]  # else nothing is known but its name
    away = away_of(fleet)
    told = shares(wanted["models"], [_machine(report) for report in reports])
    known = {model["spec"]["name"]: model for model in before.get("models", ())}
    steps: list[Step] = []
    left_out = [
        LeftOut(model, machine, AWAY if machine in away and not _reported(machine, reports) else reason)
        for model, reasons in told.left_out.items()
        for machine, reason in reasons.items()
    ]
    for report in reports:
        wishes = [
            Wish(ModelSpec.from_json(share["model"]), share["digest"], share["count"])
            for share in told.machines[report["id"]]
        ]
        found, refused = _on_machine(report, wishes, known)
        steps += found
        left_out += [LeftOut(model, report["name"], reason) for model, reason in refused.items()]
    running = {step.model for step in steps if not isinstance(step, Stop)}
    names = [model["spec"]["name"] for model in wanted["models"]]
    waits = {each.model for each in left_out if each.reason == AWAY}
    nowhere = tuple(name for name in names if name not in running | waits)
    return Plan(tuple(steps), tuple(left_out), nowhere, away, yielded_of(fleet))


def away_of(fleet: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the machines of which nothing is known but what they were."""
    return tuple(sorted(each["name"] for each in fleet["machines"] if each["state"] in UNHEARD))


def yielded_of(fleet: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the machines that are their persons' at present."""
    return tuple(sorted(each["name"] for each in fleet["machines"] if each["state"] == "yielded"))


def _machine(report: Mapping[str, Any]) -> Machine:
    """However it stands: it keeps what is assigned to it."""
    return Machine.from_json({**report, "state": "ready"})


def _on_machine(
    report: Mapping[str, Any], wishes: Sequence[Wish], known: Mapping[str, Mapping[str, Any]]
) -> tuple[list[Step], dict[str, str]]:
    """What its keeper will do once it is given these wishes, and what it will refuse."""
    machine = _machine(report)
    replicas = {int(replica["slot"]): replica for replica in report["replicas"]}
    current = {number: _slot(replica, known) for number, replica in replicas.items()}
    first, last = report.get("ports") or (1, 65535)
    slots, refusals = assign(
        in_range(current.values(), (first, last)),
        wishes,
        machine.hardware,
        machine.reserve,
        range(first, last + 1),
        {int(number): model for number, model in report.get("numbers", {}).items()}
        | {number: slot.model.name for number, slot in current.items()},
    )
    after = {slot.number: slot for slot in slots}
    seen = {number: _seen(replicas[number], slot, after.get(number)) for number, slot in current.items()}
    actions = {
        action.slot: action for action in reconcile({n: s.digest for n, s in after.items()}, seen, now=0.0)
    }
    steps: list[Step] = []
    for number in sorted({*current, *after}):
        slot = after.get(number, current.get(number))
        assert slot is not None
        name = f"{machine.name}/{number}"
        at = (machine.name, name, slot.model.name)
        gpus = tuple(gpu_texts(slot.slice.to_json()))
        match actions.get(number):
            case Missing():
                steps.append(Start(*at, slot.digest, gpus))
            case Unwanted() if number not in after:
                steps.append(Stop(*at))
            case Outdated() | Unwanted():
                changed = _needs_restart(current[number], slot, known)
                steps.append(Drain(*at, slot.digest, changed, gpus))
            case None if number not in after:
                steps.append(Stop(*at))  # It does not run: its slot alone goes.
            case None:
                steps.append(_settings(at, slot, known))
    return steps, {model: str(refusal) for model, refusal in refusals.items()}


def _seen(replica: Mapping[str, Any], current: Slot, after: Slot | None) -> Seen:
    """As the keeper will see it: under another digest, what was given up is tried again."""
    if replica["state"] == "failed":
        is_same = after is not None and after.digest == current.digest
        return Seen(
            "absent", current.digest, permanent=replica.get("detail") or "failed" if is_same else None
        )
    digest = replica.get("running_digest", current.digest)
    if replica.get("pid") is None:
        digest = current.digest  # The keeper is about to start it.
    elif digest is None:
        return Seen("alive", None, busy=True)
    return Seen("alive", digest_here(after, digest, current.slice, current.port), busy=True)


def _settings(at: tuple[str, str, str], slot: Slot, known: Mapping[str, Mapping[str, Any]]) -> Step:
    former = known.get(slot.model.name)
    changed = changes(former["spec"], slot.model.to_json(), LIVE) if former else ()
    return Live(*at, changed) if changed else Keep(*at)


def _needs_restart(current: Slot, after: Slot, known: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    former = known.get(after.model.name)
    if former is None or former["digest"] != current.digest:
        return ("its configuration",)
    changed = changes(former["spec"], after.model.to_json(), RESTARTS)
    if current.slice != after.slice and not changed:
        return _carved_anew(current.slice, after.slice)
    if current.digest != after.digest and not changed:
        return ("the content of its files",)
    return changed or ("its configuration",)


def _carved_anew(current: Slice, after: Slice) -> tuple[str, ...]:
    words = [
        (kind, ",".join(before) or "none", ",".join(then) or "none")
        for kind, before, then in (
            ("cores", map(str, current.cores), map(str, after.cores)),
            ("GPUs", gpu_texts(current.to_json()), gpu_texts(after.to_json())),
        )
    ]
    changed = tuple(f"{kind} {before} -> {then}" for kind, before, then in words if before != then)
    return changed or ("its share of the hardware",)


def _slot(replica: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> Slot:
    former = known.get(replica["model"])
    model = ModelSpec.from_json(former["spec"]) if former else replace(_NAMELESS, name=replica["model"])
    return Slot(
        int(replica["slot"]),
        model,
        Slice.from_json(replica["slice"]),
        int(replica["port"]),
        str(replica["config_digest"]),
    )


def _reported(name: str, reports: Sequence[Mapping[str, Any]]) -> bool:
    return any(report["name"] == name for report in reports)


_NAMELESS = ModelSpec("", "llama.cpp", "bundled", "all", 1, Need(0, 0), "needs", 0, 1, 0.0, 0.0, "wait")
"""Of a model that the former revision did not have any more, only the name is known, and nothing else is asked."""
