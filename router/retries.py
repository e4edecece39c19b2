"""Whether a turn is tried again after a host did not take it, and what the router learns from that.

Asks no host for the turn and answers no client: that is `turn`'s matter; where it goes next is decided by `homes`.
"""

from collections.abc import Callable

from router.decision import Ask, Send
from router.errors import ApiError, host_lost, host_silent, host_unsettled
from router.fleet import Fleet
from router.homes import Homes
from router.host_http import NotConnected, Silent
from router.reading import Disagreement

DISAGREEMENTS = 3
"""How often hosts may answer 421 to one turn, but for a place that was taken meanwhile: each says that once."""
LOSSES = 2
"""How often hosts may be lost before the engine's first event: a turn that kills its host is not for ever."""


class Retries:
    """One turn's. Where an error is returned, it is the turn's end; None: the place is to be chosen again."""

    def __init__(self, fleet: Fleet, homes: Homes, clock: Callable[[], float]) -> None:
        self.refused: set[str] = set()
        """Replicas that are no choice any more, unless its home is there."""
        self._fleet = fleet
        self._homes = homes
        self._clock = clock
        self._disagreements = 0
        self._losses = 0

    async def disagreed(self, ask: Ask, to: Send, told: Disagreement) -> ApiError | None:
        """The host answered 421, and knows better: learn from it."""
        self._disagreements += told.reason != "taken" or to.pin == "kept" or to.replica in self.refused
        if told.reason == "taken":
            self._give_up(ask, to)
        pin = told.pin
        if pin is not None and (pin.session, pin.model) == (ask.session, ask.model):
            self._homes.corrected(pin, to.replica)
        if told.reason == "unknown":
            await self._homes.unknown(ask, to.replica)
        if told.reason == "replica":
            await self._fleet.refresh_controller()
        if not parts(ask, told):
            await self._fleet.refresh(to.replica)
        return None if self._disagreements <= DISAGREEMENTS else host_unsettled(to.replica)

    async def stopped_serving(self, ask: Ask, to: Send) -> bool:
        """The host answered 503. Whether that is because it does not serve any more: then the place is to be chosen
        again."""
        await self._fleet.refresh(to.replica)
        known = self._fleet.snapshot().replicas.get(to.replica)
        if known is not None and known.serves(self._clock()):
            return False
        self._give_up(ask, to)
        return True

    async def lost(self, ask: Ask, to: Send, error: Exception, begun: bool) -> ApiError | None:
        """The host is gone. Before the engine's first event the turn is tried again, at its own home only."""
        fleet = self._fleet
        if begun:
            fleet.saw_silent(to.replica)
            return host_lost(to.replica)
        if isinstance(error, NotConnected):
            (fleet.saw_refused if error.refused else fleet.saw_silent)(to.replica)
            self._give_up(ask, to)
            return None
        self._homes.suspect(ask, to.replica)  # its host may have written the pin down before it went
        if isinstance(error, Silent):  # it may be at work on it still
            fleet.saw_silent(to.replica)
            return host_silent(to.replica)
        self._losses += 1
        if self._losses > LOSSES:
            return host_lost(to.replica)
        await fleet.refresh(to.replica)
        return None

    def _give_up(self, ask: Ask, to: Send) -> None:
        """A new session, or a turn without one, looks elsewhere; one whose home it is waits on."""
        self._homes.release(ask, to.replica)
        if to.pin != "kept":
            self.refused.add(to.replica)


def parts(ask: Ask, told: Disagreement) -> bool:
    """Whether a guess went another way than the session that it was taken for, and is one of its own."""
    return told.reason == "parted" and ask.rank == "guessed"
