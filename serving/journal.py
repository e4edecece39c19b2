"""A host's pins on disk: SQLite, fsynced before a call returns.

It holds no context (a parked session's KV lies beside it) and knows no other host's pins. What writes belongs to one
thread (`insert`, `learn`, `touch`, `record`, `remove`); `get`, `entry`, `find`, `by_public`, `note`, `noted` and
`leaving` to one thread too, which may be another: each side has its own connection, and the write-ahead log keeps them
apart. `all`, `unused`, `count` and `mark` may be called from any thread.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from serving import journal_file
from serving.journal_file import ENTRIES, NO_FACTS, NOTHING, Entry, Facts, Mark, entries_since
from serving.pins import Pin, merge

__all__ = ["NOTHING", "NO_FACTS", "Entry", "Facts", "Journal", "JournalFull", "Mark", "entries_since"]

_GET = f"{ENTRIES} WHERE p.session = ? AND m.name = ?"
_ALL = f"{ENTRIES} ORDER BY p.created_s, p.session"
_PUBLIC = f"{ENTRIES} WHERE p.public = ? ORDER BY m.name"
_FIND = f"{ENTRIES} WHERE p.history = ? AND m.name = ? AND p.guessed ORDER BY p.used_s DESC, p.session"
_TOUCH = """
UPDATE pins SET used_s = max(used_s, ?), turns = turns + 1
WHERE session = ? AND model = (SELECT id FROM names WHERE name = ?)
"""
_RECORD = """
UPDATE pins SET history = ? WHERE session = ? AND model = (SELECT id FROM names WHERE name = ?)
"""
_REMOVE = """
DELETE FROM pins WHERE session = ? AND model = (SELECT id FROM names WHERE name = ?) AND used_s <= ?
"""
_UNUSED = """
SELECT p.session, m.name, p.used_s FROM pins p JOIN names m ON m.id = p.model
WHERE p.used_s < CASE WHEN NOT p.guessed THEN ? WHEN p.turns > 1 OR p.generation > 1 THEN ? ELSE ? END
"""
EVER = float("inf")

Key = tuple[str, str]
"""Session and model."""


class JournalFull(Exception):
    """The pin is not on disk, because the state folder cannot be written. The message names the remedy."""


class Journal:
    """Open at once; the file has mode 0600. A file of an older version is made one of this.

    A file that is no sound journal is set aside as `NAME.broken`, with its companions, and a fresh one begun;
    `warning` then says so, else it is None. Raises JournalFull if the file cannot be made, and sqlite3.Error
    for what is neither damage nor want of room.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.warning: str | None = None
        self.leaving: set[Key] = set()
        """Those whose removal was asked for and is not done yet: for `get` and `entry` they are gone."""
        self._noted: dict[Key, str] = {}
        self._mark: Mark
        self._count: int
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            self._full(error)
            if not journal_file.is_damage(error):
                raise
            aside = journal_file.set_aside(path)
            self.warning = (
                f"the journal {path.name} was damaged ({error}); kept as {aside.name}, a fresh one begun"
            )
            self._open()

    # what writes

    def insert(self, pin: Pin, facts: Facts = NO_FACTS) -> Pin:
        """Insert or return the winner. Durable when it returns.

        Returns `pin` itself if it was not there before or won by `merge`; else the pin that holds. `facts` are kept
        with a pin that is written; those of an older home go on where they are not told anew.
        """
        (winner,) = self.learn([(pin, facts)])
        return winner

    def learn(self, pins: Iterable[tuple[Pin, Facts]]) -> tuple[Pin, ...]:
        """Insert many at once, as `insert`. Told again with another history, a pin that had no turn yet takes that.

        What was said last at an older home is not kept: it may have been said before others had a turn.
        """
        winners, new = [], 0
        mark = self._mark
        with self._writing() as writer:
            for pin, facts in pins:
                found = _one(writer, pin.session, pin.model)
                winner = pin if found is None else merge(found.pin, pin)
                winners.append(winner)
                if found is None or winner is not found.pin:
                    kept = (
                        facts if found is None else replace(facts.filled(found.facts), history=facts.history)
                    )
                    mark = replace(mark, written=journal_file.put(writer, Entry(pin, pin.created_s, 0, kept)))
                elif facts.history is not None and found.pin == pin and found.turns == 0:
                    writer.execute(
                        _RECORD, (bytes.fromhex(facts.history), bytes.fromhex(pin.session), pin.model)
                    )
                new += found is None
        # Counted here, because SQLite walks the whole table for it, and every poll of the host asks.
        self._count += new
        self._mark = mark
        return tuple(winners)

    def touch(self, session: str, model: str, now: float, facts: Facts = NO_FACTS) -> None:
        """Count a turn that ended at `now` (seconds since the epoch); unknown sessions are ignored.

        What the journal lacks of `facts` is filled in; which machines it may run on is what the last turn said.
        """
        mark = self._mark
        with self._writing() as writer:
            writer.execute(_TOUCH, (now, bytes.fromhex(session), model))
            found = _one(writer, session, model)
            if found is not None and (filled := found.facts.used(facts)) != found.facts:
                mark = replace(mark, written=journal_file.put(writer, replace(found, facts=filled)))
        self._mark = mark

    def record(self, session: str, model: str, history: str) -> None:
        """Keep what a guessed session's last turn said."""
        with self._writing() as writer:
            writer.execute(_RECORD, (bytes.fromhex(history), bytes.fromhex(session), model))

    def remove(self, keys: Iterable[Key], unused_since_s: float = EVER) -> tuple[Key, ...]:
        """Forget pins, but for those that were used after `unused_since_s`. Which were there and are gone."""
        with self._writing() as writer:
            gone = tuple(
                (session, model)
                for session, model in keys
                if writer.execute(_REMOVE, (bytes.fromhex(session), model, unused_since_s)).rowcount
            )
            if gone:
                writer.execute("UPDATE about SET removed = removed + ?", (len(gone),))
        self._count -= len(gone)
        self._mark = replace(self._mark, removed=self._mark.removed + len(gone))
        return gone

    # what reads

    def get(self, session: str, model: str) -> Pin | None:
        """The pin on disk, or None."""
        entry = self.entry(session, model)
        return None if entry is None else entry.pin

    def entry(self, session: str, model: str) -> Entry | None:
        """The pin with all that is known of it, what is noted included; or None."""
        if (session, model) in self.leaving:
            return None
        found = _one(self._reader, session, model)
        return None if found is None else self._as_noted(found)

    def find(self, histories: Sequence[str], model: str, scope: str | None, home: str) -> Entry | None:
        """The guessed session of this scope, at home here (`home`: this replica), whose last turn said the first of
        these that any of them has; of several the one that was used last."""
        noted: dict[str, list[Key]] = {}
        for key, history in self._noted.items():
            if key[1] == model:
                noted.setdefault(history, []).append(key)
        for history in histories:
            there = [self.entry(*key) for key in noted.get(history, ())]
            rows = self._reader.execute(_FIND, (bytes.fromhex(history), model))
            found = [*filter(None, there), *(self._as_noted(journal_file.entry_of(row)) for row in rows)]
            for entry in found:
                gone = (entry.pin.session, entry.pin.model) in self.leaving or entry.pin.replica != home
                if entry.guessed and entry.history == history and entry.scope == scope and not gone:
                    return entry
        return None

    def by_public(self, public: str) -> tuple[Entry, ...]:
        """The pins of the session with this public id, one a model."""
        if not public:
            return ()
        rows = self._reader.execute(_PUBLIC, (journal_file.packed(public),))
        found = (self._as_noted(journal_file.entry_of(row)) for row in rows)
        return tuple(e for e in found if (e.pin.session, e.pin.model) not in self.leaving)

    def note(self, session: str, model: str, history: str) -> None:
        """A guessed session's turn that says this is here; its `record` follows."""
        self._noted[session, model] = history

    def noted(self, session: str, model: str, history: str) -> None:
        """What was noted is on disk now, or is not to count."""
        if self._noted.get((session, model)) == history:
            del self._noted[session, model]

    def all(self) -> tuple[Entry, ...]:
        """Every pin and its use, oldest first."""
        with closing(journal_file.connect(self._path)) as connection:
            return tuple(journal_file.entry_of(row) for row in connection.execute(_ALL))

    def unused(self, before_s: float, guessed_before_s: float, single_before_s: float) -> dict[Key, float]:
        """Pins that were last used before a time, and when: named ones, guessed ones, and guessed ones with at most
        one turn. One that has moved counts its turns anew, and had some before."""
        with closing(journal_file.connect(self._path)) as connection:
            rows = connection.execute(_UNUSED, (before_s, guessed_before_s, single_before_s))
            return {(session.hex(), model): used_s for session, model, used_s in rows}

    def count(self) -> int:
        """How many pins there are."""
        return self._count

    def mark(self) -> Mark:
        """Changes with every pin that is written or removed, and with the file."""
        return self._mark

    def close(self) -> None:
        """Close both connections; safe to call twice."""
        self._reader.close()
        self._writer.close()

    def _as_noted(self, entry: Entry) -> Entry:
        history = self._noted.get((entry.pin.session, entry.pin.model))
        return entry if history is None else replace(entry, facts=replace(entry.facts, history=history))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, durable at the block's end. Raises JournalFull if it cannot be, and sqlite3.Error."""
        try:
            with self._writer:
                self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
        except sqlite3.DatabaseError as error:
            self._full(error)
            raise

    def _open(self) -> None:
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        self._path.chmod(0o600)
        self._writer = journal_file.connect(self._path)
        try:
            self._writer.execute("PRAGMA journal_mode = WAL")
            self._writer.execute("PRAGMA synchronous = FULL")
            (verdict,) = self._writer.execute("PRAGMA integrity_check(1)").fetchone()
            if verdict != "ok":
                raise journal_file.damage(str(verdict).splitlines()[-1])
            # A foreign SQLite file passes the check above; it does not have these columns.
            self._mark = journal_file.prepare(self._writer)
            self._count = int(self._writer.execute("SELECT count(*) FROM pins").fetchone()[0])
            self._reader = journal_file.connect(self._path)
            self._reader.execute("PRAGMA query_only = ON")
        except sqlite3.DatabaseError:
            self._writer.close()
            raise

    def _full(self, error: sqlite3.DatabaseError) -> None:
        """Raise JournalFull if that is what the error means."""
        if journal_file.is_no_room(error):
            folder = self._path.parent
            raise JournalFull(
                f"the state folder {folder} cannot be written ({error}); make room on its disk"
            ) from error


def _one(connection: sqlite3.Connection, session: str, model: str) -> Entry | None:
    row = connection.execute(_GET, (bytes.fromhex(session), model)).fetchone()
    return None if row is None else journal_file.entry_of(row)
