"""What must hold in every schedule, and what was seen in one.

No session's turns run at once, no acknowledged pin is lost, every request ends exactly once, and no conversation lands
in another one's session. What must hold in families is in kin.py.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from serving.pins import Pin, merge
from tests.schedules.clients import Said
from tests.schedules.clock import SimLoop
from tests.schedules.kin import Families

Session = int | str
"""A named session's number, a guessed one's digest."""
Life = tuple[str, int]
"""A host's replica and incarnation."""


@dataclass(frozen=True)
class Answered:
    """What a guessed turn said, where, and when its answer came."""

    said: Said
    replica: str
    at: float


@dataclass
class Check:
    """`homes`: by session, the pins that a response's head has told of."""

    loop: SimLoop
    newest: Callable[[int], Pin | None]
    """The pin that holds, of all that journals have of a named session."""
    problems: list[str] = field(default_factory=list)
    trace: list[tuple[float, str, tuple[Any, ...]]] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    homes: dict[Session, list[Pin]] = field(default_factory=dict)
    written: dict[str, list[Pin]] = field(default_factory=dict)
    """By session's digest, the pins that hosts wrote for themselves, whether anybody was told or not."""
    may_twin: Callable[[], bool] = lambda: False
    """Whether somebody could not be asked of late."""
    twins: set[Session] = field(default_factory=set)
    """Sessions that got two homes of one generation, because nobody could be asked."""
    doubts: dict[Session, float] = field(default_factory=dict)
    """By session that somebody ended: until when turns were asked for that may have been of before or after."""
    said: dict[str, Answered] = field(default_factory=dict)
    """By guessed session: the last turn of it that was answered."""
    moved_blind: set[str] = field(default_factory=set)
    """Guessed sessions that somebody moved while a host was away."""
    _running: dict[tuple[Life, int], Session] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.families = Families(self, self.newest)

    def note(self, what: str, *details: Any) -> None:
        self.trace.append((self.loop.now, what, details))

    def fault(self, text: str) -> None:
        self.note("FAULT", text)
        self.problems.append(f"{self.loop.now - 1000:.3f}: {text}")

    # turns on engines

    def began(self, life: Life, turn: int, session: Session | None) -> None:
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
        if isinstance(session, int):
            self.families.began(life, turn, session)

    def ended(self, life: Life, turn: int) -> None:
        if self._running.pop((life, turn), None) is not None:
            self.note("ends", life, turn)
            self.families.ended(life, turn)

    def killed(self, life: Life) -> None:
        for key in [key for key in self._running if key[0] == life]:
            del self._running[key]
        self.families.killed(life)

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
        session: Session,
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
        self.families.ends(session)
        self.written.pop(digest, None)
        for key in [key for key, running in self._running.items() if running == session]:
            del self._running[key]  # it is ended within a token
        self.twins.discard(session)
        self.doubts[session] = float("inf")

    def is_over(self, session: int, digest: str) -> None:
        """It was ended, everywhere."""
        self.written.pop(digest, None)
        self.doubts[session] = self.loop.now

    def home(self, session: Session) -> Pin:
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

    # conversations

    def landed(self, session: str, said: Said, replica: str, asked_at: float) -> None:
        """A guess was answered as this session's: it goes on with what was answered there last, or repeats it. What the
        last one went on with may be answered behind it."""
        last = self.said.get(session, Answered((), "", 0.0))
        if said == last.said[: len(said)] != last.said and asked_at < last.at:
            self.seen["guessed turns answered late"] += 1
            return
        if last.said != said[: len(last.said)] and last.replica != replica and self.may_twin():
            self.seen["guessed turns at a home that had not heard of the other"] += 1
        elif last.said != said[: len(last.said)] and session in self.moved_blind:
            self.seen["guessed turns of sessions moved while a host was away"] += 1
        elif last.said != said[: len(last.said)]:
            self.fault(f"{said} landed at {replica} in {session[:8]}, where {last.said} was said last")
        self.seen["guessed turns that went on" if last.said else "guessed sessions"] += 1
        self.said[session] = Answered(said, replica, self.loop.now)

    def known_again(self, session: str, before: str, outcome: str, router: str) -> None:
        """All is mended, and a conversation goes on. It may have gone on elsewhere while its home was away; and where
        it was moved to meanwhile nobody knows what was said in it."""
        if outcome == "new" and before in self.moved_blind:
            self.seen["conversations moved while a host was away"] += 1
        elif outcome == "new":
            self.fault(
                f"{router} does not know {before[:8]} again, though all is mended: {session[:8]} begins"
            )
        elif session != before:
            self.seen["conversations that went on elsewhere"] += 1
        else:
            self.seen["conversations known again"] += 1

    # endings

    def ending(self, request: str, name: str) -> None:
        self.note("ending", request, name)
        self.seen[f"ending {name}"] += 1
