"""A router of several real processes, kept as the parent keeps it, before stand-ins for the controller and hosts."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from prometheus_client.parser import text_string_to_metric_families

from cluster.paths import Paths
from cluster.processes import end, ours
from router.workers import Workers
from tests.ports import free_port
from tests.standins import MODEL, TOKEN, Answer, AnswersHost, Controller, model_spec, running

TRIES = 60
"""Among two workers a connection does not go to the other one so often in a row."""


@dataclass
class Through:
    """A client whose connections go to one worker."""

    url: str
    pid: int
    made: list[aiohttp.ClientSession] = field(default_factory=list)

    async def ask(self, method: str, path: str, **kwargs: Any) -> Answer:
        """Over a connection of its own."""
        client = await self.connected()
        async with client.request(method, self.url + path, **kwargs) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, **kwargs: Any) -> Answer:
        return await self.ask("GET", path, **kwargs)

    async def chat(self, session: str | None = None, key: str | None = None, **body: Any) -> Answer:
        headers = {} if session is None else {"x-session-id": session}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        said = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], **body}
        return await self.ask("POST", "/v1/chat/completions", json=said, headers=headers)

    async def until_seen(self, replica: str, state: str) -> None:
        """Until this worker's picture shows that replica so."""
        async with asyncio.timeout(10):
            while True:
                machines = (await self.get("/api/fleet")).json()["machines"]
                if (replica, state) in [(r["name"], r["state"]) for m in machines for r in m["replicas"]]:
                    return
                await asyncio.sleep(0.05)

    async def connected(self) -> aiohttp.ClientSession:
        """With one connection, which the kernel gave to that worker."""
        for _ in range(TRIES):
            port = free_port()
            connector = aiohttp.TCPConnector(limit=1, local_addr=("127.0.0.1", port))
            client = aiohttp.ClientSession(connector=connector)
            self.made.append(client)
            try:
                async with client.get(self.url + "/health") as response:
                    assert response.status == 200
                    await response.read()
            except (aiohttp.ClientError, OSError):
                continue
            if any(c.raddr and c.raddr[1] == port for c in connections(self.pid)):
                return client
            await client.close()
        raise AssertionError(f"no connection goes to {self.pid}")


def connections(pid: int) -> list[Any]:
    try:
        return list(psutil.Process(pid).net_connections(kind="tcp"))
    except psutil.NoSuchProcess:
        return []


@dataclass
class Rig:
    """Workers that run, and how they stand."""

    paths: Paths
    url: str
    controller: Controller
    steps: list[dict[str, Any]] = field(default_factory=list)
    made: list[aiohttp.ClientSession] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keeping = asyncio.create_task(Workers(self.paths, self._tell).keep())

    def _tell(self, name: str, state: str, detail: str = "", **more: Any) -> None:
        assert name == "router"
        self.steps.append({"state": state, "detail": detail, **more})

    async def leave(self) -> None:
        """As a parent that ends."""
        self.keeping.cancel()
        with suppress(asyncio.CancelledError):
            await self.keeping

    @property
    def pids(self) -> list[int]:
        pids: list[int] = self.steps[-1]["pids"]
        return pids

    def through(self, pid: int) -> Through:
        return Through(self.url, pid, self.made)

    async def until(self, holds: Callable[[], Any], within_s: float = 60.0) -> None:
        async with asyncio.timeout(within_s):
            while not holds():  # noqa: ASYNC110 - of other processes nothing is told
                await asyncio.sleep(0.02)

    async def both(self, path: str = "/health") -> list[Through]:
        """A way to each worker, once each answers this path."""
        await self.until(lambda: self.steps and self.steps[-1]["state"] == "ready" and len(self.pids) == 2)
        ways = [self.through(pid) for pid in self.pids]
        await self.until(lambda: all(self.listens(pid) for pid in self.pids))
        for way in ways:
            async with asyncio.timeout(60):
                while (await way.get(path)).status != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        return ways

    def listens(self, pid: int) -> bool:
        return any(c.status == psutil.CONN_LISTEN for c in connections(pid))

    def log(self) -> str:
        file = self.paths.logs / "router.log"
        return file.read_text() if file.exists() else ""


def counted(metrics: Answer, name: str = "homeport_requests_total", **labels: str) -> float:
    """The sum of its samples that have these labels."""
    families = text_string_to_metric_families(metrics.body.decode())
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(s.value for s in samples if labels.items() <= s.labels.items())


def settings(paths: Paths, control_port: int, **changes: Any) -> dict[str, Any]:
    """What the parent starts them with."""
    paths.cluster_token.write_text(TOKEN)
    paths.digest_key.write_text("ab" * 32)
    return {
        "host": "127.0.0.1",
        "port": free_port(),
        "workers": 2,
        "control_url": f"http://127.0.0.1:{control_port}",
        "token_file": str(paths.cluster_token),
        "digest_key_file": str(paths.digest_key),
        "fleet_file": str(paths.fleet),
        "workers_folder": str(paths.workers),
        "models": [model_spec().to_json()],
        "limits": {"drain_s": 1.0},
    } | changes


@asynccontextmanager
async def kept(paths: Paths, controller: Controller, **changes: Any) -> AsyncIterator[Rig]:
    """Workers that are kept for as long as the block lasts; then they are ended."""
    paths.make()
    told = settings(paths, controller.port, **changes)
    paths.router_settings.write_text(json.dumps(told))
    rig = Rig(paths, f"http://127.0.0.1:{told['port']}", controller)
    try:
        yield rig
    finally:
        await rig.leave()
        for client in rig.made:
            await client.close()
        await asyncio.to_thread(end, ours(paths, "router"), 0.0)
    assert ours(paths) == []


@asynccontextmanager
async def two_workers(folder: Path, *hosts: AnswersHost, **changes: Any) -> AsyncIterator[Rig]:
    """Two, and these hosts behind them."""
    controller = Controller(list(hosts))
    paths = Paths(folder / "home", folder / "locks")
    async with running(*hosts, controller), kept(paths, controller, **changes) as rig:
        yield rig
