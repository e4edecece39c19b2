"""What the sessions of a replica said, kept for who goes on from an answer's id: SQLite beside the journal, mode 0600.

Prompts and answers as they are, so no longer than their session has its home here; whose they are and who may ask is
not checked here. Each change is whole, but a power cut may take the newest ones along: who sends the conversation
itself needs none of it. All of it belongs to one thread.
"""

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from serving import journal_file

SESSION_BYTES = 16 << 20
"""What is kept of one session: its oldest records give way."""
STORE_BYTES = 256 << 20
"""And of all: the oldest records of whichever session do."""

_TABLES = (
    """
    CREATE TABLE IF NOT EXISTS records (
        number INTEGER PRIMARY KEY AUTOINCREMENT, session BLOB NOT NULL, id TEXT NOT NULL, conversation BLOB,
        size INTEGER NOT NULL, body BLOB NOT NULL, UNIQUE (session, id)
    )
    """,
    "CREATE INDEX IF NOT EXISTS sizes ON records (session, size)",
    # Of these conversations the beginning gave way.
    """
    CREATE TABLE IF NOT EXISTS cut (
        session BLOB NOT NULL, conversation BLOB NOT NULL, PRIMARY KEY (session, conversation)
    )
    """,
)
_COLUMNS = (
    "SELECT number, session, id, conversation, size, body, (SELECT count(*) FROM cut) FROM records LIMIT 1"
)
"""Fails on a foreign file with such tables."""
_GET = "SELECT body FROM records WHERE session = ? AND id = ?"
_ANY = "SELECT 1 FROM records WHERE session = ? LIMIT 1"
_ALL = "SELECT body FROM records WHERE session = ? ORDER BY number"
_CONVERSATION = "SELECT body FROM records WHERE session = ? AND conversation = ? ORDER BY number"
_CUT = "SELECT 1 FROM cut WHERE session = ? AND conversation = ?"
_SESSIONS = "SELECT session FROM records UNION SELECT session FROM cut"
_PUT = "INSERT INTO records (session, id, conversation, size, body) VALUES (?, ?, ?, ?, ?)"
_REMOVE = "DELETE FROM records WHERE session = ? AND id = ?"
_SIZE = "SELECT coalesce(sum(size), 0) FROM records"
_SESSION_SIZE = f"{_SIZE} WHERE session = ?"
_OLDEST = "SELECT number, session, conversation, size FROM records ORDER BY number LIMIT 1"
_OLDEST_OF = (
    "SELECT number, session, conversation, size FROM records WHERE session = ? ORDER BY number LIMIT 1"
)


class KeptFull(Exception):
    """The state folder cannot be written. The message names the remedy."""


class KeptDamaged(Exception):
    """The file was damaged, and is set aside as `NAME.broken` with all that was kept. The message says so."""


class Linked(msgspec.Struct, frozen=True):
    """Of a record what is read here; the rest is for who goes on from it."""

    id: str
    previous: str | None = None
    conversation: str | None = None


_LINKED = msgspec.json.Decoder(Linked)


def read_record(body: bytes) -> Linked:
    """Raises msgspec.DecodeError for what is no record."""
    return _LINKED.decode(body)


def conversation_digest(name: str) -> str:
    """By what a conversation's records are asked for: 64 hex digits."""
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()


