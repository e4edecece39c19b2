"""A keeper's looks at the GPUs of its slices: are they well, and who else is on them?

Nobody is asked while no slice has a GPU. What is foreign is cluster/gpu_foreign.py's matter; starts and ends no host.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from cluster.gpu_foreign import OnGpu, Told, ill, news, on_gpus
from cluster.gpus import Found, GpuProcess, NvidiaDriver, program
from cluster.group import look
from serving.host_watch import HostWatch
from serving.slots import Slot

GPU_S = 5.0
"""How often it is looked."""
UNSEEN = "?"
"""The name of a process that cannot be seen from here: it has ended, or runs in another container."""

log = logging.getLogger(__name__)


class GpuLook:
    """`slots`: those whose GPUs are looked at, and `told` is called after each look."""

    def __init__(
        self,
        slots: Callable[[], Mapping[int, Slot]],
        watches: Mapping[int, HostWatch],
        told: Callable[[], object],
    ) -> None:
        self._slots = slots
        self._watches = watches
        self._told = told
        self._driver = NvidiaDriver()
        self._found: Told = {}
        self.ill: dict[str, dict[str, str]] = {}
        """The GPUs of slices that do not work, as the keeper reports it: {uuid: {"state", "reason"}}."""

    async def run(self) -> None:
        """For ever."""
        try:
            while True:
                try:
                    await self._look()
                except Exception:
                    log.exception("a look at the GPUs failed; the keeper goes on")
                await asyncio.sleep(GPU_S)
        finally:
            self._driver.close()

    def of(self, slot: int) -> list[dict[str, Any]]:
        """Who else is on the slot's GPUs, as the keeper reports it."""
        return [each.to_json() for each in self._found.get(slot, ())]

    async def _look(self) -> None:
        gpus = {number: slot.slice.gpus for number, slot in self._slots().items() if slot.slice.gpus}
        if not gpus and not self._found and not self.ill:
            return
        found, processes = await asyncio.to_thread(self._ask) if gpus else (Found(), [])
        hosts = [watch.record.pid for watch in self._watches.values() if watch.lives and watch.record]
        self._found = news(self._found, on_gpus(processes, gpus, hosts))
        uuids = sorted({uuid for each in gpus.values() for uuid in each})
        self.ill = ill(uuids, found.gpus, found.trouble)
        self._told()

    def _ask(self) -> tuple[Found, list[OnGpu]]:
        found = self._driver.ask()
        return found, [_on_gpu(process) for process in found.processes]


def _on_gpu(process: GpuProcess) -> OnGpu:
    seen = look(process.pid)
    owners = (0, 0) if seen is None else (seen.group, seen.session)
    return OnGpu(process.gpu, process.pid, program(process.pid) or UNSEEN, process.memory_bytes, owners)
