"""One random schedule: two routers, three hosts, one controller, their clients and what goes wrong, from a seed."""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from cluster.slices import Need
from router.identity import digest
from serving.model import ModelSpec, ParkingSpec
from serving.pins import Pin, merge
from tests.schedules.check import Check
from tests.schedules.clients import MODEL, Clients, Family
from tests.schedules.clock import SimLoop, simulated
from tests.schedules.harms import HOSTS, ROUTERS, Harms
from tests.schedules.hosts import Host
from tests.schedules.network import Network
from tests.schedules.routers import Head, Router, without_threads
from tests.schedules.talks import Talk

SETTLE_S = 16.0
"""From when all is mended until the last turns: what the controller asked a keeper that was away takes 15 s to fail."""
TWINS_S = 20.0
"""By then every host knows which of two homes holds: the controller tells a host when it has heard of it."""
END_S = 60.0
"""By then every request has ended."""


@dataclass
class Mutation:
    """A fault built in on purpose. The checks must find it."""

    host: type[Host] = Host
    router: type[Router] = Router
    head: type[Head] = Head


@dataclass
class Outcome:
    seed: int
    problems: list[str]
    seen: dict[str, int]
    trace: list[str] = field(default_factory=list)
    steps: int = 0


def run(seed: int, mutation: Mutation | None = None) -> Outcome:
    """The whole schedule of one seed."""
    with simulated(seed) as loop:
        world = World(loop, mutation or Mutation())
        with without_threads(loop, world.net, world.model):
            loop.run_until_complete(world.play())
    problems = world.check.problems + loop.problems
    trace = [f"{at - 1000:9.4f} {what:10} {' '.join(map(str, more))}" for at, what, more in world.check.trace]
    return Outcome(seed, problems, dict(world.check.seen), trace, loop.steps)


