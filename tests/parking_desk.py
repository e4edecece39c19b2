"""Saved contexts of one replica in a folder, without an engine and a host around them."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from serving.engine import SavedState
from serving.model import ParkingSpec
from serving.parking import Parking

ENGINE = "e" * 64
MIB = 2**20
ANN, BEN, CEM = ("a" * 64, "b" * 64, "c" * 64)


def state_of(word: str, size: int = 100) -> SavedState:
    return SavedState(tuple(map(ord, word)), word.encode().ljust(size, b"."))


def saved(state: SavedState | None) -> "Future[SavedState | None]":
    future: Future[SavedState | None] = Future()
    future.set_result(state)
    return future


class Desk:
    """Makes parkings on one folder, one after another as hosts that are started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.warnings: list[str] = []
        self.now = 1_000_000.0
        self.made: list[Parking] = []

    def parking(
        self, memory: int = MIB, disk: int = MIB, keep_s: float = 1e9, fingerprint: str = ENGINE
    ) -> Parking:
        spec = ParkingSpec(memory, disk, keep_s)
        parking = Parking(self.folder, spec, self.warnings.append, lambda: self.now, lambda: self.now)
        parking.open(fingerprint, memory)
        self.made.append(parking)
        return parking

    def files(self) -> set[str]:
        return {path.stem for path in self.folder.glob("*.kv")}


@contextmanager
def on_folder(folder: Path) -> Iterator[Desk]:
    """Whose parkings are closed with the block."""
    desk = Desk(folder)
    try:
        yield desk
    finally:
        for parking in desk.made:
            parking.close()


async def written(parking: Parking) -> None:
    """Until all is on disk, the removals that were asked for included."""
    await parking.settle()
    assert await parking.finish(asyncio.get_running_loop().time() + 10.0) == set()
    await parking.removed()
