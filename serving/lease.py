"""One open request's standing in a replica: what happens to it, and how its context was come by.

Decides nothing and asks no engine; turns.py makes leases and feeds them.
"""

import asyncio
from dataclasses import dataclass
from typing import Literal

from serving import engine
from serving.admission_events import RefusalCode
from serving.engine import Began
from serving.parking_plan import Missing
from serving.places import USUAL, Standing
from serving.rates import Pace
from serving.remembered import Remembered

Context = Literal["resident", "resumed", "evaluated"]


@dataclass(frozen=True, slots=True)
class Granted:
    """The lease is taken. `resident`: the sequence holds this session's context."""

    place: int
    resident: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """There will be no lease, or the host stops and the one there was is lost."""

    code: RefusalCode


@dataclass(frozen=True, slots=True)
class Gone:
    """The client left."""


Happening = Granted | Refused | Gone | engine.Event


@dataclass(frozen=True, slots=True)
class Finished:
    """One turn that ran, for the host's state."""

    request_id: str
    generated: int
    after_disconnect: int
    """Tokens made after the host knew that the client was gone; an upper bound when turns overlap."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The context that a turn of a session runs on."""

    name: str
    """The session's, or its scratch's."""
    session: str
    prompt: tuple[int, ...]


class Lease:
    """One open request's standing, from its arrival to its end. Made by `Turns.ask`; read with `next`."""

    def __init__(
        self,
        turn: int,
        session: str | None,
        request_id: str,
        now: float,
        made: Remembered,
        standing: Standing = USUAL,
    ) -> None:
        self.turn = turn
        self.session = session
        """The name of its context: the session's, or its scratch's."""
        self.owner = session
        """The session."""
        self.prompt: tuple[int, ...] = ()
        """Empty: nobody told."""
        self.request_id = request_id
        self.standing = standing
        self.arrived_s = now
        self.waited_s: float | None = None
        """Time in the line; None while in it."""
        self.granted: Granted | None = None
        self.granted_s = now
        self.warm = False
        """Whether, when it was granted, this engine had ever had context of its session."""
        self.moved = False
        """Whether its session's home was elsewhere before, and this is its first turn here."""
        self.dropped = False
        """Its session was ended: nothing of what it leaves counts."""
        self.missing: Missing | None = None
        """Why there was no parked state to load, where one was looked for."""
        self.restoring: tuple[float, int] | None = None
        """Of a parked state that the engine was given, of which it has not said yet what came of it: when that was
        looked for, and its bytes."""
        self.begun = False
        self.gone = False
        self.lost = asyncio.Event()
        """Set once nothing more is to be done for it: the client left, or the host stops."""
        self.seen = 0
        """Tokens behind the text that came so far."""
        self.pace = Pace()
        self.made_at_leaving: int | None = None
        """The engine's count of tokens, and `seen`, when the client left."""
        self.seen_at_leaving = 0
        self._made = made
        self._inbox: list[Happening] = []
        self._waiter: asyncio.Future[None] | None = None

    def push(self, happening: Happening) -> None:
        self._inbox.append(happening)
        self._wake()

    async def next(self, until: float | None = None) -> list[Happening]:
        """What happened since the last call, in order; waits for something. Empty when `until`, on the loop's
        clock, comes first."""
        if not self._inbox:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            alarm = loop.call_at(until, self._wake) if until is not None else None
            try:
                await self._waiter
            finally:
                self._waiter = None
                if alarm is not None:
                    alarm.cancel()
        happened, self._inbox = self._inbox, []
        return happened

    def context(self, began: Began | None) -> Context:
        """Where the context came from that the turn did not have to evaluate."""
        if began is None or began.reused == 0 or began.shared > 0:
            return "evaluated"
        if began.restored:
            return "resumed"
        return "resident" if self._resident else "evaluated"

    def cause(self, began: Began | None, prompt_tokens: int) -> str | None:
        """Why context was evaluated anew; None when all that was held was used again.

        `edited@N`: the prompt is not what was held; from token N on it was evaluated. `moved`: its context is, or was,
        at an earlier home.
        """
        if self.session is None:
            return "new"
        if began is not None and began.held > 0 and (began.restored or self._resident):
            # An engine evaluates at least the prompt's last token, held or not.
            whole = began.reused == began.held or began.reused == began.held - 1 == prompt_tokens - 1
            return None if whole and began.shared == 0 else f"edited@{began.reused}"
        if self.moved:
            return "moved"
        if began is not None and began.restored is False:
            return "restore_failed"
        if self.missing not in (None, "never_parked"):
            return self.missing
        if self.warm:
            return "evicted"
        return "new" if self.session in self._made else "engine_changed"

    @property
    def _resident(self) -> bool:
        return self.granted is not None and self.granted.resident

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
