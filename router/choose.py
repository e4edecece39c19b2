"""Where does this turn go? Pure.

Decides on a snapshot that may be old: the host that gets the turn has the last word. Finds no pins.
"""

import hashlib
from collections.abc import Set
from dataclasses import replace

from msgspec import structs

from router.decision import Ask, Decision, Home, Move, PinOutcome, Refuse, Routed, Send, Wait, machine_of
from router.errors import ApiError
from router.keys import refuse_machine, refuse_zone
from router.snapshot import Replica, Snapshot
from router.woken_homes import home_woken, somebody_woken, wakes
from router.yields import all_yielded, home_yielded, is_yielded
from serving.pin_index import Candidate
from serving.pins import Pin
from serving.standing import AWAY

COMING = ("starting", "loading", "draining", "stopping", "unknown")
"""States of a replica that end by themselves."""
SERVING = ("ready", "cordoned", "draining", "yielded")
"""States of a machine that is there: what it tells of its replicas holds."""
ADMIN_SEES = "an admin sees why in `homeport status`"
GONE = ("asleep", "lost")
"""Machines that nobody is to wait for, unless they are woken."""
LOST_RETRY_S = 30.0
"""When to ask again for a session whose machine is lost."""


def choose(
    ask: Ask, home: Home | None, fleet: Snapshot, now: float, refused: Set[str] = frozenset()
) -> Decision:
    """The place of one turn.

    1. the model is not in the config, or the key not for it -> Refuse
    2. the session has a home            -> Send it there if that serves, else Wait for it, woken if it sleeps; a
                                            lost one: `when_lost`; one whose machine is yielded: Refuse, whatever
                                            `when_lost` says
    3. it names a machine or a zone that is unknown or that its key may not use -> Refuse
    4. the session that began it has one -> the same as 2 with that one
    5. some replica serves the model     -> Send it to the best of `ranked`
    6. one may serve it soon             -> Wait
    7. otherwise                         -> Refuse model_unavailable, with each replica's reason

    `refused` are replicas whose host found its places taken: a free place is not counted on there.
    """
    if (barred := model_barred(ask, fleet)) is not None:
        return barred
    if home is not None:
        return _home(ask, home, fleet, now, refused)
    if (barred := _place_barred(ask, fleet)) is not None:
        return barred
    if ask.parent is not None:
        return _child(ask, ask.parent, fleet, now)
    order = ranked(ask, fleet, now)
    if not order:
        return _nobody(ask, fleet, now)
    best = next((candidate for candidate in order if candidate.replica not in refused), order[0])
    free = best.free > 0 and best.replica not in refused
    incarnation = fleet.replicas[best.replica].incarnation
    if ask.session is None:
        return Send(best.replica, incarnation, 0, "none", False)
    return Send(best.replica, incarnation, 1, "new", free)


def ranked(ask: Ask, fleet: Snapshot, now: float) -> list[Candidate]:
    """All replicas that a new session could have as its home, best first.

    One with a free place; else the one whose resident has been quiet longest; else the shortest line; ties by
    rendezvous hash. A quiet resident that somebody waits for already does not count. A child has one: its parent's.
    """
    placed = []
    for replica in fleet.of_model(ask.model):
        if not replica.serves(now) or not allowed(ask, replica.machine, fleet):
            continue
        is_new = ask.parent is None
        if not (_takes_new(replica, fleet) if is_new else replica.name == _name(ask.parent)):
            continue
        open_turns = fleet.open_turns.get(replica.name, 0)
        free = replica.free(open_turns)
        placed.append((_rank(replica, free, open_turns, now), _weight(ask, replica.name), replica.name, free))
    placed.sort()
    return [Candidate(name, free) for _, _, name, free in placed]


def model_barred(ask: Ask, fleet: Snapshot) -> Refuse | None:
    """Why no replica of that model may serve it: there is no such model, or the key is not for it."""
    if ask.model in fleet.models and ask.key.allows_model(ask.model):
        return None
    known = tuple(sorted(name for name in fleet.models if ask.key.allows_model(name)))
    names = ", ".join(known) if known else "none"
    if ask.model in fleet.models:
        message = f"This key is not for that model, only for: {names}. Name one of these, or use another key."
        return Refuse(403, "key_not_allowed", message, known, "model")
    message = f"There is no model of that name; known models: {names}."
    return Refuse(404, "model_not_found", message, known, "model")


