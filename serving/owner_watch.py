"""A keeper's looks at what is not homeport's on its machine: does its person want it, and who else runs on its slices?

What the person wants is owner.py's matter, whose CPUs are whose cluster/foreign_watch.py's. Starts no host; ends all of
them where the machine is yielded.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from cluster.foreign import Foreign, Place
from cluster.foreign_watch import ForeignWatch
from cluster.paths import Paths
from serving.host_watch import HostWatch
from serving.owner import Owner
from serving.slice_look import SliceLook
from serving.slots import Slot
from serving.yielding import PERSON, Yielded

LOOK_S = 1.0
"""How often it is looked whether this machine's person wants it."""

log = logging.getLogger(__name__)


class OwnerWatch:
    """`watches`: the hosts, by slot, of the keeper, on whose loop all is called. `changed`: it has begun or ended, or
    its hosts are gone."""

    def __init__(self, paths: Paths, watches: Mapping[int, HostWatch], changed: Callable[[], None]) -> None:
        self._owner = Owner(paths)
        self.yielded: Yielded | None = self._owner.look()
        """For whom the machine is; None: it serves."""
        self._watches = watches
        self._changed = changed
        self._freeing: asyncio.Task[None] | None = None

    @property
    def programs(self) -> list[str]:
        """Those to which the machine yields."""
        return list(self._owner.programs)

    def to_json(self) -> dict[str, Any] | None:
        """As the keeper reports it."""
        return None if self.yielded is None else self.yielded.to_json()

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                self._owner.look()
                self.mind()
            except Exception:
                log.exception("a look at what this machine's person wants failed; the keeper goes on")

    async def order(self, for_s: float | None, ends: bool) -> None:
        """The person's word: the machine is theirs for so long, or until it `ends`. Raises OSError."""
        if ends:
            self._owner.end_yield()
        else:
            self._owner.yield_machine(for_s)
        self.mind()

    def mind(self) -> None:
        """See how it stands. Where it begins, the hosts are ended at once, beside whatever a step does, which is to
        start none before it is over."""
        before, self.yielded = self.yielded, self._owner.now()
        if before == self.yielded:
            return
        if before is None and self.yielded is not None:
            log.info("yielded to %s", self.yielded.by)
            self._freeing = asyncio.get_running_loop().create_task(self._free())
        self._changed()

    async def _free(self) -> None:
        order, yielded = self._owner.order, self.yielded
        if order is not None and yielded is not None and yielded.by == PERSON:
            given_at = time.monotonic() - max(0.0, time.time() - order.given_s)
            for watch in self._watches.values():
                watch.excuse(given_at)
        await asyncio.gather(*(watch.free() for watch in self._watches.values() if watch.life == "alive"))
        self._changed()


class ForeignLook(SliceLook):
    """At the CPUs of slices."""

    def __init__(
        self,
        slots: Callable[[], Mapping[int, Slot]],
        watches: Mapping[int, HostWatch],
        told: Callable[[], object],
    ) -> None:
        super().__init__(slots, watches, told)
        self._watch = ForeignWatch()
        self._found: Mapping[int, tuple[Foreign, ...]] = {}

    @property
    def found(self) -> Mapping[int, tuple[Foreign, ...]]:
        return self._found

    def spent_s(self, slot: int) -> tuple[float, float] | None:
        """As ForeignWatch tells it."""
        return self._watch.spent_s(slot)

    async def look(self) -> None:
        places = {number: self._place(number, slot) for number, slot in self._slots().items()}
        self._found = self._watch.look(places, time.monotonic())
        self._told()

    def _place(self, number: int, slot: Slot) -> Place:
        watch = self._watches.get(number)
        lives = watch is not None and watch.lives
        host = watch.record.pid if watch is not None and lives and watch.record is not None else None
        return Place(frozenset(slot.slice.cpus), host)
