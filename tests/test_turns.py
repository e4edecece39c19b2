"""serving/turns.py: that contexts are saved one after another, with an engine that has none. Leases are tested through
the host."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from serving import parked_file, parking
from serving.engine import Broke, Ended, Sampling, SavedState, Turn
from serving.lease import Granted, Lease
from serving.model import ParkingSpec
from serving.parking import Parking
from serving.turns import Turns
from tests.fakes import Behaviour, FakeEngine

PLACES = 4
NAMES = tuple(f"{number:064x}" for number in range(PLACES))
ENGINE = "e" * 64


class Desk:
    """Turns of one replica, without a host around them."""

    def __init__(self, folder: Path, memory: int, hold_s: float, behaviour: Behaviour) -> None:
        self.folder = folder
        self.engine = FakeEngine(behaviour)
        self.parking = Parking(folder, ParkingSpec(), warn=lambda text: None)
        self.parking.open(ENGINE, memory)
        self.turns = Turns(self.engine, PLACES, hold_s, 60.0, self.parking)
        self.engine.load(lambda share: None)
        self.turns.attach(asyncio.get_running_loop())

    async def turn(self, session: str | None, words: str) -> Lease:
        """One whole turn."""
        lease = self.turns.ask(session, "request")
        try:
            async with asyncio.timeout(10.0):
                over = False
                while not over:
                    for happening in await lease.next():
                        if isinstance(happening, Granted):
                            prompt = tuple(map(ord, words))
                            turn = Turn(lease.turn, happening.place, prompt, None, Sampling())
                            await self.turns.begin(lease, turn)
                        over = over or isinstance(happening, Ended)
        finally:
            self.turns.release(lease)
        return lease

    async def residents(self) -> None:
        """Have a resident in every place."""
        for name in NAMES:
            await self.turn(name, name)

    def files(self) -> set[str]:
        return {path.stem for path in self.folder.glob("*.kv")}


MakeDesk = Callable[..., Desk]


@pytest.fixture
async def make_desk(tmp_path: Path) -> AsyncIterator[MakeDesk]:
    made: list[Desk] = []

    def make(memory: int = 2**20, hold_s: float = 60.0, **behaviour: Any) -> Desk:
        told = Behaviour(sequences=PLACES, **behaviour)
        made.append(Desk(tmp_path / str(len(made)), memory, hold_s, told))
        return made[-1]

    yield make
    for desk in made:
        await asyncio.to_thread(desk.engine.close)
        desk.parking.close()


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk, and no room for two states that wait for it."""
    write = parked_file.write

    def slow(folder: Path, session: str, fingerprint: str, state: SavedState) -> int:
        time.sleep(0.05)
        return write(folder, session, fingerprint, state)

    monkeypatch.setattr(parking, "MARGIN_BYTES", 1)
    monkeypatch.setattr(parked_file, "write", slow)


@pytest.mark.usefixtures("narrow")
async def test_a_stop_saves_one_resident_after_another(make_desk: MakeDesk) -> None:
    desk = make_desk()
    await desk.residents()
    desk.turns.stop()
    assert await desk.turns.park_all(asyncio.get_running_loop().time() + 10.0) == 0
    assert desk.files() == set(NAMES)


@pytest.mark.usefixtures("narrow")
async def test_a_stop_in_the_middle_of_an_unload_loses_no_context(make_desk: MakeDesk) -> None:
    desk = make_desk()
    await desk.residents()
    unloading = asyncio.create_task(desk.turns.unload())
    await asyncio.sleep(0)
    assert sum(place.state == "quiet" for place in desk.turns.state.places) == PLACES - 1
    desk.turns.stop()
    assert await desk.turns.park_all(asyncio.get_running_loop().time() + 10.0) == 0
    await unloading
    assert await desk.parking.finish(asyncio.get_running_loop().time() + 10.0) == set()
    assert (desk.files(), desk.parking.failures) == (set(NAMES), 0)


async def test_a_stop_without_the_time_says_who_is_not_on_disk(
    make_desk: MakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(parked_file, "write", lambda *args: go_on.wait(10.0))
    desk = make_desk()
    await desk.residents()
    desk.turns.stop()
    try:
        assert await desk.turns.park_all(asyncio.get_running_loop().time() + 0.1) == PLACES
    finally:
        go_on.set()


@pytest.mark.usefixtures("narrow")
async def test_unloading_saves_one_resident_after_another(make_desk: MakeDesk) -> None:
    desk = make_desk(memory=0)
    await desk.residents()
    await desk.turns.unload()
    assert all(place.state == "free" for place in desk.turns.state.places)
    await asyncio.to_thread(desk.engine.close)
    assert await desk.parking.finish(asyncio.get_running_loop().time() + 10.0) == set()
    assert desk.files() == set(NAMES)
    desk.engine.load(lambda share: None)
    desk.turns.attach(asyncio.get_running_loop())
    lease = await desk.turn(NAMES[0], NAMES[0])
    assert (lease.granted, lease.missing) == (Granted(0, resident=False), None)


@pytest.mark.usefixtures("narrow")
async def test_residents_that_are_due_together_are_written_one_after_another(make_desk: MakeDesk) -> None:
    desk = make_desk(hold_s=0.0)
    await desk.residents()
    desk.turns._tick()
    if desk.turns._writing_behind is not None:
        await asyncio.wait_for(desk.turns._writing_behind, 10.0)
    assert await desk.parking.finish(asyncio.get_running_loop().time() + 10.0) == set()
    assert desk.files() == set(NAMES)
    assert desk.parking.report(NAMES)["sessions"] == 0


async def test_a_state_that_breaks_its_turn_is_not_given_again(
    make_desk: MakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = make_desk()
    await desk.turn(NAMES[0], "hello")
    await desk.turns.unload()

    lease = desk.turns.ask(NAMES[0], "request")
    (granted,) = await lease.next()
    assert isinstance(granted, Granted)
    monkeypatch.setattr(desk.engine, "begin", lambda turn: desk.turns._emit([Broke(turn.id, "at the state")]))
    await desk.turns.begin(lease, Turn(lease.turn, granted.place, (1, 2), None, Sampling()))
    await lease.next()
    desk.turns.release(lease)
    assert await desk.parking.take(NAMES[0]) == "never_parked"