def movable(ask: Ask, pin: Pin, fleet: Snapshot, now: float) -> list[Candidate]:
    """Where a session may go from a lost home, best first: within its zone, and not where the machine is named."""
    zone = fleet.zone_of(machine_of(pin))
    if ask.machine is not None or zone is None:
        return []
    free_of_family = structs.replace(ask, parent=None, zone=zone)
    if ask.zone not in (None, zone):
        return []
    return [each for each in ranked(free_of_family, fleet, now) if each.replica != pin.replica]


def _name(pin: Pin | None) -> str:
    return "" if pin is None else pin.replica


def allowed(ask: Ask, machine: str, fleet: Snapshot) -> bool:
    """Whether the request and its key let it run there."""
    zone = fleet.zone_of(machine)
    return ask.machine in (None, machine) and ask.zone in (None, zone) and ask.key.allows_place(machine, zone)


def _place_barred(ask: Ask, fleet: Snapshot) -> Refuse | None:
    """Why it may not run where it wants to. While no machine has reported, none is unknown."""
    key = ask.key
    if ask.machine is not None:
        if (error := refuse_machine(key, ask.machine)) is not None:
            return _refusal_of(error)
        if fleet.machines and ask.machine not in fleet.machines:
            known = tuple(sorted(name for name in fleet.machines if key.allows_machine(name)))
            message = f"There is no machine of that name; known machines: {', '.join(known)}."
            return Refuse(404, "machine_not_found", message, known)
        zone = fleet.zone_of(ask.machine)
        if zone is not None and (error := refuse_zone(key, zone)) is not None:
            return _refusal_of(error)
    if ask.zone is not None:
        if (error := refuse_zone(key, ask.zone)) is not None:
            return _refusal_of(error)
        zones = {machine.zone for machine in fleet.machines.values()}
        if zones and ask.zone not in zones:
            known = tuple(sorted(filter(key.allows_zone, zones)))
            message = f"There is no zone of that name; known zones: {', '.join(known)}."
            return Refuse(404, "zone_not_found", message, known, "x-homeport-zone")
    return None


def _refusal_of(error: ApiError) -> Refuse:
    return Refuse(error.status, error.code, error.message, (), error.param)


def _child(ask: Ask, parent: Pin, fleet: Snapshot, now: float) -> Routed:
    """A family shares one home, free or not: its turns take turns there."""
    found = _home(ask, Home(parent, fresh=False), fleet, now, frozenset())
    if isinstance(found, Send):
        return structs.replace(found, generation=1, pin="new")
    return found.otherwise if isinstance(found, Move) else found


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
    """Of a machine that is away the controller hears nothing; its host may answer all the same."""
    known = fleet.machines.get(replica.machine)
    return known is not None and known.state in ("ready", *AWAY) and not known.cordoned


def _machine_state(replica: Replica, fleet: Snapshot) -> str:
    return _state_of(replica.machine, fleet)


def _state_of(machine: str, fleet: Snapshot) -> str:
    known = fleet.machines.get(machine)
    return "unknown" if known is None else known.state


def _home(ask: Ask, home: Home, fleet: Snapshot, now: float, refused: Set[str]) -> Decision:
    pin = home.pin
    machine = machine_of(pin)
    replica = fleet.replicas.get(pin.replica)
    if (barred := _home_barred(ask, pin, fleet)) is not None:
        return barred
    if replica is not None and replica.model == pin.model and replica.serves(now):
        free = home.fresh and pin.replica not in refused
        free = free and replica.free(fleet.open_turns.get(pin.replica, 0)) > 0
        outcome: PinOutcome = "kept" if not home.fresh else "moved" if pin.generation > 1 else "new"
        return Send(pin.replica, replica.incarnation, pin.generation, outcome, free)
    if _removed(pin, fleet):
        message = (
            f"This session's home was {pin.replica}, and the config no longer has {pin.model} there. "
            "Put it back into the config, or begin anew under another session name."
        )
        return Refuse(410, "home_removed", message, replica=pin.replica)
    if machine not in fleet.forgotten and is_yielded(machine, fleet, now):
        return home_yielded(pin, fleet, now)
    if (waking := home_woken(pin, ask.when_lost, fleet, now)) is not None:
        return waking
    if is_lost(pin, fleet, now):
        return _lost(ask, pin, fleet, now)
    if replica is None or replica.model != pin.model:
        says, wait_s = "has not reported it", 5.0
    else:
        says, wait_s = _why(ask, replica, now)
    message = (
        f"This session's home is {pin.replica} on {machine}, which {says}. "
        "It is not moved elsewhere; ask again when its machine is back (`homeport status` shows it)."
    )
    return Wait("machine_unavailable", message, now + wait_s, pin.replica)


