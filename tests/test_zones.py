"""Zones are kept: whatever is lost, forgotten, restarted, ended or moved, no prompt of a session goes to a machine
outside the zone that it began in, or that its key or its request allows.

Two real routers (fleet, homes, retries, people's moves) over real controller routes and the real index; hosts keep a
journal in memory and do what journal.py does. Requests between them are calls.
"""

import asyncio
import errno
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from starlette.requests import Request
from starlette.responses import Response

import router.fleet
from cluster.clocks import DayClock
from router.decision import Ask, Refuse, Send, Wait
from router.errors import Rejected
from router.finding import Finder
from router.fleet import Fleet
from router.homes import Homes
from router.identity import digest, public_id, scope_of
from router.keys import Key
from router.peers import Peers
from router.reading import Disagreement
from router.relay import Relay
from router.retries import Retries
from router.sessions import Sessions
from router.snapshot import Model
from serving.controller_app import Acts, ControllerApp
from serving.join_routes import JoinRoutes
from serving.model import WhenLost
from serving.moving import Mover
from serving.pin_index import PinIndex
from serving.pins import Pin, merge, pin_from_json
from tests.standins import AnswersHost, routed

MODEL = "m"
MACHINES = ("ash", "box", "cob", "dew", "elm", "fig")
ZONES = ("home", "office", "lab")
KEYS = ("ann", "bob")
NAMES = ("tea", "rum")
DIGEST_KEY = b"key"
CONTROL = "http://head:1"
LOST_AFTER_S = 30.0
TRIES = 6
ADMIN = Key("admin", "admin")

machines = st.sampled_from(MACHINES)
named_zones = st.none() | st.sampled_from(ZONES)
limits = st.none() | st.frozensets(st.sampled_from(ZONES), min_size=1, max_size=2)
picks = st.integers(0, 99)
routers = st.sampled_from((0, 1))
keys, names = st.sampled_from(KEYS), st.sampled_from(NAMES)
policies: st.SearchStrategy[WhenLost] = st.sampled_from(("wait", "move", "move"))


@dataclass(frozen=True)
class Talk:
    """A session, and what its requests say."""

    key: str
    name: str
    zone: str | None
    on: str | None
    when_lost: WhenLost
    parent: str | None

    @property
    def session(self) -> str:
        return self.of(self.name)

    @property
    def public(self) -> str:
        return public_id(DIGEST_KEY, self.session)

    def of(self, name: str) -> str:
        return digest(self.key, scope_of(self.on, self.zone), name)

    def ask(self, key: Key) -> Ask:
        family = None if self.parent in (None, self.name) else self.of(self.parent or "")
        return Ask(MODEL, self.session, "r", self.on, self.zone, self.when_lost, key, family=family)


@dataclass
class Host:
    """One machine's replica."""

    name: str
    port: int
    up: bool = True
    heard: bool = True
    """Whether its keeper is, by the controller."""
    pins: dict[str, Pin] = field(default_factory=dict)

    @property
    def replica(self) -> str:
        return f"{self.name}/0"

    def insert(self, pin: Pin) -> Pin:
        found = self.pins.get(pin.session)
        self.pins[pin.session] = pin if found is None else merge(found, pin)
        return self.pins[pin.session]

    def turn(self, session: str, to: Send, now: float) -> Disagreement | None:
        """A 421; None: it is served, and the pin is on disk."""
        known = self.pins.get(session)
        if known is None and to.pin == "kept":
            return Disagreement("unknown", None)
        if known is not None and (known.generation > to.generation or known.replica != self.replica):
            return Disagreement("moved", known)
        self.insert(Pin(session, MODEL, self.replica, to.generation, now))
        return None

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/state":
            return 200, {"replica": self.replica, "incarnation": 1, "state": "ready"}
        if path == "/pins" and method == "POST":
            told = [pin_from_json(each) for each in json.loads(body)["pins"]]
            written = [
                self.insert(pin) if pin.session in self.pins or pin.replica == self.replica else pin
                for pin in told
            ]
            return 200, {"pins": [pin.to_json() for pin in written]}
        session = path.removeprefix("/pins/")
        pin = next((p for s, p in self.pins.items() if session in (s, public_id(DIGEST_KEY, s))), None)
        if method == "DELETE":
            return 200, {"ended": pin is not None and self.pins.pop(pin.session) is not None}
        return (404, {}) if pin is None else (200, told_of(pin))


def told_of(pin: Pin) -> dict[str, Any]:
    return {**pin.to_json(), "public": public_id(DIGEST_KEY, pin.session), "scope": None}


