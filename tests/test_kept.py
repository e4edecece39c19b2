"""What sessions said, in its file: what is found again, what gives way, what is left on disk of what was removed."""

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.kept import KeptDamaged, KeptFull, KeptRecords, conversation_digest
from tests.host_process import session

ANN, BEN = session("ann"), session("ben")
TRIP = conversation_digest("conv_trip")


def record(name: str, previous: str | None = None, conversation: str | None = None, size: int = 0) -> bytes:
    told: dict[str, Any] = {"id": name, "previous": previous, "conversation": conversation, "input": []}
    return json.dumps(told | {"response": {"text": "x" * size}}).encode()


def names(records: list[bytes]) -> list[str]:
    return [json.loads(each)["id"] for each in records]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept.sqlite"


@pytest.fixture
def kept(path: Path) -> Iterator[KeptRecords]:
    made = KeptRecords(path)
    yield made
    made.close()


def test_a_record_comes_back_as_it_was_also_after_a_restart(path: Path, kept: KeptRecords) -> None:
    kept.put(ANN, record("r1"))
    assert kept.get(ANN, "r1") == record("r1")
    assert kept.get(BEN, "r1") is None
    kept.close()
    assert KeptRecords(path).get(ANN, "r1") == record("r1")
    for file in path.parent.iterdir():
        assert file.stat().st_mode & 0o777 == 0o600


def test_a_chain_is_told_oldest_first_and_ends_where_the_record_before_is_not_here(kept: KeptRecords) -> None:
    for name, previous in (("r1", "elsewhere"), ("r2", "r1"), ("other", "r1"), ("r3", "r2")):
        kept.put(ANN, record(name, previous))
    assert names(kept.chain(ANN, "r3")) == ["r1", "r2", "r3"]
    assert names(kept.chain(ANN, "other")) == ["r1", "other"]
    assert kept.chain(ANN, "none") == []
    kept.put(ANN, record("r1", "r2"))  # No router writes a ring; nobody waits for its end.
    assert sorted(names(kept.chain(ANN, "r3"))) == ["r1", "r2", "r3"]


def test_a_conversation_is_told_oldest_first_and_can_be_removed(kept: KeptRecords) -> None:
    for name in ("r1", "r2"):
        kept.put(ANN, record(name, conversation="conv_trip"))
    kept.put(ANN, record("r3"))
    found, is_cut = kept.conversation(ANN, TRIP)
    assert (names(found), is_cut) == (["r1", "r2"], False)
    assert kept.conversation(BEN, TRIP) == ([], False)
    assert kept.remove_conversation(ANN, TRIP) == 2
    assert names(kept.all(ANN)) == ["r3"]


def test_the_oldest_of_a_full_session_give_way_and_its_conversation_is_known_to_be_cut(path: Path) -> None:
    kept = KeptRecords(path, session_bytes=3000)
    for number in range(5):
        kept.put(ANN, record(f"r{number}", conversation="conv_trip", size=800))
    kept.put(BEN, record("b", size=800))
    found, is_cut = kept.conversation(ANN, TRIP)
    assert (names(found), is_cut) == (["r2", "r3", "r4"], True)
    assert names(kept.all(BEN)) == ["b"]
    kept.remove_conversation(ANN, TRIP)
    assert kept.conversation(ANN, TRIP) == ([], False)


def test_the_oldest_of_a_full_store_give_way_whose_ever_they_are(path: Path) -> None:
    kept = KeptRecords(path, store_bytes=3000)
    kept.put(ANN, record("a1", size=800))
    kept.put(BEN, record("b1", size=800))
    kept.put(ANN, record("a2", size=800))
    assert kept.remove(ANN, "a2")
    for name in ("b2", "b2", "b3"):  # One of the same id takes no room twice.
        kept.put(BEN, record(name, size=800))
    assert names(kept.all(ANN)) == []
    assert names(kept.all(BEN)) == ["b1", "b2", "b3"]
    kept.close()
    again = KeptRecords(path, store_bytes=3000)
    again.put(ANN, record("a3", size=800))
    assert names(again.all(BEN)) == ["b2", "b3"]


