"""The front door: one ASGI callable, and the composition root of the router.

What a model answers goes straight to `relay`, everything else to FastAPI. Decides nothing about sessions.
"""

import argparse
import asyncio
import contextlib
import gc
import ipaddress
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

import aiohttp
import uvloop
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from cluster import tls
from cluster.clocks import AwakeClock, DayClock, uptime
from cluster.sockets import connecting
from router import admin
from router.addressing import Addressing
from router.client_server import Server
from router.cors import answered, is_listed, preflight
from router.errors import ApiError, foreign_host, foreign_origin, wrong_method
from router.exchange import EXCHANGE, Exchange, Message, Receive, SendMessage
from router.finding import Finder
from router.fleet import Fleet
from router.homes import Homes
from router.hosts import Hosts
from router.identity import DEFAULT, IdentityOptions, naming_headers
from router.key_file import KeyFile, key_ring
from router.keys import Key, KeyRing, guard, secret_of, too_many
from router.metrics import Metrics, count_in_files
from router.model_file import ModelFile
from router.names import Names, may_come_from, may_name
from router.pages import Told, make_pages
from router.peers import Peers
from router.relay import Relay
from router.request import ENDPOINTS, Address, Head, new_id, read_address, read_head
from router.sessions import Sessions
from router.shared_pace import SharedPace
from router.siblings import Answers, Siblings, answering, open_turns
from router.snapshot import Model
from router.wakings import Wakings
from router.workers import Worker
from serving.config import RouterConfig
from serving.known_pins import last_known
from serving.model import ModelSpec
from serving.moving import Mover
from serving.router_limits import USUAL, RouterLimits

ASKS_HOSTS = "/api/sessions"
"""What is answered here and below asks every host: it counts as a request, as a turn does."""

COLLECT = (20_000, 20, 50)
"""When cycles are looked for: turns leave none, and with as few as Python's 700 the objects of open turns alone are
walked every few requests."""

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
    known_file: Path | None = None
    """What the controller knew last of sessions' homes, where its disk is this machine's."""
    keys_file: Path | None = None
    """None: everybody may come in, from this machine only."""
    ca_file: Path | None = None
    """The CA by which machines are known that speak TLS; None: plain HTTP."""
    names: tuple[str, ...] = ()
    """What clients may call this machine beside its own name."""
    identity: IdentityOptions = DEFAULT
    limits: RouterLimits = USUAL
    origins: frozenset[bytes] = frozenset()
    """Of other sites whose pages may use the router, as `cors.is_listed` has them."""
    worker: Worker | None = None
    """Which of those that share the address; None: it is the only one."""


class Front:
    """The ASGI callable. Host, Origin, key and request id are the same matter on every path."""

    def __init__(
        self,
        relay: Relay,
        pages: FastAPI,
        metrics: Metrics,
        names: Names,
        ring: KeyRing,
        naming: frozenset[bytes],
        clock: Callable[[], float],
        origins: frozenset[bytes],
    ) -> None:
        """`naming`: headers that may name a session. `origins`: of other sites whose pages may come in."""
        self._relay = relay
        self._pages = pages
        self._metrics = metrics
        self._names = names
        self._ring = ring
        self._naming = naming
        self._clock = clock
        self._origins = origins

    async def __call__(self, scope: Message, receive: Receive, send: SendMessage) -> None:
        if scope["type"] != "http":
            return
        exchange: Exchange = scope[EXCHANGE]
        head = read_head(scope["headers"], new_id, self._naming)
        address = read_address(scope)
        key = self._ring.find(secret_of(head.shown) if self._ring.required else None)
        own = {b"x-request-id": head.request_id}
        error = self._foreign(scope, head)
        if self._origins:
            own |= answered(head.origin, self._origins)
            asks = error is None and scope["method"] == "OPTIONS" and is_listed(head.origin, self._origins)
            if asks and (told := preflight(scope["headers"])) is not None:
                _empty(exchange, own | told)
                return
        error = error or guard(self._ring, key, scope["method"], address.path)
        endpoint = ENDPOINTS.get(address.path)
        if error is None and endpoint is not None:
            error = wrong_method(["POST"]) if scope["method"] != "POST" else self._too_many(key)
            if error is None and key is not None:
                await self._relay(endpoint, head, address, key, exchange, own)
                return
        elif error is None and address.path.startswith(ASKS_HOSTS):
            error = self._too_many(key)
        if error is not None:
            self._refuse(exchange, error, own)
            return

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *own.items()]
            await send(message)

        await self._pages(_inner(scope, address, key), receive, send_named)

    def _too_many(self, key: Key | None) -> ApiError | None:
        wait_s = None if key is None else self._ring.allow(key, self._clock())
        return None if key is None or wait_s is None else too_many(key, wait_s)

    def _refuse(self, exchange: Exchange, error: ApiError, own: dict[bytes, bytes]) -> None:
        if error.status == 405:
            own[b"allow"] = b"POST, OPTIONS"
            if exchange.method == "OPTIONS":
                _empty(exchange, own)
                return
        self._metrics.ended("", "", error.code)
        exchange.whole(error.status, [*own.items(), *error.headers()], error.body())

    def _foreign(self, scope: Message, head: Head) -> ApiError | None:
        """Why it may not come in: a name that is not this router's (DNS rebinding), or a page of another site."""
        if head.host is None:
            if scope.get("http_version") != "1.0":
                return foreign_host()
        elif not may_name(head.host, self._names):
            return foreign_host()
        if head.origin is not None and not (
            may_come_from(head.origin, self._names) or is_listed(head.origin, self._origins)
        ):
            return foreign_origin()
        return None


