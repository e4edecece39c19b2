"""The front door: one ASGI callable, and the composition root of the router.

What a model answers goes straight to `relay`, everything else to FastAPI. Decides nothing about sessions.
"""

import argparse
import asyncio
import contextlib
import ipaddress
import json
import logging
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import aiohttp
import uvicorn
import uvloop
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from router.errors import ApiError, foreign_host, foreign_origin, wrong_method
from router.fleet import Fleet
from router.homes import Homes
from router.metrics import Metrics
from router.pages import make_pages
from router.peers import Peers
from router.relay import Relay
from router.reply import answer
from router.request import (
    ENDPOINTS,
    Head,
    Message,
    Receive,
    Scope,
    SendMessage,
    is_loopback,
    is_loopback_origin,
    read_head,
)
from router.snapshot import Model
from serving.model import ModelSpec

DRAIN_S = 2
"""How long open streams may go on after SIGTERM."""

log = logging.getLogger("homeport.router")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the router is started with. `fleet_file` is where its last picture of the machines lies."""

    host: str
    port: int
    control_url: str
    token: str
    digest_key: bytes
    fleet_file: Path
    models: tuple[ModelSpec, ...]


class Front:
    """The ASGI callable. Host, Origin and request id are the same matter on every path."""

    def __init__(self, relay: Relay, pages: FastAPI, metrics: Metrics, new_id: Callable[[], str]) -> None:
        self._relay = relay
        self._pages = pages
        self._metrics = metrics
        self._new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: SendMessage) -> None:
        if scope["type"] != "http":
            return
        head = read_head(scope["headers"], self._new_id)
        error = _foreign(scope, head)
        endpoint = ENDPOINTS.get(scope["path"])
        if error is None and endpoint is not None:
            if scope["method"] == "POST":
                await self._relay(endpoint, head, receive, send)
                return
            error = wrong_method(["POST"])
        if error is not None:
            self._metrics.ended("", "", error.code)
            headers = [(b"x-request-id", head.request_id), *error.headers()]
            if error.status == 405:
                headers.append((b"allow", b"POST"))
            await answer(send, error.status, headers, error.body())
            return

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", head.request_id)]
            await send(message)

        await self._pages(scope, receive, send_named)


@dataclass(frozen=True, slots=True)
class Parts:
    """What `build` puts together: the app, and what must be run and stopped with it."""

    front: Front
    fleet: Fleet
    relay: Relay


def build(
    settings: Settings,
    client: aiohttp.ClientSession,
    registry: CollectorRegistry,
    clock: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
) -> Parts:
    """The router's parts, wired. `fleet.run()` must run beside the app."""
    peers = Peers(client, settings.control_url, settings.token)
    models = [Model(spec.name, spec.context, spec.engine) for spec in settings.models]
    fleet = Fleet(peers, settings.fleet_file, models, clock)
    homes = Homes(fleet, peers, clock, wall)
    metrics = Metrics(registry, version(), lambda: _pins(fleet))
    specs = {spec.name: spec for spec in settings.models}
    relay = Relay(fleet, homes, client, settings.token, specs, settings.digest_key, metrics, clock)
    fleet.on_lost = relay.lost
    pages = make_pages(fleet, peers, relay, registry, clock, wall, version())
    return Parts(Front(relay, pages, metrics, lambda: uuid.uuid4().hex), fleet, relay)


def new_client() -> aiohttp.ClientSession:
    """The one pooled client of a router: no cookies, no proxies, no decoding. Needs a running loop."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("accept", "accept-encoding", "user-agent", "content-type"),
    )


class Server(uvicorn.Server):
    """Uvicorn without signals of its own.

    `stop` ends it: no new connections, 2 s for open streams, then an error event in each that is left.
    """

    def __init__(self, front: Front, relay: Relay) -> None:
        super().__init__(
            uvicorn.Config(
                front,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=DRAIN_S + 1,
            )
        )
        self._relay = relay

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        end = asyncio.get_running_loop().call_later(DRAIN_S, self._relay.stop)
        try:
            await super().shutdown(sockets)
        finally:
            end.cancel()


def version() -> str:
    """The installed distribution's version."""
    try:
        return metadata.version("homeport")
    except metadata.PackageNotFoundError:
        return "unknown"


def read_settings(path: Path) -> Settings:
    """Raises OSError, KeyError or ValueError for a file that is not the parent's."""
    data = json.loads(path.read_text())
    return Settings(
        host=data["host"],
        port=data["port"],
        control_url=data["control_url"],
        token=Path(data["token_file"]).read_text().strip(),
        digest_key=Path(data["digest_key_file"]).read_text().strip().encode(),
        fleet_file=Path(data["fleet_file"]),
        models=tuple(ModelSpec.from_json(model) for model in data["models"]),
    )


async def serve(settings: Settings, listening: socket.socket) -> None:
    """Serve until SIGTERM."""
    async with new_client() as client:
        parts = build(settings, client, CollectorRegistry())
        server = Server(parts.front, parts.relay)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
        async with asyncio.TaskGroup() as group:
            polling = group.create_task(parts.fleet.run())
            log.info("listening on http://%s:%d", *listening.getsockname()[:2])
            await server.serve(sockets=[listening])
            polling.cancel()


def main(argv: Sequence[str]) -> int:
    """Exit status: 0 after SIGTERM, 2 for settings or an address that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m router.app")
    parser.add_argument("--config-json", type=Path, required=True)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this in order
    try:
        settings = read_settings(arguments.config_json)
        if not ipaddress.ip_address(settings.host).is_loopback:
            raise ValueError(
                f"it may listen on loopback only while there are no keys, not on {settings.host}"
            )
    except (OSError, KeyError, ValueError) as error:
        log.error("the settings in %s cannot be used: %s", arguments.config_json, error)
        return 2
    try:
        listening = _listen(settings.host, settings.port)
    except OSError as error:
        log.error(
            "cannot listen on %s:%d: %s; set router.listen to a free port",
            settings.host,
            settings.port,
            error,
        )
        return 2
    with listening, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, listening))
    return 0


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(2048)
    except OSError:
        listening.close()
        raise
    listening.setblocking(False)
    return listening


def _foreign(scope: Scope, head: Head) -> ApiError | None:
    """Why it may not come in: a name that is not loopback's (DNS rebinding), or a page of another site."""
    if head.host is None:
        if scope.get("http_version") != "1.0":
            return foreign_host()
    elif not is_loopback(head.host):
        return foreign_host()
    if head.origin is not None and not is_loopback_origin(head.origin):
        return foreign_origin()
    return None


def _pins(fleet: Fleet) -> dict[str, int]:
    return {name: known.state.pins for name, known in fleet.known.items() if known.state is not None}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
