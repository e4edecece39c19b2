"""The file of a host's pins: its tables, what is made of an older file, and how the file is read past its host.

journal.py writes it. Digests are bytes, and names that repeat (models, replicas, scopes) are kept once, so that
100,000 pins take some 20 MiB. A pin's `number` grows with every writing and is never used twice: what came after a
number is news.
"""

import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from serving.pins import Pin, is_public_id

VERSION = 3
"""SQLite's `user_version` of the file. The first files of homeport 0.1.0 have 0; those of 2 lack `machines`."""

_TABLES = (
    """
    CREATE TABLE pins (
        number INTEGER PRIMARY KEY AUTOINCREMENT, session BLOB NOT NULL, model INTEGER NOT NULL,
        replica INTEGER NOT NULL, generation INTEGER NOT NULL, created_s REAL NOT NULL, used_s REAL NOT NULL,
        turns INTEGER NOT NULL, public, scope INTEGER, family BLOB, guessed INTEGER NOT NULL, history BLOB,
        machines INTEGER, UNIQUE (session, model)
    )
    """,
    "CREATE INDEX pins_public ON pins (public) WHERE public IS NOT NULL",
    "CREATE INDEX pins_history ON pins (history) WHERE history IS NOT NULL",
    "CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    "CREATE TABLE about (epoch TEXT NOT NULL, removed INTEGER NOT NULL)",
)
ENTRIES = """
SELECT p.session, m.name, r.name, p.generation, p.created_s, p.used_s, p.turns, p.public, s.name, p.family, p.guessed,
    p.history, l.name, p.number
FROM pins p JOIN names m ON m.id = p.model JOIN names r ON r.id = p.replica LEFT JOIN names s ON s.id = p.scope
    LEFT JOIN names l ON l.id = p.machines
"""
_ENTRIES_OF_2 = ENTRIES.replace("l.name", "NULL").replace("LEFT JOIN names l ON l.id = p.machines", "")
_OLD = "SELECT session, model, replica, generation, created_s, used_s, turns, written FROM pins"
_PUT = """
INSERT OR REPLACE INTO pins (session, model, replica, generation, created_s, used_s, turns, public, scope, family,
    guessed, history, machines) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_MARK = "SELECT epoch, removed, (SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'pins') FROM about"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a session beside its pin."""

    public: str = ""
    """What the session is called towards people."""
    scope: str | None = None
    """Whose it is: 64 hex digits for its API key's name."""
    family: str | None = None
    """The session that began its family, if that is another one."""
    guessed: bool = False
    """No client named it."""
    history: str | None = None
    """Of a guessed one: the digest of all that its last turn said."""
    machines: str | None = None
    """The only machines that its requests or its key let it run on, joined by commas; None: they are not limited."""

    def filled(self, more: "Facts") -> "Facts":
        """With what is missing here taken from there."""
        return Facts(
            self.public or more.public,
            self.scope or more.scope,
            self.family or more.family,
            self.guessed or more.guessed,
            self.history or more.history,
            self.machines or more.machines,
        )

    def used(self, turn: "Facts") -> "Facts":
        """After a turn that says so much."""
        return replace(self.filled(turn), machines=turn.machines)


NO_FACTS = Facts()


@dataclass(frozen=True, slots=True)
class Entry:
    """A pin, when it was last used (seconds since the epoch), how many turns it had, and whose it is."""

    pin: Pin
    used_s: float
    turns: int
    facts: Facts = NO_FACTS

    @property
    def public(self) -> str:
        return self.facts.public

    @property
    def scope(self) -> str | None:
        return self.facts.scope

    @property
    def family(self) -> str | None:
        return self.facts.family

    @property
    def guessed(self) -> bool:
        return self.facts.guessed

    @property
    def history(self) -> str | None:
        return self.facts.history

    @property
    def machines(self) -> str | None:
        return self.facts.machines

    def to_json(self) -> dict[str, Any]:
        """The pin with what hosts and the controller tell each other of it. The history stays with its host."""
        return {
            **self.pin.to_json(),
            "public": self.public,
            "scope": self.scope,
            "family": self.family,
            "guessed": self.guessed,
            "machines": self.machines,
        }


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a journal was read. Another epoch is another file; more removed: what is gone can only be seen in the
    whole."""

    epoch: str = ""
    removed: int = 0
    written: int = 0

    def __str__(self) -> str:
        return f"{self.epoch}.{self.removed}.{self.written}"


NOTHING = Mark()


@dataclass(frozen=True, slots=True)
class JournalNews:
    """What one journal says beyond what is known of it."""

    pins: list[dict[str, Any]]
    """As Entry.to_json."""
    mark: Mark
    """For the next question."""
    whole: bool
    """These are all the pins there are; what is known beside them is gone."""


def connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)


def prepare(connection: sqlite3.Connection) -> Mark:
    """Make the tables, or of an older file's what they are now; all of it or nothing.

    Raises sqlite3.DatabaseError as `damage` makes it, or another that `is_damage` knows, for a file that is no journal.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise damage(f"a newer homeport wrote it, version {version}")
    if version < VERSION:
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            if version == 2:
                connection.execute("ALTER TABLE pins ADD COLUMN machines INTEGER")
            else:
                _renew(connection)
            connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute(ENTRIES + " LIMIT 1")
    mark = mark_of(connection)
    if mark is None:
        raise damage("it does not say which journal it is")
    return mark


