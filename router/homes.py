"""Finding a session's home: the router's own memory, then the controller, then the hosts; else a new one.

What is remembered here is never the truth: the host that gets the turn decides, and says so with 421.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

from router.choose import Ask, Decision, Home, Wait, choose, ranked
from router.fleet import Fleet
from router.peers import NotYet, Peers, Unreachable
from serving.pins import Pin, merge

REMEMBERED = 100_000
"""Homes kept in memory, the least recently used go first."""
ASK_AGAIN_S = 2.0
"""How often the controller is asked whether the home of a waiting session has changed."""

log = logging.getLogger("homeport.router")
Key = tuple[str, str]


@dataclass(slots=True)
class _Remembered:
    home: Home
    asked_at: float


class Homes:
    """Homes by (session, model)."""

    def __init__(
        self,
        fleet: Fleet,
        peers: Peers,
        clock: Callable[[], float],
        wall: Callable[[], float],
        size: int = REMEMBERED,
    ) -> None:
        self._fleet = fleet
        self._peers = peers
        self._clock = clock
        self._wall = wall
        self._size = size
        self._homes: OrderedDict[Key, _Remembered] = OrderedDict()

    async def decide(self, ask: Ask, refused: set[str]) -> Decision:
        """Where the turn goes. A new session is claimed on the way.

        `refused` are replicas that had no place for this new session or did not answer; grows here.
        """
        if ask.session is None or ask.model not in self._fleet.snapshot().models:
            return choose(ask, None, self._fleet.snapshot(), self._clock(), refused)
        try:
            return await self._decide(ask, (ask.session, ask.model), refused)
        except NotYet:
            message = "The controller is still reading which sessions have a home. Ask again in a moment."
            return Wait("machine_unavailable", message, self._clock() + 1.0)

    async def _decide(self, ask: Ask, key: Key, refused: set[str]) -> Decision:
        remembered = self._homes.get(key)
        if remembered is None:
            home = await self._find(ask, key, refused)
        else:
            self._homes.move_to_end(key)
            home = remembered.home
        decision = choose(ask, home, self._fleet.snapshot(), self._clock(), refused)
        if not isinstance(decision, Wait) or home is None:
            return decision
        if home.fresh:
            self.release(ask, home.pin.replica)
            refused.add(home.pin.replica)
            again = await self._find(ask, key, refused)
        else:
            again = await self._look_again(key, home)
        if again == home:
            return decision
        return choose(ask, again, self._fleet.snapshot(), self._clock(), refused)

    def confirm(self, ask: Ask, replica: str) -> None:
        """A host has this session, or may have it: from now on it has a home there."""
        remembered = self._homes.get((ask.session or "", ask.model))
        if remembered is not None and remembered.home.fresh and remembered.home.pin.replica == replica:
            remembered.home = Home(remembered.home.pin, fresh=False)

    def release(self, ask: Ask, replica: str) -> None:
        """A claim there came to nothing and no host has written it down: the next turn is claimed anew."""
        key = (ask.session or "", ask.model)
        remembered = self._homes.get(key)
        if remembered is not None and remembered.home.fresh and remembered.home.pin.replica == replica:
            del self._homes[key]

    def told(self, pin: Pin) -> None:
        """A host knows better."""
        remembered = self._homes.get((pin.session, pin.model))
        if remembered is not None and not remembered.home.fresh:
            pin = merge(remembered.home.pin, pin)
        self._remember(pin, fresh=False)

    async def _find(self, ask: Ask, key: Key, refused: set[str]) -> Home | None:
        """The session's home, a new one for a new session; None while no replica could be its home."""
        order = ranked(ask, self._fleet.snapshot(), self._clock())
        try:
            if order:
                pin, known = await self._peers.claim(*key, order, refused)
                if (first := self._homes.get(key)) is not None:
                    return first.home  # another turn of it was faster
                return self._remember(pin, fresh=not known)
            found = await self._peers.indexed_pin(*key)
        except Unreachable as error:
            log.info("controller gives no pin (%s); asking the hosts", error)
            found = await self._ask_hosts(key)
            if found is None:
                return self._settle_alone(ask, key, refused)
        return None if found is None else self._remember(found, fresh=False)

    def _settle_alone(self, ask: Ask, key: Key, refused: set[str]) -> Home | None:
        """No head, and no host knows the session: choose on the own picture."""
        if key in self._homes:  # another turn of it was faster
            return self._homes[key].home
        order = ranked(ask, self._fleet.snapshot(), self._clock())
        if not order:
            return None
        best = next((candidate for candidate in order if candidate.replica not in refused), order[0])
        return self._remember(Pin(*key, best.replica, 1, self._wall()), fresh=True)

    async def _look_again(self, key: Key, home: Home) -> Home:
        """Whether the home of a waiting session has changed meanwhile; asked now and then only."""
        remembered = self._homes.get(key)
        if remembered is None or self._clock() - remembered.asked_at < ASK_AGAIN_S:
            return home
        remembered.asked_at = self._clock()
        try:
            found = await self._peers.indexed_pin(*key)
        except NotYet:
            return home
        except Unreachable:
            found = await self._ask_hosts(key)
        if found is None or merge(found, home.pin) == home.pin:
            return home
        return self._remember(found, fresh=False)

    async def _ask_hosts(self, key: Key) -> Pin | None:
        """What the reachable hosts know of the session; twins are merged."""
        bases = [base for name in self._fleet.reachable() if (base := self._fleet.base(name))]
        answers = await asyncio.gather(
            *(self._peers.host_pin(base, *key) for base in bases), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, Unreachable):
                raise answer
        pins = [answer for answer in answers if isinstance(answer, Pin)]
        return reduce(merge, pins) if pins else None

    def _remember(self, pin: Pin, fresh: bool) -> Home:
        home = Home(pin, fresh)
        self._homes[(pin.session, pin.model)] = _Remembered(home, self._clock())
        self._homes.move_to_end((pin.session, pin.model))
        while len(self._homes) > self._size:
            self._homes.popitem(last=False)
        return home
