"""One random schedule: two routers, three hosts, one controller, their clients and what goes wrong, from a seed."""

import asyncio
import json
import random
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from cluster.slices import Need
from router.identity import digest
from serving.model import ModelSpec, ParkingSpec
from serving.pins import Pin
from tests.schedules.check import Check
from tests.schedules.clock import Process, SimLoop, simulated
from tests.schedules.engines import opening
from tests.schedules.harms import HOSTS, ROUTERS, Harms
from tests.schedules.hosts import Host
from tests.schedules.network import Answer, Network, SimClient
from tests.schedules.routers import Head, Router, without_threads

MODEL = "m"
SETTLE_S = 7.0
"""From when all is mended until the last turns."""
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
        self.check = Check(loop)
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
        self.clients = Process("clients", "client")
        self.client = SimClient(self.net)
        self.span_s = rng.uniform(4.0, 9.0) if rng.random() < 0.85 else rng.uniform(14.0, 22.0)
        self.sessions = rng.choice((2, 2, 3, 4))
        self._all_mended = asyncio.Event()
        self.requests = 0
        self.harms = Harms(self)
        self.check.may_twin = self.harms.dark.of_late

    async def play(self) -> None:
        note = self.check.note
        note("world", "sessions", self.sessions, "places", self.model.sessions, "span", round(self.span_s, 1))
        parts: list[Any] = [*self.hosts.values(), self.head, *self.routers]
        for part in parts:
            part.start()
        for at in sorted(self.rng.uniform(1.5, self.span_s) for _ in range(self.rng.randint(0, 8))):
            self.loop.call_later(at, self.harms.one)
        own = self.clients.context
        actors = [
            self.loop.create_task(self._act(number), context=own)
            for number in range(self.sessions)
            for _ in range(self.rng.choice((1, 1, 1, 2)))
        ]
        if self.rng.random() < 0.3:
            actors.append(self.loop.create_task(self._act(None), context=own))
        await asyncio.sleep(self.span_s)
        self._mend()
        _, late = await asyncio.wait(actors, timeout=END_S)
        if late:
            self.check.fault(f"{len(late)} clients still wait for an ending")
            return
        await asyncio.sleep(SETTLE_S)
        if self._has_twins():
            await asyncio.sleep(TWINS_S)
        await asyncio.gather(
            *(self.loop.create_task(self._last(number), context=own) for number in list(self.check.homes))
        )
        await asyncio.sleep(1.0)
        self._at_rest()

    def _has_twins(self) -> bool:
        pins: dict[str, set[Pin]] = {}
        for host in self.hosts.values():
            for entry in host.disk.rows.values():
                pins.setdefault(entry.pin.session, set()).add(entry.pin)
        return any(len(each) > 1 for each in pins.values())

    # what clients do

    async def _act(self, number: int | None) -> None:
        """Turn after turn of one session, until all is mended."""
        rng = self.rng
        pause_s = rng.choice((0.7, 2.0, 4.0))
        await asyncio.sleep(rng.uniform(0.5, 3.0))
        while not self._all_mended.is_set():
            for _ in range(rng.choice((1, 1, 3))):  # retries
                cancel_s = rng.expovariate(1.0) if rng.random() < 0.2 else None
                router = rng.choice(self.routers)
                if await self._turn(router, number, rng.random() < 0.5, cancel_s) == "ok":
                    break
                if rng.random() < 0.5:
                    await self._pause(rng.expovariate(1.0))
            await self._pause(rng.expovariate(1.0 / pause_s))

    async def _pause(self, seconds: float) -> None:
        """At most until all is mended."""
        try:
            async with asyncio.timeout(seconds):
                await self._all_mended.wait()
        except TimeoutError:
            pass

    async def _turn(self, router: Router, number: int | None, stream: bool, cancel_s: float | None) -> str:
        self.requests += 1
        name = f"{router.name}-{self.requests}"
        self.check.note("asks", name, number, "stream" if stream else "whole")
        asking = self.loop.create_task(self._ask(router, name, number, stream))
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

    async def _ask(self, router: Router, name: str, number: int | None, stream: bool) -> str:
        prompt = opening(number) + [7] * self.rng.randint(1, 5)
        body = {"model": MODEL, "prompt": prompt, "max_tokens": self.rng.randint(1, 4), "stream": stream}
        headers = {"host": "localhost", "x-request-id": name, "content-type": "application/json"}
        if number is not None:
            headers["x-homeport-session"] = f"s{number}"
        url = f"{router.address}/v1/completions"
        try:
            asked_at = self.loop.now
            answer = await self.client.post(url, data=json.dumps(body).encode(), headers=headers)
            self._acknowledge(router, number, answer, asked_at)
            text = await answer.read()
        except aiohttp.ClientConnectorError:
            return "refused"
        except aiohttp.ClientError:
            return "reset"
        return self._read(name, answer, stream, text)

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

    def _acknowledge(self, router: Router, number: int | None, answer: Answer, asked_at: float) -> None:
        outcome = answer.headers.get("x-homeport-pin", "none")
        replica = answer.headers.get("x-homeport-replica")
        if number is not None and replica is not None and outcome in ("new", "kept", "moved"):
            self.check.note("told", number, outcome, replica, answer.status)
            excused = self.harms.dark.excuses(
                router.name, asked_at, [pin.replica for pin in self.check.homes.get(number, ())]
            )
            self.check.acknowledged(
                number, outcome, replica, self.pin(number, replica), asked_at, excused, answer.status == 200
            )

    def pin(self, number: int, replica: str) -> Pin | None:
        row = self.by_replica[replica].disk.rows.get((session_of(number), MODEL))
        return None if row is None else row.pin

    async def _last(self, number: int) -> None:
        """After all was mended, through each router: the session is served at its home."""
        for router in self.routers:
            for _ in range(20):
                answer = await self._one(router, number)
                if answer.status == 200:
                    break
                await asyncio.sleep(1.0)
            else:
                self.check.fault(f"session {number} is not served by {router.name} though all is mended")
                continue
            replica = answer.headers["x-homeport-replica"]
            self.check.came_home(number, router.name, replica, self.pin(number, replica))

    async def _one(self, router: Router, number: int) -> Answer:
        body = {"model": MODEL, "prompt": opening(number), "max_tokens": 1}
        headers = {"host": "localhost", "x-homeport-session": f"s{number}"}
        url = f"{router.address}/v1/completions"
        answer = await self.client.post(url, data=json.dumps(body).encode(), headers=headers)
        await answer.read()
        return answer

    # the end

    def _mend(self) -> None:
        self.check.note("mended")
        self._all_mended.set()
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


def session_of(number: int) -> str:
    return digest("local", "", f"s{number}")
