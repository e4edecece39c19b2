"""A journal's file in memory: it outlives its host. tests/schedules/test_schedules.py holds it against the real one."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from serving.journal_file import NO_FACTS, Entry, Facts, JournalNews, Mark
from serving.pins import Pin, merge
from tests.schedules.clock import Process

Key = tuple[str, str]


@dataclass
class Disk:
    """What was fsynced. `numbers`: which writing each row is from."""

    epoch: str
    wrote: Callable[[Pin], None] = lambda pin: None
    rows: dict[Key, Entry] = field(default_factory=dict)
    numbers: dict[Key, int] = field(default_factory=dict)
    mark: Mark = field(default_factory=Mark)

    def __post_init__(self) -> None:
        self.mark = Mark(self.epoch, 0, 0)

    def put(self, entry: Entry) -> None:
        key = (entry.pin.session, entry.pin.model)
        self.mark = replace(self.mark, written=self.mark.written + 1)
        self.rows.pop(key, None)
        self.rows[key] = entry
        self.numbers[key] = self.mark.written
        self.wrote(entry.pin)

    def since(self, known: Mark) -> JournalNews:
        """As serving.journal_file.entries_since, in the shape that keepers give."""
        whole = (known.epoch, known.removed) != (self.mark.epoch, self.mark.removed)
        after = 0 if whole else known.written
        pins = [entry.to_json() for key, entry in self.rows.items() if self.numbers[key] > after]
        return JournalNews(pins, self.mark, whole)


class SimJournal:
    """serving.journal.Journal without SQLite."""

    warning = None

    def __init__(self, disk: Disk, process: Process) -> None:
        self.disk = disk
        self.leaving: set[Key] = set()
        self._process = process
        self._noted: dict[Key, str] = {}

    def insert(self, pin: Pin, facts: Facts = NO_FACTS) -> Pin:
        (winner,) = self.learn([(pin, facts)])
        return winner

    def learn(self, pins: Iterable[tuple[Pin, Facts]]) -> tuple[Pin, ...]:
        assert self._process.alive
        winners = []
        for pin, facts in pins:
            found = self.disk.rows.get((pin.session, pin.model))
            winner = pin if found is None else merge(found.pin, pin)
            winners.append(winner)
            if found is None or winner is not found.pin:
                kept = facts if found is None else replace(facts.filled(found.facts), history=facts.history)
                self.disk.put(Entry(pin, pin.created_s, 0, kept))
            elif facts.history is not None and found.pin == pin and found.turns == 0:
                self.record(pin.session, pin.model, facts.history)
        return tuple(winners)

    def touch(self, session: str, model: str, now: float, facts: Facts = NO_FACTS) -> None:
        assert self._process.alive
        found = self.disk.rows.get((session, model))
        if found is None:
            return
        touched = replace(found, used_s=max(found.used_s, now), turns=found.turns + 1)
        self.disk.rows[session, model] = touched
        if (filled := found.facts.used(facts)) != found.facts:
            self.disk.put(replace(touched, facts=filled))

    def record(self, session: str, model: str, history: str) -> None:
        found = self.disk.rows.get((session, model))
        if found is not None:
            self.disk.rows[session, model] = replace(found, facts=replace(found.facts, history=history))

    def remove(self, keys: Iterable[Key], unused_since_s: float = float("inf")) -> tuple[Key, ...]:
        there = [key for key in keys if key in self.disk.rows]
        gone = tuple(key for key in there if self.disk.rows[key].used_s <= unused_since_s)
        for key in gone:
            del self.disk.rows[key], self.disk.numbers[key]
        self.disk.mark = replace(self.disk.mark, removed=self.disk.mark.removed + len(gone))
        return gone

    def get(self, session: str, model: str) -> Pin | None:
        entry = self.entry(session, model)
        return None if entry is None else entry.pin

    def entry(self, session: str, model: str) -> Entry | None:
        found = None if (session, model) in self.leaving else self.disk.rows.get((session, model))
        return None if found is None else self._as_noted(found)

    def find(self, histories: Sequence[str], model: str, scope: str | None, home: str) -> Entry | None:
        for history in histories:
            noted = [key for key, said in self._noted.items() if said == history and key[1] == model]
            there = [self.entry(*key) for key in noted]
            rows = [
                e
                for e in self.disk.rows.values()
                if e.history == history and e.pin.model == model and e.guessed
            ]
            rows.sort(key=lambda e: (-e.used_s, e.pin.session))
            for entry in [*filter(None, there), *map(self._as_noted, rows)]:
                here = entry.pin.replica == home and self._stays(entry)
                if entry.guessed and entry.history == history and entry.scope == scope and here:
                    return entry
        return None

    def by_public(self, public: str) -> tuple[Entry, ...]:
        found = [e for e in self.disk.rows.values() if public and e.public == public and self._stays(e)]
        return tuple(self._as_noted(e) for e in sorted(found, key=lambda e: e.pin.model))

    def note(self, session: str, model: str, history: str) -> None:
        self._noted[session, model] = history

    def noted(self, session: str, model: str, history: str) -> None:
        if self._noted.get((session, model)) == history:
            del self._noted[session, model]

    def all(self) -> tuple[Entry, ...]:
        return tuple(sorted(self.disk.rows.values(), key=lambda e: (e.pin.created_s, e.pin.session)))

    def unused(self, before_s: float, guessed_before_s: float, single_before_s: float) -> dict[Key, float]:
        return {
            key: e.used_s
            for key, e in self.disk.rows.items()
            if e.used_s
            < (
                before_s
                if not e.guessed
                else guessed_before_s
                if e.turns > 1 or e.pin.generation > 1
                else single_before_s
            )
        }

    def count(self) -> int:
        return len(self.disk.rows)

    def mark(self) -> Mark:
        return self.disk.mark

    def close(self) -> None:
        pass

    def _stays(self, entry: Entry) -> bool:
        return (entry.pin.session, entry.pin.model) not in self.leaving

    def _as_noted(self, entry: Entry) -> Entry:
        history = self._noted.get((entry.pin.session, entry.pin.model))
        return entry if history is None else replace(entry, facts=replace(entry.facts, history=history))
