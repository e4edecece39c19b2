"""What the machines' journals said last, on the head's disk, so that a controller that begins anew knows the sessions
of machines that are away.

The journals stay the truth: what a machine says when it is back stands in the place of what is kept of it here, and a
file that is missing or broken is an empty one. Only the ends of sessions that a host has not heard of are nowhere else.
"""

import asyncio
import json
import logging
import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

from serving.journal_file import is_damage
from serving.machine_roll import MachineRoll
from serving.pin_index import Key, PinIndex
from serving.pins import Pin, merge

VERSION = 1
BUSY_S = 5.0
AT_ONCE = 5000
"""Pins that are written in one transaction."""

_TABLES = (
    """
    CREATE TABLE pins (
        journal TEXT NOT NULL, session BLOB NOT NULL, model TEXT NOT NULL, replica TEXT NOT NULL,
        generation INTEGER NOT NULL, created_s REAL NOT NULL, public TEXT NOT NULL, scope TEXT,
        PRIMARY KEY (journal, session, model)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE ends (
        journal TEXT NOT NULL, session BLOB NOT NULL, model TEXT NOT NULL, replica TEXT NOT NULL,
        generation INTEGER NOT NULL, created_s REAL NOT NULL,
        PRIMARY KEY (journal, session, model)
    ) WITHOUT ROWID
    """,
    "CREATE TABLE machines (id TEXT PRIMARY KEY, report TEXT NOT NULL)",
    f"PRAGMA user_version = {VERSION}",
)
_NO_PIN = "DELETE FROM pins WHERE journal = ? AND session = ? AND model = ?"
_NO_END = "DELETE FROM ends WHERE journal = ? AND session = ? AND model = ?"
_LAST = """
    SELECT replica, generation, created_s FROM pins WHERE session = ?1 AND model = ?2 AND NOT EXISTS (
        SELECT 1 FROM ends WHERE ends.journal = pins.journal AND ends.session = ?1 AND ends.model = ?2
        AND ends.generation >= pins.generation AND ends.created_s >= pins.created_s
    )
"""
_DROP = (
    "DELETE FROM pins WHERE substr(journal, 1, length(?1) + 1) = ?1 || '/'",
    "DELETE FROM ends WHERE substr(journal, 1, length(?1) + 1) = ?1 || '/'",
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Said:
    """A journal's word on one session. `pin` None: it has none; `ended`: of what it is still to be told the end."""

    journal: str
    key: Key
    pin: Pin | None = None
    ended: Pin | None = None
    public: str = ""
    scope: str | None = None


@dataclass(slots=True)
class Batch:
    """What is written at once."""

    said: list[Said] = field(default_factory=list)
    reports: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    """By machine; None: nothing is to be kept of it."""
    dropped: tuple[str, ...] = ()
    """Names of machines whose journals are dropped first."""


class KnownFile:
    """One call at a time, from whatever thread."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Batch:
        """All that is kept. Nothing where the file is missing or cannot be read: a broken one is removed."""
        if not self.path.exists():
            return Batch()
        try:
            with closing(self._open()) as file:
                return _read(file)
        except (sqlite3.DatabaseError, ValueError, TypeError, KeyError) as error:
            log.warning("%s cannot be read (%s); the machines will tell it again", self.path, error)
            if not isinstance(error, sqlite3.DatabaseError) or is_damage(error):
                self._remove()
            return Batch()

    def write(self, batch: Batch) -> None:
        """On disk when it returns. Raises sqlite3.Error and OSError."""
        try:
            with closing(self._open()) as file:
                file.execute("BEGIN IMMEDIATE")
                _write(file, batch)
                file.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            if is_damage(error):
                self._remove()
            raise

    def _open(self) -> sqlite3.Connection:
        self.path.touch(mode=0o600)
        file = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
        try:
            (version,) = file.execute("PRAGMA user_version").fetchone()
            if version == 0:
                file.execute("BEGIN IMMEDIATE")
                for statement in _TABLES:
                    file.execute(statement)
                file.execute("COMMIT")
        except sqlite3.Error:
            file.close()
            raise
        if version in (0, VERSION):
            return file
        file.close()
        self._remove()
        return self._open()

    def _remove(self) -> None:
        for name in (self.path.name, f"{self.path.name}-journal"):
            self.path.with_name(name).unlink(missing_ok=True)


def last_known(path: Path, session: str, model: str) -> Pin | None:
    """The home that the controller knew last of a session, for who cannot ask it; None where it knew none, or the file
    cannot be read. Blocks for some milliseconds. (May write: what a loss of power left half done is undone.)"""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=BUSY_S)) as file:
            found = file.execute(_LAST, (bytes.fromhex(session), model)).fetchall()
    except (sqlite3.Error, ValueError):
        return None
    return reduce(merge, [Pin(session, model, *where) for where in found]) if found else None


class KnownPins:
    """Keeps what the index and the roll have that is new, off the event loop."""

    def __init__(self, path: Path) -> None:
        self._file = KnownFile(path)
        self._dropped: set[str] = set()
        self._saving: asyncio.Task[None] | None = None
        self._was_written = False
        self._fails = False

    def read(self, index: PinIndex, machines: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Tell the index what the journals of these machines (names) said last. What is kept of the machines, by id."""
        kept, known = self._file.read(), set(machines)
        said: dict[str, list[Said]] = defaultdict(list)
        for each in kept.said:
            if each.journal.rpartition("/")[0] in known:
                said[each.journal].append(each)
        for journal, words in said.items():
            for each in words:
                if each.ended is not None:
                    index.is_to_hear(journal, each.ended)
            index.confirm([each.pin for each in words if each.pin is not None], journal)
        for words in said.values():
            for each in words:
                if each.public and each.pin is not None:
                    index.sessions[each.public] = each.pin.session
                    index.names[each.pin.session] = (each.public, each.scope)
        index.unsaved.clear()
        return {machine: report for machine, report in kept.reports.items() if report is not None}

    def drop(self, name: str) -> None:
        """The machine of that name is forgotten."""
        self._dropped.add(name)

    async def save(self, index: PinIndex, roll: MachineRoll) -> None:
        """What was new when it was called is on disk when it returns; where that cannot be written, the next call tries
        again."""
        if self._saving is None:
            if not (index.unsaved or roll.unsaved or self._dropped):
                return
            self._saving = asyncio.get_running_loop().create_task(self._save(index, roll))
        await asyncio.shield(self._saving)

    async def _save(self, index: PinIndex, roll: MachineRoll) -> None:
        try:
            while index.unsaved or roll.unsaved or self._dropped:
                if self._was_written and not self._file.path.exists():
                    _all_anew(index, roll)
                taken, machines, dropped = _some(index.unsaved), set(roll.unsaved), set(self._dropped)
                index.unsaved -= taken
                roll.unsaved -= machines
                self._dropped -= dropped
                batch = _batch(index, roll, taken, machines, dropped)
                try:
                    await asyncio.to_thread(self._file.write, batch)
                except (sqlite3.IntegrityError, OverflowError, ValueError):
                    log.exception(
                        "some of what the machines' journals say can never be kept; the rest goes on"
                    )
                except (sqlite3.Error, OSError) as error:
                    if not self._fails:
                        log.warning("what the machines' journals say is not kept: %s", error)
                    self._fails = True
                    index.unsaved |= taken
                    roll.unsaved |= machines
                    self._dropped |= dropped
                    return
                self._was_written, self._fails = True, False
        finally:
            self._saving = None


def _all_anew(index: PinIndex, roll: MachineRoll) -> None:
    """Somebody has deleted the file: what it had is news again."""
    for words in (index.journals, index.ends):
        index.unsaved |= {(journal, key) for journal, said in words.items() for key in said}
    roll.unsaved |= roll.kept.keys()


def _some(unsaved: set[tuple[str, Key]]) -> set[tuple[str, Key]]:
    if len(unsaved) <= AT_ONCE:
        return set(unsaved)
    return {each for each, _ in zip(unsaved, range(AT_ONCE), strict=False)}


def _batch(
    index: PinIndex, roll: MachineRoll, keys: set[tuple[str, Key]], machines: set[str], dropped: set[str]
) -> Batch:
    said = [
        Said(
            journal,
            key,
            index.journals.get(journal, {}).get(key),
            index.ends.get(journal, {}).get(key),
            *index.names.get(key[0], ("", None)),
        )
        for journal, key in keys
        if journal.rpartition("/")[0] not in dropped
    ]
    return Batch(said, {machine: roll.kept.get(machine) for machine in machines}, tuple(sorted(dropped)))


def _read(file: sqlite3.Connection) -> Batch:
    kept = Batch()
    for journal, session, model, *where, public, scope in file.execute(
        "SELECT journal, session, model, replica, generation, created_s, public, scope FROM pins"
    ):
        pin = Pin(session.hex(), model, *where)
        kept.said.append(Said(journal, (pin.session, model), pin, None, public, scope))
    for journal, session, model, *where in file.execute(
        "SELECT journal, session, model, replica, generation, created_s FROM ends"
    ):
        ended = Pin(session.hex(), model, *where)
        kept.said.append(Said(journal, (ended.session, model), None, ended))
    for machine, report in file.execute("SELECT id, report FROM machines"):
        kept.reports[machine] = dict(json.loads(report))
    return kept


def _write(file: sqlite3.Connection, batch: Batch) -> None:
    for name in batch.dropped:
        for statement in _DROP:
            file.execute(statement, (name,))
    file.executemany(_NO_PIN, [_row(each) for each in batch.said if each.pin is None])
    file.executemany(_NO_END, [_row(each) for each in batch.said if each.ended is None])
    pins = [
        (*_row(each), *_where(each.pin), each.public, each.scope)
        for each in batch.said
        if each.pin is not None
    ]
    file.executemany("INSERT OR REPLACE INTO pins VALUES (?, ?, ?, ?, ?, ?, ?, ?)", pins)
    ends = [(*_row(each), *_where(each.ended)) for each in batch.said if each.ended is not None]
    file.executemany("INSERT OR REPLACE INTO ends VALUES (?, ?, ?, ?, ?, ?)", ends)
    for machine, report in batch.reports.items():
        if report is None:
            file.execute("DELETE FROM machines WHERE id = ?", (machine,))
        else:
            file.execute("INSERT OR REPLACE INTO machines VALUES (?, ?)", (machine, json.dumps(report)))


def _row(said: Said) -> tuple[str, bytes, str]:
    return said.journal, bytes.fromhex(said.key[0]), said.key[1]


def _where(pin: Pin) -> tuple[str, int, float]:
    return pin.replica, pin.generation, pin.created_s
