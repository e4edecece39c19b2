"""The controller's Members over Ray: a keeper is a detached actor named after its machine's id and its own size."""

import asyncio
from collections.abc import Mapping
from typing import Any

from cluster import ray_cluster
from serving.journal_file import JournalNews, Mark
from serving.keeper import Keeper

ANSWER_S = 5.0
READ_S = 30.0
"""100,000 pins take a second."""
THREADS = 4
"""A keeper answers a controller that waits for news, one that died while it waited, and an order, all at once."""


class KeeperActor:
    """What Ray calls: a keeper without its coroutines. Beside one of these Ray would run all methods in one thread, an
    order behind a controller that waits for news."""

    def __init__(self) -> None:
        self._keeper = Keeper()

    def report(self, known: int = -1, wait_s: float = 0.0) -> dict[str, Any]:
        return self._keeper.report(known, wait_s)

    def apply(self, revision: int, wishes: list[dict[str, Any]], head: str) -> dict[str, Any]:
        return self._keeper.apply(revision, wishes, head)

    def bring(self, orders: dict[str, Any]) -> dict[str, Any]:
        return self._keeper.bring(orders)

    def pins(self, known: dict[int, Mark]) -> dict[int, JournalNews]:
        return self._keeper.pins(known)

    def yield_machine(self, for_s: float | None, ends: bool) -> dict[str, Any]:
        return self._keeper.yield_machine(for_s, ends)

    def leave(self) -> None:
        self._keeper.leave()

    def wake(self, mac: str, networks: list[str]) -> int:
        return self._keeper.wake(mac, networks)


def keeper_name(machine: str, labels: Mapping[str, str]) -> str:
    """The name of its keeper, with its size: Ray keeps an actor's size for ever, and would not place it any more on a
    machine that has become smaller."""
    return f"keeper:{machine}:{labels['keeper-cpus']}:{labels['keeper-gpus']}"


class RayMembers:
    """Finds machines by the labels that cluster/join.py gave their Ray nodes; makes a keeper where there is none."""

    def __init__(self) -> None:
        self._labels: dict[str, dict[str, str]] = {}
        """By machine, of those that are away too."""
        self._keepers: dict[str, tuple[str, Any]] = {}
        """By machine: its keeper's name and the keeper."""

    def machines(self) -> list[str]:
        here = {labels["machine"]: labels for labels in ray_cluster.members() if "machine" in labels}
        self._labels.update(here)
        return list(here)

    async def report(self, machine: str, known: int, wait_s: float) -> dict[str, Any]:
        report: dict[str, Any] = await self._ask(machine, wait_s + ANSWER_S, "report", known, wait_s)
        return report

    async def apply(
        self, machine: str, revision: int, wishes: list[dict[str, Any]], head: str
    ) -> dict[str, Any]:
        report: dict[str, Any] = await self._ask(machine, ANSWER_S, "apply", revision, wishes, head)
        return report

    async def bring(self, machine: str, orders: dict[str, Any]) -> dict[str, Any]:
        report: dict[str, Any] = await self._ask(machine, ANSWER_S, "bring", orders)
        return report

    async def pins(self, machine: str, known: dict[int, Mark]) -> dict[int, JournalNews]:
        found: dict[int, JournalNews] = await self._ask(machine, READ_S, "pins", known)
        return found

    async def yield_machine(self, machine: str, for_s: float | None, ends: bool) -> dict[str, Any]:
        report: dict[str, Any] = await self._ask(machine, ANSWER_S, "yield_machine", for_s, ends)
        return report

    async def leave(self, machine: str) -> None:
        await self._ask(machine, ANSWER_S, "leave")

    async def wake(self, machine: str, mac: str, networks: list[str]) -> int:
        sent: int = await self._ask(machine, ANSWER_S, "wake", mac, networks)
        return sent

    async def _ask(self, machine: str, timeout_s: float, method: str, *args: Any) -> Any:
        wanted = keeper_name(machine, self._labels[machine])
        name, keeper = self._keepers.get(machine, ("", None))
        if name != wanted:
            keeper = await asyncio.to_thread(self._make, machine, wanted)
            self._keepers[machine] = wanted, keeper
        try:
            return await ray_cluster.ask(keeper, method, *args, timeout_s=timeout_s)
        except ray_cluster.RayFailed:
            self._keepers.pop(machine, None)
            raise

    def _make(self, machine: str, name: str) -> Any:
        labels = self._labels[machine]
        ray_cluster.kill_others(f"keeper:{machine}", name)
        return ray_cluster.detach(
            KeeperActor,
            name,
            float(labels["keeper-cpus"]),
            float(labels["keeper-gpus"]),
            ("machine", machine),
            threads=THREADS,
        )
