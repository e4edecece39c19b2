"""Machines with a real host each, a real controller and a real router, over sockets and without Ray."""

import asyncio
import contextlib
import http.client
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from cluster.machine import CpuCore, Hardware
from cluster.paths import Paths, write_private
from cluster.proof import machine_token
from router.app import build, new_clients
from router.settings import Settings
from serving import controller, draining
from serving.controller import Controller
from serving.journal_file import JournalNews, Mark, entries_since
from serving.model import ModelSpec
from serving.router_limits import RouterLimits
from tests.host_process import TOKEN, HostProcess
from tests.ports import free_port

HARDWARE = Hardware((CpuCore(0, (0,), "unknown", 0),), 2**33, ()).to_json()


class Machines:
    """serving.controller.Members: what keepers would say of these hosts."""

    def __init__(self) -> None:
        self.hosts: dict[str, HostProcess] = {}
        self.zones: dict[str, str] = {}
        self.kept = {"revision": 0, "head": ""}
        self.versions = 0

    def add(self, name: str, zone: str, host: HostProcess) -> None:
        spec = json.loads((host.folder / "spec.json").read_text()) | {"replica": f"{name}/0", "machine": name}
        (host.folder / "spec.json").write_text(json.dumps(spec))
        host.be_opened_by(machine_token(TOKEN, f"id-{name}"))
        self.hosts[name], self.zones[name] = host, zone

    def bearer(self, base: str) -> str:
        """What opens the host of a base; nothing, where none listens there."""
        at = {f"http://127.0.0.1:{host.port}": host for host in self.hosts.values()}
        return f"Bearer {at[base].token}" if base in at else ""

    def machines(self) -> list[str]:
        return [f"id-{name}" for name in self.hosts]

    def _report(self, name: str) -> dict[str, Any]:
        host = self.hosts[name]
        try:
            state = host.state()
        except (OSError, ValueError, http.client.HTTPException):
            state = {"state": "starting"}
        self.versions += 1
        replica = {
            "name": f"{name}/0",
            "slot": 0,
            "model": host.model.name,
            "address": "127.0.0.1",
            "port": host.port,
            "slice": None,
            "config_digest": "d",
            "state": state["state"],
            "detail": "",
            "progress": 1.0,
            "incarnation": host.incarnation,
            "pins": state.get("pins", 0),
            "journal": state.get("journal", ""),
        }
        return {
            "id": f"id-{name}",
            "name": name,
            "zone": self.zones[name],
            "address": "127.0.0.1",
            "state": "ready",
            "version": self.versions,
            "hardware": HARDWARE,
            "reserve": {"cores": 0, "memory_bytes": 0},
            "refused": {},
            "replicas": [replica],
            **self.kept,
        }

    async def report(self, machine: str, known: int, wait_s: float) -> dict[str, Any]:
        await asyncio.sleep(0.2)
        return await asyncio.to_thread(self._report, machine.removeprefix("id-"))

    async def apply(self, machine: str, revision: int, wishes: Any, head: str) -> dict[str, Any]:
        self.kept = {"revision": revision, "head": head}
        return await asyncio.to_thread(self._report, machine.removeprefix("id-"))

    async def pins(self, machine: str, known: dict[int, Mark]) -> dict[int, JournalNews]:
        journal = self.hosts[machine.removeprefix("id-")].folder / "journal.sqlite"
        entries, mark, whole = entries_since(journal, known.get(0, Mark()))
        return {0: JournalNews([entry.to_json() for entry in entries], mark, whole)}

    async def leave(self, machine: str) -> None:
        raise TimeoutError

    async def wake(self, machine: str, mac: str, networks: list[str]) -> int:
        raise TimeoutError

    async def bring(self, machine: str, orders: dict[str, Any]) -> dict[str, Any]:
        return await asyncio.to_thread(self._report, machine.removeprefix("id-"))

    async def yield_machine(self, machine: str, for_s: float | None, ends: bool) -> dict[str, Any]:
        raise TimeoutError


