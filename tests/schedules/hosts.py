"""Machines with one host each: the real host's app around a simulated engine, and the keeper that starts it anew.

The journal stands for a file that was fsynced: it outlives its host. Everything else of a killed host is gone.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.machine import CpuCore, Hardware
from cluster.proof import machine_token
from cluster.ray_cluster import RayFailed
from serving import host_app
from serving.journal_file import JournalNews, Mark
from serving.model import ModelSpec
from serving.pins import Pin
from tests.schedules.clock import Process, SimLoop
from tests.schedules.engines import SimEngine, opened_by
from tests.schedules.journals import Disk, SimJournal
from tests.schedules.network import Network

TOKEN = "token"
PORT = 8100
HEAD = "head"
SETTLED_TICK_S, BUSY_TICK_S = 5.0, 0.5
"""How often a keeper looks at its host."""
RAY_NOTICES_S = 6.0
"""How long a machine must be cut off before Ray leaves it out."""
HARDWARE = Hardware((CpuCore(0, (0,), "unknown", 0),), 2**33, ()).to_json()


class SimMemory:
    """serving.host_memory.MemoryWatch of a process with room enough."""

    limit_bytes = 2**33

    def note_loaded(self) -> int:
        return 0

    def report(self) -> dict[str, Any]:
        return {}


class Host:
    """One machine, its keeper and its host. `changed()` is called when the keeper has news."""

    def __init__(self, loop: SimLoop, net: Network, name: str, model: ModelSpec, check: Any) -> None:
        self.loop = loop
        self.net = net
        self.name = name
        self.replica = f"{name}/0"
        self.address = f"http://{name}:{PORT}"
        self.model = model
        self.check = check
        self.disk = Disk(name, self._wrote)
        self._mark = self.disk.mark
        self.process: Process | None = None
        self.app: host_app.HostApp | None = None
        self.incarnation = 0
        self.step_s = 0.1
        self.load_s = 0.5
        self.skew_s = 0.0
        self.keeper_alive = True
        self.revision = 0
        self.cut_since: float | None = None
        """Since when the machine is cut off from the head."""
        self.version = 0
        self._said: Any = None
        self._waiting: list[asyncio.Future[None]] = []
        self._tick()

    def start(self) -> None:
        if self.alive:
            return
        self.incarnation += 1
        self.process = Process(self.replica, self.name, self.skew_s)
        self.loop.call_soon(self._boot, self.process, context=self.process.context)

    def _boot(self, process: Process) -> None:
        life = (self.replica, self.incarnation)
        engine = SimEngine(
            self.loop,
            self.step_s,
            lambda turn, opening: self.check.began(life, turn, self._whose(turn, opening)),
            lambda turn: self.check.ended(life, turn),
        )
        about = host_app.About(
            replica=self.replica,
            machine=self.name,
            slot=0,
            model=self.model,
            incarnation=self.incarnation,
            config_digest="d",
            start_time=1,
            folder=Path("/nonexistent"),
        )
        build: Any = host_app.build_app
        self.app = build(
            engine,
            about,
            self.journal(process),
            machine_token(TOKEN, f"id-{self.name}"),
            SimMemory(),
            lambda layout: "f" * 64,
            self._failed,
        )
        assert self.app is not None
        self.app.load()
        self.net.listen(self.address, process, self.app)

    def _whose(self, turn: int, token: int) -> int | str | None:
        """A named session's number, a guessed one's digest."""
        assert self.app is not None
        number = opened_by(token)
        return self.app._turns._leases[turn].owner if number is None else number

    def journal(self, process: Process) -> Any:
        return SimJournal(self.disk, process)

    def _wrote(self, pin: Pin) -> None:
        if pin.replica == self.replica:
            self.check.wrote(pin)

    def kill(self) -> None:
        if self.alive:
            assert self.process is not None
            self.process.kill()
            self.check.killed((self.replica, self.incarnation))
            self.loop.call_later(0.01, self._look)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.alive

    def _failed(self, reason: str, _permanent: bool) -> None:
        self.check.fault(f"{self.replica} failed: {reason}")

    # its keeper

    def _tick(self) -> None:
        self._look()
        settled = self.alive and self.app is not None and self.app.state == "ready"
        self.loop.call_later(SETTLED_TICK_S if settled else BUSY_TICK_S, self._tick)

    def _look(self) -> None:
        """The journal's mark is what a host tells; a dead one tells nothing."""
        if not self.keeper_alive:
            return
        if self.alive:
            self._mark = self.disk.mark
        said = (self.incarnation, self.revision, self.alive, self._mark)
        if said != self._said:
            self._said = said
            self.version += 1
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_result(None)

    def report(self) -> dict[str, Any]:
        incarnation, revision, alive, mark = self._said
        return {
            "id": f"id-{self.name}",
            "name": self.name,
            "zone": "default",
            "address": self.name,
            "state": "ready",
            "revision": revision,
            "hardware": HARDWARE,
            "reserve": {"cores": 0, "memory_bytes": 0},
            "refused": {},
            "version": self.version,
            "replicas": [
                {
                    "name": self.replica,
                    "slot": 0,
                    "model": self.model.name,
                    "address": self.name,
                    "port": PORT,
                    "slice": None,
                    "config_digest": "d",
                    "state": "ready" if alive else "starting",
                    "detail": "",
                    "progress": 1.0,
                    "incarnation": incarnation,
                    "journal": str(mark),
                }
            ],
        }

    async def news(self, known: int, wait_s: float) -> None:
        if self.version == known:
            waiter = self.loop.create_future()
            self._waiting.append(waiter)
            try:
                async with asyncio.timeout(wait_s):
                    await waiter
            except TimeoutError:
                pass


