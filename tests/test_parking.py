"""serving/parking.py: what is kept in memory and on its way, what gives way, and what comes back."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from serving import parked_file
from serving.engine import SavedState
from tests.parking_desk import ANN, BEN, CEM, ENGINE, MIB, Desk, on_folder, saved, state_of, written


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with on_folder(tmp_path / "parked") as made:
        yield made


async def test_a_parked_state_is_in_memory_at_once_and_then_on_disk_too(desk: Desk) -> None:
    parking = desk.parking()
    parking.park(ANN, saved(state_of("ann")))
    assert await parking.take(ANN) == state_of("ann")
    await written(parking)
    assert desk.files() == {ANN}
    report = parking.report(())
    assert (report["sessions"], report["saves"], report["memory_bytes"]) == (1, 1, 100)
    assert report["disk_bytes"] == parked_file.size_of(state_of("ann"))


async def test_a_session_that_returns_while_its_save_is_on_its_way_gets_that_save(desk: Desk) -> None:
    parking = desk.parking()
    saving: Future[SavedState | None] = Future()
    parking.park(ANN, saving)
    taking = asyncio.create_task(parking.take(ANN))
    await asyncio.sleep(0)
    assert not taking.done()
    saving.set_result(state_of("ann"))
    assert await taking == state_of("ann")


async def test_the_longest_parked_leaves_memory_first_and_comes_from_disk(desk: Desk) -> None:
    parking = desk.parking(memory=250)
    for session in (ANN, BEN, CEM):
        parking.park(session, saved(state_of(session[0])))
    await written(parking)
    assert parking.report(())["memory_bytes"] == 200
    assert await parking.take(ANN) == state_of("a")


async def test_without_a_disk_what_leaves_memory_is_evicted(desk: Desk) -> None:
    parking = desk.parking(memory=250, disk=0)
    for session in (ANN, BEN, CEM):
        parking.park(session, saved(state_of(session[0])))
    await parking.settle()
    assert await parking.take(ANN) == "evicted"
    assert await parking.take(BEN) == state_of("b")
    assert not desk.folder.exists()


async def test_what_was_resumed_leaves_memory_and_stays_on_disk(desk: Desk) -> None:
    parking = desk.parking()
    parking.park(ANN, saved(state_of("ann")))
    await written(parking)
    parking.resumed(ANN)
    report = parking.report({ANN})
    assert (report["sessions"], report["memory_bytes"], report["resumes"]) == (0, 0, 1)
    assert await parking.take(ANN) == state_of("ann")


async def test_what_the_engine_refused_and_what_is_forgotten_is_gone_everywhere(desk: Desk) -> None:
    parking = desk.parking()
    for session in (ANN, BEN):
        parking.park(session, saved(state_of(session[0])))
    await parking.settle()
    parking.refused(ANN)
    parking.forget(BEN)
    await written(parking)
    assert desk.files() == set()
    assert await parking.take(ANN) == "never_parked"
    assert parking.report(())["sessions"] == 0


async def test_a_save_that_comes_after_its_session_was_forgotten_is_dropped(desk: Desk) -> None:
    parking = desk.parking()
    saving: Future[SavedState | None] = Future()
    parking.park(ANN, saving)
    parking.forget(ANN)
    saving.set_result(state_of("ann"))
    await written(parking)
    assert await parking.take(ANN) == "never_parked"
    assert desk.files() == set()


async def test_a_save_that_fails_leaves_what_was_saved_before(desk: Desk) -> None:
    parking = desk.parking()
    parking.park(BEN, saved(None))
    await parking.settle()
    assert await parking.take(BEN) == "evicted"
    parking.park(ANN, saved(state_of("ann")))
    await written(parking)
    parking.resumed(ANN)
    parking.changed(ANN)
    parking.park(ANN, saved(None))
    assert await parking.take(ANN) == state_of("ann")
    assert parking.report(())["failures"] == 2


async def test_a_park_that_overtakes_a_write_behind_is_what_is_written(desk: Desk) -> None:
    parking = desk.parking()
    parking.park(ANN, saved(state_of("old")))
    await written(parking)
    parking.resumed(ANN)
    parking.changed(ANN)
    behind: Future[SavedState | None] = Future()
    parking.write_behind(ANN, behind)
    parking.park(ANN, saved(state_of("new")))
    behind.set_result(state_of("behind"))
    await written(parking)
    assert parked_file.read(desk.folder, ANN, ENGINE) == state_of("new")
    assert await parking.take(ANN) == state_of("new")


@pytest.mark.parametrize("memory", [0, MIB])
async def test_the_tokens_of_what_is_kept_are_known_wherever_it_lies(desk: Desk, memory: int) -> None:
    parking = desk.parking(memory=memory)
    saving: Future[SavedState | None] = Future()
    assert (await parking.tokens(ANN), parking.count(ANN)) == ((), None)
    parking.park(ANN, saving)
    assert parking.count(ANN) == 0
    telling = asyncio.create_task(parking.tokens(ANN))
    await asyncio.sleep(0)
    saving.set_result(state_of("ann"))
    assert await telling == tuple(map(ord, "ann"))
    await written(parking)
    assert (await parking.tokens(ANN), parking.count(ANN)) == (tuple(map(ord, "ann")), 3)
    later = desk.parking()
    assert (await later.tokens(ANN), later.count(ANN)) == (tuple(map(ord, "ann")), 3)
    parked_file.path_of(desk.folder, ANN).unlink()
    assert await later.tokens(ANN) == ()


async def test_the_tokens_of_who_gives_way_are_known_before_its_save_is_there(desk: Desk) -> None:
    parking = desk.parking()
    saving: Future[SavedState | None] = Future()
    parking.park(ANN, saving, (1, 2))
    assert (await parking.tokens(ANN), parking.count(ANN)) == ((1, 2), 2)
    saving.set_result(None)
    await parking.settle()
    assert (await parking.tokens(ANN), parking.count(ANN)) == ((), None)


@pytest.mark.parametrize(("memory", "disk"), [(MIB, 0), (0, MIB), (MIB, MIB)])
async def test_what_is_kept_of_one_session_becomes_anothers(desk: Desk, memory: int, disk: int) -> None:
    parking = desk.parking(memory, disk)
    for session in (ANN, BEN):
        parking.park(session, saved(state_of(session[0])))
    await parking.settle()
    state = await parking.take(BEN)
    assert isinstance(state, SavedState)
    parking.rename(BEN, ANN, state)
    await written(parking)
    assert await parking.take(ANN) == state_of("b")
    assert await parking.take(BEN) == "never_parked"
    assert desk.files() == ({ANN} if disk else set())
    if disk:
        assert await desk.parking().take(ANN) == state_of("b")


async def test_a_resident_that_gets_another_name_is_to_be_written_anew(desk: Desk) -> None:
    parking = desk.parking()
    for session in (ANN, BEN):
        parking.park(session, saved(state_of(session[0])))
    await written(parking)
    parking.resumed(BEN)
    parking.rename(BEN, ANN, None)
    await parking.removed()
    assert desk.files() == set()
    assert (parking.is_changed(ANN), parking.is_changed(BEN)) == (True, False)
    assert await parking.take(ANN) == "never_parked"


async def test_what_was_forgotten_was_never_evicted(desk: Desk) -> None:
    parking = desk.parking()
    parking.park(ANN, saved(None))
    await parking.settle()
    assert await parking.take(ANN) == "evicted"
    parking.forget(ANN)
    assert await parking.take(ANN) == "never_parked"
