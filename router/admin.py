"""What people and `homeport status` are told: the fleet and the sessions as JSON.

Sessions appear by their public ids only. Reads the picture and asks hosts; changes nothing.
"""

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from router.choose import ADMIN_SEES
from router.fleet import Fleet, Known
from router.identity import key_scope, public_id
from router.keys import Key
from router.peers import HostState, ListedMachine, ListedReplica, Peers, Unreachable
from router.sessions import Sessions
from router.siblings import OpenTurn
from router.watching import name_of


def fleet_json(fleet: Fleet, digest_key: bytes, now: float, wall_s: float, key: Key) -> dict[str, Any]:
    """The snapshot for people: revision, models, machines with their replicas, the controller's reach, and what the
    key may do (`role`).

    An admin is told all of it. Anybody else is told of the machines and models that the key may use; not which
    sessions are there, since the picture does not say whose they are; and not what logs say, which name files and
    people.
    """
    all_of_it = key.role == "admin"

    def told(name: str, zone: str | None) -> bool:
        return all_of_it or key.allows_place(name, zone)

    machines: dict[str, dict[str, Any]] = {
        machine.name: _machine(machine, wall_s, all_of_it)
        for machine in fleet.listed.machines
        if told(machine.name, machine.zone)
    }
    for name in sorted(fleet.known, key=_by_slot):
        known = fleet.known[name]
        if not told(known.machine.name, known.machine.zone):
            continue
        machine = machines.get(known.machine.name)
        if machine is None:
            machine = machines[known.machine.name] = _machine(known.machine, wall_s, all_of_it)
        replica = _replica(known, digest_key, now, all_of_it)
        if all_of_it:
            machine["replicas"].append(replica)
        elif key.allows_model(replica["model"]):
            machine["replicas"].append(_unlogged(replica))
    return {
        "role": key.role,
        "revision": fleet.listed.revision,
        "models": [
            {
                "name": model.name,
                "context": model.context,
                "engine": model.engine,
                "when_lost": model.when_lost,
            }
            for model in fleet.models.values()
            if all_of_it or key.allows_model(model.name)
        ],
        "machines": list(machines.values()),
        "forgotten": [
            msgspec.structs.asdict(machine)
            for machine in fleet.listed.forgotten
            if told(machine.name, machine.zone)
        ],
        "problems": {
            model: {where: why for where, why in reasons.items() if all_of_it or where in machines}
            for model, reasons in (fleet.listed.problems or {}).items()
            if all_of_it or key.allows_model(model)
        },
        "controller": {"reachable": fleet.controller_reachable is True},
    }


async def sessions_json(
    fleet: Fleet, peers: Peers, sessions: Sessions, wall_s: float, key: Key
) -> dict[str, Any]:
    """Every session that a reachable host or an open turn knows, of this key or for an admin's of all.

    `unreachable`: hosts that are left out. State: `running` (a turn of it runs), `waiting` (one waits), `resident`,
    else `parked`.
    """
    names = sorted(fleet.known, key=_by_slot)
    answers = await asyncio.gather(*(_ask(fleet, peers, name) for name in names))
    heard = [Heard(name, *answer) for name, answer in zip(names, answers, strict=True) if answer is not None]
    unreachable = [name for name, answer in zip(names, answers, strict=True) if answer is None]
    digest_key, turns = sessions.relay.addressing.digest_key, await sessions.open_turns()
    known = [each for host in heard for each in at_host(host, digest_key, wall_s)]
    return {
        "sessions": list(merged_sessions(known, turns, digest_key, key).values()),
        "unreachable": unreachable,
    }


class Heard(NamedTuple):
    """What is known of a host's sessions."""

    replica: str
    pins: list[dict[str, Any]]
    state: HostState | None
    """None: it does not answer, and all this is of before."""


class AtHost(NamedTuple):
    """One session of a host."""

    name: str
    """As `name_of` says it."""
    session: str
    scope: str | None
    told: dict[str, Any]


def merged_sessions(
    known: Iterable[AtHost], turns: Iterable[OpenTurn], digest_key: bytes, key: Key
) -> dict[str, dict[str, Any]]:
    """Of the sessions of hosts and of open turns those that the key may see, by name; what is `known` of them stays as
    it is. Of one that several hosts have, the last account; `away` is the state of one whose host is, unless a turn of
    it waits.
    """
    scope, all_of_them = key_scope(key.name), key.role == "admin"
    found = {each.name: each.told for each in known if all_of_them or each.scope == scope}
    for turn in turns:
        if not all_of_them and key_scope(turn.key) != scope:
            continue
        begun = {
            "id": public_id(digest_key, turn.session),
            **_session(turn.model, turn.replica, "waiting"),
            "parent": None if turn.family is None else public_id(digest_key, turn.family),
        }
        told = found.get(name := name_of(begun), begun)
        state = told["state"] if told["state"] == "running" else "waiting"
        found[name] = told | {"source": turn.source, "state": state}
    return found