class Head:
    """The controller's routes, over a book of the machines that never forgets a zone."""

    def __init__(self, world: "Zones", index: PinIndex) -> None:
        self.index = index
        acts = Acts(
            fleet=world.fleet_text,
            has_learned=lambda: True,
            forget=lambda _: None,
            cordon=lambda *_: None,
            yield_machine=self._nobody,
            ended=self._ended,
            is_there=lambda replica: world.host_at(replica).up and world.host_at(replica).heard,
            takes_new=lambda replica: machine(replica) not in world.cordoned,
            pull=lambda *_: [],
            wake=self._nobody,
            boots=dict,
            zone_of=lambda replica: world.zones[machine(replica)],
            drain=lambda *_: None,
        )
        clock = DayClock(lambda: world.now, lambda: world.now)
        self.app = ControllerApp("", index, acts, cast(JoinRoutes, None), clock)

    async def _nobody(self, *_: object) -> dict[str, Any]:
        raise AssertionError("nobody asks for that")

    async def _ended(self, said: Mapping[str, Pin]) -> None:
        for journal, pin in said.items():
            self.index.is_to_hear(journal, pin)

    async def answer(self, method: str, path: str, query: bytes, body: bytes) -> tuple[int, Any]:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        name = path.rpartition("/")[2]
        scope = {"type": "http", "method": method, "path": path, "query_string": query, "headers": []}
        request = Request({**scope, "path_params": {"name": name}}, receive)
        match method, path:
            case _, "/fleet":
                answer: Response = await self.app._get_fleet(request)
            case _, "/claim":
                answer = await self.app._claim(request)
            case _, "/pins":
                answer = await self.app._take_in(request)
            case "DELETE", _:
                answer = await self.app._end(request)
            case _:
                answer = await self.app._pin(request)
        return answer.status_code, json.loads(bytes(answer.body))


class Wire:
    """Stands for aiohttp's client of the routers."""

    def __init__(self, world: "Zones") -> None:
        self._world = world

    def request(self, method: str, url: str, **more: Any) -> "Asking":
        return Asking(self._world, method, url, more)


class Asking:
    def __init__(self, world: "Zones", method: str, url: str, more: Mapping[str, Any]) -> None:
        self._world, self._method, self._url, self._more = world, method, url, more
        self.status, self._body = 0, b""

    async def __aenter__(self) -> "Asking":
        base, path = self._url[: self._url.index("/", 7)], self._url[self._url.index("/", 7) :]
        data = self._more.get("data") or b""
        query = "&".join(f"{k}={v}" for k, v in (self._more.get("params") or {}).items()).encode()
        told: tuple[int, Any] | None
        if base == CONTROL:
            head = self._world.head
            told = None if head is None else await head.answer(self._method, path, query, data)
        else:
            host = next(each for each in self._world.hosts.values() if base.endswith(f":{each.port}"))
            told = host.answer(self._method, path, data) if host.up else None
        if told is None:
            raise refused()
        self.status, self._body = told[0], json.dumps(told[1]).encode()
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def read(self) -> bytes:
        return self._body


def refused() -> aiohttp.ClientConnectorError:
    key = ConnectionKey("there", 0, False, False, None, None, None, None)
    return aiohttp.ClientConnectorError(key, OSError(errno.ECONNREFUSED, "refused"))


def machine(replica: str) -> str:
    return replica.rpartition("/")[0]


@dataclass
class OneRouter:
    fleet: Fleet
    homes: Homes
    sessions: Sessions


