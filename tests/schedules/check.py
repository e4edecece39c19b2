"""What must hold in every schedule, and what was seen in one.

Nobody's turn runs twice at once, no acknowledged pin is lost, every request ends exactly once.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from serving.pins import Pin, merge
from tests.schedules.clock import SimLoop
from tests.schedules.engines import opened_by

Life = tuple[str, int]
"""A host's replica and incarnation."""


@dataclass
class Check:
    """`homes`: by session, the pins that a response's head has told of."""

    loop: SimLoop
    problems: list[str] = field(default_factory=list)
    trace: list[tuple[float, str, tuple[Any, ...]]] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    homes: dict[int, list[Pin]] = field(default_factory=dict)
    written: dict[str, list[Pin]] = field(default_factory=dict)
    """By session's digest, the pins that hosts wrote for themselves, whether anybody was told or not."""
    may_twin: Callable[[], bool] = lambda: False
    """Whether somebody could not be asked of late."""
    twins: set[int] = field(default_factory=set)
    """Sessions that got two homes of one generation, because nobody could be asked."""
    doubts: dict[int, float] = field(default_factory=dict)
    """By session that somebody ended: until when turns were asked for that may have been of before or after."""
    _running: dict[tuple[Life, int], int] = field(default_factory=dict)

    def note(self, what: str, *details: Any) -> None:
        self.trace.append((self.loop.now, what, details))

    def fault(self, text: str) -> None:
        self.note("FAULT", text)
        self.problems.append(f"{self.loop.now - 1000:.3f}: {text}")

    # turns on engines

    def began(self, life: Life, turn: int, token: int) -> None:
        session = opened_by(token)
        self.note("begins", life, turn, session)
        if session is None:
            return
        self.seen["turns"] += 1
        for (other, _), running in self._running.items():
            if running == session:
                if other != life and (session in self.twins or self.may_twin()):
                    self.seen["twins' turns at once"] += 1
                else:
                    self.fault(f"session {session} runs on {life} while it runs on {other}")
        self._running[life, turn] = session

    def ended(self, life: Life, turn: int) -> None:
        if self._running.pop((life, turn), None) is not None:
            self.note("ends", life, turn)

    def killed(self, life: Life) -> None:
        for key in [key for key in self._running if key[0] == life]:
            del self._running[key]

    # pins

    def wrote(self, pin: Pin) -> None:
        """A host wrote down that it is a session's home."""
        pins = self.written.setdefault(pin.session, [])
        if (
            any(p.generation == pin.generation and p.replica != pin.replica for p in pins)
            and not self.may_twin()
        ):
            self.fault(f"{pin.replica} is a home of generation {pin.generation} beside {pins}")
        pins.append(pin)

    def acknowledged(
        self,
        session: int,
        outcome: str,
        replica: str,
        pin: Pin | None,
        asked_at: float,
        excused: bool,
        served: bool,
    ) -> None:
        """A response's head named this home; `pin` is what its journal has. `excused`: its router could not ask the
        controller, or the controller could not read the journal of an earlier home: twins may be born. Where the turn
        was not `served` its router may not have heard yet that another one ended the session."""
        self.seen[f"pin {outcome}"] += 1
        if asked_at < self.doubts.get(session, 0.0):
            return
        if pin is None and not served and session in self.doubts:
            self.seen["homes of an ended session told"] += 1
            return
        if pin is None:
            self.fault(f"session {session} was told {outcome} of {replica}, whose journal has no pin")
            return
        pins = self.homes.setdefault(session, [])
        if pin in pins:
            return
        others = [p for p in pins if p.generation == pin.generation and p.replica != pin.replica]
        if others:
            self.note("twins", session, [p.replica for p in others], pin.replica, excused)
            self.twins.add(session)
            self.seen["twins"] += 1
            if not excused:
                self.fault(
                    f"session {session} was told {outcome} of {replica}, and before of {others[0].replica}"
                )
        pins.append(pin)

    def ends(self, session: int, digest: str) -> None:
        """Somebody begins to end it: what was told of it holds no longer."""
        self.homes.pop(session, None)
        self.written.pop(digest, None)
        for key in [key for key, running in self._running.items() if running == session]:
            del self._running[key]  # it is ended within a token
        self.twins.discard(session)
        self.doubts[session] = float("inf")

    def is_over(self, session: int, digest: str) -> None:
        """It was ended, everywhere."""
        self.written.pop(digest, None)
        self.doubts[session] = self.loop.now

    def home(self, session: int) -> Pin:
        """The one that holds, of those that were told and of their twins."""
        told = self.homes[session]
        holds = reduce(merge, told)
        twins = [pin for pin in self.written.get(holds.session, ()) if pin.generation == holds.generation]
        return reduce(merge, twins, holds)

    def came_home(self, session: int, router: str, replica: str, pin: Pin | None) -> None:
        """The first turn after all was mended."""
        home = self.home(session)
        if replica != home.replica and (pin is None or pin.generation <= home.generation):
            self.fault(f"session {session} was told {home}, and {router} sends it to {replica} with {pin}")

    # endings

    def ending(self, request: str, name: str) -> None:
        self.note("ending", request, name)
        self.seen[f"ending {name}"] += 1
