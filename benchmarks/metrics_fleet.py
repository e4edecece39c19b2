"""`python -m benchmarks.metrics_fleet`: what a router has to tell Prometheus of, 50 machines with a replica of each of
four models: 200 hosts that answer how they stand, and the real controller, whose keepers answer at once. No Ray.
"""

import asyncio
from dataclasses import replace
from typing import Any

import msgspec

from benchmarks import fifty
from serving.controller import Controller
from serving.journal_file import JournalNews, Mark
from serving.model import ModelSpec

MODELS = 4
TOLD_S = 1.0
"""A keeper that has no news says so after this long."""


def models() -> list[ModelSpec]:
    return [replace(fifty.CHAT, name=f"model-{number}", replicas=1) for number in range(MODELS)]


def report(number: int) -> dict[str, Any]:
    """What a keeper says: the first replicas of those that `fifty` has, each of another model."""
    told = fifty.report(number)
    names = [model.name for model in models()]
    replicas = [{**replica, "model": name} for replica, name in zip(told["replicas"], names, strict=False)]
    figures = {**told["figures"], "replicas": told["figures"]["replicas"][:MODELS]}
    return {**told, "replicas": replicas, "figures": figures}


class Keepers(fifty.FiftyMembers):
    """Serving.controller.Members from memory: nothing that keepers report ever changes but their figures."""

    def __init__(self) -> None:
        self._reports = {fifty.machine_id(number): report(number) for number in range(fifty.MACHINES)}

    def machines(self) -> list[str]:
        return list(self._reports)

    async def report(self, machine: str, known: int, wait_s: float) -> dict[str, Any]:
        told = self._reports[machine]
        if known == told["version"]:
            await asyncio.sleep(min(wait_s, TOLD_S))
        return told

    async def apply(
        self, machine: str, revision: int, wishes: list[dict[str, Any]], head: str
    ) -> dict[str, Any]:
        return {**self._reports[machine], "head": head}

    async def pins(self, machine: str, known: dict[int, Mark]) -> dict[int, JournalNews]:
        return {}


async def _serve() -> None:
    servers = [
        await fifty.answers(fifty.port(number, slot), msgspec.json.encode(fifty.state(number, slot)))
        for number in range(fifty.MACHINES)
        for slot in range(MODELS)
    ]
    Controller(Keepers)
    print("up", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(_serve())