def _home_barred(ask: Ask, pin: Pin, fleet: Snapshot) -> Refuse | None:
    """Why it may not be served at its home: the key's limits were changed, or the request names another place."""
    machine = machine_of(pin)
    zone = fleet.zone_of(machine)
    error = refuse_machine(ask.key, machine) or (refuse_zone(ask.key, zone) if zone is not None else None)
    if error is not None:
        return replace(_refusal_of(error), replica=pin.replica)
    if ask.machine not in (None, machine) or (zone is not None and ask.zone not in (None, zone)):
        message = (
            f"This session's home is {pin.replica}, and the request names another machine or zone. "
            f"{_way_out(ask, machine, fleet)}."
        )
        return Refuse(400, "machine_conflict", message, replica=pin.replica)
    return None


def _way_out(ask: Ask, machine: str, fleet: Snapshot) -> str:
    """Where the machine is part of its key, it is another session without it: then only a move leads to this one."""
    if ask.machine in (None, machine):
        return "Name no zone, or begin a session of its own there"
    if fleet.zone_of(ask.machine) != fleet.zone_of(machine):
        return "Name no machine, or begin a session of its own there"
    return (
        f"Move it there with `homeport move ID {ask.machine}` (the header x-homeport-session has its ID), "
        "or name no machine"
    )


def is_lost(pin: Pin, fleet: Snapshot, now: float) -> bool:
    """Whether its home does not serve and is not to be waited for: out for `lost_after`, or its machine lost or
    forgotten. Of a machine that is unknown to a controller which has just begun, nobody can say so yet."""
    machine = machine_of(pin)
    if machine in fleet.forgotten:
        return True
    replica = fleet.replicas.get(pin.replica)
    if replica is None or replica.reach(now) in ("up", "suspect"):
        return replica is None and _state_of(machine, fleet) in GONE
    state = _state_of(machine, fleet)
    if state in GONE:
        return True
    if state == "unknown" and fleet.is_current:
        return False
    return replica.is_lost(now, fleet.lost_after_s) and replica.state not in ("starting", "loading")


def _lost(ask: Ask, pin: Pin, fleet: Snapshot, now: float) -> Move | Refuse:
    machine = machine_of(pin)
    forgotten = machine in fleet.forgotten
    where = f"This session's home is {pin.replica} on {machine}, which "
    asleep = _state_of(machine, fleet) == "asleep"
    where += "was forgotten (`homeport forget`)" if forgotten else "sleeps" if asleep else "is lost"
    wake = machine if not forgotten and wakes(machine, fleet) else None
    if wake is not None:
        where += " and did not come when it was woken"
    if ask.when_lost == "fail" and not forgotten:
        message = (
            f"{where}, and sessions of {pin.model} are not moved. Begin anew under another session name."
        )
        return Refuse(410, "machine_lost", message, replica=pin.replica, wake=wake)
    if ask.machine is not None:
        why = "The request names this machine, so that it goes to no other; ask again when it is back."
    elif ask.when_lost == "move" or forgotten:
        why = "No replica in its zone can take it now; ask again in a moment."
    else:
        why = (
            "It is not moved elsewhere; ask again when its machine is back, send x-homeport-when-lost: move, "
            f"or give the machine up with `homeport forget {machine}`."
        )
    message = f"{where}. {why}"
    wait = Refuse(503, "machine_lost", message, retry_s=LOST_RETRY_S, replica=pin.replica, wake=wake)
    if ask.session is None or not fleet.is_current or not (ask.when_lost == "move" or forgotten):
        return wait
    order = movable(ask, pin, fleet, now)
    return Move(pin, tuple(order), wait) if order else wait


