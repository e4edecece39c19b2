"""The clients of a schedule: named sessions, nobody's requests, and families. Guessed conversations are in talks.py."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.schedules.clock import Process
from tests.schedules.engines import opening
from tests.schedules.network import Answer, SimClient
from tests.schedules.routers import Router

if TYPE_CHECKING:
    from tests.schedules.world import World

MODEL = "m"
PINNED = ("new", "kept", "moved")
Said = tuple[tuple[str, str], ...]
"""A conversation's messages: roles and words."""


@dataclass(frozen=True)
class Family:
    """Numbers of sessions: who began the others, and those."""

    parent: int
    children: tuple[int, ...]


@dataclass(frozen=True)
class Asks:
    """What one request asks for. Without a number and without `said` it is nobody's."""

    number: int | None = None
    parent: int | None = None
    said: Said | None = None
    """Of a session that is not named."""
    tokens: int = 1
    words: int = 0
    stream: bool = False

    def post(self, client: SimClient, router: Router, name: str) -> Any:
        headers = {"host": "localhost", "x-request-id": name, "content-type": "application/json"}
        body: dict[str, Any] = {"model": MODEL, "max_tokens": self.tokens, "stream": self.stream}
        if self.said is None:
            path, body["prompt"] = "completions", opening(self.number) + [7] * self.words
        else:
            path, body["messages"] = "chat/completions", [{"role": r, "content": c} for r, c in self.said]
        if self.number is not None:
            headers["x-homeport-session"] = f"s{self.number}"
        if self.parent is not None:
            headers["x-homeport-parent"] = f"s{self.parent}"
        return client.post(f"{router.address}/v1/{path}", data=json.dumps(body).encode(), headers=headers)


