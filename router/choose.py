"""Where does this turn go? Pure.

Decides on a snapshot that may be old: the host that gets the turn has the last word. Finds no pins.
"""

import hashlib
from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

from router.snapshot import Replica, Snapshot
from serving.pin_index import Candidate
from serving.pins import Pin

PinOutcome = Literal["new", "kept", "none"]

COMING = ("starting", "loading", "draining", "stopping", "unknown")
"""States of a replica that end by themselves."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One turn that wants a replica. `request_id` stands for the session where there is none."""

    model: str
    session: str | None
    request_id: str


@dataclass(frozen=True, slots=True)
class Home:
    """A session's pin. `fresh`: just claimed, so that no host is known to have written it down."""

    pin: Pin
    fresh: bool


@dataclass(frozen=True, slots=True)
class Send:
    """Send the turn there. `claim_free`: a new session counts on a free place, which the host may refute."""

    replica: str
    incarnation: int
    generation: int
    pin: PinOutcome
    claim_free: bool


@dataclass(frozen=True, slots=True)
class Wait:
    """Nobody can serve it now, but that should change: look again by `until` (the router's clock).

    `replica` is the home that is waited for; None for a turn that could go to any.
    """

    reason: Literal["machine_unavailable"]
    message: str
    until: float
    replica: str | None = None


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nobody will serve it. `reasons`: one sentence a replica, or the names that are known."""

    status: int
    code: Literal["model_not_found", "model_unavailable", "home_removed"]
    message: str
    reasons: tuple[str, ...] = ()


Decision = Send | Wait | Refuse


def choose(
    ask: Ask, home: Home | None, fleet: Snapshot, now: float, refused: Set[str] = frozenset()
) -> Decision:
    """The place of one turn.

    1. the model is not in the config  -> Refuse model_not_found
    2. the session has a home          -> Send it there if that serves, else Wait for it; never elsewhere
    3. some replica serves the model   -> Send it to the best of `ranked`
    4. one may serve it soon           -> Wait
    5. otherwise                       -> Refuse model_unavailable, with each replica's reason

    `refused` are replicas whose host found its places taken: a free place is not counted on there.
    """
    if ask.model not in fleet.models:
        known = tuple(sorted(fleet.models))
        names = ", ".join(known) if known else "none"
        return Refuse(
            404, "model_not_found", f"There is no model of that name; known models: {names}.", known
        )
    if home is not None:
        return _home(home, fleet, now, refused)
    order = ranked(ask, fleet, now)
    if not order:
        return _nobody(ask.model, fleet, now)
    best = next((candidate for candidate in order if candidate.replica not in refused), order[0])
    free = best.free > 0 and best.replica not in refused
    incarnation = fleet.replicas[best.replica].incarnation
    if ask.session is None:
        return Send(best.replica, incarnation, 0, "none", False)
    return Send(best.replica, incarnation, 1, "new", free)


def ranked(ask: Ask, fleet: Snapshot, now: float) -> list[Candidate]:
    """All replicas that a new session could have as its home, best first.

    One with a free place; else the one whose resident has been quiet longest; else the shortest line; ties by
    rendezvous hash. A quiet resident that somebody waits for already does not count.
    """
    placed = []
    for replica in fleet.of_model(ask.model):
        if not replica.serves(now) or not _takes_new(replica, fleet):
            continue
        open_turns = fleet.open_turns.get(replica.name, 0)
        free = replica.free(open_turns)
        placed.append((_rank(replica, free, open_turns, now), _weight(ask, replica.name), replica.name, free))
    placed.sort()
    return [Candidate(name, free) for _, _, name, free in placed]


def _rank(replica: Replica, free: int, open_turns: int, now: float) -> tuple[int, float]:
    if free > 0:
        return (0, 0.0)
    quiet = [resident.quiet_s for resident in replica.residents if not resident.busy]
    if len(quiet) > replica.waiting + replica.unseen(open_turns):
        age_s = now - (replica.heard_at if replica.heard_at is not None else now)
        return (1, -(max(quiet) + age_s))
    return (2, float(replica.line(open_turns)))


def _weight(ask: Ask, replica: str) -> bytes:
    """Rendezvous hash; the smallest wins. Each ask has an order of its own, the same every time."""
    return hashlib.blake2b(f"{ask.session or ask.request_id}\0{replica}".encode(), digest_size=8).digest()


def _takes_new(replica: Replica, fleet: Snapshot) -> bool:
    return _machine_state(replica, fleet) == "ready"


def _machine_state(replica: Replica, fleet: Snapshot) -> str:
    machine = fleet.machines.get(replica.machine)
    return "unknown" if machine is None else machine.state


def _home(home: Home, fleet: Snapshot, now: float, refused: Set[str]) -> Decision:
    pin = home.pin
    replica = fleet.replicas.get(pin.replica)
    if replica is not None and replica.model == pin.model and replica.serves(now):
        free = home.fresh and pin.replica not in refused
        free = free and replica.free(fleet.open_turns.get(pin.replica, 0)) > 0
        return Send(pin.replica, replica.incarnation, pin.generation, "new" if home.fresh else "kept", free)
    machine = pin.replica.rpartition("/")[0]
    if _removed(pin, fleet):
        message = (
            f"This session's home was {pin.replica}, and the config no longer has {pin.model} there. "
            "Put it back into the config, or begin anew under another session name."
        )
        return Refuse(410, "home_removed", message)
    if replica is None or replica.model != pin.model:
        says, wait_s = "has not reported it", 5.0
    else:
        says, wait_s = _why(replica, now)
    message = (
        f"This session's home is {pin.replica} on {machine}, which {says}. "
        "It is not moved elsewhere; ask again when its machine is back (`homeport status` shows it)."
    )
    return Wait("machine_unavailable", message, now + wait_s, pin.replica)


def _removed(pin: Pin, fleet: Snapshot) -> bool:
    """Whether its machine is there and tells of other replicas, but of none of that name and model.

    Only a controller that answers can say so; an old list proves nothing.
    """
    if not fleet.is_current:
        return False
    machine = pin.replica.rpartition("/")[0]
    state = fleet.machines.get(machine)
    told = [replica for replica in fleet.replicas.values() if replica.machine == machine]
    here = any(replica.name == pin.replica and replica.model == pin.model for replica in told)
    return state is not None and state.state == "ready" and bool(told) and not here


def _nobody(model: str, fleet: Snapshot, now: float) -> Wait | Refuse:
    replicas = sorted(fleet.of_model(model), key=lambda replica: replica.name)
    whys = [(replica, *_why(replica, now)) for replica in replicas]
    coming = [
        (says, wait_s, replica)
        for replica, says, wait_s in whys
        if _machine_state(replica, fleet) in ("ready", "joining")
        and (replica.state in COMING or (replica.state == "ready" and replica.reach(now) != "up"))
    ]
    if coming:
        says, wait_s, replica = min(coming, key=lambda item: item[1])
        message = f"No replica of {model} serves yet: {replica.name} {says}. Ask again in a moment."
        return Wait("machine_unavailable", message, now + wait_s)
    if not whys:
        message = f"No machine has reported a replica of {model} yet. Ask again soon; see `homeport status`."
        return Wait("machine_unavailable", message, now + 2.0)
    reasons = tuple(f"{replica.name} {_refusal(replica, says, fleet)}" for replica, says, _ in whys)
    message = (
        f"No replica of {model} can serve: {'; '.join(reasons)}. See `homeport status` for what to mend."
    )
    return Refuse(503, "model_unavailable", message, reasons)


def _refusal(replica: Replica, says: str, fleet: Snapshot) -> str:
    if _takes_new(replica, fleet):
        return says
    return f"takes no new session (its machine is {_machine_state(replica, fleet)})"


def _why(replica: Replica, now: float) -> tuple[str, float]:
    """(What keeps it from serving, in how many seconds it makes sense to look again)."""
    match replica.state, replica.reach(now):
        case "loading", _:
            return f"is loading its model ({replica.progress:.0%})", 2.0
        case "starting", _:
            return "is starting", 3.0
        case "failed", _:
            return f"has failed ({replica.detail or 'no reason given'})", 10.0
        case (("draining" | "stopping"), _):
            return "is stopping", 5.0
        case _, "suspect":
            return "has been silent for some seconds", 2.0
        case _, "out":
            return "cannot be reached", 5.0
        case _:
            return "has not answered yet", 1.0