class World:
    def __init__(self, loop: SimLoop, mutation: Mutation) -> None:
        rng = self.rng = loop.rng
        self.loop = loop
        self.check = Check(loop, self._newest)
        self.net = Network(loop, random.Random(rng.random()), self.check.fault)
        self.model = ModelSpec(
            name=MODEL,
            engine="llama.cpp",
            source="bundled",
            machines="all",
            replicas=1,
            need=Need(1, 1),
            take="needs",
            context=4000,
            sessions=rng.choice((1, 1, 2)),
            hold_s=rng.choice((0.0, 0.5, 2.0)),
            queue_s=rng.choice((4.0, 8.0, 12.0)),
            when_lost=rng.choice(("wait", "wait", "move", "fail")),
            parking=ParkingSpec(2**20, 0),
        )
        self.hosts = {name: mutation.host(loop, self.net, name, self.model, self.check) for name in HOSTS}
        self.by_replica = {host.replica: host for host in self.hosts.values()}
        for host in self.hosts.values():
            host.step_s = rng.choice((0.02, 0.1, 0.4))
            host.skew_s = rng.uniform(-5, 5)
        self.head = mutation.head(loop, self.net, self.hosts)
        self.routers = [mutation.router(loop, self.net, name, self.model) for name in ROUTERS]
        self.span_s = rng.uniform(4.0, 9.0) if rng.random() < 0.85 else rng.uniform(14.0, 22.0)
        self.clients = Clients(self)
        self._people()
        self.harms = Harms(self)
        self.check.may_twin = self.harms.dark.of_late

    def _people(self) -> None:
        """Who there is: named sessions, and a family or conversations or both or neither."""
        rng = self.rng
        has_family, talks = rng.random() < 0.4, rng.choice((0, 0, 0, 2, 3))
        self.single = rng.choice((1, 1, 2) if has_family or talks else (2, 2, 3, 4))
        self.parents: dict[int, int | None] = dict.fromkeys(range(self.single))
        """By number of a named session: who began it."""
        if has_family:
            family = Family(self.single, tuple(range(self.single + 1, self.single + 1 + rng.randint(1, 3))))
            self.check.families.families.append(family)
            self.parents |= {family.parent: None, **dict.fromkeys(family.children, family.parent)}
        openings, in_step = rng.choice((1, 1, 2)), rng.random() < 0.6
        self.talks = [Talk(self.clients, number, number % openings, in_step) for number in range(talks)]

    async def play(self) -> None:
        note = self.check.note
        note("world", "sessions", self.parents, "talks", len(self.talks), "places", self.model.sessions)
        parts: list[Any] = [*self.hosts.values(), self.head, *self.routers]
        for part in parts:
            part.start()
        for at in sorted(self.rng.uniform(1.5, self.span_s) for _ in range(self.rng.randint(0, 8))):
            self.loop.call_later(at, self.harms.one)
        own = self.clients.process.context
        actors = [self.loop.create_task(acting, context=own) for acting in self._acting()]
        await asyncio.sleep(self.span_s)
        self._mend()
        _, late = await asyncio.wait(actors, timeout=END_S)
        if late:
            self.check.fault(f"{len(late)} clients still wait for an ending")
            return
        await asyncio.sleep(SETTLE_S)
        if self._has_twins():
            await asyncio.sleep(TWINS_S)
        lasts: list[Any] = [
            self.clients.last(number, parent)
            for number, parent in self.parents.items()
            if number in self.check.homes
        ]
        lasts += [talk.last() for talk in self.talks]
        await asyncio.gather(*(self.loop.create_task(last, context=own) for last in lasts))
        self.check.families.at_last()
        await asyncio.sleep(1.0)
        self._at_rest()

    def _acting(self) -> Iterator[Any]:
        """What clients do."""
        for number in range(self.single):
            for _ in range(self.rng.choice((1, 1, 1, 2))):
                yield self.clients.act(number)
        for family in self.check.families.families:
            yield self.clients.family(family)
        for talk in self.talks:
            yield talk.act()
        if self.talks and self.rng.random() < 0.3:
            yield self.harms.restless()
        if self.rng.random() < 0.3:
            yield self.clients.act(None)

    def _has_twins(self) -> bool:
        pins: dict[str, set[Pin]] = {}
        for host in self.hosts.values():
            for entry in host.disk.rows.values():
                pins.setdefault(entry.pin.session, set()).add(entry.pin)
        return any(len(each) > 1 for each in pins.values())

    # what is known of sessions

    def pin(self, session: int | str, replica: str) -> Pin | None:
        """What a home's journal has. `session`: a number, or a guessed one's digest."""
        row = self.by_replica[replica].disk.rows.get((digest_of(session), MODEL))
        return None if row is None else row.pin

    def guessed(self, public: str, replica: str) -> str:
        """The digest of a guessed session, which its home's journal has; else the public id itself."""
        rows = self.by_replica[replica].disk.rows.values()
        return next((row.pin.session for row in rows if row.public == public), public)

    def _newest(self, number: int) -> Pin | None:
        found = [self.pin(number, replica) for replica in self.by_replica]
        return reduce(merge, filter(None, found)) if any(found) else None

    # the end

    def _mend(self) -> None:
        self.check.note("mended")
        self.clients.all_mended.set()
        self.harms.mend()

    def _at_rest(self) -> None:
        """Nothing is left open anywhere."""
        from serving import admission

        for router in self.routers:
            if router.relay is not None and router.relay.turns:
                self.check.fault(f"{router.name} still has {len(router.relay.turns)} turns")
        for host in self.hosts.values():
            assert host.app is not None
            turns = host.app._turns
            if turns._leases:
                self.check.fault(f"{host.replica} still has leases of {list(turns._leases)}")
            for problem in admission.problems(turns.state, self.loop.now):
                self.check.fault(f"{host.replica}: {problem}")


def digest_of(session: int | str) -> str:
    return session if isinstance(session, str) else digest("local", "", f"s{session}")
