"""What boards are shown: the fleet and its sessions without what ages by itself, and what changed between two pictures.
Pure.

Ages become times since the epoch, so that a picture in which nothing happens stays the same. Knows no keys: it is given
what somebody may see.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

SLACK_S = 3.0
"""A time that was worked out from an age differs so much without anything having happened."""
MEMORY_STEP = 64 << 20
"""What a process takes changes all the time: it is told in steps."""
WINDOW_S = 3.0
"""Tokens a second are those of so long."""
NO_RECORD: Json = {}
"""What a record that was not there differs from."""
ABSENT = object()
"""What a field that was not there differs from; nothing that is told equals it."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What somebody may see at one moment."""

    rest: Json
    """The fleet but for its machines."""
    machines: Mapping[str, Json]
    """By name."""
    sessions: Mapping[str, Json]
    """By public id and model."""


NOTHING = Picture({}, {}, {})


def picture(
    fleet: Json, sessions: Mapping[str, Json], speeds: Mapping[str, float], wall_s: float, old: Picture
) -> Picture:
    """Of what `/api/fleet` says, which is taken over and changed, and of sessions by name. `speeds`: by replica.

    `old`: the one of before, from which times are kept that did not really change.
    """
    machines = {}
    for machine in fleet.pop("machines"):
        was = old.machines.get(machine["name"], {})
        machines[machine["name"]] = _machine(machine, was, speeds, wall_s)
    return Picture(fleet, machines, {name: steady(each, {}, wall_s) for name, each in sessions.items()})


def name_of(session: Mapping[str, Any]) -> str:
    return f"{session['id']} {session['model']}"


def whole(seen: Picture) -> Json:
    """All of it, in the shape of `/api/fleet` and `/api/sessions`."""
    fleet = {**seen.rest, "machines": list(seen.machines.values())}
    return {"fleet": fleet, "sessions": list(seen.sessions.values())}


def change(old: Picture, new: Picture) -> Json | None:
    """What is to be laid over the old picture to have the new one; None where nothing differs.

    Each machine, each session and the rest by what differs in it: `set` are fields with their new values, `unset` those
    that it has no longer; either is left out where it is empty. A record that was not there differs from an empty one;
    None is told of one that is gone. A machine's `replicas` are told in the same way, by name, and `order` names all of
    them where they do not stand as before with the new ones behind them.
    """
    machines = _differing(old.machines, new.machines, _machine_difference)
    sessions = _differing(old.sessions, new.sessions, _difference)
    fleet = _difference(old.rest, new.rest)
    if not (machines or sessions or fleet):
        return None
    return {"machines": machines, "sessions": sessions, "fleet": fleet}


def _differing(old: Mapping[str, Json], new: Mapping[str, Json], told: Callable[[Json, Json], Json]) -> Json:
    """Of records by name: what is `told` of the old and the new; None of one that is gone."""
    gone = dict.fromkeys(name for name in old if name not in new)
    # What is the same object needs no look inside: of thousands of sessions few change.
    return gone | {
        name: told(was, now)
        for name, now in new.items()
        if (was := old.get(name, NO_RECORD)) is not now and (was is NO_RECORD or was != now)
    }


def _difference(old: Json, new: Json) -> Json:
    told: Json = {}
    if changed := {name: now for name, now in new.items() if old.get(name, ABSENT) != now}:
        told["set"] = changed
    if gone := old.keys() - new.keys():
        told["unset"] = sorted(gone)
    return told


def _machine_difference(old: Json, new: Json) -> Json:
    was, now = _by_name(old.get("replicas", ())), _by_name(new["replicas"])
    told = _difference(old | {"replicas": ()}, new | {"replicas": ()})
    if replicas := _differing(was, now, _difference):
        told["replicas"] = replicas
    if [name for name in was if name in now] + [name for name in now if name not in was] != list(now):
        told["order"] = list(now)
    return told


def _by_name(replicas: Iterable[Json]) -> Json:
    return {each["name"]: each for each in replicas}


def _machine(machine: Json, was: Json, speeds: Mapping[str, float], wall_s: float) -> Json:
    away_s = machine.pop("away_s")
    machine["heard_s"] = None if away_s is None else _time(wall_s - away_s, was.get("heard_s"))
    before = _by_name(was.get("replicas", ()))
    for replica in machine["replicas"]:
        _replica(replica, before.get(replica["name"], {}), wall_s)
        replica["tokens_per_s"] = speeds.get(replica["name"])
    return machine


def _replica(replica: Json, was: Json, wall_s: float) -> None:
    """`heard_s` is told of one that does not answer: of another it is now."""
    silent_s = replica.pop("silent_s")
    is_silent = silent_s is not None and replica["reach"] != "up"
    replica["heard_s"] = _time(wall_s - silent_s, was.get("heard_s")) if is_silent else None
    for resident in replica["residents"]:
        resident.pop("quiet_s")
    if isinstance(memory := replica.get("memory"), dict) and isinstance(rss := memory.get("rss_bytes"), int):
        replica["memory"] = memory | {"rss_bytes": rss // MEMORY_STEP * MEMORY_STEP}


def steady(session: Json, was: Json, wall_s: float) -> Json:
    """A session as `/api/sessions` tells it, without what ages; one that has no age is steady already. `was`: as it was
    told before."""
    if "age_s" not in session:
        return session
    told = {name: value for name, value in session.items() if name not in ("age_s", "turns")}
    if (line := session["line"]) is not None:
        before, about_s = was.get("line") or {}, line["about_s"]
        told["line"] = {
            "position": line["position"],
            "since_s": _time(wall_s - line["waited_s"], before.get("since_s")),
            "until_s": None if about_s is None else _time(wall_s + about_s, before.get("until_s")),
        }
    return told


def _time(now_said: float, said_before: float | None) -> float:
    """In seconds since the epoch, as it was said before unless it is another one."""
    if said_before is not None and abs(now_said - said_before) < SLACK_S:
        return said_before
    return round(now_said, 1)


@dataclass(slots=True)
class Speed:
    """How many tokens a second a replica makes, from what its host counts."""

    _counted: deque[tuple[float, int]] = field(default_factory=deque)
    _incarnation: int = 0

    def heard(self, incarnation: int, at_s: float, tokens: int) -> None:
        """Its host had made `tokens` since it began, by its answer of `at_s`. The same answer again is nothing."""
        counted = self._counted
        if incarnation != self._incarnation or (counted and tokens < counted[-1][1]):
            counted.clear()
            self._incarnation = incarnation
        if not counted or at_s > counted[-1][0]:
            counted.append((at_s, tokens))
        while len(counted) > 2 and counted[1][0] <= at_s - WINDOW_S:
            counted.popleft()

    def per_s(self, now_s: float) -> float | None:
        """None: it was not heard twice of late."""
        if len(self._counted) < 2 or now_s - self._counted[-1][0] > WINDOW_S:
            return None
        (first_s, first), (last_s, last) = self._counted[0], self._counted[-1]
        return round((last - first) / (last_s - first_s), 1)
