"""A host's pins on disk: SQLite, fsynced before a call returns.

It holds no context (a parked session's KV will lie beside it) and knows no other host's pins.
`insert` and `touch` belong to one thread, `get` to one thread too, which may be another: each
side has its own connection, and the write-ahead log keeps them apart. `all` and `count` may be called from any thread.
"""

import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from serving.pins import Pin, merge

_SCHEMA = """
CREATE TABLE IF NOT EXISTS pins (
    session TEXT NOT NULL, model TEXT NOT NULL, replica TEXT NOT NULL,
    generation INTEGER NOT NULL, created_s REAL NOT NULL, used_s REAL NOT NULL, turns INTEGER NOT NULL,
    written INTEGER NOT NULL, PRIMARY KEY (session, model)
) WITHOUT ROWID
"""
_INDEX = "CREATE INDEX IF NOT EXISTS pins_written ON pins (written)"
_NEWER = """
SELECT session, model, replica, generation, created_s, written FROM pins WHERE written > ? ORDER BY written
"""
_GET = "SELECT session, model, replica, generation, created_s FROM pins WHERE session = ? AND model = ?"
_ALL = """
SELECT session, model, replica, generation, created_s, used_s, turns FROM pins ORDER BY created_s, session
"""
_PUT = """
INSERT OR REPLACE INTO pins (session, model, replica, generation, created_s, used_s, turns, written)
VALUES (?, ?, ?, ?, ?, ?, 0, (SELECT coalesce(max(written), 0) + 1 FROM pins))
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A pin, when it was last used (seconds since the epoch), and how many turns it had."""

    pin: Pin
    used_s: float
    turns: int


class JournalFull(Exception):
    """The pin is not on disk, because the state folder cannot be written. The message names the remedy."""


class Journal:
    """Open at once; the file has mode 0600.

    A file that is no sound journal is set aside as `NAME.broken`, with its companions, and a fresh one begun;
    `warning` then says so, else it is None. Raises JournalFull if the file cannot be made, and sqlite3.Error
    for what is neither damage nor want of room.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.warning: str | None = None
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            self._full(error)
            if not _damaged(error):
                raise
            aside = _set_aside(path)
            self.warning = (
                f"the journal {path.name} was damaged ({error}); kept as {aside.name}, a fresh one begun"
            )
            self._open()

    def insert(self, pin: Pin) -> Pin:
        """Insert or return the winner. Durable when it returns.

        Returns `pin` itself if it was not there before or won by `merge`; else the pin that holds.
        """
        try:
            with self._writer:
                self._writer.execute("BEGIN IMMEDIATE")
                found = _get(self._writer, pin.session, pin.model)
                winner = pin if found is None else merge(found, pin)
                if winner is not found:
                    self._writer.execute(
                        _PUT,
                        (pin.session, pin.model, pin.replica, pin.generation, pin.created_s, pin.created_s),
                    )
            # Counted here, because SQLite walks the whole table for it, and every poll of the host asks.
            self._count += found is None
            return winner
        except sqlite3.DatabaseError as error:
            self._full(error)
            raise

    def touch(self, session: str, model: str, now: float) -> None:
        """Count a turn that ended at `now` (seconds since the epoch); unknown sessions are ignored."""
        try:
            with self._writer:
                self._writer.execute(
                    "UPDATE pins SET used_s = max(used_s, ?), turns = turns + 1 WHERE session = ? AND model = ?",
                    (now, session, model),
                )
        except sqlite3.DatabaseError as error:
            self._full(error)
            raise

    def get(self, session: str, model: str) -> Pin | None:
        """The pin on disk, or None."""
        return _get(self._reader, session, model)

    def all(self) -> tuple[Entry, ...]:
        """Every pin and its use, oldest first."""
        connection = _connect(self._path)
        try:
            rows = connection.execute(_ALL)
            return tuple(Entry(Pin(*row[:5]), *row[5:]) for row in rows)
        finally:
            connection.close()

    def count(self) -> int:
        """How many pins there are."""
        return self._count

    def close(self) -> None:
        """Close both connections; safe to call twice."""
        self._reader.close()
        self._writer.close()

    def _open(self) -> None:
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        self._path.chmod(0o600)
        self._writer = _connect(self._path)
        try:
            self._writer.execute("PRAGMA journal_mode = WAL")
            self._writer.execute("PRAGMA synchronous = FULL")
            (verdict,) = self._writer.execute("PRAGMA integrity_check(1)").fetchone()
            if verdict != "ok":
                raise _damage(str(verdict).splitlines()[-1])
            self._writer.execute(_SCHEMA)
            self._writer.execute(_INDEX)
            # A foreign SQLite file passes the check above; it does not have these columns.
            self._writer.execute(
                "SELECT session, model, replica, generation, created_s, used_s, turns, written FROM pins LIMIT 1"
            )
            self._count = int(self._writer.execute("SELECT count(*) FROM pins").fetchone()[0])
            self._reader = _connect(self._path)
            self._reader.execute("PRAGMA query_only = ON")
        except sqlite3.DatabaseError:
            self._writer.close()
            raise

    def _full(self, error: sqlite3.DatabaseError) -> None:
        """Raise JournalFull if that is what the error means."""
        code = getattr(error, "sqlite_errorcode", 0)
        unwritable = {sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_SHMSIZE}
        if code == sqlite3.SQLITE_FULL or code in unwritable:
            folder = self._path.parent
            raise JournalFull(
                f"the state folder {folder} cannot be written ({error}); make room on its disk"
            ) from error


def pins_since(path: Path, written: int) -> tuple[list[Pin], int]:
    """The pins that were written after number `written` (0: all), and the number of the last one.

    Reads the file itself, whether its host lives or not. Raises sqlite3.Error for a file that is no sound journal.
    """
    connection = sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=5.0)
    try:
        rows = connection.execute(_NEWER, (written,)).fetchall()
    finally:
        connection.close()
    return [Pin(*row[:5]) for row in rows], max((row[5] for row in rows), default=written)


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)


def _get(connection: sqlite3.Connection, session: str, model: str) -> Pin | None:
    row = connection.execute(_GET, (session, model)).fetchone()
    return None if row is None else Pin(*row)


def _damage(text: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(text)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _damaged(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    # SQLITE_ERROR here is a table of that name with other columns.
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


def _set_aside(path: Path) -> Path:
    aside = path.with_name(path.name + ".broken")
    for suffix in ("-wal", "-shm"):
        companion = path.with_name(path.name + suffix)
        if companion.exists():
            companion.replace(aside.with_name(aside.name + suffix))
    path.replace(aside)
    return aside