class Clients:
    """All of one world."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.loop = world.loop
        self.rng = world.rng
        self.check = world.check
        self.process = Process("clients", "client")
        self.client = SimClient(world.net)
        self.all_mended = asyncio.Event()
        self.requests = 0
        self.guessed: dict[str, str] = {}
        """Public ids of guessed sessions."""

    async def act(self, number: int | None) -> None:
        """Turn after turn of one session, until all is mended."""
        rng = self.rng
        pause_s = rng.choice((0.7, 2.0, 4.0))
        await asyncio.sleep(rng.uniform(0.5, 3.0))
        while not self.all_mended.is_set():
            await self._insist(number)
            await self.pause(rng.expovariate(1.0 / pause_s))

    async def family(self, family: Family) -> None:
        """A parent's turns, and its children's between them and during them, until all is mended."""
        rng = self.rng
        pause_s = rng.choice((0.3, 1.0, 2.0))
        await asyncio.sleep(rng.uniform(0.5, 3.0))
        working: set[asyncio.Task[None]] = set()
        while not self.all_mended.is_set():
            await self._insist(family.parent)
            if working:
                await asyncio.wait(working)
            if self.all_mended.is_set():
                return
            asked = [child for child in family.children if rng.random() < 0.7]
            working = {self.loop.create_task(self._insist(child, family.parent)) for child in asked}
            if working and rng.random() < 0.4:
                await asyncio.wait(working)
            await self.pause(rng.expovariate(1.0 / pause_s))
        if working:
            await asyncio.wait(working)

    async def _insist(self, number: int | None, parent: int | None = None) -> None:
        """One turn, asked for again now and then where nothing comes of it."""
        rng = self.rng
        for _ in range(rng.choice((1, 1, 3))):
            cancel_s = rng.expovariate(1.0) if rng.random() < 0.2 else None
            tokens = rng.randint(1, 4) if parent is None or rng.random() < 0.5 else self._long(number)
            asks = Asks(number, parent, None, tokens, rng.randint(1, 5), rng.random() < 0.5)
            if await self.turn(asks, cancel_s) == "ok" or self.all_mended.is_set():
                break
            if rng.random() < 0.5:
                await self.pause(rng.expovariate(1.0))

    def _long(self, number: int | None) -> int:
        """Tokens of a turn that takes about as long as its parent may wait, unless these would be too many."""
        home = None if number is None else self.check.homes.get(number)
        step_s = 0.4 if not home else self.world.by_replica[home[-1].replica].step_s
        return min(30, int(self.rng.uniform(0.8, 1.4) * self.world.model.queue_s / step_s))

    async def pause(self, seconds: float) -> None:
        """At most until all is mended."""
        try:
            async with asyncio.timeout(seconds):
                await self.all_mended.wait()
        except TimeoutError:
            pass

    async def turn(
        self, asks: Asks, cancel_s: float | None, answered: Callable[[], None] = lambda: None
    ) -> str:
        """Its ending's name. `answered` is called where a session that is not named got its whole answer."""
        router = self.rng.choice(self.world.routers)
        self.requests += 1
        name = f"{router.name}-{self.requests}"
        self.check.note("asks", name, asks.number, "stream" if asks.stream else "whole", asks.said or "")
        asking = self.loop.create_task(self._ask(router, name, asks, answered))
        lives = router.lives
        done, _ = await asyncio.wait({asking}, timeout=cancel_s)
        if not done:
            asking.cancel()
            await asyncio.wait({asking})
        ending = "cancelled" if asking.cancelled() else asking.result()
        if (
            ending == "reset"
            and router.lives == lives
            and router.process is not None
            and router.process.alive
        ):
            self.check.fault(f"{name} was reset by a router that lives")
        self.check.ending(name, ending)
        return ending

    async def _ask(self, router: Router, name: str, asks: Asks, answered: Callable[[], None]) -> str:
        asked_at = self.loop.now
        if asks.number is not None and asks.parent is not None:
            self.check.families.asked(asks.number, asks.parent)
        try:
            answer = await asks.post(self.client, router, name)
            self._acknowledge(router, asks, answer, asked_at)
            text = await answer.read()
        except aiohttp.ClientConnectorError:
            return "refused"
        except aiohttp.ClientError:
            return "reset"
        ending = self._read(name, answer, asks.stream, text)
        if ending == "ok" and asks.said is not None:
            self._landed(asks.said, answer, asked_at)
            answered()
        if ending == "queue_timeout" and asks.number is not None:
            replica = answer.headers.get("x-homeport-replica", "")
            queue_s, away = self.world.model.queue_s, self.world.harms.dark.away(replica, asked_at)
            self.check.families.timed_out(name, asks.number, replica, asked_at, queue_s, away)
        return ending

    def _read(self, name: str, answer: Answer, stream: bool, text: bytes) -> str:
        if answer.status != 200:
            error = json.loads(text)["error"]
            return str(error["code"])
        if not stream:
            json.loads(text)
            return "ok"
        done = text.count(b"data: [DONE]")
        errors = text.count(b'data: {"error"')
        if done + errors != 1:
            self.check.fault(f"{name} has {done} ends and {errors} errors: {text[-200:]!r}")
        return "ok" if done else str(json.loads(text.rpartition(b"data: ")[2])["error"]["code"])

    def _acknowledge(self, router: Router, asks: Asks, answer: Answer, asked_at: float) -> None:
        outcome = answer.headers.get("x-homeport-pin", "none")
        replica = answer.headers.get("x-homeport-replica")
        if replica is None or outcome not in PINNED:
            return
        world, served = self.world, answer.status == 200
        session: int | str
        if asks.said is not None:
            public = answer.headers["x-homeport-session"]
            session = world.guessed(public, replica)
            self.guessed[session] = public
        elif asks.number is not None:
            session = asks.number
        else:
            return
        self.check.note("told", session, outcome, replica, answer.status)
        pin = world.pin(session, replica)
        homes = [replica, *(each.replica for each in self.check.homes.get(session, ()))]
        excused = world.harms.dark.excuses(router.name, asked_at, homes)
        self.check.acknowledged(session, outcome, replica, pin, asked_at, excused, served)
        if asks.number is not None and asks.parent is not None and pin is not None:
            about = [each.replica for each in self.check.homes.get(asks.parent, ())]
            apart = world.harms.dark.excuses(router.name, asked_at, [*homes, *about])
            self.check.families.told(asks.number, asks.parent, pin, apart)

    def _landed(self, said: Said, answer: Answer, asked_at: float) -> None:
        """A head without a context may be the router's: it says whose turn it seemed to be while there was no host."""
        if "x-homeport-context" not in answer.headers:
            self.check.seen["guessed turns whose heads came early"] += 1
            return
        replica = answer.headers["x-homeport-replica"]
        session = self.world.guessed(answer.headers["x-homeport-session"], replica)
        self.check.landed(session, said, replica, asked_at)

    # after all was mended

    async def last(self, number: int, parent: int | None) -> None:
        """Through each router: the session is served at its home."""
        for router in self.world.routers:
            answer = await self.served(router, Asks(number, parent))
            if answer is None:
                self.check.fault(f"session {number} is not served by {router.name} though all is mended")
                continue
            replica = answer.headers["x-homeport-replica"]
            self.check.came_home(number, router.name, replica, self.world.pin(number, replica))

    async def served(self, router: Router, asks: Asks) -> Answer | None:
        """The first answer that is one; None if there is none for long."""
        for _ in range(20):
            self.requests += 1
            answer: Answer = await asks.post(self.client, router, f"{router.name}-{self.requests}")
            await answer.read()
            if answer.status == 200:
                return answer
            await asyncio.sleep(1.0)
        return None