def _empty(exchange: Exchange, headers: dict[bytes, bytes]) -> None:
    exchange.start(204, [*headers.items()])
    exchange.finish()


def _inner(scope: Message, address: Address, key: Key | None) -> Message:
    """What the pages see: the path without what stands before it, which they are told beside it."""
    if address.path == scope["path"]:
        return {**scope, "homeport": Told(key, None)}
    return {
        **scope,
        "path": address.path,
        "raw_path": quote(address.path).encode(),
        "homeport": Told(key, address.machine),
    }


@dataclass(frozen=True, slots=True)
class Parts:
    """What `build` puts together: the app, and what must be run and stopped with it."""

    front: Front
    fleet: Fleet
    relay: Relay
    keys: KeyFile | None
    models: dict[str, ModelSpec]
    server: Server
    answers: Answers
    """For the other workers."""


@dataclass(frozen=True, slots=True)
class Clients:
    """With what a router asks others."""

    peers: aiohttp.ClientSession
    """For questions to hosts and the controller."""
    hosts: Hosts
    """For turns."""


def build(
    settings: Settings,
    clients: Clients,
    registry: CollectorRegistry,
    clock: Callable[[], float] | None = None,
    wall: Callable[[], float] | None = None,
) -> Parts:
    """The router's parts, wired. `fleet.run()` must run beside the app, and reads the clock once a second."""
    clock, latest = clock or AwakeClock(), wall or DayClock().latest
    wall = wall or time.time
    peers = Peers(clients.peers, settings.control_url, settings.token)
    models = [Model(spec.name, spec.context, spec.engine) for spec in settings.models]
    fleet = Fleet(peers, settings.fleet_file, models, clock, wall=wall)
    file = settings.known_file
    kept = None if file is None else partial(last_known, file)
    homes = Homes(fleet, peers, clock, latest, wake=Wakings(fleet, peers, clock).ask, last_known=kept)
    finder = Finder(fleet, peers)
    worker = settings.worker
    counts = None if worker is None else worker.counts
    metrics = Metrics(registry, version(), lambda: _pins(fleet), lambda: admin.foreign_shares(fleet), counts)
    siblings = Siblings(worker)
    specs = {spec.name: spec for spec in settings.models}
    addressing = Addressing(
        fleet, homes, finder, specs, settings.digest_key, settings.identity, siblings.zones
    )
    relay = Relay(fleet, homes, addressing, clients.hosts, specs, metrics, clock, settings.limits)
    fleet.on_lost = relay.lost
    new_pace = None if worker is None else partial(SharedPace, worker.paces)
    ring, keys = key_ring(settings.keys_file, settings.token, new_pace)
    mover = Mover(clients.peers, peers.bearers.of, clock)
    sessions = Sessions(fleet, peers, finder, relay, mover, wall, siblings)
    pages = make_pages(fleet, peers, sessions, registry, clock, wall, version())
    names = Names(settings.host, socket.gethostname(), settings.names)
    naming, pace_clock = naming_headers(settings.identity), clock if worker is None else uptime
    front = Front(relay, pages, metrics, names, ring, naming, pace_clock, settings.origins)
    server = Server(front, relay.stop, settings.limits, clients.hosts.sweep)
    answers = Answers(lambda: open_turns(relay.turns), relay.ended, addressing.said_in)
    return Parts(front, fleet, relay, keys, specs, server, answers)


