"""A keeper's looks at who else is on its slices, again and again: what they have in common.

How it is looked is each one's own matter: serving/owner_watch.py (CPUs), serving/gpu_watch.py (GPUs).
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from serving.host_watch import HostWatch
from serving.slots import Slot

EVERY_S = 5.0

log = logging.getLogger(__name__)


class Seen(Protocol):
    """What was found on a slice."""

    def to_json(self) -> dict[str, Any]: ...


class SliceLook(ABC):
    """`slots`: those whose slices are looked at, and `told` is called after each look."""

    def __init__(
        self,
        slots: Callable[[], Mapping[int, Slot]],
        watches: Mapping[int, HostWatch],
        told: Callable[[], object],
    ) -> None:
        self._slots = slots
        self._watches = watches
        self._told = told

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("a look at what is foreign failed; the keeper goes on")
            await asyncio.sleep(EVERY_S)

    def of(self, slot: int) -> list[dict[str, Any]]:
        """Who else is on the slot's slice, as the keeper reports it."""
        return [each.to_json() for each in self.found.get(slot, ())]

    @property
    @abstractmethod
    def found(self) -> Mapping[int, Sequence[Seen]]:
        """By slot, as it was looked last."""

    @abstractmethod
    async def look(self) -> None:
        """Once."""