@pytest.mark.parametrize(
    "forget",
    [
        lambda kept: kept.forget([ANN]),
        lambda kept: kept.remove(ANN, "r1"),
        lambda kept: kept.remove_conversation(ANN, TRIP),
    ],
    ids=["session", "record", "conversation"],
)
def test_what_is_forgotten_is_gone_from_the_disk(
    path: Path, kept: KeptRecords, forget: Callable[[KeptRecords], object]
) -> None:
    secret = b"the secret of ann"
    body = json.dumps({"id": "r1", "conversation": "conv_trip", "said": secret.decode()}).encode()
    kept.put(BEN, record("b", size=9000))
    kept.put(ANN, body)
    assert any(secret in file.read_bytes() for file in path.parent.iterdir())
    forget(kept)
    assert not any(secret in file.read_bytes() for file in path.parent.iterdir())
    assert kept.all(ANN) == []
    assert names(kept.all(BEN)) == ["b"]


def test_sessions_without_a_home_here_are_forgotten(kept: KeptRecords) -> None:
    kept.put(ANN, record("a"))
    kept.put(BEN, record("b"))
    assert kept.having([ANN, session("cem")]) == {ANN}
    kept.keep_only([BEN])
    assert kept.having([ANN, BEN]) == {BEN}


def test_a_session_that_comes_has_what_came_with_it_and_nothing_older(kept: KeptRecords) -> None:
    kept.put(ANN, record("old"))
    kept.take(ANN, [record("r1"), record("r2", "r1")])
    assert names(kept.all(ANN)) == ["r1", "r2"]


def test_nothing_is_made_for_what_removes_and_asks(path: Path, kept: KeptRecords) -> None:
    kept.forget([ANN])
    kept.keep_only([ANN])
    assert kept.having([ANN]) == set()
    assert not path.exists()


@pytest.mark.parametrize("damage", [b"this is no database", b"\0" * 5000, None])
def test_a_damaged_file_is_set_aside_and_the_next_call_begins_a_fresh_one(
    path: Path, kept: KeptRecords, damage: bytes | None
) -> None:
    if damage is None:
        with sqlite3.connect(path) as foreign:
            foreign.execute("CREATE TABLE records (other)")
        foreign.close()
    else:
        path.write_bytes(damage)
    with pytest.raises(KeptDamaged, match=r"kept\.sqlite\.broken"):
        kept.put(ANN, record("r1"))
    kept.put(ANN, record("r1"))
    assert names(kept.all(ANN)) == ["r1"]
    assert path.with_name("kept.sqlite.broken").exists()


def test_damage_that_is_met_later_is_set_aside_too(path: Path, kept: KeptRecords) -> None:
    for number in range(50):
        kept.put(ANN, record(f"r{number}", size=3000))
    kept.close()
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(KeptDamaged):
        kept.all(ANN)
    assert kept.all(ANN) == []


def test_a_process_that_is_killed_leaves_whole_records(path: Path) -> None:
    script = f"""
import os, pathlib, signal
from tests.test_kept import ANN, record
from serving.kept import KeptRecords
kept = KeptRecords(pathlib.Path({str(path)!r}))
for number in range(20):
    kept.put(ANN, record(f"r{{number}}", size=9000))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    kept = KeptRecords(path)
    assert names(kept.all(ANN)) == [f"r{number}" for number in range(20)]
    kept.close()


def test_a_file_that_cannot_be_made_is_named(path: Path, kept: KeptRecords) -> None:
    path.mkdir()
    with pytest.raises(KeptFull, match=str(path.parent)):
        kept.put(ANN, record("r1"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeptFull, match="make room"):
        _full(tmp_path).put(ANN, record("r1", size=100_000))


def _full(folder: Path) -> KeptRecords:
    kept = KeptRecords(folder / "kept.sqlite")
    kept.put(ANN, record("r0"))
    database = kept._db
    assert database is not None
    database.execute("PRAGMA max_page_count = 5")
    return kept
