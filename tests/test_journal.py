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

from serving.journal import NOTHING, Entry, Facts, Journal, JournalFull, entries_since
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
    entries, mark, whole = entries_since(path, NOTHING)
    assert ([entry.pin for entry in entries], whole) == ([PIN], True)
    assert mark == journal.mark()
    assert entries_since(path, mark) == ([], mark, False)
    moved = replace(PIN, replica="den/1", generation=2)
    other = replace(PIN, session="ef" * 32)
    journal.insert(moved)
    journal.insert(other)
    journal.touch(PIN.session, PIN.model, 9.0)
    entries, later, whole = entries_since(path, mark)
    assert ([entry.pin for entry in entries], whole) == ([moved, other], False)
    assert later == journal.mark() != mark


def test_what_is_gone_since_a_look_shows_in_the_whole(journal: Journal, path: Path) -> None:
    other = replace(PIN, session="ef" * 32)
    journal.insert(PIN)
    journal.insert(other)
    _, mark, _ = entries_since(path, NOTHING)
    journal.remove([(PIN.session, PIN.model)])
    entries, later, whole = entries_since(path, mark)
    assert ([entry.pin for entry in entries], whole) == ([other], True)
    assert later == journal.mark()
    journal.insert(PIN)
    entries, _, whole = entries_since(path, later)
    assert ([entry.pin for entry in entries], whole) == ([PIN], False)


def test_a_fresh_journal_in_the_place_of_a_damaged_one_is_read_in_the_whole(path: Path) -> None:
    first = Journal(path)
    for number in range(3):
        first.insert(replace(PIN, session=f"{number:064x}"))
    first.close()
    _, mark, _ = entries_since(path, NOTHING)
    path.write_bytes(b"no database" * 100)
    second = Journal(path)
    second.insert(PIN)
    entries, _, whole = entries_since(path, mark)
    assert ([entry.pin for entry in entries], whole) == ([PIN], True)
    second.close()


