"""serving/parking_disk.py with real files: what is written, what gives way, what a bad file or disk comes to."""

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from serving import parked_file
from serving.engine import SavedState
from serving.parking_plan import MARGIN_BYTES
from tests.parking_desk import ANN, BEN, CEM, ENGINE, Desk, on_folder, saved, state_of, written


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with on_folder(tmp_path / "parked") as made:
        yield made


async def test_another_parking_finds_what_was_written(desk: Desk) -> None:
    parking = desk.parking()
    parking.park(ANN, saved(state_of("ann")))
    await written(parking)
    assert await desk.parking().take(ANN) == state_of("ann")


async def test_a_state_that_is_being_written_comes_from_memory(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    write = parked_file.write

    def slow(folder: Path, session: str, fingerprint: str, state: SavedState) -> int:
        begun.set()
        go_on.wait(10.0)
        return write(folder, session, fingerprint, state)

    monkeypatch.setattr(parked_file, "write", slow)
    parking = desk.parking(memory=0)
    try:
        parking.park(ANN, saved(state_of("ann")))
        assert await asyncio.to_thread(begun.wait, 10.0)
        assert parking.report(())["memory_bytes"] == 0
        assert await parking.take(ANN) == state_of("ann")
        # A newer one takes its place, and is what lies there in the end.
        parking.changed(ANN)
        parking.park(ANN, saved(state_of("later")))
        assert await parking.take(ANN) == state_of("later")
    finally:
        go_on.set()
    await written(parking)
    assert parked_file.read(desk.folder, ANN, ENGINE) == state_of("later")


async def test_the_disk_keeps_to_its_budget_and_the_longest_unused_goes(desk: Desk) -> None:
    size = parked_file.size_of(state_of("a"))
    parking = desk.parking(memory=0, disk=2 * size)
    for session in (ANN, BEN):
        parking.park(session, saved(state_of(session[0])))
        await written(parking)
    parking.resumed(ANN)
    parking.park(CEM, saved(state_of("c")))
    await written(parking)
    assert desk.files() == {ANN, CEM}
    assert await parking.take(BEN) == "evicted"
    assert parking.report(())["disk_bytes"] == 2 * size


async def test_a_smaller_budget_and_a_passed_keep_hold_for_what_lay_there_before(desk: Desk) -> None:
    first = desk.parking()
    for session in (ANN, BEN, CEM):
        first.park(session, saved(state_of(session[0])))
        await written(first)
    for age, session in enumerate((CEM, BEN, ANN)):
        used_s = desk.now - 100.0 * age
        os.utime(parked_file.path_of(desk.folder, session), (used_s, used_s))
    second = desk.parking(disk=2 * parked_file.size_of(state_of("a")), keep_s=150.0)
    await written(second)
    assert desk.files() == {BEN, CEM}
    third = desk.parking(keep_s=50.0)
    await written(third)
    assert desk.files() == {CEM}
    assert await third.take(BEN) == "evicted"


async def test_a_state_larger_than_the_disks_budget_is_said_and_stays_in_memory(desk: Desk) -> None:
    parking = desk.parking(disk=200)
    parking.park(ANN, saved(state_of("ann", 500)))
    await written(parking)
    assert desk.files() == set()
    assert ["larger than `parking.disk`" in warning for warning in desk.warnings] == [True]
    assert await parking.take(ANN) == state_of("ann", 500)


async def test_a_full_disk_is_said_once_and_memory_goes_on(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    parking = desk.parking()
    with monkeypatch.context() as patched:
        patched.setattr(parked_file, "write", full)
        for session in (ANN, BEN):
            parking.park(session, saved(state_of(session[0])))
        await written(parking)
    assert len(desk.warnings) == 1
    assert "No space left on device" in desk.warnings[0]
    assert ANN not in desk.warnings[0]
    assert await parking.take(ANN) == state_of("a")
    assert parking.report(())["failures"] == 2
    # Both are still to be written, and the next one that can be ends the silence.
    assert parking.is_changed(ANN)
    parking.park(CEM, saved(state_of("c")))
    await written(parking)
    assert desk.files() == {CEM}


async def test_a_folder_that_cannot_be_made_is_said_and_memory_goes_on(desk: Desk) -> None:
    desk.folder.write_text("a file in its place")
    parking = desk.parking()
    assert len(desk.warnings) == 1
    parking.park(ANN, saved(state_of("ann")))
    assert await parking.take(ANN) == state_of("ann")
    assert not parking.is_changed(ANN)


@pytest.mark.parametrize(
    ("harm", "missing"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "restore_failed"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"), "restore_failed"),
        (lambda path: path.write_bytes(b""), "restore_failed"),
        (lambda path: path.write_bytes(b"no state" * 100), "engine_changed"),
    ],
)
async def test_a_file_that_is_not_as_it_must_be_is_dropped(
    desk: Desk, harm: Callable[[Path], object], missing: str
) -> None:
    first = desk.parking()
    first.park(ANN, saved(state_of("ann")))
    await written(first)
    harm(parked_file.path_of(desk.folder, ANN))
    parking = desk.parking()
    assert await parking.take(ANN) == missing
    assert len(desk.warnings) == 1
    assert all(ANN not in warning for warning in desk.warnings)
    await written(parking)
    assert desk.files() == set()


async def test_a_file_that_somebody_removed_is_evicted(desk: Desk) -> None:
    parking = desk.parking(memory=0)
    parking.park(ANN, saved(state_of("ann")))
    await written(parking)
    parked_file.path_of(desk.folder, ANN).unlink()
    assert await parking.take(ANN) == "evicted"
    assert desk.warnings == []


async def test_another_engines_files_stay_until_they_are_asked_for(desk: Desk) -> None:
    first = desk.parking()
    first.park(ANN, saved(state_of("ann")))
    await written(first)
    other = desk.parking(fingerprint="f" * 64)
    await written(other)
    assert desk.files() == {ANN}
    assert await other.take(ANN) == "engine_changed"
    await written(other)
    assert desk.files() == set()


async def test_only_what_changed_is_written_again(desk: Desk) -> None:
    parking = desk.parking()
    parking.changed(ANN)
    assert parking.is_changed(ANN)
    parking.write_behind(ANN, saved(state_of("ann")))
    await written(parking)
    assert not parking.is_changed(ANN)
    assert parking.report({ANN})["memory_bytes"] == 0
    path = parked_file.path_of(desk.folder, ANN)
    inode = path.stat().st_ino
    parking.park(ANN, saved(state_of("ann")))
    await written(parking)
    assert path.stat().st_ino == inode
    parking.changed(ANN)
    parking.park(ANN, saved(state_of("later")))
    await written(parking)
    assert parked_file.read(desk.folder, ANN, ENGINE) == state_of("later")


async def test_a_slow_disk_holds_no_more_than_the_margin_in_memory(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(parked_file, "write", lambda *args: go_on.wait(10.0))
    parking = desk.parking(memory=0, disk=2**40)
    part = state_of("x", MARGIN_BYTES // 2)
    try:
        for number in range(5):
            parking.park(f"{number:064}", saved(part))
            await parking.settle()
        # The one that is being written, and two that wait.
        assert parking.report(())["unwritten"] == 3
        assert await parking.take(f"{1:064}") == "evicted"
        assert await parking.take(f"{4:064}") == part
    finally:
        go_on.set()


async def test_finishing_says_who_could_not_be_written_in_time(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(parked_file, "write", lambda *args: go_on.wait(10.0))
    parking = desk.parking()
    saving: Future[SavedState | None] = Future()
    try:
        parking.park(ANN, saved(state_of("ann")))
        parking.park(BEN, saving)
        assert await parking.finish(asyncio.get_running_loop().time() + 0.05) == {ANN, BEN}
    finally:
        go_on.set()
        saving.set_result(None)


async def test_another_engines_tokens_are_nobodys(desk: Desk) -> None:
    first = desk.parking()
    first.park(ANN, saved(state_of("ann")))
    await written(first)
    assert await desk.parking(fingerprint="f" * 64).tokens(ANN) == ()