class KeptRecords:
    """One replica's. Sessions and conversations are digests, records the JSON that `read_record` reads.

    The file is opened, or made, by whatever needs it first. Every method raises KeptFull, KeptDamaged (the next call
    begins a fresh file) or sqlite3.Error.
    """

    def __init__(
        self, path: Path, session_bytes: int = SESSION_BYTES, store_bytes: int = STORE_BYTES
    ) -> None:
        self.session_bytes = session_bytes
        self._path = path
        self._store_bytes = store_bytes
        self._db: sqlite3.Connection | None = None
        self._bytes: int | None = None
        """Of all records; None: to be counted."""

    # what writes

    def put(self, session: str, body: bytes) -> None:
        """Keep a record of at most `session_bytes`; one of the same id gives way, and where there is no room the
        oldest."""
        with self._writing() as db:
            self._insert(db, bytes.fromhex(session), body)

    def take(self, session: str, bodies: Iterable[bytes]) -> None:
        """Keep these of the session, oldest first, and no others: it came with them."""
        with self._writing() as db:
            self._forget(db, [bytes.fromhex(session)])
            for body in bodies:
                self._insert(db, bytes.fromhex(session), body)

    def remove(self, session: str, record: str) -> bool:
        """Whether it was there; nothing of it is left on disk."""
        with self._writing() as db:
            self._bytes = None
            found = db.execute(_REMOVE, (bytes.fromhex(session), record)).rowcount
        self._empty_log()
        return found > 0

    def remove_conversation(self, session: str, conversation: str) -> int:
        """How many records of it there were; nothing of them is left on disk."""
        key = bytes.fromhex(session), bytes.fromhex(conversation)
        with self._writing() as db:
            self._bytes = None
            db.execute("DELETE FROM cut WHERE session = ? AND conversation = ?", key)
            found = db.execute("DELETE FROM records WHERE session = ? AND conversation = ?", key).rowcount
        self._empty_log()
        return found

    def forget(self, sessions: Iterable[str]) -> None:
        """They have no home here any more: nothing of them is left on disk."""
        if self._is_there:
            with self._writing() as db:
                self._forget(db, [bytes.fromhex(session) for session in sessions])
            self._empty_log()

    def keep_only(self, sessions: Iterable[str]) -> None:
        """Forget all others."""
        if self._is_there:
            with self._writing() as db:
                known = {bytes(row[0]) for row in db.execute(_SESSIONS)}
                self._forget(db, known - {bytes.fromhex(session) for session in sessions})
            self._empty_log()

    # what reads

    def get(self, session: str, record: str) -> bytes | None:
        with self._reading() as db:
            row = db.execute(_GET, (bytes.fromhex(session), record)).fetchone()
            return None if row is None else bytes(row[0])

    def chain(self, session: str, record: str) -> list[bytes]:
        """The record and those before it, oldest first, as far back as they are here; empty where it is not."""
        found: list[bytes] = []
        seen: set[str] = set()
        wanted: str | None = record
        while wanted is not None and wanted not in seen:
            seen.add(wanted)
            if (body := self.get(session, wanted)) is None:
                break
            found.append(body)
            wanted = read_record(body).previous
        return found[::-1]

    def conversation(self, session: str, conversation: str) -> tuple[list[bytes], bool]:
        """Its records, oldest first; and whether its first ones had to give way."""
        key = bytes.fromhex(session), bytes.fromhex(conversation)
        with self._reading() as db:
            found = [bytes(row[0]) for row in db.execute(_CONVERSATION, key)]
            return found, db.execute(_CUT, key).fetchone() is not None

    def all(self, session: str) -> list[bytes]:
        """The session's records, oldest first."""
        with self._reading() as db:
            return [bytes(row[0]) for row in db.execute(_ALL, (bytes.fromhex(session),))]

    def having(self, sessions: Iterable[str]) -> set[str]:
        """Those of them of which anything is kept."""
        if not self._is_there:
            return set()
        with self._reading() as db:
            return {each for each in sessions if db.execute(_ANY, (bytes.fromhex(each),)).fetchone()}

    def close(self) -> None:
        """Again is nothing."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _insert(self, db: sqlite3.Connection, session: bytes, body: bytes) -> None:
        record = read_record(body)
        name = record.conversation
        digest = None if name is None else bytes.fromhex(conversation_digest(name))
        if db.execute(_REMOVE, (session, record.id)).rowcount or self._bytes is None:
            self._bytes = int(db.execute(_SIZE).fetchone()[0])
        db.execute(_PUT, (session, record.id, digest, len(body), body))
        self._bytes += len(body)
        while db.execute(_SESSION_SIZE, (session,)).fetchone()[0] > self.session_bytes:
            self._bytes -= _give_way(db, db.execute(_OLDEST_OF, (session,)).fetchone())
        while self._bytes > self._store_bytes:
            self._bytes -= _give_way(db, db.execute(_OLDEST).fetchone())

    def _forget(self, db: sqlite3.Connection, sessions: Iterable[bytes]) -> None:
        self._bytes = None
        for session in sessions:
            db.execute("DELETE FROM records WHERE session = ?", (session,))
            db.execute("DELETE FROM cut WHERE session = ?", (session,))

    def _empty_log(self) -> None:
        """What was removed is not left in the write-ahead log either."""
        with self._reading() as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @property
    def _is_there(self) -> bool:
        return self._db is not None or self._path.exists()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction."""
        with self._reading() as db:
            try:
                with db:
                    db.execute("BEGIN IMMEDIATE")
                    yield db
            except BaseException:
                self._bytes = None
                raise

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._db is None:
                self._db = _opened(self._path)
            yield self._db
        except (sqlite3.DatabaseError, OSError) as error:
            if isinstance(error, OSError) or journal_file.is_no_room(error):
                folder = self._path.parent
                raise KeptFull(
                    f"the state folder {folder} cannot be written ({error}); make room on its disk"
                ) from error
            if not journal_file.is_damage(error):
                raise
            self.close()
            aside = journal_file.set_aside(self._path)
            message = f"{self._path.name} was damaged ({error}); kept as {aside.name}, a fresh one begun"
            raise KeptDamaged(message) from error


def _give_way(db: sqlite3.Connection, oldest: tuple[int, bytes, bytes | None, int]) -> int:
    """Remove a record; its bytes."""
    number, session, conversation, size = oldest
    db.execute("DELETE FROM records WHERE number = ?", (number,))
    if conversation is not None:
        db.execute("INSERT OR IGNORE INTO cut VALUES (?, ?)", (session, conversation))
    return size


def _opened(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)
    db = journal_file.connect(path)
    try:
        for pragma in (
            "auto_vacuum = FULL",
            "journal_mode = WAL",
            "synchronous = NORMAL",
            "secure_delete = ON",
        ):
            db.execute(f"PRAGMA {pragma}").fetchall()
        (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise journal_file.damage(str(verdict).splitlines()[-1])
        for statement in _TABLES:
            db.execute(statement)
        db.execute(_COLUMNS)
    except sqlite3.DatabaseError:
        db.close()
        raise
    return db
