"""Finding sessions by what they are known by beside their names: public ids, and what their messages say so far.

Remembers nothing: the controller and the hosts know. Checks whose a session is, and moves none.
"""

import asyncio
from collections.abc import Sequence

from router.choose import allowed
from router.decision import Ask, machine_of
from router.fleet import Fleet
from router.identity import ANONYMOUS, key_scope
from router.keys import Key
from router.peers import KnownPin, Peers, Unreachable
from serving.pins import merge


class CannotSay(Exception):
    """Neither the controller nor every host could be asked. `replicas`: those that could not."""

    def __init__(self, replicas: Sequence[str]) -> None:
        super().__init__(", ".join(replicas))
        self.replicas = tuple(replicas)


def owns(key: Key, found: KnownPin) -> bool:
    """Whether it is a session of this key. One without a scope was made before there were keys."""
    return found.scope == key_scope(key.name) or (found.scope is None and key.name == ANONYMOUS)


class Finder:
    """Asks the controller and the hosts of the router's picture."""

    def __init__(self, fleet: Fleet, peers: Peers) -> None:
        self._fleet = fleet
        self._peers = peers

    async def by_public(self, public: str, model: str) -> KnownPin | None:
        """The pin of a session by its public id. Raises NotYet or CannotSay where that cannot be said."""
        indexed, head_knows = None, True
        try:
            indexed = await self._peers.indexed(public, model)
        except Unreachable:
            head_knows = False
        if indexed is not None and indexed.scope is not None:
            return indexed
        # What was written down just now the controller has not read yet.
        known, silent = await self.at_hosts(public, model)
        if known:
            return _winner(list(known.values()))
        if silent and (indexed is not None or not head_knows):
            raise CannotSay(silent)
        return None

    async def by_history(self, histories: Sequence[str], ask: Ask) -> KnownPin | None:
        """The guessed session that goes on longest with this, of all that answer; None for a new one.

        One that could not be served at its home is none of them: a guess keeps nobody from beginning anew.
        """
        now, snapshot = self._fleet.now(), self._fleet.snapshot()
        bases = [
            base
            for replica in snapshot.of_model(ask.model)
            if replica.reach(now) in ("up", "suspect")
            and allowed(ask, replica.machine, snapshot)
            and (base := self._fleet.base(replica.name)) is not None
        ]
        found = await self._find(bases, histories, ask)
        if len(found) > 1:  # None says which one it has: ask for each, the longest first.
            for history in histories:
                if exact := await self._find(list(found), [history], ask):
                    found = exact
                    break
        return min(found.values(), key=_unused, default=None)

    async def _find(self, bases: Sequence[str], histories: Sequence[str], ask: Ask) -> dict[str, KnownPin]:
        """By host, what those know that have any of these histories. What has moved has its home elsewhere."""
        scope = key_scope(ask.key.name)
        answers = await asyncio.gather(
            *(self._peers.find(base, histories, ask.model, scope) for base in bases), return_exceptions=True
        )
        _raise_faults(answers)
        snapshot = self._fleet.snapshot()
        return {
            base: found
            for base, found in zip(bases, answers, strict=True)
            if isinstance(found, KnownPin) and allowed(ask, machine_of(found.pin), snapshot)
        }

    async def at_hosts(self, session: str, model: str) -> tuple[dict[str, KnownPin], list[str]]:
        """By replica, what the reachable hosts know of a session or public id; and replicas that are silent."""
        bases = {name: base for name in self._fleet.reachable() if (base := self._fleet.base(name))}
        answers = await asyncio.gather(
            *(self._peers.at_host(base, session, model) for base in bases.values()), return_exceptions=True
        )
        _raise_faults(answers)
        known = {n: a for n, a in zip(bases, answers, strict=True) if isinstance(a, KnownPin)}
        told = {n for n, a in zip(bases, answers, strict=True) if not isinstance(a, BaseException)}
        silent = {replica.name for replica in self._fleet.snapshot().of_model(model)} - told
        return known, sorted(silent)


def _unused(found: KnownPin) -> float:
    """The one that was used last comes first."""
    used_s = found.facts.get("used_s")
    return -float(used_s) if isinstance(used_s, int | float) else 0.0


def _winner(found: list[KnownPin]) -> KnownPin:
    best = found[0]
    for each in found[1:]:
        if merge(best.pin, each.pin) is each.pin:
            best = each
    return best


def _raise_faults(answers: Sequence[object]) -> None:
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, Unreachable):
            raise answer
