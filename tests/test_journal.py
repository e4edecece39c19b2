"""The journal: what is on disk after a call, and what becomes of damage and of a full disk."""

import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serving.journal import Entry, Journal, JournalFull, pins_since
from serving.pins import Pin

ROOT = Path(__file__).parent.parent
PIN = Pin("ab" * 32, "smollm2", "den/0", 1, 100.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    journal = Journal(path)
    yield journal
    journal.close()


def test_a_pin_is_there_after_closing(journal: Journal, path: Path) -> None:
    assert journal.insert(PIN) is PIN
    journal.close()
    again = Journal(path)
    assert again.get(PIN.session, "smollm2") == PIN
    assert again.warning is None
    again.close()


def test_a_pin_is_there_after_sigkill(path: Path) -> None:
    program = (
        "import os, pathlib, signal, sys; from serving.journal import Journal; from serving.pins import Pin;"
        f"Journal(pathlib.Path({str(path)!r})).insert({PIN!r}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    journal = Journal(path)
    assert [entry.pin for entry in journal.all()] == [PIN]
    journal.close()


def test_inserting_again_returns_the_winner(journal: Journal) -> None:
    journal.insert(PIN)
    later = replace(PIN, created_s=200.0)
    assert journal.insert(later) == PIN
    moved = replace(PIN, generation=2, replica="attic/0", created_s=300.0)
    assert journal.insert(moved) is moved
    assert journal.insert(PIN) == moved
    assert [entry.pin for entry in journal.all()] == [moved]


def test_pins_of_two_models_are_two(journal: Journal) -> None:
    other = replace(PIN, model="other")
    journal.insert(PIN)
    assert journal.insert(other) is other
    assert journal.get(PIN.session, "smollm2") == PIN
    assert journal.count() == 2


def test_an_unknown_session_has_no_pin(journal: Journal) -> None:
    assert journal.get("cd" * 32, "smollm2") is None
    journal.touch("cd" * 32, "smollm2", 1.0)
    assert journal.count() == 0


def test_a_touch_counts_a_turn_and_moves_the_time_of_use_forwards_only(journal: Journal) -> None:
    journal.insert(PIN)
    journal.touch(PIN.session, "smollm2", 500.0)
    journal.touch(PIN.session, "smollm2", 400.0)
    assert journal.all() == (Entry(PIN, used_s=500.0, turns=2),)
    assert journal.get(PIN.session, "smollm2") == PIN


def test_what_was_written_since_a_look_is_read_past_the_host(journal: Journal, path: Path) -> None:
    journal.insert(PIN)
    assert pins_since(path, 0) == ([PIN], 1)
    assert pins_since(path, 1) == ([], 1)
    moved = replace(PIN, replica="den/1", generation=2)
    other = replace(PIN, session="ef" * 32)
    journal.insert(moved)
    journal.insert(other)
    journal.touch(PIN.session, PIN.model, 9.0)
    assert pins_since(path, 1) == ([moved, other], 3)


def test_a_dead_hosts_journal_is_read_too(path: Path) -> None:
    program = (
        "import os, pathlib, sys; from serving.journal import Journal; from serving.pins import Pin; "
        "Journal(pathlib.Path(sys.argv[1])).insert(Pin('ab' * 32, 'm', 'den/0', 1, 1.0)); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], cwd=ROOT, check=False)
    assert [pin.session for pin in pins_since(path, 0)[0]] == ["ab" * 32]


def test_reading_goes_on_while_another_thread_writes(journal: Journal) -> None:
    def write() -> None:
        for number in range(200):
            journal.insert(replace(PIN, session=f"{number:064x}"))

    writer = threading.Thread(target=write)
    writer.start()
    seen = [0]
    while writer.is_alive():
        seen.append(journal.count())
    writer.join()
    assert seen == sorted(seen)
    assert journal.count() == 200


def test_nobody_else_can_read_it(journal: Journal, path: Path) -> None:
    journal.insert(PIN)
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


@pytest.mark.parametrize(
    "damage",
    [b"this is no database, and long enough to be read as one" * 50, b"SQLite format 3\0" + b"\xff" * 8000],
)
def test_a_damaged_file_is_set_aside_and_a_fresh_one_begun(path: Path, damage: bytes) -> None:
    path.write_bytes(damage)
    journal = Journal(path)
    assert journal.warning is not None
    assert "journal.sqlite.broken" in journal.warning
    assert (path.parent / "journal.sqlite.broken").read_bytes() == damage
    assert journal.insert(PIN) is PIN
    journal.close()


def test_a_journal_damaged_in_the_middle_is_set_aside(path: Path) -> None:
    journal = Journal(path)
    for number in range(300):
        journal.insert(replace(PIN, session=f"{number:064x}"))
    journal.close()
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4096] = b"\xa5" * 4096
    path.write_bytes(data)
    journal = Journal(path)
    assert journal.warning is not None
    assert journal.count() == 0
    journal.close()


def test_a_foreign_database_is_set_aside(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE pins (name TEXT)")
    connection.commit()
    connection.close()
    journal = Journal(path)
    assert journal.warning is not None
    assert journal.insert(PIN) is PIN
    journal.close()


def test_an_empty_file_is_a_fresh_journal(path: Path) -> None:
    path.touch()
    journal = Journal(path)
    assert journal.warning is None
    assert journal.count() == 0
    journal.close()


def test_a_full_disk_is_said_with_a_remedy_and_the_pin_is_not_there(path: Path) -> None:
    """In a process of its own, whose files may not grow: as near to a full disk as one comes without being root."""
    program = f"""
import pathlib, resource
from dataclasses import replace
from serving.journal import Journal, JournalFull
from serving.pins import Pin
journal = Journal(pathlib.Path({str(path)!r}))
grown = pathlib.Path({str(path) + "-wal"!r}).stat().st_size + 4096
resource.setrlimit(resource.RLIMIT_FSIZE, (grown, resource.RLIM_INFINITY))
pin = {PIN!r}
try:
    for number in range(100):
        journal.insert(replace(pin, session=f"{{number:064x}}"))
except JournalFull as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert journal.get(f"{{number:064x}}", pin.model) is None
assert journal.insert(replace(pin, session=f"{{number:064x}}")).session == f"{{number:064x}}"
print("goes on")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    message, last = done.stdout.splitlines()
    assert str(path.parent) in message
    assert "make room" in message
    assert last == "goes on"


def test_a_folder_that_cannot_hold_it_is_an_error_and_damages_nothing(tmp_path: Path) -> None:
    with pytest.raises((OSError, JournalFull)):
        Journal(tmp_path / "missing" / "journal.sqlite")
