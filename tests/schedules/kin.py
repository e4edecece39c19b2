"""What must hold in a family: it has one home, and nobody is refused for having waited for a relative."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.pins import Pin
from tests.schedules.clients import Family

if TYPE_CHECKING:
    from tests.schedules.check import Check

SLACK_S = 0.05
"""How much later an engine says that a turn is over than admission knows it."""


@dataclass
class Run:
    """One turn in an engine."""

    session: int
    replica: str
    since: float
    until: float | None = None


class Families:
    """Of one schedule. `newest(number)`: the pin that holds of all that any journal has of a session."""

    def __init__(self, check: "Check", newest: Callable[[int], Pin | None]) -> None:
        self.check = check
        self.newest = newest
        self.families: list[Family] = []
        self.apart: dict[int, int] = {}
        """Children that moved elsewhere than to the home that their parent has, which may have moved too."""
        self._moved: set[int] = set()
        """By people."""
        self._begun: dict[int, Pin | None] = {}
        """Where the parent's home was when a child without one asked first."""
        self._judged: set[tuple[int, Pin]] = set()
        self._runs: dict[tuple[object, int], Run] = {}
        self._over: list[Run] = []

    def kin(self, number: int) -> frozenset[int]:
        """All others of its family."""
        for family in self.families:
            if number in (family.parent, *family.children):
                return frozenset((family.parent, *family.children)) - {number}
        return frozenset()

    # one home

    def asked(self, child: int, parent: int) -> None:
        """Before a child's request goes out."""
        if child not in self._begun:
            self._begun[child] = self.check.home(parent) if self.check.homes.get(parent) else None

    def ends(self, number: int) -> None:
        """Somebody begins to end it: it begins anew."""
        self._begun.pop(number, None)

    def moves(self, name: str) -> None:
        """Somebody gives it another home, whatever its family's is."""
        self._moved |= {
            number for family in self.families for number in family.children if name == f"s{number}"
        }

    def told(self, child: int, parent: int, pin: Pin, excused: bool) -> None:
        """A child's home was told for the first time. `excused`: its router could not ask where its parent's is."""
        if (child, pin) in self._judged:
            return
        self._judged.add((child, pin))
        seen, before = self.check.seen, self._begun.get(child)
        if before is None or not self.check.homes.get(parent):
            seen["children before their parents"] += 1
        elif child in self._moved:
            seen["children that somebody moved"] += 1
        elif (now := self.newest(parent)) is None or _life(now) != _life(before):
            seen["children of parents that moved"] += 1
        elif pin.replica == self.check.home(parent).replica:
            seen["children at home"] += 1
        elif excused:
            seen["children apart: nobody could be asked"] += 1
        elif pin.generation > 1:
            self.apart[child] = parent
        else:
            self.check.fault(f"child {child} was told {pin}, and its parent {parent} lives at {before}")

    def at_last(self) -> None:
        """All is mended, and everybody was served once more."""
        for child, parent in self.apart.items():
            if child not in self._moved and self.check.homes.get(child) and self.check.homes.get(parent):
                home, other = self.check.home(child), self.check.home(parent)
                if home.replica == other.replica:
                    self.check.seen["children that moved first"] += 1
                else:
                    self.check.fault(
                        f"child {child} moved to {home}, and its parent {parent} lives at {other}"
                    )

    # nobody is refused for a relative

    def began(self, life: tuple[str, int], turn: int, session: int) -> None:
        if self.kin(session):
            self._runs[life, turn] = Run(session, life[0], self.check.loop.now)

    def ended(self, life: object, turn: int) -> None:
        if (run := self._runs.pop((life, turn), None)) is not None:
            run.until = self.check.loop.now
            self._over.append(run)

    def killed(self, life: object) -> None:
        for key in [key for key in self._runs if key[0] == life]:
            self.ended(*key)

    def timed_out(
        self, name: str, number: int, replica: str, asked_at: float, queue_s: float, excused: bool
    ) -> None:
        """A request was refused for having waited: it did so for `queue_s` in which none of its family ran there.
        `excused`: its router lost that host meanwhile, and the time until it was back counts."""
        kin, now = self.kin(number), self.check.loop.now
        if not kin:
            return
        self.check.seen["refusals in families"] += 1
        runs = [run for run in (*self._over, *self._runs.values()) if run.session in kin]
        spans = sorted((r.since, r.until or now) for r in runs if r.replica == replica)
        waited_s, at = 0.0, asked_at
        for since, until in spans:
            waited_s += max(0.0, since - at)
            at = max(at, until)
        waited_s += max(0.0, now - at)
        if waited_s < queue_s - SLACK_S and excused:
            self.check.seen["refusals in families whose host was away"] += 1
        elif waited_s < queue_s - SLACK_S:
            self.check.fault(
                f"{name} of session {number} was refused after {waited_s:.2f} s and {now - asked_at - waited_s:.2f} s "
                "of its relatives' turns"
            )


def _life(pin: Pin) -> tuple[int, float]:
    """Another one after a move, and after an end."""
    return pin.generation, pin.created_s
