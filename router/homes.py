"""Finding a session's home: the router's own memory, then the controller, then the hosts; else a new one.

What is remembered here is never the truth: the host that gets the turn decides, and says so with 421.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from functools import reduce

from msgspec.structs import replace

from router.choose import allowed, choose, model_barred, ranked
from router.decision import Ask, Decision, Home, Move, Routed, Send, Wait, machine_of
from router.fleet import Fleet
from router.home_memory import HomeMemory, Key
from router.peers import NotYet, Peers, Unreachable
from router.tally import Tally
from serving.pin_index import Candidate
from serving.pins import Pin, merge

REMEMBERED = 1_000_000
"""Homes kept in memory, the least recently used go first."""
ZONES_REMEMBERED = 100_000
ASK_AGAIN_S = 2.0
"""How often the controller is asked whether the home of a waiting session has changed."""

log = logging.getLogger("homeport.router")


class _Unproven(Exception):
    """No controller answers, and the host of a replica that may be the session's home cannot be asked."""

    def __init__(self, replica: str) -> None:
        super().__init__(replica)
        self.replica = replica


class _Held(Exception):
    """The session's home is promised, and another router's turn may be on its way there."""

    def __init__(self, replica: str) -> None:
        super().__init__(replica)
        self.replica = replica


class Homes:
    """Homes by (session, model)."""

    def __init__(
        self,
        fleet: Fleet,
        peers: Peers,
        clock: Callable[[], float],
        wall: Callable[[], float],
        size: int = REMEMBERED,
        wake: Callable[[str], None] = lambda machine: None,
        last_known: Callable[[str, str], Pin | None] | None = None,
    ) -> None:
        """`wake`: a turn wants this machine to be woken. `last_known`: what the controller wrote down of a session, for
        when it cannot be asked; it may block."""
        self._fleet = fleet
        self._peers = peers
        self._clock = clock
        self._wall = wall
        self._wake = wake
        self._last_known = last_known
        self._homes = HomeMemory(size)
        self._zones: OrderedDict[Key, str] = OrderedDict()
        """Where a session that moves must stay, while the home that it was to have is given up."""
        self._open: Tally[tuple[Key, str]] = Tally()

    async def decide(self, ask: Ask, refused: set[str], settle_at: float) -> Routed:
        """Where the turn goes. A new session is claimed on the way, and so is a new home in a lost one's stead.

        `refused` are replicas that had no place for this new session or did not answer; grows here.
        Until `settle_at` a session counts as new without a controller only if every host says so.
        """
        if (at_home := self._at_home(ask)) is not None:
            return at_home
        try:
            routed = await self._decide(ask, refused, settle_at)
            if not isinstance(routed, Send) and routed.wake is not None:
                self._wake(routed.wake)
            return routed
        except NotYet:
            message = "The controller is still reading which sessions have a home. Ask again in a moment."
            lost = self._homes.get(ask.session, ask.model)  # its home until it has another
            replica = None if lost is None or lost.home.fresh else lost.home.pin.replica
            return Wait("machine_unavailable", message, self._clock() + 1.0, replica)
        except _Held as held:
            message = f"This session's home is to be {held.replica}, which does not serve yet. Ask again in a moment."
            return Wait("machine_unavailable", message, self._clock() + 1.0, held.replica)
        except _Unproven as unproven:
            message = (
                f"The controller does not answer, and {unproven.replica} cannot be asked whether it is this "
                "session's home. Ask again in a moment."
            )
            return Wait("machine_unavailable", message, min(settle_at, self._clock() + 1.0))

    def _at_home(self, ask: Ask) -> Send | None:
        """Where nothing is to be asked: the home that a host has told of serves."""
        remembered = self._homes.get(ask.session, ask.model)
        if remembered is None or remembered.home.fresh:
            return None
        decision = choose(ask, remembered.home, self._fleet.snapshot(), self._clock())
        if not isinstance(decision, Send):
            return None
        return decision

    async def _decide(self, ask: Ask, refused: set[str], settle_at: float) -> Routed:
        if ask.session is None or model_barred(ask, self._fleet.snapshot()) is not None:
            return _settled(choose(ask, None, self._fleet.snapshot(), self._clock(), refused))
        key = (ask.session, ask.model)
        remembered = self._homes.get(*key)
        if (
            remembered is not None
            and remembered.home.fresh
            and (key, remembered.home.pin.replica) not in self._open
        ):
            self._release(key, remembered.home.pin.replica)
            remembered = None
        if remembered is None:
            if ask.family is not None:
                ask = replace(ask, parent=await self._parent(ask))
            home, decision = await self._claimed(ask, key, refused, settle_at)
        else:
            home = remembered.home
            decision = choose(ask, home, self._fleet.snapshot(), self._clock(), refused)
        if isinstance(decision, Send) or home is None:
            return _settled(decision)
        if home.fresh:
            if (key, home.pin.replica) in self._open:
                return _settled(decision)  # its host may be writing it down for another turn of the session
            self._release(key, home.pin.replica)
            refused.add(home.pin.replica)
            _, decision = await self._claimed(ask, key, refused, settle_at)
        elif (again := await self._look_again(key, home)) != home:
            decision = choose(ask, again, self._fleet.snapshot(), self._clock(), refused)
        if isinstance(decision, Move):
            return await self._move(ask, key, decision, refused)
        return decision

    async def _claimed(
        self, ask: Ask, key: Key, refused: set[str], settle_at: float
    ) -> tuple[Home | None, Decision]:
        """Its home and what follows from it. Nobody goes unclaimed to a replica that came to serve meanwhile."""
        ask = replace(ask, zone=self._zones.get(key, ask.zone))
        while True:
            home = await self._find(ask, key, refused, settle_at)
            decision = choose(ask, home, self._fleet.snapshot(), self._clock(), refused)
            if home is not None or not isinstance(decision, Send):
                return home, decision

    async def _move(self, ask: Ask, key: Key, move: Move, refused: set[str]) -> Routed:
        """A new home for a session whose home is lost. The controller says whether it is; without one nobody moves."""
        try:
            order = await self._beside_parent(ask, move)
            pin, known = await self._peers.claim(*key, order, refused, instead_of=move.lost)
        except Unreachable as error:
            log.info("a lost home stays as it is: the controller gives no other (%s)", error)
            return move.otherwise
        if (pin.replica, pin.generation) == (move.lost.replica, move.lost.generation):
            return move.otherwise
        self._check_held(pin, known, order, refused)
        first = self._homes.get(*key)
        if first is not None and first.home.pin.generation >= pin.generation:
            home = first.home  # another turn of it was faster
        else:
            home = self._remember(pin, fresh=not known)
        decision = choose(ask, home, self._fleet.snapshot(), self._clock(), refused)
        return move.otherwise if isinstance(decision, Move) else decision

    async def _beside_parent(self, ask: Ask, move: Move) -> Sequence[Candidate]:
        """Where it may go: to its parent's home, which may be a new one, if that is among them."""
        parent = None if ask.family is None else await self._parent(ask)
        there = [each for each in move.ranked if parent is not None and each.replica == parent.replica]
        return there or move.ranked

    async def _parent(self, ask: Ask) -> Pin | None:
        """The home of the session that began this one; a new one where its own is lost and it may move."""
        key = (ask.family or "", ask.model)
        # Nobody says 421 where a parent's home is another by now: who can know is asked first.
        pin, remembered = await self._known(key), self._homes.get(*key)
        if remembered is not None and (pin is None or _is_later(remembered.home, pin)):
            pin = remembered.home.pin
        if pin is None:
            return None
        of_parent = replace(ask, session=ask.family, family=None, parent=None)
        decision = choose(of_parent, Home(pin, False), self._fleet.snapshot(), self._clock())
        if isinstance(decision, Move):
            await self._move(of_parent, key, decision, set())
            remembered = self._homes.get(*key)
            pin = pin if remembered is None else remembered.home.pin
        return pin

    async def _known(self, key: Key, written: bool = False) -> Pin | None:
        """What the controller knows of a session, else the hosts. Claims nothing."""
        try:
            return await self._peers.indexed_pin(*key, written=written)
        except Unreachable:
            pin, told, _ = await self._ask_hosts(key)
            return pin or await self._kept_pin(key, told)

    def forget(self, session: str, model: str) -> None:
        """The session was ended: its next turn begins anew."""
        self._homes.drop(session, model)

    async def unknown(self, ask: Ask, replica: str) -> None:
        """The host at `replica` has no pin of this session: that is no home of it, whatever the index says."""
        remembered = self._homes.get(ask.session, ask.model)
        if remembered is None or remembered.home.fresh or remembered.home.pin.replica != replica:
            return  # another turn of it was faster
        pin = remembered.home.pin
        self.forget(pin.session, pin.model)
        try:
            await self._peers.disown(pin)
        except Unreachable as error:
            log.info("the controller cannot be told that %s has a session no longer (%s)", replica, error)

    def turn_begins(self, ask: Ask, replica: str) -> None:
        """A turn of this session is at that host until `turn_ends`."""
        self._open.up(((ask.session or "", ask.model), replica))

    def turn_ends(self, ask: Ask, replica: str) -> None:
        self._open.down(((ask.session or "", ask.model), replica))

    def is_fresh(self, ask: Ask, replica: str) -> bool:
        """Whether its home is claimed there and no host is known to have written it down."""
        remembered = self._homes.get(ask.session, ask.model)
        return remembered is not None and remembered.home.fresh and remembered.home.pin.replica == replica

    def is_told(self, ask: Ask, replica: str) -> bool:
        """Whether a host or the index has said that its home is there."""
        remembered = self._homes.get(ask.session, ask.model)
        if remembered is None or remembered.home.pin.replica != replica:
            return False
        return not (remembered.home.fresh or remembered.unsure)

    def suspect(self, ask: Ask, replica: str) -> None:
        """The turn was lost at that host, which may have written its pin down before."""
        if self.is_fresh(ask, replica):
            self._settle(ask, unsure=True)

    def confirm(self, ask: Ask, replica: str) -> None:
        """A host has this session: from now on it has a home there."""
        remembered = self._homes.get(ask.session, ask.model)
        if remembered is not None and remembered.home.pin.replica == replica:
            self._settle(ask, unsure=False)

    def _settle(self, ask: Ask, unsure: bool) -> None:
        remembered = self._homes.get(ask.session, ask.model)
        if remembered is None:
            return
        if remembered.home.fresh:
            remembered.home = replace(remembered.home, fresh=False)
        remembered.unsure = unsure

    def release(self, ask: Ask, replica: str) -> None:
        """The caller's turn, still at that host, came to nothing and nothing is written down.

        The next turn is claimed anew, unless another turn of the session is there.
        """
        key = (ask.session or "", ask.model)
        if self._open.get((key, replica), 0) <= 1:
            self._release(key, replica)

    def _release(self, key: Key, replica: str) -> None:
        remembered = self._homes.get(*key)
        if remembered is not None and remembered.home.fresh and remembered.home.pin.replica == replica:
            self._homes.drop(*key)
            zone = self._fleet.snapshot().zone_of(machine_of(remembered.home.pin))
            if remembered.home.pin.generation > 1 and zone is not None:
                self._zones[key] = zone
                while len(self._zones) > ZONES_REMEMBERED:
                    self._zones.popitem(last=False)

    def corrected(self, pin: Pin, replica: str) -> Home:
        """The host at `replica` says that this holds. That it is the home itself is not merged: it knows better."""
        remembered = self._homes.get(pin.session, pin.model)
        if remembered is not None and remembered.home.pin.replica == replica:
            self._homes.drop(pin.session, pin.model)
        return self.told(pin)

    def told(self, pin: Pin) -> Home:
        """A host or the index knows of a home. What holds from now on: the merge with what is remembered."""
        remembered = self._homes.get(pin.session, pin.model)
        if remembered is not None and remembered.home.fresh:
            if remembered.home.pin.generation > pin.generation:
                return remembered.home  # that is the home that was left
        elif remembered is not None:
            pin = merge(remembered.home.pin, pin)
        return self._remember(pin, fresh=False)

    async def _find(self, ask: Ask, key: Key, refused: set[str], settle_at: float) -> Home | None:
        """The session's home, a new one for a new session; None while no replica could be its home."""
        order = ranked(ask, self._fleet.snapshot(), self._clock())
        try:
            if order:
                pin, known = await self._peers.claim(*key, order, refused, child=ask.parent is not None)
                if (first := self._homes.get(*key)) is not None:
                    return first.home  # another turn of it was faster
                self._check_held(pin, known, order, refused)
                return self._remember(pin, fresh=not known)
            found = await self._peers.indexed_pin(*key, written=True)
        except Unreachable as error:
            log.info("controller gives no pin (%s); asking the hosts", error)
            found, told, silent = await self._ask_hosts(key)
            found = found or await self._kept_pin(key, told)
            if found is None:
                return self._settle_alone(ask, key, refused, silent, is_late=self._clock() >= settle_at)
        return None if found is None else self.told(found)

    def _check_held(self, pin: Pin, known: bool, order: Sequence[Candidate], refused: set[str]) -> None:
        """Raises _Held where it stays at a refused replica, whatever others there are. It is asked again then."""
        others = {each.replica for each in order} - refused
        if others and not known and pin.replica in refused:
            refused.discard(pin.replica)
            raise _Held(pin.replica)

    def _settle_alone(
        self, ask: Ask, key: Key, refused: set[str], silent: Sequence[str], is_late: bool
    ) -> Home | None:
        """No head, and no host that answers knows the session: choose on the own picture.

        A host that is silent may know it all the same: it is waited for, and once that `is_late` the session begins in
        that one's zone, or nowhere. Raises _Unproven meanwhile.
        """
        if (first := self._homes.get(*key)) is not None:
            return first.home  # another turn of it was faster
        snapshot = self._fleet.snapshot()
        order = ranked(ask, snapshot, self._clock())
        if not order:
            return None
        machines = {name: name.rpartition("/")[0] for name in silent}
        unsure = [name for name, machine in machines.items() if allowed(ask, machine, snapshot)]
        zones = {snapshot.zone_of(machines[name]) for name in unsure}
        order = [each for each in order if zones <= {snapshot.zone_of(each.replica.rpartition("/")[0])}]
        if unsure and not (is_late and order):
            raise _Unproven(unsure[0])
        best = next((candidate for candidate in order if candidate.replica not in refused), order[0])
        return self._remember(Pin(*key, best.replica, 1, self._wall()), fresh=True)

    async def _look_again(self, key: Key, home: Home) -> Home:
        """Whether the home of a waiting session has changed meanwhile; asked now and then only."""
        remembered = self._homes.get(*key)
        if remembered is None or self._clock() - remembered.asked_at < ASK_AGAIN_S:
            return home
        remembered.asked_at = self._clock()
        try:
            found = await self._known(key, written=True)
        except NotYet:
            return home
        return home if found is None else self.told(found)

    async def _kept_pin(self, key: Key, told: Collection[str]) -> Pin | None:
        """The home that the controller wrote down, unless the host there has told that it is none."""
        pin = None if self._last_known is None else await asyncio.to_thread(self._last_known, *key)
        return None if pin is None or pin.replica in told else pin

    async def _ask_hosts(self, key: Key) -> tuple[Pin | None, set[str], list[str]]:
        """What the reachable hosts know of the session, twins merged; which have told; the replicas of the model that
        have not."""
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
        return (reduce(merge, pins) if pins else None), told, sorted(silent)

    def _remember(self, pin: Pin, fresh: bool) -> Home:
        home = Home(pin, fresh)
        self._zones.pop((pin.session, pin.model), None)
        self._homes.put(home, self._clock())
        return home


def _is_later(home: Home, known: Pin) -> bool:
    """Whether it is a home that the session got after the one that the controller knows. A session that was ended and
    begun anew has fewer homes than before, and all of them later."""
    return not home.fresh and home.pin.generation > known.generation and home.pin.created_s > known.created_s


def _settled(decision: Routed | Move) -> Routed:
    return decision.otherwise if isinstance(decision, Move) else decision
