"""A request's pin: whether the router's picture of it is right, and that it is on disk before the answer's head.

Decides no homes: the router chose this one, and the journal has the last word.
"""

import asyncio
import sqlite3
import time

from serving.admission import Admission, free_places, place_of
from serving.asgi import Problem
from serving.desk import Desk
from serving.journal import JournalFull
from serving.pins import Pin
from serving.routing import Ask, misdirected


class Pinning:
    """One request's."""

    def __init__(self, desk: Desk, ask: Ask) -> None:
        self._desk = desk
        self._ask = ask
        self.outcome: str | None = None
        """`none` of a transient, `kept` or `new` once the journal has the pin; None until then."""

    def check(self) -> None:
        """Raises Problem 421 when the router's picture of this session or of this replica's places is old."""
        desk, ask = self._desk, self._ask
        if ask.session is None:
            self.outcome = "none"
            return
        known = desk.journal.get(ask.session, desk.model.name)
        if known is not None and known.generation > ask.generation:
            message = f"this session's pin has generation {known.generation}, not {ask.generation}"
            raise misdirected(message, "generation", known)
        claims = known is None and ask.claim_free and ask.pin == "new"
        if claims and free_places(desk.turns.state) == 0 and not _is_here(desk.turns.state, ask.session):
            raise misdirected(f"no place is free in {desk.replica} any more", "taken", None)
        if known is not None and known.generation >= ask.generation:
            self.outcome = "kept"

    async def ensure(self) -> None:
        """Have the pin on disk. After `check`. Raises Problem if that cannot be."""
        desk, ask = self._desk, self._ask
        if ask.session is None or self.outcome is not None:
            return
        try:
            known = desk.journal.get(ask.session, desk.model.name)
            if known is not None and known.generation >= ask.generation:
                self.outcome = "kept"
                return
            pin = Pin(ask.session, desk.model.name, desk.replica, ask.generation, time.time())
            loop = asyncio.get_running_loop()
            winner = await loop.run_in_executor(desk.writer, desk.journal.insert, pin)
        except JournalFull as error:
            raise Problem(507, str(error), "state_folder_full") from None
        except sqlite3.Error as error:
            message = f"the pin could not be written to the journal: {error}"
            raise Problem(500, message, "journal_failed") from None
        made = known is None and winner is pin
        self.outcome = "new" if made and ask.pin == "new" else "kept"
        # A first home that only the router knew of: its first turn never came here.
        if made and (ask.pin == "new" or pin.generation == 1):
            desk.turns.made.add(ask.session)

    def touch(self) -> None:
        """The pin was used for a whole turn."""
        desk, ask = self._desk, self._ask
        if ask.session is not None:
            # Nobody waits for it: a pin that looks unused for a turn longer does no harm.
            desk.writer.submit(desk.journal.touch, ask.session, desk.model.name, time.time())


def _is_here(state: Admission, session: str) -> bool:
    """Whether an earlier turn of the session has a place or waits for one; its pin may not be written yet."""
    return place_of(state, session) is not None or any(turn.session == session for turn in state.line)
