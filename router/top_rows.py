"""What `homeport top` shows, as rows of words: machines with cells of their cores, sessions, the head line. Pure.

Asks nobody and draws nothing. Nothing is told by colour alone: each cell and each state is a sign or a word.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.gpu_parts import gpu_texts
from cluster.machine import Hardware, Reserve
from cluster.slices import usable_cores
from router import moves_words
from router.watching import Speed, name_of

LEGEND = "cells: a b a replica's, A B it answers, ! it does not serve, · free, - reserved"
FREE, RESERVED, BROKEN, UNKNOWN = "·", "-", "!", "?"
CELLS_MOST = 24
"""More cores than this are told by their number: `A16 ·8`."""
SIGNS = {"ready": "●", "failed": "✗", "lost": "✗", "asleep": "☾"}
ON_ITS_WAY = "◌"
AWAY_STATES = ("lost", "asleep", "unknown")
Told = Mapping[str, Any]
Standing = Callable[[Told], str]


@dataclass(frozen=True, slots=True)
class Look:
    """What the router told at one moment of some clock, in seconds."""

    at_s: float
    fleet: Told
    sessions: tuple[Told, ...]


@dataclass(frozen=True, slots=True)
class MachineRow:
    """`about`: the lines on it when it is chosen."""

    name: str
    state: str
    cells: str
    models: str
    tokens_per_s: str
    sessions: str
    about: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SessionRow:
    """`key`: its id and model, since a session may have a home for each model."""

    key: str
    id: str
    state: str
    model: str
    home: str
    about: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """All of it. `trouble`: what is wrong with what is told, "" where nothing is."""

    head: str
    trouble: str
    machines: tuple[MachineRow, ...]
    sessions: tuple[SessionRow, ...]


def picture(looks: Sequence[Look], url: str, standing: Standing, age: Callable[[float], str]) -> Picture:
    """Of the last look; the earlier ones tell how fast tokens come. `standing`: how a machine stands, in words; `age`:
    seconds in words."""
    last = looks[-1]
    speeds = tokens_per_s(looks)
    machines = tuple(
        _machine_row(each, last.sessions, speeds, standing(each)) for each in last.fleet.get("machines", ())
    )
    told = [each["state"] for each in last.fleet.get("machines", ())]
    lost = sum(state == "lost" for state in told)
    parts = [
        url,
        f"{len(told)} {'machine' if len(told) == 1 else 'machines'}" + (f", {lost} lost" if lost else ""),
        f"{len(last.sessions)} {'session' if len(last.sessions) == 1 else 'sessions'}",
        f"{sum(speeds.values()):.1f} tokens/s",
    ]
    reachable = last.fleet.get("controller", {}).get("reachable", True)
    trouble = (
        "" if reachable else "The controller does not answer: machines are shown as they were known last."
    )
    return Picture(
        "   ".join(parts), trouble, machines, tuple(_session_row(each, age) for each in last.sessions)
    )


def silent(url: str, error: str, age_s: float | None) -> str:
    """What is said while the router does not answer."""
    since = "nothing is known yet" if age_s is None else f"shown is what it told {age_s:.0f} s ago"
    return f"! The router does not answer ({url}); {since}. {error}"


def tokens_per_s(looks: Sequence[Look]) -> dict[str, float]:
    """By replica, of those that the last look tells of and two looks or more saw."""
    speeds: defaultdict[str, Speed] = defaultdict(Speed)
    for each in looks:
        for name, replica in _replicas(each.fleet).items():
            made = replica.get("tokens_generated") or 0
            speeds[name].heard(replica.get("incarnation") or 0, each.at_s, made)
    last = looks[-1]
    found = {name: speeds[name].per_s(last.at_s) for name in _replicas(last.fleet)}
    return {name: per_s for name, per_s in found.items() if per_s is not None}


def cells(machine: Told) -> str:
    """Its cores in order of their ids, each a sign (LEGEND); behind a bar its GPUs."""
    if not machine.get("hardware"):
        return UNKNOWN
    hardware = Hardware.from_json(machine["hardware"])
    reserve = Reserve.from_json(machine["reserve"]) if machine.get("reserve") else Reserve(0, 0)
    usable = {core.id for core in usable_cores(hardware, reserve)}
    held: dict[int | str, str] = {}
    for number, replica in enumerate(machine["replicas"]):
        carved = replica.get("slice") or {"cores": (), "gpus": ()}
        held |= dict.fromkeys((*carved["cores"], *carved["gpus"]), _sign(number, replica))
    cores = [held.get(core.id, FREE if core.id in usable else RESERVED) for core in hardware.cores]
    gpus = [
        held.get(gpu.uuid, FREE if gpu.usable else BROKEN)
        for gpu in hardware.gpus
        if gpu.kind != "inventory only"
    ]
    return _short(cores) + (f" | {_short(gpus)}" if gpus else "")


def _short(signs: Sequence[str]) -> str:
    if len(signs) <= CELLS_MOST:
        return "".join(signs)
    return " ".join(f"{sign}{count}" for sign, count in Counter(signs).items())


def _letter(number: int) -> str:
    return chr(ord("a") + number % 26)


def _sign(number: int, replica: Told) -> str:
    if not _serves(replica):
        return BROKEN
    return _letter(number).upper() if replica.get("running") else _letter(number)


def _serves(replica: Told) -> bool:
    return replica["state"] == "ready" and replica.get("reach", "up") in ("up", "suspect")


def _machine_row(
    machine: Told, sessions: Sequence[Told], speeds: Mapping[str, float], stands: str
) -> MachineRow:
    name, replicas = machine["name"], machine["replicas"]
    here = sum(session["machine"] == name for session in sessions)
    away = machine["state"] in AWAY_STATES
    speed = sum(speeds.get(replica["name"], 0.0) for replica in replicas)
    about = [f"{name}: {stands}; zone {machine.get('zone', 'default')}"]
    if away and here:
        about.append(
            f"{here} of its sessions: each does what its model's `when_lost` says (docs/sessions.md)"
        )
    about += [_replica_line(number, replica, speeds) for number, replica in enumerate(replicas)]
    sign = SIGNS.get(machine["state"], ON_ITS_WAY)
    return MachineRow(
        name,
        f"{sign} {machine['state']}",
        UNKNOWN if away else cells(machine),
        ", ".join(dict.fromkeys(replica["model"] for replica in replicas)) or "-",
        "-" if away else f"{speed:.1f}",
        str(here),
        tuple(about),
    )


def _replica_line(number: int, replica: Told, speeds: Mapping[str, float]) -> str:
    """`a den/0 smollm2 ready, core 0, 1 runs, 2 wait, 31.0 tokens/s`."""
    carved = replica.get("slice") or {"cores": (), "gpus": ()}
    words = [replica["state"] if _serves(replica) or replica["state"] != "ready" else "no answer"]
    if carved["cores"]:
        words.append(f"core {','.join(map(str, carved['cores']))}")
    if gpus := gpu_texts(carved):
        words.append(f"GPU {','.join(gpus)}")
    words += [
        f"{replica[key]} {word}"
        for key, word in (("running", "runs"), ("waiting", "wait"))
        if replica.get(key)
    ]
    if speeds.get(replica["name"]):
        words.append(f"{speeds[replica['name']]:.1f} tokens/s")
    if replica.get("detail"):
        words.append(str(replica["detail"]))
    return f"{_letter(number)} {replica['name']} {replica['model']} {', '.join(words)}"


def _session_row(session: Told, age: Callable[[float], str]) -> SessionRow:
    line = session.get("line")
    place = f", place {line['position']}" if line else ""
    about = [f"{session['id']}: home {session['replica']}, model {session['model']}"]
    facts = [f"{session.get('context_tokens') or 0} tokens of context", f"{session.get('turns') or 0} turns"]
    facts.append(f"{age(session.get('age_s') or 0.0)} old")
    if line:
        waits = f"waits at place {line['position']} of the line for {age(line.get('waited_s') or 0.0)}"
        facts.append(waits + ("" if line.get("about_s") is None else f", about {age(line['about_s'])} more"))
    about.append(", ".join(facts))
    return SessionRow(
        name_of(session),
        session["id"],
        f"{session['state']}{place}",
        session["model"],
        session["replica"],
        tuple(about),
    )


def _replicas(fleet: Told) -> dict[str, Told]:
    return {
        replica["name"]: replica for machine in fleet.get("machines", ()) for replica in machine["replicas"]
    }


@dataclass(frozen=True, slots=True)
class Act:
    """What a person wants done. `asks` is said before, `done` afterwards where the router's answer says no more."""

    method: str
    path: str
    body: Any
    asks: str
    done: str
    timeout_s: float = 10.0


def said(act: Act, answer: Any) -> str:
    """What came of it."""
    if isinstance(answer, Mapping) and "moved" in answer:
        return " ".join(moves_words.moved(answer))
    return act.done
