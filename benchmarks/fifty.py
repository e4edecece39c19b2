"""Fifty machines with eight replicas each, as their keepers report them and as their hosts answer.

`python -m benchmarks.fifty FLEET.json` is 400 hosts and a controller that answers nothing but the fleet in that file.
"""

import asyncio
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from cluster import ray_cluster
from cluster.machine import GIB, CpuCore, Gpu, Hardware, Reserve
from cluster.ray_cluster import RayFailed
from cluster.slices import Need, Slice, carve
from serving.counts import LEASES, Counts
from serving.journal_file import JournalNews, Mark
from serving.model import ModelSpec

MACHINES, REPLICAS, CHATS = 50, 8, 6
CHAT = ModelSpec(
    "chat", "llama.cpp", "bundled", "all", CHATS, Need(1, GIB), "needs", 8192, 1, 10.0, 60.0, "wait"
)
CODE = ModelSpec(
    "code",
    "llama.cpp",
    "bundled",
    "all",
    REPLICAS - CHATS,
    Need(2, 2 * GIB),
    "needs",
    8192,
    1,
    10.0,
    60.0,
    "move",
)
HARDWARE = Hardware(
    tuple(CpuCore(core, (2 * core, 2 * core + 1), "performance", core // 8) for core in range(16)),
    64 * GIB,
    (Gpu(f"GPU-{1:032d}", "NVIDIA GeForce RTX 4090", 24 * GIB),),
)
RESERVE = Reserve(1, GIB)
DIGEST = "d" * 64
ADDRESS = "127.0.99.1"
CONTROL_PORT, FIRST_PORT = 12400, 12500
"""Where the hosts of `main` listen; below the ports that Ray and other programs are given."""
KEEPERS = "fifty-keepers"
REVISION = 1


def models() -> list[dict[str, Any]]:
    """As a revision has them."""
    return [{"spec": model.to_json(), "digest": DIGEST} for model in (CHAT, CODE)]


def machine_id(number: int) -> str:
    return f"{number:032x}"


def report(number: int, version: int = 1, revision: int = REVISION) -> dict[str, Any]:
    """What the keeper of this machine says."""
    taken: list[Slice] = []
    for slot in range(REPLICAS):
        carved = carve(HARDWARE, RESERVE, taken, _model(slot).need)
        assert isinstance(carved, Slice)
        taken.append(carved)
    return {
        "id": machine_id(number),
        "name": f"machine-{number:02}",
        "zone": f"zone-{number % 3}",
        "address": ADDRESS,
        "state": "ready",
        "revision": revision,
        "head": "",
        "hardware": HARDWARE.to_json(),
        "reserve": RESERVE.to_json(),
        "refused": {},
        "ports": [8100, 8199],
        "numbers": {str(slot): _model(slot).name for slot in range(REPLICAS)},
        "ending": [],
        "replicas": [_replica(number, slot, taken[slot], version) for slot in range(REPLICAS)],
        "version": version,
        "figures": figures(number),
    }


def figures(number: int) -> dict[str, Any]:
    """What its keeper tells beside the report."""
    gpu = {
        "utilization": 0.5,
        "power_w": 320.5,
        "temperature_c": 64.0,
        "energy_j": 5e6,
        "foreign_processes": 0,
    }
    memory = {"total_bytes": 24 * GIB, "used_bytes": 7 * GIB}
    of_replica = {"restarts": 1, "cpu_s": 4711.25, "foreign_cpu_s": 12.5}
    return {
        "version": "0",
        "replicas": [{"name": f"machine-{number:02}/{slot}", **of_replica} for slot in range(REPLICAS)],
        "gpus": {f"GPU-{number:032d}": gpu | memory},
    }


def _model(slot: int) -> ModelSpec:
    return CHAT if slot < CHATS else CODE


def _replica(number: int, slot: int, held: Slice, version: int) -> dict[str, Any]:
    return {
        "name": f"machine-{number:02}/{slot}",
        "slot": slot,
        "model": _model(slot).name,
        "address": ADDRESS,
        "port": port(number, slot),
        "slice": held.to_json(),
        "config_digest": DIGEST,
        "running_digest": DIGEST,
        "state": "ready",
        "progress": 1.0,
        "detail": "",
        "stderr": [],
        "deaths": 0,
        "pid": 1000 + slot,
        "incarnation": 1,
        "pins": 0,
        "journal": str(version),
        "limits": {"enforced": ["cores", "memory"], "watched": ["gpus"]},
    }


def port(number: int, slot: int) -> int:
    return FIRST_PORT + number * REPLICAS + slot


class Keepers:
    """All keepers as one actor: what a controller asks over Ray, and how often, is the same."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._revision = 0

    def report(self, number: int, known: int, wait_s: float) -> dict[str, Any]:
        with self._news:
            version = 1 + self._revision
            self._news.wait_for(lambda: 1 + self._revision != known, wait_s)
            version = 1 + self._revision
        return report(number, version, self._revision)

    def apply(self, number: int, revision: int) -> dict[str, Any]:
        with self._news:
            self._revision = revision
            self._news.notify_all()
        return report(number, 1 + revision, revision)


class FiftyMembers:
    """serving.controller.Members over Ray, as serving/members.py has it, but for who answers."""

    def __init__(self) -> None:
        self._keepers = ray_cluster.detach(Keepers, KEEPERS, 0, 0, None, threads=2 * MACHINES)
        self._numbers = {machine_id(number): number for number in range(MACHINES)}

    def machines(self) -> list[str]:
        ray_cluster.members()
        return list(self._numbers)

    async def report(self, machine: str, known: int, wait_s: float) -> dict[str, Any]:
        told: dict[str, Any] = await self._ask(wait_s + 5.0, "report", self._numbers[machine], known, wait_s)
        return told

    async def apply(
        self, machine: str, revision: int, wishes: list[dict[str, Any]], head: str
    ) -> dict[str, Any]:
        told: dict[str, Any] = await self._ask(5.0, "apply", self._numbers[machine], revision)
        return {**told, "head": head}

    async def pins(self, machine: str, known: dict[int, Mark]) -> dict[int, JournalNews]:
        return {}

    async def leave(self, machine: str) -> None:
        return None

    async def yield_machine(self, machine: str, for_s: float | None, ends: bool) -> dict[str, Any]:
        raise RayFailed(f"{machine}: nobody wants it here")

    async def bring(self, machine: str, orders: dict[str, Any]) -> dict[str, Any]:
        raise RayFailed(f"{machine} has no models from elsewhere here")

    async def wake(self, machine: str, mac: str, networks: list[str]) -> int:
        raise RayFailed(f"{machine}: nobody sleeps here")

    async def _ask(self, timeout_s: float, method: str, *args: Any) -> Any:
        return await ray_cluster.ask(self._keepers, method, *args, timeout_s=timeout_s)


# hosts


async def _serve(fleet: bytes) -> None:
    servers = [await answers(CONTROL_PORT, fleet)]
    servers += [
        await answers(port(number, slot), msgspec.json.encode(state(number, slot)))
        for number in range(MACHINES)
        for slot in range(REPLICAS)
    ]
    print("up", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


async def answers(port_: int, body: bytes) -> asyncio.Server:
    """The same to every request."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    whole = head.encode() + body

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(whole)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    return await asyncio.start_server(answer, ADDRESS, port_)


def state(number: int, slot: int) -> dict[str, Any]:
    """What a host answers of itself, one session resident and quiet, with all that it counts above nothing."""
    resident = {"session": f"{number:062x}{slot:02x}", "quiet_s": 12.5, "busy": False, "tokens": 1500}
    told = {
        "state": "ready",
        "progress": 1.0,
        "places": 1,
        "running": 0,
        "waiting": 0,
        "line": [],
        "pins": 40,
    }
    counts = {"turns": 10, "tokens_generated": 1000, "tokens_evaluated": 10000, "counts": _counted()}
    memory = {"rss_bytes": 170_000_000, "limit_bytes": GIB}
    parking = {f"{where}_{what}": GIB for where in ("memory", "disk") for what in ("bytes", "limit_bytes")}
    name = {"replica": f"machine-{number:02}/{slot}", "incarnation": 1, "detail": ""}
    told |= {"parking": {**parking, "sessions": 3}}
    return {**name, **told, **counts, "memory": memory, "residents": [resident]}


def _counted() -> dict[str, Any]:
    counts = Counts()
    for histogram in (counts.gaps, counts.waits):
        for bound in histogram.bounds:
            histogram.note(bound)
    for lease in LEASES:
        counts.leases[lease] += 10
    counts.cached, counts.evaluated, counts.generated = 90_000, 10_000, 1_000
    counts.parks.note(0.25, 47_000_000)
    counts.resumes.note(0.125, 47_000_000)
    return counts.report()


def main(words: Sequence[str]) -> None:
    asyncio.run(_serve(Path(words[0]).read_bytes()))


if __name__ == "__main__":
    main(sys.argv[1:])
