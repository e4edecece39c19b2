"""Finding a session's home: the router's own memory, then the controller, then the hosts; else a new one.

What is remembered here is never the truth: the host that gets the turn decides, and says so with 421.
"""

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
PATIENCE_S = 3.0
"""How long a session that nobody knows waits for a host that cannot be asked, while there is no controller."""

log = logging.getLogger("homeport.router")
Key = tuple[str, str]


class _Unproven(Exception):
    """No controller answers, and the host of a replica that may be the session's home cannot be asked."""

    def __init__(self, replica: str) -> None:
        super().__init__(replica)
        self.replica = replica


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
        self._open: Counter[tuple[Key, str]] = Counter()

    async def decide(self, ask: Ask, refused: set[str], settle_at: float) -> Decision:
        """Where the turn goes. A new session is claimed on the way.

        `refused` are replicas that had no place for this new session or did not answer; grows here.
        Until `settle_at` a session counts as new without a controller only if every host says so.
        """
        if ask.session is None or ask.model not in self._fleet.snapshot().models:
            return choose(ask, None, self._fleet.snapshot(), self._clock(), refused)
        try:
            return await self._decide(ask, (ask.session, ask.model), refused, settle_at)
        except NotYet:
            message = "The controller is still reading which sessions have a home. Ask again in a moment."
            return Wait("machine_unavailable", message, self._clock() + 1.0)
        except _Unproven as unproven:
            message = (
                f"The controller does not answer, and {unproven.replica} cannot be asked whether it is this "
                "session's home. Ask again in a moment."
            )
            return Wait("machine_unavailable", message, min(settle_at, self._clock() + 1.0))

    async def _decide(self, ask: Ask, key: Key, refused: set[str], settle_at: float) -> Decision:
        remembered = self._homes.get(key)
        if remembered is None:
            home = await self._find(ask, key, refused, settle_at)
        else:
            self._homes.move_to_end(key)
            home = remembered.home
        decision = choose(ask, home, self._fleet.snapshot(), self._clock(), refused)
        if not isinstance(decision, Wait) or home is None:
            return decision
        if home.fresh:
            if self._open[key, home.pin.replica]:
                return decision  # its host may be writing it down for another turn of the session
            self._release(key, home.pin.replica)
            refused.add(home.pin.replica)
            again = await self._find(ask, key, refused, settle_at)
        else:
            again = await self._look_again(key, home)
        if again == home:
            return decision
        return choose(ask, again, self._fleet.snapshot(), self._clock(), refused)

    @contextmanager
    def turn_at(self, ask: Ask, replica: str) -> Iterator[None]:
        """A turn of this session is at that host for as long as the block lasts."""
        spot = ((ask.session or "", ask.model), replica)
        self._open[spot] += 1
        try:
            yield
        finally:
            self._open[spot] -= 1
            if not self._open[spot]:
                del self._open[spot]

    def is_fresh(self, ask: Ask, replica: str) -> bool:
        """Whether its home is claimed there and no host is known to have written it down."""
        remembered = self._homes.get((ask.session or "", ask.model))
        return remembered is not None and remembered.home.fresh and remembered.home.pin.replica == replica

    def confirm(self, ask: Ask, replica: str) -> None:
        """A host has this session, or may have it: from now on it has a home there."""
        if self.is_fresh(ask, replica):
            remembered = self._homes[(ask.session or "", ask.model)]
            remembered.home = Home(remembered.home.pin, fresh=False)

    def release(self, ask: Ask, replica: str) -> None:
        """The caller's turn, still at that host, came to nothing and nothing is written down.

        The next turn is claimed anew, unless another turn of the session is there.
        """
        key = (ask.session or "", ask.model)
        if self._open[key, replica] <= 1:
            self._release(key, replica)

    def _release(self, key: Key, replica: str) -> None:
        remembered = self._homes.get(key)
        if remembered is not None and remembered.home.fresh and remembered.home.pin.replica == replica:
            del self._homes[key]

    def told(self, pin: Pin) -> Home:
        """A host or the index knows of a home. What holds from now on: the merge with what is remembered."""
        remembered = self._homes.get((pin.session, pin.model))
        if remembered is not None and not remembered.home.fresh:
            pin = merge(remembered.home.pin, pin)
        return self._remember(pin, fresh=False)

    async def _find(self, ask: Ask, key: Key, refused: set[str], settle_at: float) -> Home | None:
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
            found, silent = await self._ask_hosts(key)
            if found is None:
                return self._settle_alone(ask, key, refused, None if self._clock() >= settle_at else silent)
        return None if found is None else self.told(found)

    def _settle_alone(self, ask: Ask, key: Key, refused: set[str], silent: str | None) -> Home | None:
        """No head, and no host knows the session: choose on the own picture.

        Raises _Unproven where `silent` may know it.
        """
        if key in self._homes:  # another turn of it was faster
            return self._homes[key].home
        order = ranked(ask, self._fleet.snapshot(), self._clock())
        if not order:
            return None
        if silent is not None:
            raise _Unproven(silent)
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
            found, _ = await self._ask_hosts(key)
        return home if found is None else self.told(found)

    async def _ask_hosts(self, key: Key) -> tuple[Pin | None, str | None]:
        """What the reachable hosts know of the session, twins merged; a replica of the model that told nothing."""
        bases = {name: base for name in self._fleet.reachable() if (base := self._fleet.base(name))}
        answers = await asyncio.gather(
            *(self._peers.host_pin(base, *key) for base in bases.values()), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, Unreachable):
                raise answer
        pins = [answer for answer in answers if isinstance(answer, Pin)]
        told = {
            name for name, answer in zip(bases, answers, strict=True) if not isinstance(answer, Unreachable)
        }
        silent = {replica.name for replica in self._fleet.snapshot().of_model(key[1])} - told
        return (reduce(merge, pins) if pins else None), min(silent, default=None)

    def _remember(self, pin: Pin, fresh: bool) -> Home:
        home = Home(pin, fresh)
        self._homes[(pin.session, pin.model)] = _Remembered(home, self._clock())
        self._homes.move_to_end((pin.session, pin.model))
        while len(self._homes) > self._size:
            self._homes.popitem(last=False)
        return home