@contextlib.asynccontextmanager
async def new_clients(ca: Path | None = None) -> AsyncIterator[Clients]:
    """With what a router asks others: no cookies, no proxies, no decoding.

    `ca`: the CA of machines that speak TLS; connections are kept, so that hardly a turn begins with a handshake.
    """
    context = None if ca is None else tls.client_context(ca)
    hosts = Hosts(context)
    trust = True if context is None else context
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0, socket_factory=connecting, ssl=trust),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("accept", "accept-encoding", "user-agent", "content-type"),
    ) as peers:
        try:
            yield Clients(peers, hosts)
        finally:
            hosts.close()


def version() -> str:
    """The installed distribution's version."""
    try:
        return metadata.version("homeport")
    except metadata.PackageNotFoundError:
        return "unknown"


def read_settings(path: Path, number: int | None = None) -> Settings:
    """`number`: which of the router's workers. Raises OSError, KeyError or ValueError for a file that is not the
    parent's."""
    data = json.loads(path.read_text())
    router = RouterConfig.from_json(data)
    return Settings(
        host=router.host,
        port=router.port,
        control_url=data["control_url"],
        token=Path(data["token_file"]).read_text().strip(),
        digest_key=Path(data["digest_key_file"]).read_text().strip().encode(),
        fleet_file=Path(data["fleet_file"]),
        models=tuple(ModelSpec.from_json(model) for model in data["models"]),
        known_file=Path(data["known_file"]) if "known_file" in data else None,
        keys_file=None if router.keys_file is None else Path(router.keys_file),
        ca_file=Path(data["ca_file"]) if data.get("ca_file") else None,
        names=router.names,
        identity=IdentityOptions(router.identity.headers, router.identity.fields),
        limits=router.limits,
        origins=frozenset(origin.encode() for origin in router.cors),
        worker=None if number is None else Worker(number, router.workers, Path(data["workers_folder"])),
    )


async def serve(settings: Settings, listening: socket.socket, settings_file: Path) -> None:
    """Serve until SIGTERM and the end of what is open then, which a second one cuts.

    What `settings_file` says of models is taken as it changes.
    """
    async with new_clients(settings.ca_file) as clients:
        parts = build(settings, clients, CollectorRegistry())
        server = parts.server
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
        async with asyncio.TaskGroup() as group:
            models = ModelFile(settings_file, parts.models)
            watching = [group.create_task(parts.fleet.run()), group.create_task(models.run())]
            if parts.keys is not None:
                watching.append(group.create_task(parts.keys.run()))
            log.info("listening on http://%s:%d", *listening.getsockname()[:2])
            async with answering(settings.worker, parts.answers):
                await server.serve([listening])
            for task in watching:
                task.cancel()


def main(argv: Sequence[str]) -> int:
    """Exit status: 0 after SIGTERM, 2 for settings or an address that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m router.app")
    parser.add_argument("--config-json", type=Path, required=True)
    parser.add_argument("--worker", type=int)
    arguments = parser.parse_args(argv)
    who = "" if arguments.worker is None else f"worker {arguments.worker}: "
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s %(levelname)s %(name)s: {who}%(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this in order
    try:
        settings = read_settings(arguments.config_json, arguments.worker)
        if settings.keys_file is None and not ipaddress.ip_address(settings.host).is_loopback:
            raise ValueError(
                f"it may listen on loopback only while there are no keys, not on {settings.host}"
            )
        if settings.worker is not None:
            count_in_files(settings.worker.counts, settings.worker.number)
    except (OSError, KeyError, ValueError) as error:
        log.error("the settings in %s cannot be used: %s", arguments.config_json, error)
        return 2
    try:
        listening = _listen(settings.host, settings.port, shared=settings.worker is not None)
    except OSError as error:
        log.error(
            "cannot listen on %s:%d: %s; set router.listen to a free port",
            settings.host,
            settings.port,
            error,
        )
        return 2
    gc.freeze()
    gc.set_threshold(*COLLECT)
    with listening, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, listening, arguments.config_json))
    return 0


def _listen(host: str, port: int, shared: bool) -> socket.socket:
    """`shared`: among all processes of this user that say so, of which the kernel gives each a part."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((host, port))
        listening.listen(2048)
    except OSError:
        listening.close()
        raise
    listening.setblocking(False)
    return listening


def _pins(fleet: Fleet) -> dict[str, int]:
    return {name: known.state.pins for name, known in fleet.known.items() if known.state is not None}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
