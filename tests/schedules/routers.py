"""The real router and the real controller as processes of the simulated world, each put together by its own code."""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import aiohttp
from prometheus_client import CollectorRegistry
from starlette.routing import Match

import router.app
import router.fleet
import router.settings
import serving.ask_host
import serving.controller
import serving.engine_life
import serving.host_app
import serving.parking
from router.relay import Relay
from router.sessions import Sessions
from router.turn import Turn
from serving.model import ModelSpec
from serving.settings import Settings, settings_of
from tests.schedules.clock import Inline, Process, SimLoop
from tests.schedules.hosts import HEAD, TOKEN, Host, SimMembers
from tests.schedules.network import App, Message, Network, SimClient
from tests.schedules.turns import SimHosts, with_exchange

CONTROL = f"http://{HEAD}:8090"
LOAD_S = 0.4
LOST_S = 8.0
"""`lost_after`, which is 30 s, and 15 s until a router gives up on open turns: schedules are short."""
POLL_S = 1.5
"""The router's, which is 1 s: what takes most of a schedule's time is polls that say nothing new."""
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


class SimFile:
    """A small file that outlives its process; the part of Path that the fleet uses."""

    def __init__(self) -> None:
        self.text: str | None = None
        self.parent = self

    def read_bytes(self) -> bytes:
        if self.text is None:
            raise FileNotFoundError
        return self.text.encode()

    def mkdir(self, **_more: object) -> None:
        pass


class Router:
    """One router; killed and started anew it keeps its fleet file only."""

    def __init__(self, loop: SimLoop, net: Network, name: str, model: ModelSpec) -> None:
        self.loop = loop
        self.net = net
        self.name = name
        self.address = f"http://{name}:8000"
        self.model = model
        self.file: Any = SimFile()
        self.lives = 0
        self.process: Process | None = None
        self.relay: Relay | None = None
        self.sessions: Sessions | None = None

    def start(self) -> None:
        if self.process is not None and self.process.alive:
            return
        self.lives += 1
        self.process = Process(self.name, self.name)
        self.loop.call_soon(self._boot, self.process, context=self.process.context)

    def _boot(self, process: Process) -> None:
        settings = router.settings.Settings(
            host="127.0.0.1",
            port=8000,
            control_url=CONTROL,
            token=TOKEN,
            digest_key=b"key",
            fleet_file=self.file,
            models=(self.model,),
        )
        client: Any = SimClient(self.net)
        clients = router.app.Clients(client, cast(Any, SimHosts(client)))
        parts = router.app.build(settings, clients, CollectorRegistry(), self.loop.time, time.time)
        self.relay = parts.relay
        self.sessions = cast(Sessions, parts.front.pages)
        self.loop.create_task(parts.fleet.run())
        self.net.listen(self.address, process, with_exchange(cast(App, parts.front), self.loop.create_task))

    def stop(self) -> None:
        """As SIGTERM: open turns are told."""
        if self.relay is not None:
            self.relay.stop()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()


class Head:
    """The controller. Its index is gone with it; its revision stays."""

    def __init__(self, loop: SimLoop, net: Network, hosts: dict[str, Host]) -> None:
        self.loop = loop
        self.net = net
        self.hosts = hosts
        self.process: Process | None = None
        self.controller: serving.controller.Controller | None = None
        self.began_at = 0.0

    def start(self) -> None:
        if self.process is not None and self.process.alive:
            return
        self.began_at = self.loop.now
        self.process = Process("controller", HEAD)
        self.loop.call_soon(self._boot, self.process, context=self.process.context)

    def _boot(self, process: Process) -> None:
        members = SimMembers(self.hosts, lambda name: self.net.link(HEAD, name), self.loop)
        controller = self.controller = serving.controller.Controller(lambda: members)
        routes = controller.app().asgi().routes

        async def app(scope: Message, receive: Any, send: Any) -> None:
            for route in routes:
                match, more = route.matches(scope)
                if match == Match.FULL:
                    await route.handle({**scope, **more}, receive, send)
                    return
            raise LookupError(scope["path"])

        self.loop.create_task(controller._work())
        self.net.listen(CONTROL, process, app)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()


class _Thread:
    """The loading thread: the work is done after a moment."""

    loop: SimLoop

    def __init__(self, target: Any, **_more: object) -> None:
        self._target = target

    def start(self) -> None:
        self.loop.call_later(LOAD_S * (0.5 + self.loop.rng.random()), self._target)


class _Tireless:
    """A machine that never sleeps asks no logind."""

    def leases(self, has_leases: bool) -> None:
        """Nothing follows."""

    def report(self) -> dict[str, Any]:
        return {"held": None, "detail": ""}

    def close(self) -> None:
        """Nothing is held."""


class _NoThread:
    def __init__(self, **_more: object) -> None:
        pass

    def start(self) -> None:
        pass


@contextmanager
def without_threads(loop: SimLoop, net: Network, model: ModelSpec) -> Iterator[None]:
    """Nothing of a homeport starts a thread or writes a file, but for the controller's folder."""
    _Thread.loop = loop
    client = SimClient(net)

    async def ask_host(
        address: str, port: int, token: str, method: str, path: str, body: bytes = b"", tls: None = None
    ) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {token}"}
        try:
            answer = await client.request(
                method, f"http://{address}:{port}{path}", data=body, headers=headers
            )
            text = await answer.read()
        except aiohttp.ClientError as error:
            raise ConnectionError from error
        if answer.status != 200:
            raise ValueError(f"the host answered {answer.status}")
        told: dict[str, Any] = json.loads(text)
        return told

    with ExitStack() as stack:
        patch = mock.patch.object
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="homeport-", dir=MEMORY))
        stack.enter_context(mock.patch.dict(os.environ, {"HOMEPORT_HOME": folder}))
        (Path(folder) / "secrets").mkdir()
        (Path(folder) / "secrets" / "cluster_token").write_text(TOKEN)
        (Path(folder) / "head").mkdir()
        revision = {
            "revision": 1,
            "models": [{"spec": model.to_json(), "digest": "d"}],
            "control": {"lost_after_s": LOST_S},
        }
        (Path(folder) / "head" / "revision.json").write_text(json.dumps(revision))
        settings, use = settings_of(model).to_json(), {"weights": 3, "kv": 2, "compute": 1}
        stack.enter_context(patch(Settings, "to_json", lambda _settings: settings))
        stack.enter_context(patch(serving.host_app, "asdict", lambda _memory: use))
        stack.enter_context(patch(router.fleet, "POLL_S", POLL_S))
        stack.enter_context(patch(router.fleet, "SILENT_S", LOST_S * 0.75))
        stack.enter_context(patch(serving.engine_life, "threading", SimpleNamespace(Thread=_Thread)))
        stack.enter_context(patch(serving.controller, "threading", SimpleNamespace(Thread=_NoThread)))
        stack.enter_context(patch(serving.host_app, "ThreadPoolExecutor", Inline))
        stack.enter_context(patch(serving.host_app, "StayAwake", _Tireless))
        stack.enter_context(patch(serving.parking, "ThreadPoolExecutor", Inline))
        stack.enter_context(patch(serving.ask_host, "ask_host", ask_host))
        stack.enter_context(patch(router.app, "version", lambda: "simulated"))
        stack.enter_context(patch(router.app, "make_pages", lambda fleet, peers, sessions, *_more: sessions))
        stack.enter_context(
            patch(router.fleet, "write_private", lambda file, text: setattr(file, "text", text))
        )
        stack.enter_context(patch(Turn, "__hash__", lambda turn: int.from_bytes(turn.head.request_id, "big")))
        yield
