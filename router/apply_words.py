"""A plan, and how far it is, in words. Asks nobody.

The steps are serving/plan.py's; when one is done is told by the controller's fleet.
"""

from collections.abc import Iterable, Mapping
from typing import Any, assert_never

from serving.model import ModelSpec
from serving.plan import Drain, Keep, Live, Plan, Start, Step, Stop

NO_MACHINE = "any machine"
UNKNOWN = "not known from here"


def plan_lines(plan: Plan) -> list[str]:
    """A line for each replica and each machine that is away, then for what is left out."""
    machines = sorted({step.machine for step in plan.steps} | set(plan.away))
    lines = []
    for machine in machines:
        steps = [step for step in plan.steps if step.machine == machine]
        away = " (is away: this comes when it is back)" if machine in plan.away else ""
        lines.append(
            f"{machine}{' (is yielded: this comes when that is over)' if machine in plan.yielded else away}"
        )
        rows = [_row(step) for step in steps] or [("", UNKNOWN if machine in plan.away else "nothing", "")]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        lines += [
            f"  {name:<{widths[0]}}  {does:<{widths[1]}}  {words}".rstrip() for name, does, words in rows
        ]
    return lines + left_out_lines(plan)


def left_out_lines(plan: Plan) -> list[str]:
    """Models that do not run everywhere where their wish includes a machine, with the reasons."""
    lines = [
        f"model {each.model} is left out on {each.machine or NO_MACHINE}: {each.reason}"
        for each in plan.left_out
        if each.model not in plan.nowhere
    ]
    for model in plan.nowhere:
        lines.append(f"model {model} fits nowhere:")
        reasons = [each for each in plan.left_out if each.model == model]
        lines += [f"  {each.machine or NO_MACHINE}: {each.reason}" for each in reasons]
    return lines


def patience_lines(models: Iterable[ModelSpec], first_token_s: float) -> list[str]:
    """Models in whose line a stream may wait for longer than the router that runs lets it, as it does until it starts
    anew: `queue` is live, `router.first_token` is not."""
    return [
        f"model {model.name}: its queue ({model.queue_s:g} s) is not shorter than the router's first_token as it "
        f"runs ({first_token_s:g} s): until `homeport down` and `homeport up`, a stream that waits so long ends with "
        "an error."
        for model in models
        if model.queue_s >= first_token_s
    ]


def _row(step: Step) -> tuple[str, str, str]:
    match step:
        case Start():
            return step.replica, "start", step.model + _on(step)
        case Stop():
            return step.replica, "stop", step.model
        case Drain():
            changed = ", ".join(step.changed)
            return step.replica, "drain", f"{step.model}, then restart{_on(step)}: {changed}"
        case Live():
            return step.replica, "live", f"{step.model}: {', '.join(step.changed)}"
        case Keep():
            return step.replica, "nothing", step.model
        case _:
            assert_never(step)


def _on(step: Start | Drain) -> str:
    return f" on {', '.join(step.gpus)}" if step.gpus else ""


def outcome(step: Step, fleet: Mapping[str, Any], revision: int) -> tuple[bool, str] | None:
    """Whether this step succeeded, and a line about it; None while it is under way."""
    report = _named(step.machine, fleet["machines"])
    if report is None:
        return False, f"{step.machine} is gone"
    if report["revision"] < revision:
        return None
    replica = _named(step.replica, report["replicas"])
    match step:
        case Keep():
            return True, ""
        case Live():
            return True, f"{step.replica}: {', '.join(step.changed)}"
        case Stop():
            number = int(step.replica.rpartition("/")[2])
            ends = replica is not None or number in report.get("ending", ())
            return None if ends else (True, f"{step.replica}: stopped")
        case Start() | Drain():
            return _serving(step, replica)
        case _:
            assert_never(step)


def _serving(step: Start | Drain, replica: Mapping[str, Any] | None) -> tuple[bool, str] | None:
    if replica is None:
        return False, f"{step.replica}: its keeper found no room for it; `homeport status` says why"
    if replica["state"] == "failed":
        return False, f"{step.replica}: failed: {replica.get('detail') or 'see homeport status'}"
    runs = replica.get("running_digest", replica["config_digest"])
    if replica["state"] != "ready" or runs != replica["config_digest"]:
        return None
    word = "started" if isinstance(step, Start) else "restarted"
    return True, f"{step.replica}: {word}, serves {step.model}"


def waits_for(step: Step, fleet: Mapping[str, Any], revision: int) -> str | None:
    """What a step that is under way waits for, where a person would ask."""
    report = _named(step.machine, fleet["machines"])
    if report is None or report["revision"] < revision:
        return None
    replica = _named(step.replica, report["replicas"])
    if not isinstance(step, Drain) or replica is None or replica["state"] != "ready":
        return None
    return f"{step.replica}: finishes its turns first"


def _named(name: str, told: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return next((each for each in told if each["name"] == name), None)


def passed_lines(fleet: Mapping[str, Any], others: Iterable[str]) -> list[str]:
    """Machines for which the others did not wait any longer."""
    passed = fleet.get("giving", {}).get("passed", {})
    return [f"{name}: {why}; the others go on" for name, why in passed.items()] if list(others) else []
