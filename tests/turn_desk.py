"""Turns of one replica with an engine that has no model, without a host around them."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from serving.engine import Began, Ended, Sampling, Turn
from serving.lease import Granted, Lease, Refused
from serving.model import ParkingSpec
from serving.parking import Parking
from serving.places import USUAL, Standing
from serving.turns import Turns
from tests.fakes import Behaviour, FakeEngine

ENGINE = "e" * 64


class Told:
    """What a turn was told: its lease, and what it began with, or why it was refused."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.began: Began | None = None
        self.refused: str | None = None
        self.prompt = ""

    @property
    def evaluated(self) -> int:
        assert self.began is not None
        return len(self.prompt) - self.began.reused

    @property
    def cause(self) -> str | None:
        return self.lease.cause(self.began, len(self.prompt))

    @property
    def context(self) -> str:
        return self.lease.context(self.began)


class Desk:
    def __init__(
        self,
        folder: Path,
        behaviour: Behaviour,
        memory: int = 2**20,
        hold_s: float = 60.0,
        queue_s: float = 60.0,
        disk: int = 2**30,
    ) -> None:
        self.folder = folder
        self.engine = FakeEngine(behaviour)
        self.parking = Parking(folder, ParkingSpec(disk_bytes=disk), warn=lambda text: None)
        self.parking.open(ENGINE, memory)
        self.turns = Turns(self.engine, behaviour.sequences, hold_s, queue_s, self.parking)
        self.engine.load(lambda share: None)
        self.turns.attach(asyncio.get_running_loop())

    async def turn(
        self,
        session: str | None,
        words: str,
        *,
        standing: Standing = USUAL,
        moved: bool = False,
        on_begin: Callable[[Lease], None] = lambda lease: None,
    ) -> Told:
        """One whole turn, as an answer goes through it."""
        prompt, context = tuple(map(ord, words)), None
        if session is not None:
            context = await self.turns.context_for(session, prompt)
            if context.name != session:
                standing = Standing(standing.key, standing.rank, standing.family or session)
        told = Told(self.turns.ask(context, "request", standing=standing))
        told.prompt, told.lease.moved = words, moved
        try:
            async with asyncio.timeout(10.0):
                while await self._goes_on(told, prompt, on_begin):
                    pass
        finally:
            self.turns.release(told.lease)
        return told

    async def _goes_on(self, told: Told, prompt: tuple[int, ...], on_begin: Callable[[Lease], None]) -> bool:
        lease = told.lease
        for happening in await lease.next():
            match happening:
                case Granted(place):
                    if lease.session != lease.owner and lease.session is not None:
                        self.turns.made.add(lease.session)
                    await self.turns.begin(lease, Turn(lease.turn, place, prompt, None, Sampling()))
                case Began():
                    told.began = happening
                    on_begin(lease)
                case Refused(code):
                    told.refused = code
                    return False
                case Ended():
                    return False
                case _:
                    pass
        return True

    def files(self) -> set[str]:
        return {path.stem for path in self.folder.glob("*.kv")}

    async def on_disk(self) -> None:
        """Until all that is parked is on disk, and all that is dropped is off it."""
        await self.parking.settle()
        assert await self.parking.finish(asyncio.get_running_loop().time() + 10.0) == set()
        await self.parking.removed()

    async def close(self) -> None:
        await asyncio.to_thread(self.engine.close)
        self.parking.close()