def test_a_dead_hosts_journal_is_read_too(path: Path) -> None:
    program = (
        "import os, pathlib, sys; from serving.journal import Journal; from serving.pins import Pin; "
        "Journal(pathlib.Path(sys.argv[1])).insert(Pin('ab' * 32, 'm', 'den/0', 1, 1.0)); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], cwd=ROOT, check=False)
    assert [entry.pin.session for entry in entries_since(path, NOTHING)[0]] == ["ab" * 32]


# whose pin it is, and what a guessed session said


def test_what_is_known_of_a_session_is_kept_with_its_pin(journal: Journal, path: Path) -> None:
    facts = Facts("hp_" + "0a" * 12, "5c" * 32, "fa" * 32, guessed=True, history="11" * 32)
    journal.insert(PIN, facts)
    journal.close()
    again = Journal(path)
    entry = again.entry(PIN.session, PIN.model)
    assert entry == Entry(PIN, PIN.created_s, 0, facts)
    assert (entry.public, entry.scope, entry.family) == (facts.public, facts.scope, facts.family)
    assert again.by_public(facts.public) == (entry,)
    assert again.by_public("hp_" + "0b" * 12) == again.by_public("") == ()
    told = entry.to_json()
    assert (told["public"], told["guessed"]) == (facts.public, True)
    assert "history" not in told
    again.close()


def test_any_public_id_is_found_again(journal: Journal) -> None:
    for number, public in enumerate(("hp_short", "hp_" + "AB" * 12, "another")):
        journal.insert(replace(PIN, session=f"{number:064x}"), Facts(public))
        assert [entry.public for entry in journal.by_public(public)] == [public]


def test_a_new_home_keeps_what_was_known_and_a_turn_fills_in_what_was_not(journal: Journal) -> None:
    journal.insert(PIN, Facts("hp_x", "5c" * 32))
    moved = replace(PIN, generation=2)
    journal.insert(moved, Facts(family="fa" * 32))
    entry = journal.entry(PIN.session, PIN.model)
    assert entry == Entry(moved, moved.created_s, 0, Facts("hp_x", "5c" * 32, "fa" * 32))
    other = replace(PIN, model="other")
    journal.insert(other)
    before = journal.mark()
    journal.touch(other.session, "other", 500.0, Facts("hp_x"))
    assert journal.entry(other.session, "other") == Entry(other, 500.0, 1, Facts("hp_x"))
    assert journal.mark() != before, "the index has to hear of it"
    again = journal.mark()
    journal.touch(other.session, "other", 501.0, Facts("hp_y"))
    assert journal.mark() == again


def test_a_guess_finds_the_session_whose_last_turn_said_the_longest_of_it(journal: Journal) -> None:
    short, long, scope = "11" * 32, "22" * 32, "5c" * 32
    first, second = replace(PIN, session="01" * 32), replace(PIN, session="02" * 32)
    journal.insert(first, Facts(scope=scope, guessed=True, history=short))
    journal.insert(second, Facts(scope=scope, guessed=True, history=long))
    found = journal.find((long, short), PIN.model, scope, PIN.replica)
    assert found is not None
    assert found.pin == second
    found = journal.find(("33" * 32, short), PIN.model, scope, PIN.replica)
    assert found is not None
    assert found.pin == first
    assert journal.find(("33" * 32,), PIN.model, scope, PIN.replica) is None
    assert journal.find((long,), "other", scope, PIN.replica) is None


def test_a_guess_never_finds_another_keys_session_or_a_named_one(journal: Journal) -> None:
    said, scope = "11" * 32, "5c" * 32
    journal.insert(PIN, Facts(scope="6d" * 32, guessed=True, history=said))
    journal.insert(replace(PIN, session="02" * 32), Facts(scope=scope, guessed=False, history=said))
    assert journal.find((said,), PIN.model, scope, PIN.replica) is None
    assert journal.find((said,), PIN.model, None, PIN.replica) is None


def test_a_guess_is_not_found_at_the_home_that_its_session_left(journal: Journal) -> None:
    said = "11" * 32
    journal.insert(PIN, Facts(scope="5c" * 32, guessed=True, history=said))
    moved = replace(PIN, generation=2, replica="attic/0")
    journal.insert(moved)
    assert journal.find((said,), PIN.model, "5c" * 32, PIN.replica) is None
    assert journal.all()[0].history is None, "it is said elsewhere by now"
    own = replace(PIN, session="02" * 32)
    journal.record(PIN.session, PIN.model, said)  # a turn that crossed the move
    journal.insert(own, Facts(scope="5c" * 32, guessed=True, history=said))
    found = journal.find((said,), PIN.model, "5c" * 32, PIN.replica)
    assert found is not None
    assert found.pin == own, "one that left hides none that is here"


def test_a_pin_that_moved_in_takes_a_later_history_until_it_has_a_turn(journal: Journal) -> None:
    first, second, third = "11" * 32, "22" * 32, "33" * 32
    journal.insert(PIN, Facts(guessed=True, history=first))
    journal.insert(PIN, Facts(guessed=True, history=second))
    assert journal.all()[0].history == second
    journal.insert(PIN)
    assert journal.all()[0].history == second, "nothing was said of it"
    journal.touch(PIN.session, PIN.model, 5.0)
    journal.insert(PIN, Facts(guessed=True, history=third))
    assert journal.all()[0].history == second, "its own turns know better"


def test_two_keys_sessions_that_say_the_same_are_both_found(journal: Journal) -> None:
    before, after, keys = "11" * 32, "22" * 32, ("5c" * 32, "6d" * 32)
    for number, scope in enumerate(keys):
        one = replace(PIN, session=f"{number:064x}")
        journal.insert(one, Facts(scope=scope, guessed=True, history=before))
        journal.note(one.session, one.model, after)
    found = [journal.find((after,), PIN.model, scope, PIN.replica) for scope in keys]
    assert [entry and entry.scope for entry in found] == list(keys)


def test_what_is_noted_counts_before_it_is_on_disk(journal: Journal) -> None:
    before, after = "11" * 32, "22" * 32
    journal.insert(PIN, Facts(guessed=True, history=before))
    journal.note(PIN.session, PIN.model, after)
    assert journal.find((before,), PIN.model, None, PIN.replica) is None
    found = journal.find((after,), PIN.model, None, PIN.replica)
    assert found is not None
    assert found.history == after
    journal.record(PIN.session, PIN.model, after)
    journal.noted(PIN.session, PIN.model, after)
    assert journal.find((after,), PIN.model, None, PIN.replica) == found
    assert journal.all()[0].history == after


# pins that go


def test_a_pin_that_is_removed_is_gone(journal: Journal) -> None:
    other = replace(PIN, model="other")
    journal.insert(PIN)
    journal.insert(other)
    assert journal.remove([(PIN.session, "smollm2"), ("cd" * 32, "smollm2")]) == ((PIN.session, "smollm2"),)
    assert [entry.pin for entry in journal.all()] == [other]
    assert journal.count() == 1


def test_while_a_pin_leaves_it_is_as_good_as_gone(journal: Journal) -> None:
    facts = Facts("hp_x", guessed=True, history="11" * 32)
    journal.insert(PIN, facts)
    journal.leaving.add((PIN.session, PIN.model))
    assert journal.get(PIN.session, PIN.model) is None
    assert journal.by_public("hp_x") == ()
    assert journal.find(("11" * 32,), PIN.model, None, PIN.replica) is None
    journal.leaving.clear()
    assert journal.get(PIN.session, PIN.model) == PIN


def test_named_guessed_and_single_pins_are_unused_after_times_of_their_own(journal: Journal) -> None:
    def pin(number: int, turns: int, *, guessed: bool) -> None:
        made = replace(PIN, session=f"{number:064x}", created_s=50.0)
        journal.insert(made, Facts(guessed=guessed))
        for _ in range(turns):
            journal.touch(made.session, made.model, 50.0)

    pin(1, 0, guessed=False)
    pin(2, 2, guessed=True)
    pin(3, 1, guessed=True)

    def unused(*before_s: float) -> set[int]:
        return {int(session, 16) for session, _ in journal.unused(*before_s)}

    assert unused(0.0, 0.0, 0.0) == set()
    assert unused(0.0, 0.0, 60.0) == {3}
    assert unused(0.0, 60.0, 0.0) == {2}
    assert unused(60.0, 0.0, 0.0) == {1}


def test_a_guessed_pin_that_has_moved_does_not_count_as_one_turns(journal: Journal) -> None:
    moved = replace(PIN, generation=2, created_s=50.0)
    journal.learn([(moved, Facts(guessed=True)), (replace(moved, session="cd" * 32), Facts(guessed=True))])
    journal.touch(moved.session, moved.model, 50.0)
    assert journal.unused(0.0, 0.0, 60.0) == {}
    assert len(journal.unused(0.0, 60.0, 0.0)) == 2


def test_a_pin_that_was_used_meanwhile_is_not_removed(journal: Journal) -> None:
    journal.insert(PIN)
    journal.touch(PIN.session, PIN.model, 500.0)
    assert journal.remove([(PIN.session, PIN.model)], unused_since_s=400.0) == ()
    assert journal.count() == 1


# a file of homeport 0.1.0

OLD = """
CREATE TABLE pins (
    session TEXT NOT NULL, model TEXT NOT NULL, replica TEXT NOT NULL,
    generation INTEGER NOT NULL, created_s REAL NOT NULL, used_s REAL NOT NULL, turns INTEGER NOT NULL,
    written INTEGER NOT NULL, PRIMARY KEY (session, model)
) WITHOUT ROWID;
CREATE INDEX pins_written ON pins (written);
"""
OTHER = Pin("0e" * 32, "other", "den/1", 3, 50.0)


@pytest.fixture
def old(path: Path) -> Path:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(OLD)
    for number, (pin, used_s, turns) in enumerate(((PIN, 500.0, 2), (OTHER, 60.0, 0)), 1):
        row = (pin.session, pin.model, pin.replica, pin.generation, pin.created_s, used_s, turns, number)
        connection.execute("INSERT INTO pins VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    connection.commit()
    connection.close()
    return path


def test_an_older_files_pins_are_all_there_and_it_goes_on(old: Path) -> None:
    journal = Journal(old)
    assert journal.warning is None
    assert journal.all() == (Entry(OTHER, 60.0, 0), Entry(PIN, 500.0, 2))
    assert journal.count() == 2
    moved = replace(PIN, generation=2)
    assert journal.insert(moved, Facts("hp_x")) is moved
    journal.close()
    again = Journal(old)
    assert again.entry(PIN.session, PIN.model) == Entry(moved, 100.0, 0, Facts("hp_x"))
    again.close()


def test_an_older_file_is_read_while_its_host_is_of_the_older_version_too(old: Path) -> None:
    entries, mark, whole = entries_since(old, NOTHING)
    assert ([entry.pin for entry in entries], whole) == ([PIN, OTHER], True)
    assert entries_since(old, mark) == ([], mark, False)
    Journal(old).close()
    entries, _, whole = entries_since(old, mark)
    assert ({entry.pin for entry in entries}, whole) == ({PIN, OTHER}, True)


def test_a_host_that_dies_while_it_renews_a_file_leaves_the_older_one(old: Path) -> None:
    program = f"""
import os, pathlib, signal
from serving import journal, journal_file
journal_file.put = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
journal.Journal(pathlib.Path({str(old)!r}))
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == -9
    assert [entry.pin for entry in entries_since(old, NOTHING)[0]] == [PIN, OTHER]
    journal = Journal(old)
    assert journal.count() == 2
    journal.close()


def test_a_file_of_a_newer_version_is_set_aside(path: Path) -> None:
    Journal(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    journal = Journal(path)
    assert journal.warning is not None
    assert "newer homeport" in journal.warning
    journal.close()


# threads, files, damage


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


def test_where_a_session_may_run_is_what_its_last_turn_said(journal: Journal) -> None:
    journal.insert(PIN, Facts("hp_x", machines="den"))
    moved = replace(PIN, replica="attic/0", generation=2)
    journal.insert(moved, Facts("hp_x"))
    entry = journal.entry(PIN.session, PIN.model)
    assert entry is not None
    assert entry.machines == "den"
    for machines in ("attic,den", None):
        journal.touch(PIN.session, PIN.model, 9e9, Facts(machines=machines))
        entry = journal.entry(PIN.session, PIN.model)
        assert entry is not None
        assert (entry.public, entry.machines) == ("hp_x", machines)


def test_a_file_without_that_column_is_read_and_then_has_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path)
    journal.insert(PIN, Facts("hp_x", "5c" * 32))
    journal.close()
    connection = sqlite3.connect(path)
    connection.execute("ALTER TABLE pins DROP COLUMN machines")
    connection.execute("PRAGMA user_version = 2")
    connection.commit()
    connection.close()
    (before,), _, _ = entries_since(path, NOTHING)
    assert (before.pin, before.machines) == (PIN, None)
    journal = Journal(path)
    assert journal.warning is None
    journal.touch(PIN.session, PIN.model, 5.0, Facts(machines="den"))
    after = journal.entry(PIN.session, PIN.model)
    assert after is not None
    assert (after.pin, after.scope, after.machines) == (PIN, "5c" * 32, "den")
    assert entries_since(path, NOTHING)[0] == [after]
    journal.close()
