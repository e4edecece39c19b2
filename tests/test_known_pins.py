"""What a controller that begins anew knows of machines that are away."""

import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from serving.known_pins import KnownPins
from serving.machine_book import MachineBook
from serving.machine_roll import MachineRoll
from serving.pin_index import PinIndex
from serving.pins import Pin


def pin(n: int, replica: str = "den/0", generation: int = 1, created_s: float = 1.0) -> Pin:
    return Pin(f"{n:064x}", "m", replica, generation, created_s)


class Head:
    """One controller's index, and what is kept of it."""

    def __init__(self, folder: Path, *machines: str) -> None:
        self.path = folder / "known.sqlite"
        self.index = PinIndex()
        self.known = KnownPins(self.path)
        self.kept = self.known.read(self.index, machines or ("den", "attic"))
        self.roll = MachineRoll(MachineBook(folder / "machines.json"), self.kept)

    async def save(self) -> None:
        await self.known.save(self.index, self.roll)


async def test_pins_and_names_are_known_to_the_next_controller(tmp_path: Path) -> None:
    head = Head(tmp_path)
    head.index.confirm([pin(1), pin(2)], "den/0")
    head.index.confirm([pin(2, "attic/0", 2)], "attic/0")
    head.index.describe(pin(1).session, "hp_x", "scope")
    await head.save()
    again = Head(tmp_path)
    assert again.index.journals == head.index.journals
    assert again.index.pins == head.index.pins
    assert again.index.behind == head.index.behind
    assert again.index.names == {pin(1).session: ("hp_x", "scope")}
    assert again.index.sessions == {"hp_x": pin(1).session}
    assert again.index.unsaved == set()
    assert again.path.stat().st_mode & 0o777 == 0o600


async def test_what_is_gone_from_a_journal_is_gone_here_too(tmp_path: Path) -> None:
    head = Head(tmp_path)
    head.index.confirm([pin(1), pin(2), pin(3)], "den/0")
    await head.save()
    head.index.confirm([pin(1), pin(3)], "den/0", whole=True)
    head.index.remove(pin(3).session, "m")
    await head.save()
    assert list(Head(tmp_path).index.pins.values()) == [pin(1)]


async def test_what_a_machine_says_when_it_is_back_stands_in_the_place_of_what_was_kept(
    tmp_path: Path,
) -> None:
    head = Head(tmp_path)
    head.index.confirm([pin(1), pin(2)], "den/0")
    await head.save()
    again = Head(tmp_path)
    again.index.confirm([pin(2), pin(3)], "den/0", whole=True)
    await again.save()
    assert again.index.journals["den/0"].keys() == {(pin(n).session, "m") for n in (2, 3)}
    assert Head(tmp_path).index.pins == again.index.pins


async def test_an_end_that_a_host_has_not_heard_outlives_the_controller_until_it_has(tmp_path: Path) -> None:
    head = Head(tmp_path)
    head.index.confirm([pin(1)], "den/0")
    for journal, said in head.index.remove(pin(1).session, "m").items():
        head.index.is_to_hear(journal, said)
    await head.save()
    again = Head(tmp_path)
    again.index.confirm([pin(1)], "den/0", whole=True)
    assert again.index.get(pin(1).session, "m") is None, "it was ended"
    again.index.has_heard("den/0", pin(1))
    await again.save()
    assert not any(Head(tmp_path).index.ends.values())


async def test_a_forgotten_machine_takes_what_is_known_of_it_along(tmp_path: Path) -> None:
    head = Head(tmp_path)
    head.index.confirm([pin(1)], "den/0")
    head.index.is_to_hear("den/0", pin(4))
    head.index.confirm([pin(2, "den-pc/0")], "den-pc/0")
    head.roll.kept["id-1"] = {"name": "den"}
    head.roll.unsaved.add("id-1")
    await head.save()
    head.known.drop("den")
    head.roll.forget("id-1")
    await head.save()
    again = Head(tmp_path, "den", "den-pc")
    assert (list(again.index.pins.values()), again.kept) == ([pin(2, "den-pc/0")], {})
    assert not any(again.index.ends.values())
    head.index.save_again("den")
    await head.save()
    assert pin(1) in Head(tmp_path).index.pins.values(), "it is back"


async def test_machines_that_the_book_does_not_know_have_no_pins(tmp_path: Path) -> None:
    head = Head(tmp_path)
    head.index.confirm([pin(1)], "den/0")
    await head.save()
    assert Head(tmp_path, "attic").index.pins == {}


@pytest.mark.parametrize("content", [b"no database at all", b"SQLite format 3\0" + b"\xff" * 500])
async def test_a_broken_file_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "known.sqlite").write_bytes(content)
    head = Head(tmp_path)
    assert head.index.pins == {}
    head.index.confirm([pin(1)], "den/0")
    await head.save()
    assert list(Head(tmp_path).index.pins.values()) == [pin(1)]


async def test_a_file_of_another_version_is_begun_anew(tmp_path: Path) -> None:
    head = Head(tmp_path)
    head.index.confirm([pin(1)], "den/0")
    await head.save()
    with sqlite3.connect(head.path) as file:
        file.execute("PRAGMA user_version = 99")
    file.close()
    assert Head(tmp_path).index.pins == {}


async def test_a_file_that_somebody_deletes_is_whole_again_with_the_next_change(tmp_path: Path) -> None:
    head = Head(tmp_path)
    head.index.confirm([pin(1)], "den/0")
    head.index.is_to_hear("attic/0", pin(3, "attic/0"))
    await head.save()
    head.path.unlink()
    head.index.confirm([pin(2)], "den/0")
    await head.save()
    again = Head(tmp_path)
    assert set(again.index.pins.values()) == {pin(1), pin(2)}
    assert again.index.is_ending(pin(3).session, "m", "attic/0")


async def test_what_cannot_be_written_is_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "head"
    head = Head(tmp_path)
    head.known._file.path = head.path = folder / "known.sqlite"
    head.index.confirm([pin(1)], "den/0")
    await head.save()
    assert head.index.unsaved
    folder.mkdir()
    await head.save()
    assert not head.index.unsaved
    assert list(Head(folder).index.pins.values()) == [pin(1)]


async def test_what_no_database_can_hold_keeps_nothing_else_from_being_kept(tmp_path: Path) -> None:
    head = Head(tmp_path)
    head.index.confirm([pin(1, generation=2**70)], "den/0")
    await head.save()
    head.index.confirm([pin(2)], "den/0")
    await head.save()
    assert list(Head(tmp_path).index.pins.values()) == [pin(2)]


async def test_ten_thousand_pins_are_read_within_a_second(tmp_path: Path) -> None:
    head = Head(tmp_path)
    for number in range(10_000):
        replica = f"den/{number % 40}"
        head.index.confirm([pin(number, replica)], replica)
        head.index.describe(pin(number).session, f"hp_{number:024x}", "scope")
    await head.save()
    began = time.thread_time()  # What else this machine does is no matter here.
    again = Head(tmp_path)
    took_s = time.thread_time() - began
    assert len(again.index.pins) == len(again.index.sessions) == 10_000
    assert took_s < 1.0


async def test_a_report_is_kept_for_the_next_controller(tmp_path: Path) -> None:
    head = Head(tmp_path)
    report: dict[str, Any] = {"id": "id-1", "name": "den", "zone": "z", "address": "a", "replicas": []}
    head.roll.heard("id-1", report)
    await head.save()
    assert Head(tmp_path).kept == {"id-1": report}