def at_host(heard: Heard, digest_key: bytes, wall_s: float) -> Iterator[AtHost]:
    """The sessions that live at a host."""
    name, pins, host = heard
    residents = {resident.session: resident for resident in host.residents} if host else {}
    line = {each.session: each for each in host.line if each.session is not None} if host else {}
    for pin in pins:
        if pin.get("replica", name) != name:
            continue  # It has moved there, which is that host's to tell.
        digest, model, family = str(pin.get("session")), str(pin.get("model")), pin.get("family")
        resident, waiting = residents.get(digest), line.get(digest)
        if host is None:
            state = "away"
        elif resident is not None and resident.busy:
            state = "running"
        elif waiting is not None:
            state = "waiting"
        else:
            state = str(pin.get("state") or ("parked" if resident is None else "resident"))
        session = {"id": public_id(digest_key, digest), **_session(model, name, state)}
        session |= {
            "source": "guess" if pin.get("guessed") else None,
            "parent": public_id(digest_key, family) if family not in (None, digest) else None,
            "context_tokens": pin.get("tokens", 0) if resident is None else resident.tokens,
            "created_s": round(created_s := float(pin.get("created_s", wall_s)), 1),
            "age_s": round(max(0.0, wall_s - created_s), 1),
            "turns": pin.get("turns"),
        }
        if waiting is not None:
            session["line"] = {
                "position": waiting.position,
                "waited_s": waiting.waited_s,
                "about_s": waiting.about_s,
            }
        yield AtHost(name_of(session), digest, pin.get("scope"), session)


async def _ask(fleet: Fleet, peers: Peers, name: str) -> tuple[list[dict[str, Any]], HostState] | None:
    known = fleet.known[name]
    try:
        pins, host = await asyncio.gather(peers.host_pins(known.base), peers.state(known.base))
    except Unreachable:
        return None
    return (pins, host) if host.replica == name else None


def _session(model: str, replica: str, state: str) -> dict[str, Any]:
    return {
        "model": model,
        "machine": replica.rpartition("/")[0],
        "replica": replica,
        "state": state,
        "context_tokens": 0,
        "created_s": None,
        "age_s": 0.0,
        "turns": None,
        "line": None,
    }


def _machine(machine: ListedMachine, wall_s: float, all_of_it: bool) -> dict[str, Any]:
    """`away_s`: for how long one that is away has not been heard; None: since before the controller began.

    `limits`: what the system keeps replicas to, and what is only watched. Which programs a machine's person runs is
    told to admins alone.
    """
    plain: dict[str, Any] = msgspec.structs.asdict(machine)
    if (yielded := machine.yielded) is not None:
        plain["yielded"] = {"by": yielded.by if all_of_it else None, "until": yielded.until}
    plain["limits"] = limits_of(machine.replicas)
    if not all_of_it or not plain["models"]:
        del plain["models"]
    heard_s = plain.pop("heard_s")
    away_s = None if heard_s is None else round(max(0.0, wall_s - heard_s), 1)
    return plain | {"away_s": away_s, "replicas": []}


def _replica(known: Known, digest_key: bytes, now: float, named: bool) -> dict[str, Any]:
    listed, replica, host = known.listed, known.replica(), known.state
    plain: dict[str, Any] = msgspec.structs.asdict(listed)
    plain["foreign"] = [msgspec.structs.asdict(each) for each in listed.foreign]
    plain["foreign_gpu"] = [msgspec.structs.asdict(each) for each in listed.foreign_gpu]
    residents = [
        {
            "session": public_id(digest_key, resident.session) if named else None,
            "quiet_s": resident.quiet_s,
            "busy": resident.busy,
            "tokens": resident.tokens,
        }
        for resident in replica.residents
    ]
    plain |= {
        "state": replica.state,
        "reach": replica.reach(now),
        "silent_s": None if replica.heard_at is None else round(max(0.0, now - replica.heard_at), 1),
        "progress": replica.progress,
        "detail": replica.detail,
        "incarnation": replica.incarnation,
        "address": replica.address,
        "places": replica.places,
        "running": replica.running,
        "waiting": replica.waiting,
        "residents": residents,
        "owners": [resident["session"] for resident in residents if named],
    }
    if host is not None:
        plain |= {
            "pins": host.pins,
            "turns": host.turns,
            "tokens_generated": host.tokens_generated,
            "tokens_evaluated": host.tokens_evaluated,
            "memory": host.memory,
            "rates": host.rates,
        }
    return plain


def _unlogged(replica: dict[str, Any]) -> dict[str, Any]:
    """Without what may come from a host's log, and without the programs that its machine's person runs."""
    detail = ADMIN_SEES if replica["state"] == "failed" else ""
    told = {key: value for key, value in replica.items() if key not in ("foreign", "foreign_gpu")}
    return told | {"detail": detail, "stderr": []}


def limits_of(replicas: Iterable[ListedReplica]) -> dict[str, list[str]]:
    """Of a machine: `enforced` is what the system keeps each of its replicas to; `watched` the rest."""
    told = [each.limits for each in replicas if each.limits and any(each.limits.values())]
    names = sorted({name for limits in told for kind in ("enforced", "watched") for name in limits[kind]})
    enforced = [name for name in names if all(name in limits["enforced"] for limits in told)]
    return {"enforced": enforced, "watched": [name for name in names if name not in enforced]}


def _by_slot(name: str) -> tuple[str, int]:
    machine, _, slot = name.rpartition("/")
    return (machine, int(slot) if slot.isdigit() else 0)
