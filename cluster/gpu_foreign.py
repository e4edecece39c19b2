"""Which processes that are not homeport's run on the GPUs of a machine's slices, and how these GPUs are. Pure.

Asks no driver: cluster/gpus.py does. Nothing is done about such processes.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.machine import Gpu

TOLD_MAX = 8
"""Processes of one replica's GPUs that are told at most, the largest first."""
MOVED_BYTES = 256 * 2**20
"""A use that differs by less from what was told last is no news: reports travel."""
UNLISTED = "the driver does not list it any more"


@dataclass(frozen=True, slots=True)
class OnGpu:
    """A process on a GPU. `memory_bytes`: what it holds there; None where that is not known."""

    gpu: str
    pid: int
    program: str
    memory_bytes: int | None
    owners: tuple[int, int] = (0, 0)
    """Its process group and its session."""

    def to_json(self) -> dict[str, Any]:
        return {
            "gpu": self.gpu,
            "pid": self.pid,
            "program": self.program,
            "memory_bytes": self.memory_bytes,
        }


Told = Mapping[int, tuple[OnGpu, ...]]
"""By slot: the foreign processes on its GPUs."""


def on_gpus(processes: Iterable[OnGpu], gpus: Mapping[int, Sequence[str]], hosts: Collection[int]) -> Told:
    """By slot, whose GPUs are given: the processes there whose group and session no host leads, the largest first.

    `hosts`: the pids of this machine's, of all slots: who shares a GPU is not foreign to the other.
    """
    foreign = nobodys(processes, hosts)
    found = {}
    for slot, uuids in gpus.items():
        there = [each for each in foreign if each.gpu in uuids]
        found[slot] = tuple(sorted(there, key=lambda each: (-(each.memory_bytes or 0), each.pid))[:TOLD_MAX])
    return found


def nobodys(processes: Iterable[OnGpu], hosts: Collection[int]) -> list[OnGpu]:
    """Those whose group and session no host leads."""
    return [each for each in processes if not set(each.owners) & set(hosts)]


def figures(now: Mapping[str, Mapping[str, float]], foreign: Iterable[OnGpu]) -> dict[str, dict[str, float]]:
    """By UUID, how it does, with `foreign_processes`: how many are on it that are nobody's of homeport."""
    there = {(each.gpu, each.pid) for each in foreign}
    return {
        uuid: {**told, "foreign_processes": sum(gpu == uuid for gpu, _ in there)}
        for uuid, told in now.items()
    }


def news(before: Told, now: Told) -> Told:
    """What is to be told: as before where nobody has come or gone and no use has moved much."""
    return {slot: _newer(before.get(slot, ()), found) for slot, found in now.items()}


def _newer(before: tuple[OnGpu, ...], now: tuple[OnGpu, ...]) -> tuple[OnGpu, ...]:
    told = {(each.gpu, each.pid, each.program): each.memory_bytes for each in before}
    seen = {(each.gpu, each.pid, each.program): each.memory_bytes for each in now}
    same = told.keys() == seen.keys()
    return before if same and all(_is_near(told[key], seen[key]) for key in seen) else now


def _is_near(one: int | None, other: int | None) -> bool:
    return one == other if one is None or other is None else abs(one - other) < MOVED_BYTES


def ill(uuids: Iterable[str], gpus: Sequence[Gpu], trouble: str) -> dict[str, dict[str, str]]:
    """Of the GPUs that slices have, those that do not work as the driver tells now: {uuid: {"state", "reason"}}.

    `trouble`: why it tells of none, or of fewer than there are.
    """
    known = {gpu.uuid: gpu for gpu in gpus}
    found = {}
    for uuid in uuids:
        gpu = known.get(uuid)
        if gpu is None:
            state = "hung" if trouble else "lost"
            found[uuid] = {"state": state, "reason": trouble or UNLISTED}
        elif gpu.state != "ok":
            found[uuid] = {"state": gpu.state, "reason": gpu.reason}
    return found
