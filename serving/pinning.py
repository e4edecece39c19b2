"""A request's pin: whether the router's picture of it is right, and that it is on disk before the answer's head.

Decides no homes: the router chose this one, and the journal has the last word.
"""

import asyncio
import time
from dataclasses import replace

from serving.asgi import Problem
from serving.desk import Desk, journal_problems
from serving.journal import Entry, Facts
from serving.pins import Pin
from serving.places import Admission, free_places, place_of
from serving.routing import Ask, misdirected


class Pinning:
    """One request's."""

    def __init__(self, desk: Desk, ask: Ask) -> None:
        self._desk = desk
        self._ask = ask
        self.outcome: str | None = None
        """`none` of a transient, `kept`, `new` or `moved` once the journal has the pin; None until then."""
        self.family: str | None = None
        """After `check`: the session that began the session's family, if it is another one."""
        self._noted = False
        """Whether the journal was told what this request says, and its turn has not begun."""

    def check(self) -> None:
        """Raises Problem 421 when the router's picture of this session or of this replica's places is old, and when a
        guessed session turns out to be another one."""
        desk, ask = self._desk, self._ask
        if ask.session is None:
            self.outcome = "none"
            return
        entry = desk.journal.entry(ask.session, desk.model.name)
        if entry is not None:
            self._check_home(entry.pin)
            self._check_history(ask.session, entry)
        if entry is None and ask.pin == "kept" and not _is_here(desk.turns.state, ask.session):
            raise _unknown()
        holds = entry is not None and entry.pin.generation >= ask.generation
        claims = not holds and ask.claim_free and ask.pin in ("new", "moved")
        if claims and free_places(desk.turns.state) == 0 and not _is_here(desk.turns.state, ask.session):
            raise misdirected(f"no place is free in {desk.replica} any more", "taken", None)
        self.family = (entry.family if entry is not None else None) or self._root()
        if entry is not None and holds:
            self.outcome = self._found(ask.session, entry)

    async def ensure(self) -> None:
        """Have the pin on disk. After `check`. Raises Problem if that cannot be."""
        desk, ask = self._desk, self._ask
        if ask.session is None:
            return
        if self.outcome is not None:
            self._record(ask.session)
            return
        with journal_problems():
            entry = desk.journal.entry(ask.session, desk.model.name)
            if entry is not None:
                self._check_home(entry.pin)
                if entry.pin.generation >= ask.generation:
                    self.outcome = "kept"
                    self._record(ask.session)
                    return
            elif ask.pin == "kept":  # It was ended since.
                raise _unknown()
            pin = Pin(ask.session, desk.model.name, desk.replica, ask.generation, desk.created_s())
            loop = asyncio.get_running_loop()
            winner = await loop.run_in_executor(desk.writer, desk.journal.insert, pin, self._facts())
        self._check_home(winner)
        written = winner is pin
        made = written and entry is None
        if written and ask.pin == "moved":
            self.outcome = "moved"
        else:
            self.outcome = "new" if made and ask.pin == "new" else "kept"
        # A first home that only the router knew of: its first turn never came here.
        if made and (ask.pin == "new" or pin.generation == 1):
            desk.turns.made.add(ask.session)

    def touch(self) -> None:
        """The pin was used for a whole turn."""
        desk, ask = self._desk, self._ask
        if ask.session is not None:
            # Nobody waits for it: a pin that looks unused for a turn longer does no harm.
            facts = replace(self._facts(), history=None)
            desk.writer.submit(desk.journal.touch, ask.session, desk.model.name, time.time(), facts)

    def over(self) -> None:
        """The request is over. What a turn would have said that never began does not count, unless another says it."""
        desk, session, history = self._desk, self._ask.session, self._ask.history
        if self._noted and session is not None and history is not None and not desk.turns.is_open(session):
            desk.journal.noted(session, desk.model.name, history)

    def _check_home(self, known: Pin) -> None:
        if known.generation > self._ask.generation:
            message = f"this session's pin has generation {known.generation}, not {self._ask.generation}"
            raise misdirected(message, "generation", known)
        if known.generation == self._ask.generation and known.replica != self._desk.replica:
            raise misdirected(f"this session's home is {known.replica}", "generation", known)

    def _check_history(self, session: str, entry: Entry) -> None:
        """A guess goes on from what the session's last turn said, or asks the same again once no turn is left; else it
        is another conversation that only began alike."""
        desk, ask = self._desk, self._ask
        if ask.history is None or not entry.guessed:
            return
        if entry.history is not None and entry.history not in ask.continues:
            repeats = entry.history == ask.history and not desk.turns.is_open(session)
            if not repeats:
                message = "this conversation is not the one that it was taken for"
                raise misdirected(message, "parted", None)
        # At once: the next request may be here before this turn has begun.
        desk.journal.note(session, desk.model.name, ask.history)
        self._noted = True

    def _record(self, session: str) -> None:
        """The turn of a guessed session begins: keep what it says. Nobody waits for it, since it is noted."""
        desk, history, model = self._desk, self._ask.history, self._desk.model.name
        if history is None:
            return
        self._noted = False
        loop = asyncio.get_running_loop()
        writing = loop.run_in_executor(desk.writer, desk.journal.record, session, model, history)

        def written(done: "asyncio.Future[None]") -> None:
            if not done.cancelled() and done.exception() is None:
                desk.journal.noted(session, model, history)

        writing.add_done_callback(written)

    def _root(self) -> str | None:
        """Who began the family of the session's parent."""
        desk, parent = self._desk, self._ask.parent
        if parent is None or parent == self._ask.session:
            return None
        entry = desk.journal.entry(parent, desk.model.name)
        return (entry.family if entry is not None else None) or parent

    def _found(self, session: str, entry: Entry) -> str:
        """`moved` until its first turn here is over, where the pin was written before any turn came."""
        waits = entry.pin.generation > 1 and entry.turns == 0
        return "moved" if waits and session not in self._desk.turns.warmed else "kept"

    def _facts(self) -> Facts:
        ask = self._ask
        return Facts(ask.public, ask.scope, self.family, ask.rank == "guessed", ask.history, ask.machines)


def _unknown() -> Problem:
    return misdirected("this host has no pin of this session", "unknown")


def _is_here(state: Admission, session: str) -> bool:
    """Whether an earlier turn of the session has a place or waits for one; its pin may not be written yet."""
    return place_of(state, session) is not None or any(turn.session == session for turn in state.line)