def mark_of(connection: sqlite3.Connection) -> Mark | None:
    row = connection.execute(_MARK).fetchone()
    return None if row is None else Mark(*row)


def put(connection: sqlite3.Connection, entry: Entry) -> int:
    """Write a pin in the place of the one there was, if any. Returns its number."""
    pin, facts = entry.pin, entry.facts
    values = (
        bytes.fromhex(pin.session),
        name_id(connection, pin.model),
        name_id(connection, pin.replica),
        pin.generation,
        pin.created_s,
        entry.used_s,
        entry.turns,
        packed(facts.public),
        None if facts.scope is None else name_id(connection, facts.scope),
        digest_bytes(facts.family),
        facts.guessed,
        digest_bytes(facts.history),
        None if facts.machines is None else name_id(connection, facts.machines),
    )
    number = connection.execute(_PUT, values).lastrowid
    assert number is not None
    return number


def name_id(connection: sqlite3.Connection, name: str) -> int:
    row = connection.execute("SELECT id FROM names WHERE name = ?", (name,)).fetchone()
    if row is None:
        row = connection.execute("INSERT INTO names (name) VALUES (?) RETURNING id", (name,)).fetchone()
    return int(row[0])


def entry_of(row: tuple[Any, ...]) -> Entry:
    """Of a row of ENTRIES."""
    (
        session,
        model,
        replica,
        generation,
        created_s,
        used_s,
        turns,
        public,
        scope,
        family,
        guessed,
        history,
        machines,
        _,
    ) = row
    pin = Pin(session.hex(), model, replica, generation, created_s)
    facts = Facts(_unpacked(public), scope, _hex(family), bool(guessed), _hex(history), machines)
    return Entry(pin, used_s, turns, facts)


def packed(public: str) -> bytes | str | None:
    """A public id as it is stored."""
    return bytes.fromhex(public[3:]) if is_public_id(public) else public or None


def digest_bytes(digest: str | None) -> bytes | None:
    return None if digest is None else bytes.fromhex(digest)


def entries_since(path: Path, known: Mark) -> tuple[list[Entry], Mark, bool]:
    """(pins, how far it is read now, whether these are all): those that were written after `known`, or all of them
    where the file is another one or pins are gone since.

    Reads the file itself, whether its host lives or not, and those of older versions too. Raises sqlite3.Error for a
    file that is no sound journal.
    """
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw", uri=True, timeout=5.0, isolation_level=None
    )
    try:
        connection.execute("BEGIN")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            return _old_since(connection, known)
        mark = mark_of(connection)
        if mark is None:
            raise damage("it does not say which journal it is")
        whole = (mark.epoch, mark.removed) != (known.epoch, known.removed)
        after = 0 if whole else known.written
        entries = _ENTRIES_OF_2 if version == 2 else ENTRIES
        rows = connection.execute(f"{entries} WHERE p.number > ? ORDER BY p.number", (after,))
        return [entry_of(row) for row in rows], mark, whole
    finally:
        connection.close()


def damage(text: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(text)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def is_damage(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    # SQLITE_ERROR here is a table of that name with other columns.
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


def is_no_room(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)
    unwritable = {sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_SHMSIZE}
    return code == sqlite3.SQLITE_FULL or code in unwritable


def set_aside(path: Path) -> Path:
    aside = path.with_name(path.name + ".broken")
    for suffix in ("-wal", "-shm"):
        companion = path.with_name(path.name + suffix)
        if companion.exists():
            companion.replace(aside.with_name(aside.name + suffix))
    path.replace(aside)
    return aside


def _renew(connection: sqlite3.Connection) -> None:
    is_old = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'pins'"
    old = list(_old_entries(connection, 0)) if connection.execute(is_old).fetchone() else []
    connection.execute("DROP TABLE IF EXISTS pins")
    for statement in _TABLES:
        connection.execute(statement)
    connection.execute("INSERT INTO about VALUES (?, 0)", (secrets.token_hex(8),))
    for entry, _ in old:
        put(connection, entry)


def _old_entries(connection: sqlite3.Connection, after: int) -> Iterator[tuple[Entry, int]]:
    """The pins of a file of homeport 0.1.0, and their numbers."""
    for row in connection.execute(f"{_OLD} WHERE written > ? ORDER BY written", (after,)):
        yield Entry(Pin(*row[:5]), row[5], row[6]), row[7]


def _old_since(connection: sqlite3.Connection, known: Mark) -> tuple[list[Entry], Mark, bool]:
    whole = known.epoch != "0"
    found = list(_old_entries(connection, 0 if whole else known.written))
    last = max((number for _, number in found), default=0 if whole else known.written)
    return [entry for entry, _ in found], Mark("0", 0, last), whole


def _hex(digest: bytes | None) -> str | None:
    return None if digest is None else digest.hex()


def _unpacked(public: bytes | str | None) -> str:
    return f"hp_{public.hex()}" if isinstance(public, bytes) else public or ""