class SimMembers:
    """serving.controller.Members: the keepers of the hosts, asked over Ray."""

    def __init__(self, hosts: dict[str, Host], link: Callable[[str], Any], loop: SimLoop) -> None:
        self._hosts = {f"id-{host.name}": host for host in hosts.values()}
        self._link = link
        self._loop = loop

    def machines(self) -> list[str]:
        now = self._loop.now
        return [
            id_
            for id_, host in self._hosts.items()
            if host.cut_since is None or now - host.cut_since < RAY_NOTICES_S
        ]

    async def report(self, machine: str, known: int, wait_s: float) -> dict[str, Any]:
        host = self._hosts[machine]
        await self._reach(host, wait_s + 5.0)
        await host.news(known, wait_s)
        await self._reach(host, 5.0)
        return host.report()

    async def pins(self, machine: str, known: dict[int, Mark]) -> dict[int, JournalNews]:
        host = self._hosts[machine]
        await self._reach(host, 30.0)
        answer = {0: host.disk.since(known.get(0, Mark()))}
        await self._reach(host, 30.0)
        return answer

    async def apply(
        self, machine: str, revision: int, _wishes: list[dict[str, Any]], _head: str
    ) -> dict[str, Any]:
        host = self._hosts[machine]
        await self._reach(host, 5.0)
        host.revision = max(host.revision, revision)
        return host.report()

    async def yield_machine(self, machine: str, for_s: float | None, ends: bool) -> dict[str, Any]:
        raise RayFailed(f"{machine} serves: no person wants theirs in these schedules")

    async def bring(self, machine: str, orders: dict[str, Any]) -> dict[str, Any]:
        raise RayFailed(f"{machine} has no models from elsewhere in these schedules: {orders}")

    async def leave(self, machine: str) -> None:
        raise RayFailed(f"{machine} stays: nobody leaves in these schedules")

    async def wake(self, machine: str, mac: str, networks: list[str]) -> int:
        raise RayFailed(f"{machine} sends nothing: nobody is woken in these schedules")

    async def _reach(self, host: Host, timeout_s: float) -> None:
        await asyncio.sleep(self._link(host.name).delay_s())
        if self._link(host.name).cut:
            await asyncio.sleep(timeout_s)
            raise TimeoutError
        if not host.keeper_alive:
            raise RayFailed("the keeper is dead")
