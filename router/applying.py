"""What `homeport apply` does on the head of a homeport that runs: shows the plan, gives the revision to the controller,
follows it until it is carried out. The controller goes on by itself where nobody looks.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.join import LOOPBACK
from cluster.paths import Paths
from cluster.restarting import running
from router import api_client, apply_words, following, lifecycle, renewing
from router.command_line import FAILED, INTERRUPTED, NOT_RUNNING, WRONG
from router.refused import Refused
from router.renewing import Renewal
from serving.plan import Plan, Step, away_of, plan, yielded_of

LOOK_S = 0.5
SILENT_S = 120.0
"""How long a controller that does not answer is waited for: Ray starts it again."""

Say = Callable[[str], None]


class NotApplied(Refused):
    """Nothing was changed."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a config would change of what runs."""

    renewal: Renewal
    plan: Plan
    renewed: tuple[str, ...]
    """Machines of whose zone or reserve the config says otherwise."""

    @property
    def is_empty(self) -> bool:
        return not self.renewal.is_new and not self.plan.changes


def propose(paths: Paths, config: Path, env: Mapping[str, str], *, allow_script: bool = False) -> Proposal:
    """`allow_script`: as `lifecycle.prepare` has it. Changes nothing. Raises NotApplied, ConfigError and UpRefused."""
    run = running(paths)
    if run is None:
        raise NotApplied("homeport does not run here. `homeport up` starts it.", NOT_RUNNING)
    if following.is_worker(run):
        raise NotApplied(following.worker_line(paths, run) + " Apply the config there.", WRONG)
    address = run.get("address", LOOPBACK)
    prepared = lifecycle.prepare(
        paths, config, env, None if address == LOOPBACK else address, allow_script=allow_script
    )
    renewal = renewing.compare(paths, run, prepared)
    try:
        fleet = fleet_of(paths, renewal)
    except (api_client.Away, api_client.Refused) as error:
        raise NotApplied(
            f"The controller cannot be asked what runs: {error}. Nothing was changed; try again in a moment.",
            FAILED,
        ) from None
    renewed = renewing.machines_renewed(prepared.config.machines, fleet, renewal.machine.name)
    return Proposal(renewal, plan(renewal.wanted, renewal.before, fleet), renewed)


def describe(proposal: Proposal) -> list[str]:
    """The plan for a person, with what it does not change."""
    renewal, lines = proposal.renewal, []
    if proposal.is_empty:
        lines.append("It serves what the config says; nothing is to be changed.")
        lines += apply_words.left_out_lines(proposal.plan)
    else:
        lines.append(f"Revision {renewal.wanted['revision']}, one machine at a time:")
        lines += apply_words.plan_lines(proposal.plan)
        if not proposal.plan.changes:
            lines.append("No replica starts, stops or changes.")
    if renewal.later:
        lines.append(
            f"Not changed, holds after `homeport down` and `homeport up`: {', '.join(renewal.later)}."
        )
    first_token_s = renewal.config.router.limits.first_token_s
    lines += apply_words.patience_lines(renewal.config.models, first_token_s)
    lines += [
        f"{name} takes its new zone, reserve or yield_to by itself, within half a minute; its replicas go on."
        for name in proposal.renewed
    ]
    return lines


def carry_out(paths: Paths, proposal: Proposal, say: Say) -> int:
    """Write the revision and follow it; returns the exit code. Raises OSError. Ctrl-C leaves it going on."""
    try:
        renewing.renew(paths, proposal.renewal)
        return _follow(paths, proposal, say)
    except KeyboardInterrupt:
        say("It goes on by itself. `homeport apply` again shows what is left to do.")
        return INTERRUPTED


def fleet_of(paths: Paths, renewal: Renewal) -> dict[str, Any]:
    """What the controller tells. Raises Away and Refused."""
    fleet: dict[str, Any] = api_client.ask_control(paths, "GET", "/fleet")
    return fleet


def _follow(paths: Paths, proposal: Proposal, say: Say) -> int:
    """Until every change is carried out, or its machine is away."""
    revision = proposal.renewal.wanted["revision"]
    later = {*proposal.plan.away, *proposal.plan.yielded}
    left: list[Step] = [step for step in proposal.plan.changes if step.machine not in later]
    heard_at, failures, told = time.monotonic(), 0, set[str]()

    def tell(line: str) -> None:
        if line not in told:
            told.add(line)
            say(line)

    while True:
        try:
            fleet = fleet_of(paths, proposal.renewal)
        except (api_client.Away, api_client.Refused) as error:
            if time.monotonic() - heard_at > SILENT_S:
                say(f"The controller does not answer: {error}. What is left is done once it is back.")
                return FAILED
            time.sleep(LOOK_S)
            continue
        heard_at = time.monotonic()
        if fleet["revision"] >= revision:
            done, under_way = _look(left, fleet, revision)
            for succeeded, line in done:
                failures += not succeeded
                tell(line)
            left = under_way
            for line in apply_words.passed_lines(fleet, fleet.get("giving", {}).get("waiting", ())):
                tell(line)
            for step in left:
                if note := apply_words.waits_for(step, fleet, revision):
                    tell(note)
            if not left:
                say(_done(revision, failures, (*away_of(fleet), *yielded_of(fleet))))
                return FAILED if failures else 0
        time.sleep(LOOK_S)


def _done(revision: int, failures: int, away: tuple[str, ...]) -> str:
    failed = f", {failures} failed" if failures else ""
    rest = f"; what {', '.join(away)} has to do comes when it is back" if away else ""
    return f"Revision {revision} is carried out{failed}{rest}."


def _look(
    left: list[Step], fleet: Mapping[str, Any], revision: int
) -> tuple[list[tuple[bool, str]], list[Step]]:
    """What has come of these steps, and those that are under way. What a machine that went away has to do waits."""
    done: list[tuple[bool, str]] = []
    under_way: list[Step] = []
    for step in left:
        if step.machine in away_of(fleet):
            done.append((True, f"{step.machine} is away: its part comes when it is back"))
        elif step.machine in yielded_of(fleet):
            done.append((True, f"{step.machine} is yielded: its part comes when that is over"))
        elif (found := apply_words.outcome(step, fleet, revision)) is None:
            under_way.append(step)
        else:
            done.append(found)
    return done, under_way
