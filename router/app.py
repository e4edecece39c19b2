"""One process of the router: its parts put together, served until it is told to end. Decides nothing."""

import argparse
import asyncio
import contextlib
import gc
import ipaddress
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp
import uvloop
from prometheus_client import CollectorRegistry

from cluster import tls
from cluster.clocks import AwakeClock, DayClock, uptime
from cluster.router_end import HURRY
from cluster.sockets import connecting
from router.addressing import Addressing
from router.arrivals import Arrivals
from router.cells import count_in_files
from router.client_server import Server
from router.finding import Finder
from router.fleet import Fleet
from router.front import Front
from router.homes import Homes
from router.hosts import Hosts
from router.identity import naming_headers, session_headers
from router.kept import Kept
from router.key_file import KeyFile, key_ring
from router.metrics import Metrics
from router.model_file import ModelFile
from router.model_pages import ModelPages
from router.names import Names
from router.pages import make_pages
from router.peers import Peers
from router.relay import Relay
from router.scrape import Scrape
from router.sessions import Sessions
from router.settings import Settings, read_settings
from router.shared_pace import SharedPace
from router.siblings import Answers, Siblings, answering, open_turns
from router.snapshot import Model
from router.wakings import Wakings
from router.watch import Watch
from serving.exposition import version
from serving.known_pins import last_known
from serving.model import ModelSpec
from serving.moving import Mover

COLLECT = (20_000, 20, 50)
"""When cycles are looked for: turns leave none, and with as few as Python's 700 the objects of open turns alone are
walked every few requests."""

log = logging.getLogger("homeport.router")


@dataclass(frozen=True, slots=True)
class Parts:
    """What `build` puts together: the app, and what must be run and stopped with it."""

    front: Front
    fleet: Fleet
    relay: Relay
    keys: KeyFile | None
    models: dict[str, ModelSpec]
    server: Server
    watch: Watch
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
    models = [Model(spec.name, spec.context, spec.engine, spec.when_lost) for spec in settings.models]
    fleet = Fleet(peers, settings.fleet_file, models, clock, wall=wall)
    file = settings.known_file
    kept = None if file is None else partial(last_known, file)
    homes = Homes(fleet, peers, clock, latest, wake=Wakings(fleet, peers, clock).ask, last_known=kept)
    finder = Finder(fleet, peers)
    worker = settings.worker
    counts = None if worker is None else worker.counts
    metrics = Metrics(registry, version(), counts)
    siblings = Siblings(worker)
    specs = {spec.name: spec for spec in settings.models}
    addressing = Addressing(
        fleet, homes, finder, specs, settings.digest_key, settings.identity, siblings.zones
    )
    at_homes = Kept(fleet, peers, finder, settings.digest_key, settings.keep_responses)
    new_pace = None if worker is None else partial(SharedPace, worker.paces)
    ring, keys = key_ring(settings.keys_file, settings.token, new_pace)
    arrivals = Arrivals(siblings, settings.digest_key, session_headers(settings.identity), ring.holds)
    relay = Relay(
        fleet, homes, addressing, clients.hosts, at_homes, specs, metrics, settings.limits, arrivals
    )
    fleet.on_lost = relay.lost
    mover = Mover(clients.peers, peers.bearers.of, clock)
    sessions = Sessions(fleet, peers, finder, relay, mover, wall, siblings)
    watch = Watch(fleet, peers, sessions, wall, ring.holds)
    scrape = Scrape(fleet, peers, registry)
    offered = ModelPages(fleet, int(wall()), settings.list_machines)
    pages = make_pages(fleet, peers, sessions, offered, watch, scrape, clock, wall)
    names = Names(settings.host, socket.gethostname(), settings.names)
    naming, pace_clock = naming_headers(settings.identity), clock if worker is None else uptime
    front = Front(relay, pages, metrics, names, ring, naming, pace_clock, settings.origins)

    def stop_streams() -> None:
        watch.stop()
        arrivals.stop()

    server = Server(front, relay.stop, settings.limits, clients.hosts.sweep, stop_streams)
    answers = Answers(
        lambda: open_turns(relay.turns), relay.ended, addressing.said_in, relay.cancel, arrivals.since
    )
    return Parts(front, fleet, relay, keys, specs, server, watch, answers)


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


async def serve(settings: Settings, listening: socket.socket, settings_file: Path) -> None:
    """Serve until SIGTERM and the end of what is open then, or until HURRY, which cuts it.

    What `settings_file` says of models is taken as it changes.
    """
    async with new_clients(settings.ca_file) as clients:
        parts = build(settings, clients, CollectorRegistry())
        server = parts.server
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, server.stop)
        loop.add_signal_handler(HURRY, server.hurry)
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
