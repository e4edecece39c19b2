"""The controller's index of pins. Pure: an index that decides races and can be rebuilt from the hosts' journals.

The truth lies in the journals. What only this index knows (a claim that no host has confirmed) is a promise.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

from serving.pins import Pin, merge

CLAIM_S = 3.0
"""How long a claim counts as a place taken: by then the router's picture of the host shows it."""

UNUSED_S = 600.0
"""How long a claim is kept that no host confirms. Longer than any line."""

Key = tuple[str, str]
"""Session and model."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica that a router would choose, with the free places that it saw there."""

    replica: str
    free: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The home that a session had when its router found that it is lost or forgotten, and that the session may move."""

    replica: str
    generation: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A pin that was promised at a time."""

    pin: Pin
    at: float
    handed_at: float
    """When a router was given it last."""
    holders: frozenset[str]
    """Routers that it was given to and that have not refused it: their turns may be on their way to that home."""


@dataclass(slots=True)
class PinIndex:
    """Pins by (session, model), and claims that are not confirmed yet. A journal has its replica's name."""

    pins: dict[Key, Pin] = field(default_factory=dict)
    """Those that hold, of all that journals say."""
    claims: dict[Key, Claim] = field(default_factory=dict)
    """In order of time: pins that no host's journal has confirmed. One goes before what journals say of older homes."""
    journals: dict[str, dict[Key, Pin]] = field(default_factory=dict)
    """By journal: what it says."""
    heard_at: dict[Key, float] = field(default_factory=dict)
    """When a journal said something new of it last."""
    behind: dict[str, dict[Key, Pin]] = field(default_factory=dict)
    """By journal: the pins that hold in the stead of what it says."""
    names: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """Public id and scope, by session."""
    sessions: dict[str, str] = field(default_factory=dict)
    """By public id."""
    models: set[str] = field(default_factory=set)
    ends: dict[str, dict[Key, Pin]] = field(default_factory=dict)
    """By journal: what it says of sessions whose end its host has not heard of. That does not count."""
    unsaved: set[tuple[str, Key]] = field(default_factory=set)
    """Journals and keys of what is to be saved: what a journal says, and what it is still to be told."""

    def get(self, session: str, model: str) -> Pin | None:
        claim = self.claims.get((session, model))
        return self.pins.get((session, model)) if claim is None else claim.pin

    def confirm(self, pins: Iterable[Pin], journal: str = "", whole: bool = False, now: float = 0.0) -> None:
        """Take in what a host's journal says. `whole`: it has no others; those that it had are gone."""
        told = {(pin.session, pin.model): pin for pin in pins}
        self._leave_out_ended(journal, told, whole)
        here = self.journals.setdefault(journal, {})
        gone = here.keys() - told.keys() if whole else set()
        for key in gone:
            del here[key]
            self.unsaved.add((journal, key))
        for key, pin in told.items():
            held = here.get(key)
            here[key] = pin if whole or held is None else merge(held, pin)
            if here[key] != held:
                self.heard_at[key] = now
                self.unsaved.add((journal, key))
            claim = self.claims.get(key)
            if claim is not None and pin.generation >= claim.pin.generation:
                del self.claims[key]
        for key in (*gone, *told):
            self._settle(key)

    def describe(self, session: str, public: str, scope: str | None) -> None:
        """What a session is called towards people, and whose it is."""
        if public and self.names.get(session) != (public, scope):
            self.sessions[public] = session
            self.names[session] = (public, scope)
            keys = [(session, model) for model in self.models]
            self.unsaved |= {
                (name, key) for name, here in self.journals.items() for key in keys if key in here
            }

    def remove(self, session: str, model: str, since: float = math.inf) -> dict[str, Pin]:
        """The session was ended. By journal that says it is pinned, what it says: they are to be told. What was handed
        out or heard from `since` on stays: it may have come to its home after the end. If not, that home will disown
        it."""
        key = (session, model)
        if self.heard_at.get(key, 0.0) >= since:
            return {}
        journals = {name: here.pop(key) for name, here in self.journals.items() if key in here}
        self.unsaved |= {(name, key) for name in journals}
        if key in self.claims and self.claims[key].handed_at < since:
            del self.claims[key]
        self._settle(key)
        return journals

    def is_to_hear(self, journal: str, pin: Pin) -> None:
        """The session was ended, and this journal's host is to be told: its pin does not count until it was."""
        key = (pin.session, pin.model)
        self.ends.setdefault(journal, {})[key] = pin
        self.unsaved.add((journal, key))

    def has_heard(self, journal: str, pin: Pin) -> None:
        """Its host has dropped the session."""
        key = (pin.session, pin.model)
        if self.ends.get(journal, {}).pop(key, None) is not None:
            self.unsaved.add((journal, key))

    def is_ending(self, session: str, model: str, replica: str) -> bool:
        """Whether the host there is still to drop what it has of the session, so that it cannot begin anew there."""
        return (session, model) in self.ends.get(replica, {})

    def save_again(self, machine: str) -> None:
        """What its journals said is new to who saves it."""
        for words in (self.journals, self.ends):
            for journal, said in words.items():
                if journal.rpartition("/")[0] == machine:
                    self.unsaved |= {(journal, key) for key in said}

    def disown(self, pin: Pin) -> dict[str, Pin]:
        """The host of its home has no such pin: forget it as `remove` does, unless another one holds by now."""
        holds = self.get(pin.session, pin.model) == self.pins.get((pin.session, pin.model)) == pin
        return self.remove(pin.session, pin.model) if holds else {}

    def claim(
        self,
        session: str,
        model: str,
        ranked: Sequence[Candidate],
        refused: frozenset[str],
        now: float,
        instead_of: Lost | None = None,
        router: str = "",
        created_s: float | None = None,
    ) -> tuple[Pin, bool]:
        """Insert a pin, or return the winner: (pin, whether a journal has it already).

        A new pin goes to the first candidate with a place that no recent claim has taken, else to the one with the
        fewest recent claims, of these to the one whose last claim is longest ago, in the router's order. A claim that
        was given to this `router` only and that it refuses (its host has no free place, or does not serve) is made
        anew; a pin that a journal confirmed is not, unless it is at the very home that is lost (`instead_of`): then a
        new one is made, one generation higher. `ranked` must not be empty. `now` is a clock that nobody sets, and
        `created_s` is what a new pin says of itself; it is `now` where it is not given.
        """
        self._forget_unused(now)
        key = (session, model)
        known = self.get(session, model)
        generation = 1 if instead_of is None else instead_of.generation + 1
        if known is not None:
            moves = instead_of == Lost(known.replica, known.generation)
            if not moves and not self._given_up(key, refused, router, now):
                return known, key not in self.claims
            generation = known.generation + moves
        self.claims.pop(key, None)
        taken = self._recent(now)
        free = (c for c in ranked if c.replica not in refused and c.free > len(taken.get(c.replica, ())))
        chosen = next(free, None) or min(
            ranked, key=lambda c: (len(taken.get(c.replica, ())), max(taken.get(c.replica, ()), default=0.0))
        )
        pin = Pin(
            session, model, chosen.replica, generation, created_s=now if created_s is None else created_s
        )
        self.claims[key] = Claim(pin, now, now, frozenset({router}))
        return pin, False

    def _given_up(self, key: Key, refused: frozenset[str], router: str, now: float) -> bool:
        """Whether it is a claim that nobody counts on any more. A router counts on what it does not refuse."""
        claim = self.claims.get(key)
        if claim is None:
            return False
        if claim.pin.replica in refused:
            self.claims[key] = replace(claim, holders=claim.holders - {router})
        else:
            self.claims[key] = replace(claim, handed_at=now, holders=claim.holders | {router})
        return not self.claims[key].holders

    def told(self, journal: str, pins: Iterable[Pin]) -> None:
        """The journal's host has learned these: what it says is read again when it has changed."""
        behind = self.behind.get(journal, {})
        for pin in pins:
            behind.pop((pin.session, pin.model), None)

    def _leave_out_ended(self, journal: str, told: dict[Key, Pin], whole: bool) -> None:
        """Of a session that was ended what is older does not count; what is newer, or that it is gone, settles it."""
        for key, ended in list(self.ends.get(journal, {}).items()):
            pin = told.get(key)
            if pin is not None and pin.generation <= ended.generation and pin.created_s <= ended.created_s:
                del told[key]
            elif pin is not None or whole:
                self.has_heard(journal, ended)

    def _settle(self, key: Key) -> None:
        """Of all that journals say, one pin holds; those that say another are behind."""
        self.models.add(key[1])
        said = {name: here[key] for name, here in self.journals.items() if key in here}
        for behind in self.behind.values():
            behind.pop(key, None)
        if not said:
            self.pins.pop(key, None)
            self.heard_at.pop(key, None)
            self._forget_name(key[0])
            return
        winner = reduce(merge, said.values())
        self.pins[key] = winner
        for name, pin in said.items():
            if pin != winner:
                self.behind.setdefault(name, {})[key] = winner

    def _forget_name(self, session: str) -> None:
        if all(self.get(session, model) is None for model in self.models):
            public, _ = self.names.pop(session, ("", None))
            self.sessions.pop(public, None)

    def _forget_unused(self, now: float) -> None:
        """One that no host ever confirmed was never used."""
        for key, claim in list(self.claims.items()):
            if claim.at > now - UNUSED_S:
                break
            del self.claims[key]

    def _recent(self, now: float) -> dict[str, list[float]]:
        """When each replica was claimed lately."""
        taken: dict[str, list[float]] = {}
        for claim in self.claims.values():
            if claim.at > now - CLAIM_S:
                taken.setdefault(claim.pin.replica, []).append(claim.at)
        return taken
