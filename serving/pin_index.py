"""The controller's index of pins. Pure: an index that decides races and can be rebuilt from the hosts' journals.

The truth lies in the journals. What only this index knows (a claim that no host has confirmed) is a promise.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from serving.pins import Pin, merge

CLAIM_S = 3.0
"""How long a claim counts as a place taken: by then the router's picture of the host shows it."""

UNUSED_S = 600.0
"""How long a claim is kept that no host confirms. Longer than any line."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica that a router would choose, with the free places that it saw there."""

    replica: str
    free: int


@dataclass(slots=True)
class PinIndex:
    """Pins by (session, model), and claims that are not confirmed yet."""

    pins: dict[tuple[str, str], Pin] = field(default_factory=dict)
    claims: dict[tuple[str, str], tuple[str, float]] = field(default_factory=dict)
    """Claimed replica and time, of pins that no host's journal has confirmed."""

    def get(self, session: str, model: str) -> Pin | None:
        return self.pins.get((session, model))

    def confirm(self, pins: Iterable[Pin]) -> None:
        """Take in what a host's journal says."""
        for pin in pins:
            key = (pin.session, pin.model)
            claimed = key in self.claims
            known = None if claimed else self.pins.get(key)
            self.pins[key] = pin if known is None else merge(known, pin)
            self.claims.pop(key, None)

    def claim(
        self,
        session: str,
        model: str,
        ranked: Sequence[Candidate],
        refused: frozenset[str],
        now: float,
    ) -> tuple[Pin, bool]:
        """Insert a pin, or return the winner: (pin, whether a journal has it already).

        A new pin goes to the first candidate with a place that no recent claim has taken, else to the one with the
        fewest recent claims, of these to the one whose last claim is longest ago, in the router's order. A claim whose
        host refused it (`refused`: it has no free place) is made anew; a pin that a journal confirmed is not. `ranked`
        must not be empty.
        """
        self._forget_unused(now)
        key = (session, model)
        known = self.pins.get(key)
        if known is not None and not (key in self.claims and known.replica in refused):
            return known, key not in self.claims
        self.claims.pop(key, None)
        taken = self._recent(now)
        free = (c for c in ranked if c.replica not in refused and c.free > len(taken.get(c.replica, ())))
        chosen = next(free, None) or min(
            ranked, key=lambda c: (len(taken.get(c.replica, ())), max(taken.get(c.replica, ()), default=0.0))
        )
        pin = Pin(session=session, model=model, replica=chosen.replica, generation=1, created_s=now)
        self.pins[key] = pin
        self.claims[key] = (chosen.replica, now)
        return pin, False

    def _forget_unused(self, now: float) -> None:
        """Claims are in order of time; one that no host ever confirmed was never used."""
        for key, (_, at) in list(self.claims.items()):
            if at > now - UNUSED_S:
                break
            del self.claims[key], self.pins[key]

    def _recent(self, now: float) -> dict[str, list[float]]:
        """When each replica was claimed lately."""
        taken: dict[str, list[float]] = {}
        for replica, at in self.claims.values():
            if at > now - CLAIM_S:
                taken.setdefault(replica, []).append(at)
        return taken
