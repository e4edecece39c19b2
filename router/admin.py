"""What people and `homeport status` are told: the fleet and the sessions as JSON.

Sessions appear by their public ids only. Reads the picture and asks hosts; changes nothing.
"""

import asyncio
from typing import Any

import msgspec

from router.fleet import Fleet, Known
from router.identity import public_id
from router.peers import HostState, ListedMachine, Peers, Unreachable
from router.relay import Relay


def fleet_json(fleet: Fleet, digest_key: bytes, now: float) -> dict[str, Any]:
    """The snapshot for people: revision, models, machines with their replicas, the controller's reach."""
    machines: dict[str, dict[str, Any]] = {
        machine.name: _machine(machine) for machine in fleet.listed.machines
    }
    for name in sorted(fleet.known, key=_by_slot):
        known = fleet.known[name]
        machine = machines.setdefault(known.machine.name, _machine(known.machine))
        machine["replicas"].append(_replica(known, digest_key, now))
    return {
        "revision": fleet.listed.revision,
        "models": [
            {"name": model.name, "context": model.context, "engine": model.engine}
            for model in fleet.snapshot().models.values()
        ],
        "machines": list(machines.values()),
        "problems": fleet.listed.problems or {},
        "controller": {"reachable": fleet.controller_reachable is True},
    }


async def sessions_json(fleet: Fleet, peers: Peers, relay: Relay, wall_s: float) -> dict[str, Any]:
    """Every session that a reachable host or an open turn knows; `unreachable`: hosts that are left out.

    State: `running` (a turn of it runs), `waiting` (one waits), `resident`, else `parked`.
    """
    digest_key = relay.digest_key
    names = sorted(fleet.known, key=_by_slot)
    answers = await asyncio.gather(*(_ask(fleet, peers, name) for name in names))
    waiting = {
        (turn.ask.session, turn.ask.model): turn.replica or ""
        for turn in relay.turns
        if turn.ask is not None and turn.ask.session is not None
    }
    found: dict[tuple[str, str], dict[str, Any]] = {}
    unreachable = []
    for name, answer in zip(names, answers, strict=True):
        if answer is None:
            unreachable.append(name)
            continue
        pins, host = answer
        residents = {resident.session: resident for resident in host.residents}
        for pin in pins:
            key = (str(pin.get("session")), str(pin.get("model")))
            resident = residents.get(key[0])
            if resident is not None and resident.busy:
                state = "running"
            elif key in waiting:
                state = "waiting"
            else:
                state = "parked" if resident is None else "resident"
            tokens = pin.get("tokens", 0) if resident is None else resident.tokens
            age_s = max(0.0, wall_s - float(pin.get("created_s", wall_s)))
            found[key] = _session(digest_key, key, name, state) | {
                "context_tokens": tokens,
                "age_s": round(age_s, 1),
                "turns": pin.get("turns"),
            }
    for key, replica in waiting.items():
        found.setdefault(key, _session(digest_key, key, replica, "waiting"))
    return {"sessions": list(found.values()), "unreachable": unreachable}


async def _ask(fleet: Fleet, peers: Peers, name: str) -> tuple[list[dict[str, Any]], HostState] | None:
    known = fleet.known[name]
    try:
        pins, host = await asyncio.gather(peers.host_pins(known.base), peers.state(known.base))
    except Unreachable:
        return None
    return (pins, host) if host.replica == name else None


def _session(digest_key: bytes, key: tuple[str, str], replica: str, state: str) -> dict[str, Any]:
    session, model = key
    return {
        "id": public_id(digest_key, session),
        "model": model,
        "machine": replica.rpartition("/")[0],
        "replica": replica,
        "state": state,
        "context_tokens": 0,
        "age_s": 0.0,
        "turns": None,
    }


def _machine(machine: ListedMachine) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.structs.asdict(machine)
    return plain | {"replicas": []}


def _replica(known: Known, digest_key: bytes, now: float) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.structs.asdict(known.listed)
    replica, host = known.replica(), known.state
    residents = [
        {
            "session": public_id(digest_key, resident.session),
            "quiet_s": resident.quiet_s,
            "busy": resident.busy,
            "tokens": resident.tokens,
        }
        for resident in replica.residents
    ]
    plain |= {
        "state": replica.state,
        "reach": replica.reach(now),
        "progress": replica.progress,
        "detail": replica.detail,
        "incarnation": replica.incarnation,
        "address": replica.address,
        "places": replica.places,
        "running": replica.running,
        "waiting": replica.waiting,
        "residents": residents,
        "owners": [resident["session"] for resident in residents],
    }
    if host is not None:
        plain |= {
            "pins": host.pins,
            "turns": host.turns,
            "tokens_generated": host.tokens_generated,
            "tokens_evaluated": host.tokens_evaluated,
            "memory": host.memory,
        }
    return plain


def _by_slot(name: str) -> tuple[str, int]:
    machine, _, slot = name.rpartition("/")
    return (machine, int(slot) if slot.isdigit() else 0)
