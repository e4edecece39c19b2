"""Has the controller wake machines that turns wait for. When, waking.py decides; the fleet keeps what was tried."""

import asyncio
import logging
from collections.abc import Callable

from router.fleet import Fleet
from router.peers import Peers, Unreachable
from router.waking import try_again

log = logging.getLogger("homeport.router")


class Wakings:
    def __init__(self, fleet: Fleet, peers: Peers, clock: Callable[[], float]) -> None:
        self._fleet = fleet
        self._peers = peers
        self._clock = clock
        self._asking: set[asyncio.Task[None]] = set()

    def ask(self, machine: str) -> None:
        """A turn waits for that machine: have it woken, unless that was tried of late."""
        tried = try_again(self._fleet.woken.get(machine), self._clock())
        if tried is None:
            return
        self._fleet.woken[machine] = tried
        task = asyncio.create_task(self._wake(machine))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _wake(self, machine: str) -> None:
        try:
            status, told = await self._peers.wake(machine)
        except Unreachable as error:
            log.warning("%s is not woken: the controller does not answer (%s)", machine, error)
            return
        if status != 200:
            log.warning("%s is not woken: %s", machine, told.get("error", {}).get("message", status))
        elif not told.get("awake"):
            log.info("%s is being woken by %s", machine, ", ".join(told.get("by", ())) or "its command")
