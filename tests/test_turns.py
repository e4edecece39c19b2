"""serving/turns.py: that contexts are saved one after another, with an engine that has none. What turns are to each
other is tested in test_contexts.py, leases through the host."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from serving import parked_file, parking_disk
from serving.engine import Broke, Sampling, SavedState, Turn
from serving.lease import Chosen, Granted
from tests.fakes import Behaviour
from tests.turn_desk import Desk

PLACES = 4
NAMES = tuple(f"{number:064x}" for number in range(PLACES))


MakeDesk = Callable[..., Desk]


async def residents(desk: Desk) -> None:
    """Have one in every place."""
    for name in NAMES:
        await desk.turn(name, name)


@pytest.fixture
async def make_desk(tmp_path: Path) -> AsyncIterator[MakeDesk]:
    made: list[Desk] = []

    def make(memory: int = 2**20, hold_s: float = 60.0, **behaviour: Any) -> Desk:
        told = Behaviour(sequences=PLACES, **behaviour)
        made.append(Desk(tmp_path / str(len(made)), told, memory, hold_s))
        return made[-1]

    yield make
    for desk in made:
        await desk.close()


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk, and no room for two states that wait for it."""
    write = parked_file.write

    def slow(folder: Path, session: str, fingerprint: str, state: SavedState) -> int:
        time.sleep(0.05)
        return write(folder, session, fingerprint, state)

    monkeypatch.setattr(parking_disk, "MARGIN_BYTES", 1)
    monkeypatch.setattr(parked_file, "write", slow)


@pytest.mark.usefixtures("narrow")
async def test_a_stop_saves_one_resident_after_another(make_desk: MakeDesk) -> None:
    desk = make_desk()
    await residents(desk)
    desk.turns.stop()
    assert await desk.turns.park_all(asyncio.get_running_loop().time() + 10.0) == 0
    assert desk.files() == set(NAMES)


@pytest.mark.usefixtures("narrow")
async def test_a_stop_in_the_middle_of_an_unload_loses_no_context(make_desk: MakeDesk) -> None:
    desk = make_desk()
    await residents(desk)
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
    await residents(desk)
    desk.turns.stop()
    try:
        assert await desk.turns.park_all(asyncio.get_running_loop().time() + 0.1) == PLACES
    finally:
        go_on.set()


@pytest.mark.usefixtures("narrow")
async def test_unloading_saves_one_resident_after_another(make_desk: MakeDesk) -> None:
    desk = make_desk(memory=0)
    await residents(desk)
    await desk.turns.unload()
    assert all(place.state == "free" for place in desk.turns.state.places)
    await asyncio.to_thread(desk.engine.close)
    assert await desk.parking.finish(asyncio.get_running_loop().time() + 10.0) == set()
    assert desk.files() == set(NAMES)
    desk.engine.load(lambda share: None)
    desk.turns.attach(asyncio.get_running_loop())
    lease = (await desk.turn(NAMES[0], NAMES[0])).lease
    assert (lease.granted, lease.missing) == (Granted(0, resident=False), None)


@pytest.mark.usefixtures("narrow")
async def test_residents_that_are_due_together_are_written_one_after_another(make_desk: MakeDesk) -> None:
    desk = make_desk(hold_s=0.0)
    await residents(desk)
    desk.turns._tick()
    if desk.turns._behind.round is not None:
        await asyncio.wait_for(desk.turns._behind.round, 10.0)
    assert await desk.parking.finish(asyncio.get_running_loop().time() + 10.0) == set()
    assert desk.files() == set(NAMES)
    assert desk.parking.report(NAMES)["sessions"] == 0


async def test_a_state_that_breaks_its_turn_is_not_given_again(
    make_desk: MakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = make_desk()
    await desk.turn(NAMES[0], "hello")
    await desk.turns.unload()

    lease = desk.turns.ask(Chosen(NAMES[0], NAMES[0], ()), "request")
    (granted,) = await lease.next()
    assert isinstance(granted, Granted)
    monkeypatch.setattr(desk.engine, "begin", lambda turn: desk.turns._emit([Broke(turn.id, "at the state")]))
    await desk.turns.begin(lease, Turn(lease.turn, granted.place, (1, 2), None, Sampling()))
    await lease.next()
    desk.turns.release(lease)
    assert await desk.parking.take(NAMES[0]) == "never_parked"
