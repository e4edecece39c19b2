"""A keeper's looks at the GPUs of its slices: are they well, and who else is on them?

Nobody is asked while no slice has a GPU. What is foreign is cluster/gpu_foreign.py's matter; starts and ends no host.
"""

import asyncio
from collections.abc import Callable, Mapping

from cluster.gpu_foreign import OnGpu, Told, figures, ill, news, nobodys, on_gpus
from cluster.gpus import Found, GpuProcess, NvidiaDriver, program
from cluster.group import look
from serving.host_watch import HostWatch
from serving.slice_look import SliceLook
from serving.slots import Slot

UNSEEN = "?"
"""The name of a process that cannot be seen from here: it has ended, or runs in another container."""


class GpuLook(SliceLook):
    """At the GPUs of slices."""

    def __init__(
        self,
        slots: Callable[[], Mapping[int, Slot]],
        watches: Mapping[int, HostWatch],
        told: Callable[[], object],
    ) -> None:
        super().__init__(slots, watches, told)
        self._driver = NvidiaDriver()
        self._found: Told = {}
        self.ill: dict[str, dict[str, str]] = {}
        """The GPUs of slices that do not work, as the keeper reports it: {uuid: {"state", "reason"}}."""
        self.figures: dict[str, dict[str, float]] = {}
        """How this machine's GPUs do, by UUID (cluster/gpu_foreign.py)."""

    @property
    def found(self) -> Told:
        return self._found

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            self._driver.close()

    async def look(self) -> None:
        gpus = {number: slot.slice.gpus for number, slot in self._slots().items() if slot.slice.gpus}
        if not gpus and not self._found and not self.ill:
            return
        found, processes = await asyncio.to_thread(self._ask) if gpus else (Found(), [])
        hosts = [watch.record.pid for watch in self._watches.values() if watch.lives and watch.record]
        self._found = news(self._found, on_gpus(processes, gpus, hosts))
        self.figures = figures(found.now, nobodys(processes, hosts))
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