class Zones(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.now = 1000.0
        self.hosts = {name: Host(name, 5000 + number) for number, name in enumerate(MACHINES)}
        self.forgotten: set[str] = set()
        self.cordoned: set[str] = set()
        self.keys = {name: Key(name) for name in KEYS}
        self.began: dict[str, str] = {}
        """By session: the zone of the first host that wrote it down."""
        self.talks: dict[str, Talk] = {}
        """By session."""
        self.steps = 0

    @initialize(
        zones=st.lists(st.sampled_from(ZONES), min_size=len(MACHINES), max_size=len(MACHINES)),
        talks=st.lists(
            st.builds(Talk, keys, names, named_zones, st.none() | machines, policies, st.none() | names),
            min_size=2,
            max_size=5,
            unique_by=lambda talk: talk.session,
        ),
    )
    def begins(self, zones: list[str], talks: list[Talk]) -> None:
        self.zones = dict(zip(MACHINES, zones, strict=True))
        self.talks = {talk.session: talk for talk in talks}
        self.head: Head | None = Head(self, PinIndex())
        self.routers = [self.new_router(), self.new_router()]
        self.look()

    def new_router(self, saved: Fleet | None = None) -> OneRouter:
        """`saved`: the picture of the one before, which lies on disk."""
        wire: Any = Wire(self)
        peers = Peers(wire, CONTROL, "token")
        fleet = Fleet(peers, Path("/nonexistent/fleet.json"), [Model(MODEL, 512, "e")], lambda: self.now)
        if saved is not None:
            fleet._take(saved.listed)
        homes = Homes(fleet, peers, lambda: self.now, lambda: self.now)
        finder = Finder(fleet, peers)
        relay = SimpleNamespace(
            homes=homes,
            turns=(),
            addressing=SimpleNamespace(digest_key=DIGEST_KEY),
            of=lambda *_: None,
            ended=homes.forget,
        )
        people = Sessions(
            fleet,
            peers,
            finder,
            cast(Relay, relay),
            Mover(wire, peers.bearers.of, lambda: self.now),
            lambda: self.now,
        )
        return OneRouter(fleet, homes, people)

    def host_at(self, replica: str) -> Host:
        return self.hosts[machine(replica)]

    def fleet_text(self) -> bytes:
        there = [host for name, host in self.hosts.items() if name not in self.forgotten]
        told = [
            {
                "id": host.name,
                "name": host.name,
                "zone": self.zones[host.name],
                "address": "10.0.0.1",
                "state": ("cordoned" if host.name in self.cordoned else "ready") if host.heard else "lost",
                "cordoned": host.name in self.cordoned,
                "replicas": [{"name": host.replica, "model": MODEL, "port": host.port, "state": "ready"}],
            }
            for host in there
        ]
        models = [{"name": MODEL, "context": 512, "engine": "e"}]
        forgotten = [{"id": name, "name": name, "zone": self.zones[name]} for name in self.forgotten]
        fleet = {"revision": 1, "lost_after_s": LOST_AFTER_S, "models": models, "machines": told}
        return json.dumps({**fleet, "forgotten": forgotten}).encode()

    def do(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def look(self, *numbers: int) -> None:
        for each in (self.routers[n] for n in numbers or (0, 1)):
            with mock.patch.object(router.fleet, "write_private"):
                self.do(each.fleet.refresh_controller())
            for name in list(each.fleet.known):
                self.do(each.fleet.refresh(name))

    def teardown(self) -> None:
        self.loop.close()

    # what clients do

    @invariant()
    def all_talk(self) -> None:
        """After whatever happened; each through the other router than last time."""
        self.steps += 1
        for number, talk in enumerate(self.talks.values()):
            self.turn((self.steps + number) % 2, talk, looks=self.steps % 3 > 0)

    @rule(at=routers, which=picks, looks=st.booleans())
    def host_dies_in_a_turn(self, at: int, which: int, looks: bool) -> None:
        """Whoever takes it is killed before it says anything, its pin written down."""
        self.turn(at, self.picked(which), looks, dies=True)

    def picked(self, which: int) -> Talk:
        return self.talks[sorted(self.talks)[which % len(self.talks)]]

    def turn(self, at: int, talk: Talk, looks: bool, dies: bool = False) -> None:
        """`looks`: the router's picture is of now, and it waits no longer for who may know the session."""
        if looks:
            self.look(at)
        ask = talk.ask(self.keys[talk.key])
        used = self.routers[at]
        retries = Retries(used.fleet, used.homes, lambda: self.now)
        for _ in range(TRIES):
            self.now += 0.01
            match self.do(used.homes.decide(ask, retries.refused, self.now + (0.0 if looks else 9.0))):
                case Send() as to:
                    if self.sent(used, ask, to, retries, dies):
                        return
                case Wait() | Refuse():
                    return

    def sent(self, used: OneRouter, ask: Ask, to: Send, retries: Retries, dies: bool) -> bool:
        """Whether the turn is over."""
        host, session = self.host_at(to.replica), ask.session or ""
        used.homes.turn_begins(ask, to.replica)
        try:
            if not host.up:
                return self.do(retries.lost(ask, to, refused(), False)) is not None
            self.prompt_goes(ask, host)
            told = host.turn(session, to, self.now)
            if told is not None:
                return self.do(retries.disagreed(ask, to, told)) is not None
            self.began.setdefault(session, self.zones[host.name])
            if dies:
                host.up = False
                return self.do(retries.lost(ask, to, aiohttp.ServerDisconnectedError(), False)) is not None
            used.homes.confirm(ask, to.replica)
        finally:
            used.homes.turn_ends(ask, to.replica)
        return True

    def prompt_goes(self, ask: Ask, host: Host) -> None:
        zone = self.zones[host.name]
        assert ask.key.allows_place(host.name, zone), f"{ask.key} on {host.name} in {zone}"
        assert ask.machine in (None, host.name)
        assert ask.zone in (None, zone)
        began = self.began.get(ask.session or "", zone)
        if zone != began and self.head is None and not self.may_go_everywhere(ask.key, began):
            # Its key was changed, and who is silent there is no home for it.
            self.began[ask.session or ""] = zone
            return
        assert zone == began, f"it began in {began} and goes to {host.name} in {zone}"

    def may_go_everywhere(self, key: Key, zone: str) -> bool:
        return all(key.allows_place(name, zone) for name, its in self.zones.items() if its == zone)

    # what people do

    @rule(key=keys, zones=limits, only=st.none() | st.frozensets(machines, min_size=2))
    def key_is_changed(self, key: str, zones: frozenset[str] | None, only: frozenset[str] | None) -> None:
        self.keys[key] = Key(key, zones=zones, machines=only)

    @rule(at=routers, which=picks, to=machines, admin=st.booleans())
    def moved_by_hand(self, at: int, which: int, to: str, admin: bool) -> None:
        talk = self.picked(which)
        key = ADMIN if admin else self.keys[talk.key]
        try:
            self.do(self.routers[at].sessions.move(talk.public, to, key))
        except Rejected:
            return

    @rule(at=routers, which=picks)
    def ended_by_hand(self, at: int, which: int) -> None:
        """Then it begins anew, wherever it may. (A router that has not heard of it asks the old home first, which has
        no such session any more and does not take the turn.)"""
        talk = self.picked(which)
        try:
            self.do(self.routers[at].sessions.end(talk.public, ADMIN))
        except Rejected:
            return
        self.began.pop(talk.session, None)
        self.routers[1 - at].homes.forget(talk.session, MODEL)

    @rule(which=machines)
    def cordon(self, which: str) -> None:
        self.cordoned ^= {which}

    @rule(which=machines)
    def forget(self, which: str) -> None:
        if self.head is not None and not self.hosts[which].heard:
            self.forgotten.add(which)

    # what goes wrong

    @rule(which=machines)
    def host_dies(self, which: str) -> None:
        self.hosts[which].up = False

    @rule(which=machines)
    def host_starts(self, which: str) -> None:
        self.hosts[which].up = self.hosts[which].heard or self.hosts[which].up

    @rule(which=machines)
    def machine_is_lost(self, which: str) -> None:
        self.hosts[which].up = self.hosts[which].heard = False
        self.look()

    @rule()
    def time_goes_by(self) -> None:
        self.now += 2 * LOST_AFTER_S
        self.look()

    @rule(which=machines)
    def machine_is_back(self, which: str) -> None:
        """Its host is told what the index knows, and says what its journal has."""
        host = self.hosts[which]
        host.up = host.heard = True
        self.forgotten.discard(which)
        if self.head is not None:
            self.head.index.confirm(host.pins.values(), host.replica, whole=True, now=self.now)
            for pin in self.head.index.behind.get(host.replica, {}).copy().values():
                host.insert(pin)

    @rule(at=routers)
    def router_restarts(self, at: int) -> None:
        self.routers[at] = self.new_router(self.routers[at].fleet)
        self.look(at)

    @rule()
    def head_dies(self) -> None:
        self.head = None
        self.look()

    @rule()
    def head_is_back(self) -> None:
        """It has read the journals, those of machines that are away as they were: all but its promises."""
        if self.head is None:
            index = PinIndex()
            for host in self.hosts.values():
                index.confirm(host.pins.values(), host.replica, whole=True, now=self.now)
                for pin in host.pins.values():
                    index.describe(pin.session, public_id(DIGEST_KEY, pin.session), None)
            self.head = Head(self, index)
        self.look()


TestZones = Zones.TestCase
TestZones.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


# a conversation without a name


def talk(*said: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said)]


async def test_a_conversation_without_a_name_begins_anew_in_its_zone_where_its_home_is_away(
    tmp_path: Path,
) -> None:
    hosts = [AnswersHost(f"{zone}-{n}/0", zone=zone) for zone in ("home", "office") for n in range(2)]
    by_replica = {host.replica: host for host in hosts}
    async with routed(tmp_path, *hosts) as asked:
        for number in range(5):
            opening = f"Hello number {number}"
            first = await asked.chat(messages=talk(opening))
            home = by_replica[first.headers["x-homeport-replica"]]
            await home.stop()
            again = await asked.chat(messages=talk(opening, "Hello there", "And then?"))
            other = by_replica[again.headers["x-homeport-replica"]]
            assert (again.headers["x-homeport-pin"], other.zone) == ("new", home.zone)
            await home.start()
            await asked.ready(home.replica)
