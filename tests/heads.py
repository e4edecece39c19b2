"""A head to join, for tests: the real controller app over a real socket, with nothing behind it."""

import json
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn

from cluster import machine_tls, tls
from cluster.paths import Paths, secret, write_private
from serving.controller_app import Acts, ControllerApp
from serving.join_routes import JoinRoutes
from serving.machine_book import MachineBook
from serving.pin_index import PinIndex
from serving.wake_machine import NotWoken

RAY = "10.99.0.1:20123"
HEAD_ID = "0" * 32


async def _nobody_yields(*_: object) -> dict[str, Any]:
    return {}


async def _wakes_nobody(_: str) -> dict[str, Any]:
    raise NotWoken("Nobody is woken here.", 404)


async def _nothing(*_: object) -> None:
    pass


class Head:
    """Listens on loopback and takes itself to be at `address`, so that who asks from here is another machine."""

    def __init__(
        self,
        folder: Path,
        machines: Sequence[dict[str, Any]] = (),
        address: str = "10.99.0.1",
        speaks_tls: bool = False,
    ) -> None:
        self.paths = Paths(folder / "head", folder / "locks")
        self.paths.make()
        self.token = secret(self.paths.cluster_token)
        self.book = MachineBook(self.paths.revision.with_name("machines.json"))
        self.left: list[bool] = []
        self.hears_all = True
        """Whether it hears the keeper of every machine that joins."""
        self.leaving: dict[str, Any] = {"left": [], "away": [], "hosts": {}}
        machine = {"name": "den", "ports": [8100, 8199]}
        control = {"host": address, "port": 8090, "tls": speaks_tls}
        self.revision = {"revision": 1, "machines": list(machines), "machine": machine, "control": control}
        kept = {"id": HEAD_ID, "name": "den", "zone": "home", "address": address}
        write_private(self.paths.machine, json.dumps(kept))
        self.shown = None
        if speaks_tls:
            machine_tls.certify_head(self.paths, HEAD_ID, address, time.time())
            self.shown = tls.ServerTls(machine_tls.own_files(self.paths)).context
        self.ray_is("ready")
        routes = JoinRoutes(self.paths, self.token, self.book, lambda: self.revision, self._leave)
        acts = Acts(
            self._fleet,
            lambda: True,
            lambda _: None,
            lambda *_: None,
            _nobody_yields,
            _nothing,
            lambda _: True,
            lambda _: True,
            lambda *_: [],
            _wakes_nobody,
            lambda: dict.fromkeys(self.book.remembered(), "") if self.hears_all else {},
            self.book.zone_of,
            lambda *_: None,
        )
        self._app = ControllerApp(self.token, PinIndex(), acts, routes)

    def __enter__(self) -> "Head":
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._app.asgi(),
                log_level="warning",
                lifespan="off",
                ssl_context_factory=tls.for_uvicorn(self.shown),
            )
        )
        self._thread = threading.Thread(target=self._server.run, args=([listening],), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    @property
    def url(self) -> str:
        return tls.url("127.0.0.1", self.port, self.shown is not None)

    @property
    def list_token(self) -> str:
        self.paths.join_token.parent.mkdir(exist_ok=True)
        bare, speaks = secret(self.paths.join_token), self.shown is not None
        return machine_tls.pinned(self.paths, bare, speaks_tls=speaks, now=time.time())

    def ray_is(self, state: str) -> None:
        write_private(self.paths.run, json.dumps({"ray": RAY, "steps": {"ray": {"state": state}}}))

    def _fleet(self) -> bytes:
        return b"{}"

    async def _leave(self) -> dict[str, Any]:
        self.left.append(True)
        return self.leaving
