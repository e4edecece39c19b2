"""What goes wrong in a schedule, what people do to its sessions, and when whom could not be asked."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from router.errors import Rejected
from router.identity import digest
from router.keys import LOCAL
from router.sessions import Sessions
from tests.schedules.hosts import HEAD

if TYPE_CHECKING:
    from tests.schedules.world import World

ROUTERS = ("ra", "rb")
HOSTS = ("h0", "h1", "h2")
UNHEARD_S = 12.0
"""How long a pin may wait in a line and then for the keeper's next look until the controller hears of it."""
MOVES_S = 15.0
"""By then a move is over whose router was killed."""


class Harms:
    """Each undoes itself after a while."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.loop = world.loop
        self.rng = world.rng
        self.net = world.net
        self.check = world.check
        self.hosts = world.hosts
        self.dark = Dark(world)
        self._moving: dict[str, float] = {}
        """Until when somebody may be moving a session."""
        self._cuts: dict[tuple[str, str], int] = {}

    def one(self) -> None:
        rng = self.rng
        kills = (self._kill_host, self._kill_host, self._kill_router, self._kill_head, self._kill_keeper)
        cuts = (self._cut, self._cut, self._cut, self._isolate, self._lose, self._slow)
        others = (self._stop_host, self._stop_router, self._manage, self._manage)
        harm: Callable[[], None] = rng.choice((*kills, *cuts, *others))
        harm()
        self.dark.look()

    def _later(self, least_s: float, most_s: float, what: Callable[[], Any]) -> None:
        def then() -> None:
            self.dark.look()
            what()

        self.loop.call_later(self.rng.uniform(least_s, most_s), then)

    def _kill_host(self) -> None:
        host = self.hosts[self.rng.choice(HOSTS)]
        self.check.note("kills", host.replica)
        host.kill()
        self._later(0.3, 6.0, host.start)

    def _stop_host(self) -> None:
        host = self.hosts[self.rng.choice(HOSTS)]
        if host.app is not None and host.process is not None and host.process.alive:
            if host.app.state == "draining":
                return
            self.check.note("stops", host.replica)
            host.process.context.run(host.app.stop)
            self._later(0.1, 2.5, host.kill)
            self._later(2.5, 5.0, host.start)

    def _kill_router(self) -> None:
        router = self.rng.choice(self.world.routers)
        self.check.note("kills", router.name)
        router.kill()
        self._later(0.2, 2.0, router.start)

    def _stop_router(self) -> None:
        router = self.rng.choice(self.world.routers)
        if router.process is not None and router.process.alive:
            self.check.note("stops", router.name)
            router.process.context.run(router.stop)
            self._later(0.2, 1.0, router.kill)
            self._later(1.0, 3.0, router.start)

    def _kill_head(self) -> None:
        self.check.note("kills", "controller")
        self.world.head.kill()
        self._later(0.3, 10.0, self.world.head.start)

    def _kill_keeper(self) -> None:
        host = self.hosts[self.rng.choice(HOSTS)]
        self.check.note("kills", "keeper", host.name)
        host.keeper_alive = False
        self._later(1.0, 12.0, lambda: setattr(host, "keeper_alive", True))

    def _cut(self) -> None:
        pairs = [(router, host) for router in ROUTERS for host in HOSTS]
        pairs += [(router, HEAD) for router in ROUTERS] + [(HEAD, host) for host in HOSTS]
        self._cut_links([self.rng.choice(pairs)])

    def _isolate(self) -> None:
        """One machine is cut off from all others."""
        everybody = (*ROUTERS, *HOSTS, HEAD)
        one = self.rng.choice(everybody)
        self._cut_links([(one, other) for other in everybody if other != one])

    def _cut_links(self, pairs: list[tuple[str, str]], for_s: float | None = None) -> None:
        self.check.note("cuts", *pairs)
        for a, b in pairs:
            pair = (a, b) if a < b else (b, a)
            self._cuts[pair] = self._cuts.get(pair, 0) + 1
            self.net.link(a, b).cut = True
        self._note_cuts()
        most_s = self.rng.choice((3.0, 8.0, 25.0))
        least_s, most_s = (0.3, most_s) if for_s is None else (for_s, for_s)
        self._later(least_s, most_s, lambda: self._mend_links(pairs))

    def _mend_links(self, pairs: list[tuple[str, str]]) -> None:
        for a, b in pairs:
            pair = (a, b) if a < b else (b, a)
            if self._cuts.get(pair):
                self._cuts[pair] -= 1
                if not self._cuts[pair]:
                    self.check.note("mends", pair)
                    self.net.link(a, b).mend()
        self._note_cuts()

    def _note_cuts(self) -> None:
        for host in self.hosts.values():
            cut = self.net.link(HEAD, host.name).cut
            if not cut:
                host.cut_since = None
            elif host.cut_since is None:
                host.cut_since = self.loop.now

    def _lose(self) -> None:
        """A whole machine is gone for long."""
        host = self.hosts[self.rng.choice(HOSTS)]
        self.check.note("loses", host.name)
        host.kill()
        pairs = [(host.name, other) for other in (*ROUTERS, *HOSTS, HEAD) if other != host.name]
        self._cut_links(pairs, self.rng.uniform(6.0, 20.0))
        self._later(6.0, 20.0, host.start)

    def _manage(self) -> None:
        """Somebody ends or moves a session, or gives a machine up."""
        router = self.rng.choice(self.world.routers)
        sessions = router.sessions
        if router.process is None or not router.process.alive or sessions is None:
            return
        number, machine = self.rng.choice(list(self.world.parents)), self.rng.choice(HOSTS)
        guessed = list(self.world.clients.guessed.values())
        name = self.rng.choice(guessed) if guessed and self.rng.random() < 0.5 else f"s{number}"
        match self.rng.randrange(4):
            case 0:
                work: Coroutine[Any, Any, Any] = self._end(sessions, number)
            case 1 | 2:
                work = self._move(sessions, name)
            case _:
                work = self._managed("forgets", (machine,), sessions.forget(machine))
        self.loop.create_task(work, context=router.process.context)

    async def _move(self, sessions: Sessions, name: str) -> None:
        """Elsewhere, and sometimes back again; one person at a time, as long as their routers live."""
        if self.loop.now < self._moving.get(name, 0.0):
            return
        self._moving[name] = self.loop.now + MOVES_S
        self.check.families.moves(name)
        for machine in self.rng.sample(HOSTS, self.rng.choice((1, 1, 2, 3))):
            if self._somebody_is_away():
                guessed = self.world.clients.guessed.items()
                self.check.moved_blind |= {session for session, public in guessed if public == name}
            await self._managed("moves", (name, machine), sessions.move(name, machine, LOCAL))
            await asyncio.sleep(self.rng.uniform(0.3, 2.0))
        self._moving[name] = 0.0

    def _somebody_is_away(self) -> bool:
        """Whether the home that a session leaves may not be able to say what was said there last."""
        links = [self.net.link(router, host) for router in ROUTERS for host in HOSTS]
        return any(link.cut or link.slow for link in links) or not all(h.alive for h in self.hosts.values())

    async def restless(self) -> None:
        """Somebody moves guessed sessions to and fro until all is mended."""
        clients = self.world.clients
        while not clients.all_mended.is_set():
            await clients.pause(self.rng.uniform(0.2, 1.5))
            router = self.rng.choice(self.world.routers)
            name = next(reversed(clients.guessed.values()), None)
            if name and router.process is not None and router.process.alive and router.sessions is not None:
                moving = self._move(router.sessions, name)
                self.loop.create_task(moving, context=router.process.context)

    async def _managed(self, what: str, whom: tuple[Any, ...], doing: Any) -> bool:
        self.check.note(what, *whom)
        try:
            told = await doing
        except Rejected as error:
            self.check.note("cannot", what, *whom, error.error.code)
            return False
        self.check.seen[what] += 1
        self.check.note("done", what, *whom, told)
        return True

    async def _end(self, sessions: Sessions, number: int) -> None:
        session = digest(LOCAL.name, "", f"s{number}")
        self.check.ends(number, session)
        if await self._managed("over", (number,), sessions.end(f"s{number}", LOCAL)):
            self.check.is_over(number, session)

    def _slow(self) -> None:
        everybody = (*ROUTERS, *HOSTS, HEAD)
        a, b = self.rng.sample(everybody, 2)
        self.check.note("slows", a, b)
        link = self.net.link(a, b)
        link.slow = self.rng.choice((0.1, 0.5))
        self._later(1.0, 10.0, lambda: setattr(link, "slow", 0.0))

    def mend(self) -> None:
        """All at once."""
        self.dark.look()
        self._cuts.clear()
        self.net.mend_all()
        self._note_cuts()
        for host in self.hosts.values():
            host.keeper_alive = True
        parts: list[Any] = [*self.hosts.values(), self.world.head, *self.world.routers]
        for part in parts:
            self._later(0.0, 1.0, part.start)


class Dark:
    """When whom could not be asked: what excuses that a session got two homes."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._until: dict[str, float] = {}
        """By what was dark last, and by replica that was away: until when; it may be so now too."""

    def excuses(self, router: str, since: float, homes: list[str]) -> bool:
        """Whether that router could not ask the controller since then, or the controller of now could not always read
        the journal of one of these homes, or has not heard yet of one that another router had to choose alone."""
        began = self._world.head.began_at
        self.look()
        if any(self._until.get(what, 0.0) >= since - 1.0 for what in ("head", router)):
            return True
        if any(self._until.get(other, 0.0) >= since - UNHEARD_S for other in ROUTERS):
            return True
        return any(self._until.get(home.partition("/")[0], 0.0) >= began for home in homes)

    def away(self, replica: str, since: float) -> bool:
        """Whether that host could not be asked since then, so that routers may have asked it again with less time."""
        self.look()
        return self._until.get(replica, 0.0) >= since

    def of_late(self) -> bool:
        """Whether any router may have settled alone for a turn that is written down now."""
        since = self._world.loop.now - self._world.model.queue_s - 5.0
        return any(self.excuses(router, since, [f"{name}/0" for name in HOSTS]) for router in ROUTERS)

    def look(self) -> None:
        """Before and after every change."""
        world, now = self._world, self._world.loop.now
        if world.head.process is None or not world.head.process.alive:
            self._until["head"] = now
        for name in (*ROUTERS, *HOSTS):
            link = world.net.link(HEAD, name)
            host = world.hosts.get(name)
            if link.cut or link.slow or (host is not None and not host.keeper_alive):
                self._until[name] = now
            if host is not None and (not host.alive or any(world.net.link(r, name).cut for r in ROUTERS)):
                self._until[host.replica] = now
