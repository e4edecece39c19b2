"""What sessions and their scratches hold, wherever it lies, and which of the two a request goes on with.

Decides by side.py; changes nothing. Leases, places and promotions are turns.py's matter.
"""

from collections.abc import Sequence
from dataclasses import replace

from serving.engine import Engine, Turn
from serving.lease import Lease
from serving.parking import Parking
from serving.places import Admission, place_of
from serving.prefixes import common_prefix
from serving.remembered import REMEMBERED
from serving.side import Side, scratch_of, side


class Contexts:
    """Of one replica. Everything is called on one loop."""

    def __init__(self, engine: Engine, parking: Parking) -> None:
        self._engine = engine
        self._parking = parking
        self._asked: dict[str, int] = {}
        """How many tokens the last request on a scratch brought; those that were used last."""

    def began(self, lease: Lease, tokens: int) -> None:
        """A turn begins, whose prompt has so many tokens."""
        if lease.session is None or lease.session == lease.owner:
            return
        self._asked.pop(lease.session, None)
        self._asked[lease.session] = tokens
        if len(self._asked) > REMEMBERED:
            del self._asked[next(iter(self._asked))]

    def spelled(self, turn: Turn) -> Turn:
        """The turn as it is to begin: its prompt in the tokens that its sequence will hold. No turn runs there."""
        if not turn.text:
            return turn
        held = self._engine.tokens(turn.sequence) if turn.state is None else turn.state.tokens
        prompt = self._engine.spelled_as(held, turn.prompt)
        fits = len(prompt) < self._engine.facts.context
        return replace(turn, prompt=prompt) if fits else turn

    def forget(self, name: str) -> None:
        self._asked.pop(name, None)

    async def side(
        self, session: str, prompt: tuple[int, ...], state: Admission, main: Lease | None, aside: Lease | None
    ) -> Side:
        """Where a request of the session runs. `main`, `aside`: the newest open turn of the session, and of its
        scratch."""
        held = await self._tokens(session, state, main)
        if held and side(prompt, held, (), 0, self._begins) == "main":
            return "main"
        scratch = scratch_of(session)
        beside = await self._tokens(scratch, state, aside)
        return side(prompt, held, beside, self._asked.get(scratch, 0), self._begins)

    def _begins(self, held: Sequence[int], prompt: Sequence[int]) -> int:
        return common_prefix(held, self._engine.spelled_as(held, prompt))

    async def _tokens(self, name: str, state: Admission, lease: Lease | None) -> tuple[int, ...]:
        """What is held under a name; while a turn is open, what that will hold at least."""
        if lease is not None:
            return lease.prompt
        place = place_of(state, name)
        if place is not None and place.state == "quiet":
            return self._engine.tokens(place.number)
        return await self._parking.tokens(name)

    def count(self, session: str, state: Admission) -> int:
        """Tokens of a session's context, in the engine or parked."""
        place = place_of(state, session)
        if place is not None and place.state != "parking":
            return self._engine.held(place.number)
        return self._parking.count(session) or 0