class World:
    """One of them. `ask` and `chat` go through the router."""

    def __init__(self, machines: Machines, controller: Controller, control: str) -> None:
        self.machines = machines
        self.controller = controller
        self.control = control
        self.url = ""
        self.client: aiohttp.ClientSession
        self.parts: Any = None
        self._stop: Callable[[], Any] | None = None

    def host(self, name: str) -> HostProcess:
        return self.machines.hosts[name]

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        async with self.client.request(method, self.url + path, json=body) as answer:
            return answer.status, await answer.json()

    async def chat(
        self, session: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> tuple[int, Mapping[str, str], Any]:
        told = {"model": "smollm2", "temperature": 0, **body}
        sent = {"x-session-id": session, **(headers or {})}
        async with self.client.post(self.url + "/v1/chat/completions", json=told, headers=sent) as answer:
            return answer.status, answer.headers, await answer.json()

    async def fleet(self) -> dict[str, dict[str, Any]]:
        return {each["name"]: each for each in (await self.ask("GET", "/api/fleet"))[1]["machines"]}

    async def until(self, holds: Callable[[dict[str, Any]], Any], what: str, seconds: float = 30.0) -> Any:
        """What `holds` makes of the fleet once it is true."""
        try:
            async with asyncio.timeout(seconds):
                while not (found := holds(await self.fleet())):  # noqa: ASYNC110  (over HTTP nobody calls back)
                    await asyncio.sleep(0.1)
                return found
        except TimeoutError:
            raise AssertionError(f"{what}: {await self.fleet()}") from None

    async def drained(self, name: str, seconds: float = 60.0) -> dict[str, Any]:
        """How the drain stands once nobody is left."""
        found: dict[str, Any] = await self.until(
            lambda fleet: (told := fleet[name]["draining"]) and told.get("left") == 0 and told,
            f"{name} is empty",
            seconds,
        )
        return found


@contextlib.asynccontextmanager
async def world(
    folder: Path,
    machines: Machines,
    model: ModelSpec,
    monkeypatch: pytest.MonkeyPatch,
    lost_after_s: float = 30.0,
) -> AsyncIterator[World]:
    """The hosts are started already. What the controller does every two seconds in life, it does more often here."""
    monkeypatch.setattr(controller, "TICK_S", 0.3)
    monkeypatch.setattr(draining, "LOOK_S", 0.3)
    monkeypatch.setenv("HOMEPORT_HOME", str(folder / "home"))
    monkeypatch.setenv("HOMEPORT_LOCKS", str(folder / "locks"))
    paths = Paths.from_env(os.environ)
    paths.make()
    port = free_port()
    write_private(paths.cluster_token, TOKEN)
    control = {"host": "127.0.0.1", "port": port, "lost_after_s": lost_after_s}
    hosts = machines.hosts.values()
    specs = {model.name: model, **{host.model.name: host.model for host in hosts}}
    models = [{"spec": each.to_json(), "digest": "d"} for each in specs.values()]
    write_private(paths.revision, json.dumps({"revision": 1, "models": models, "control": control}))
    made = World(machines, Controller(lambda: machines), f"http://127.0.0.1:{port}")
    try:
        async with router_of(made, folder, model):
            yield made
    finally:
        await asyncio.to_thread(made.controller.end)


@contextlib.asynccontextmanager
async def router_of(
    made: World, folder: Path, model: ModelSpec, without: Sequence[str] = (), **more: Any
) -> AsyncIterator[None]:
    """Its router, until the block ends. It has seen every host when the block begins, but for those `without`. `more`
    are settings."""
    settings = Settings(
        host="127.0.0.1",
        port=0,
        control_url=made.control,
        token=TOKEN,
        digest_key=b"a digest key",
        fleet_file=folder / "router" / "fleet.json",
        models=(model,),
        limits=RouterLimits(drain_s=1.0),
        **more,
    )
    listening = socket.create_server(("127.0.0.1", 0))
    patient = aiohttp.ClientTimeout(total=600)
    owner = {"authorization": f"Bearer {TOKEN}"}
    async with new_clients() as clients, aiohttp.ClientSession(timeout=patient, headers=owner) as client:
        parts = build(settings, clients, CollectorRegistry())
        server = parts.server
        polling = asyncio.create_task(parts.fleet.run())
        serving = asyncio.create_task(server.serve([listening]))
        made.url, made.client = f"http://127.0.0.1:{listening.getsockname()[1]}", client
        made.parts = parts
        try:
            names = {f"{name}/0" for name in made.machines.hosts if name not in without}

            def all_serve(_: Any) -> bool:
                known, now = parts.fleet.snapshot().replicas, parts.relay.clock()
                return all(name in known and known[name].serves(now) for name in names)

            await made.until(all_serve, "all hosts serve")
            yield
        finally:
            await client.close()
            server.stop()
            await serving
            polling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await polling