def _removed(pin: Pin, fleet: Snapshot) -> bool:
    """Whether its machine is there and tells of other replicas, but of none of that name and model.

    Only a controller that answers can say so; an old list proves nothing.
    """
    if not fleet.is_current:
        return False
    machine = machine_of(pin)
    state = fleet.machines.get(machine)
    told = [replica for replica in fleet.replicas.values() if replica.machine == machine]
    here = any(replica.name == pin.replica and replica.model == pin.model for replica in told)
    return state is not None and state.state in SERVING and bool(told) and not here


def _nobody(ask: Ask, fleet: Snapshot, now: float) -> Wait | Refuse:
    model = ask.model
    there = sorted(fleet.of_model(model), key=lambda replica: replica.name)
    replicas = [replica for replica in there if allowed(ask, replica.machine, fleet)]
    whys = [(replica, *_why(ask, replica, now)) for replica in replicas]
    coming = [
        (says, wait_s, replica)
        for replica, says, wait_s in whys
        if _takes_new(replica, fleet)
        and (replica.reach(now) == "up" or _machine_state(replica, fleet) not in GONE)
        and (replica.state in COMING or (replica.state == "ready" and replica.reach(now) != "up"))
    ]
    if coming:
        says, wait_s, replica = min(coming, key=lambda item: item[1])
        message = f"No replica of {model} serves yet: {replica.name} {says}. Ask again in a moment."
        return Wait("machine_unavailable", message, now + wait_s)
    able = [replica for replica in replicas if _takes_new(replica, fleet)]
    able.sort(key=lambda replica: _weight(ask, replica.name))
    if (waking := somebody_woken(able, fleet, now)) is not None:
        return waking
    if not whys and there and not any(allowed(_unplaced(ask), each.machine, fleet) for each in there):
        message = (
            f"This key is for no machine that has a replica of {model}. "
            "Have its machines or zones changed in the keys file, or use another key."
        )
        return Refuse(403, "key_not_allowed", message)
    if not whys and there:
        message = f"No replica of {model} is where the request wants it. See `homeport status`."
        return Refuse(503, "model_unavailable", message, retry_s=10.0)
    if not whys:
        message = f"No machine has reported a replica of {model} yet. Ask again soon; see `homeport status`."
        return Wait("machine_unavailable", message, now + 2.0)
    if all(_machine_state(replica, fleet) == "yielded" for replica in replicas):
        return all_yielded(model, {replica.machine for replica in replicas}, fleet, now)
    reasons = tuple(f"{replica.name} {_refusal(replica, says, fleet)}" for replica, says, _ in whys)
    message = (
        f"No replica of {model} can serve: {'; '.join(reasons)}. See `homeport status` for what to mend."
    )
    return Refuse(503, "model_unavailable", message, reasons, retry_s=10.0)


def _unplaced(ask: Ask) -> Ask:
    """The same, wherever its key may go."""
    return structs.replace(ask, machine=None, zone=None)


def _refusal(replica: Replica, says: str, fleet: Snapshot) -> str:
    if _takes_new(replica, fleet):
        return says
    known = fleet.machines.get(replica.machine)
    state = _machine_state(replica, fleet)
    state = "cordoned" if known is not None and known.cordoned and state != "draining" else state
    return f"takes no new session (its machine is {state})"


def _why(ask: Ask, replica: Replica, now: float) -> tuple[str, float]:
    """(What keeps it from serving, in how many seconds it makes sense to look again).

    Why it has failed its log says, with paths of its machine: that is for admins.
    """
    match replica.state, replica.reach(now):
        case "loading", _:
            return f"is loading its model ({replica.progress:.0%})", 2.0
        case "starting", _:
            return "is starting", 3.0
        case "failed", _:
            detail = replica.detail or "no reason given" if ask.key.role == "admin" else ADMIN_SEES
            return f"has failed ({detail})", 10.0
        case (("draining" | "stopping"), _):
            return "is stopping", 5.0
        case _, "suspect":
            return "has been silent for some seconds", 2.0
        case _, "out":
            return "cannot be reached", 5.0
        case _:
            return "has not answered yet", 1.0
