"""Stand-ins for hosts and the controller, each named by how it behaves. Real servers on real sockets.

They are for faults and for routing; what a real host says and does is tested with real hosts.
"""

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry

from cluster import tls
from cluster.proof import machine_token
from cluster.slices import Need
from router.app import Parts, build, new_clients
from router.client_server import Server
from router.request import ENDPOINTS
from router.settings import Settings
from serving.model import ModelSpec, WhenLost
from serving.pin_index import Candidate, Lost, PinIndex
from serving.pins import Pin, pin_from_json
from serving.router_limits import RouterLimits
from tests.ports import free_port

TOKEN = "the-cluster-token"
MODEL = "tiny"
SHORT_DRAIN = RouterLimits(drain_s=1.0)


def bearer_of(replica: str) -> str:
    """What the router opens the host of this replica with: its machine's own token."""
    return f"Bearer {machine_token(TOKEN, 'id-of-' + replica.rpartition('/')[0])}"


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def chunk(text: str) -> bytes:
    return event(
        id="chatcmpl-1",
        object="chat.completion.chunk",
        created=1,
        model=MODEL,
        choices=[{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}],
    )


DONE = b"data: [DONE]\n\n"


@dataclass
class AnswersHost:
    """Answers every turn with `words`. Keeps the pins it was told and every request's headers and body."""

    replica: str
    words: tuple[str, ...] = ("Hello", " there")
    state: str = "ready"
    incarnation: int = 1
    residents: list[dict[str, Any]] = field(default_factory=list)
    running: int = 0
    waiting: int = 0
    port: int = 0
    pins: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    seen: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once a client has gone in mid-stream."""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    state_asked: int = 0
    pins_asked: int = 0
    tokens_generated: int = 0
    zone: str = "default"
    line: list[dict[str, Any]] = field(default_factory=list)
    histories: dict[str, tuple[str, str]] = field(default_factory=dict)
    """What guessed sessions said when their last turn began."""
    ended: list[str] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)
    """Pins that it was told of."""
    shown: ssl.SSLContext | None = None
    """With this it speaks TLS."""
    _runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_get("/state", self.get_state)
        app.router.add_get("/metrics", self.get_metrics)
        app.router.add_get("/pins", self.get_pins)
        app.router.add_get("/pins/{session}", self.get_pin)
        app.router.add_post("/pins", self.post_pins)
        app.router.add_post("/pins/find", self.post_find)
        app.router.add_delete("/pins/{session}", self.delete_pin)
        for path in {endpoint.host_path for endpoint in ENDPOINTS.values()}:
            app.router.add_post(path, self.post_chat)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.2)
        await self._runner.setup()
        self.port = self.port or free_port()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True, ssl_context=self.shown)
        await site.start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def listed(self) -> dict[str, Any]:
        slot = int(self.replica.rpartition("/")[2])
        return {
            "name": self.replica,
            "slot": slot,
            "model": MODEL,
            "address": "127.0.0.1",
            "port": self.port,
            "state": "ready",
            "progress": 1.0,
            "detail": "",
            "stderr": [],
            "pid": 1,
            "incarnation": self.incarnation,
            "config_digest": "d",
            "slice": {"cores": [slot], "cpus": [slot], "gpus": [], "memory_bytes": 1 << 30},
            "limits": {"enforced": ["cores"], "watched": ["memory"]},
        }

    async def get_state(self, request: web.Request) -> web.Response:
        self.state_asked += 1
        return web.json_response(self.about())

    def about(self) -> dict[str, Any]:
        return {
            "replica": self.replica,
            "incarnation": self.incarnation,
            "state": self.state,
            "progress": 1.0 if self.state == "ready" else 0.5,
            "places": 1,
            "running": self.running,
            "waiting": self.waiting,
            "residents": self.residents,
            "line": self.line,
            "pins": len(self.pins),
            "journal": str(sorted(self.pins)),
            "tokens_generated": self.tokens_generated,
            "unknown_to_the_router": True,
        }

    async def get_metrics(self, request: web.Request) -> web.Response:
        assert request.headers["authorization"] == bearer_of(self.replica)
        return web.Response(text=f"# of {self.replica}\n")

    async def get_pins(self, request: web.Request) -> web.Response:
        self.pins_asked += 1
        return web.json_response({"pins": list(self.pins.values())})

    def known(self, name: str, model: str) -> dict[str, Any] | None:
        """By a session's digest or its public id."""
        for (session, of), pin in self.pins.items():
            if of == model and name in (session, pin.get("public")):
                return pin
        return None

    async def get_pin(self, request: web.Request) -> web.Response:
        pin = self.known(request.match_info["session"], request.query["model"])
        return web.json_response(pin) if pin else web.json_response({}, status=404)

    async def post_pins(self, request: web.Request) -> web.Response:
        pins = (await request.json())["pins"]
        self.told += pins
        for pin in pins:
            key = (pin["session"], pin["model"])
            if pin["replica"] == self.replica:
                self.pins[key] = pin
            else:
                self.pins.pop(key, None)
        return web.json_response({"pins": pins})

    async def post_find(self, request: web.Request) -> web.Response:
        asked = await request.json()
        for history in asked["histories"]:
            pin = self.pins.get(self.histories.get(history, ("", "")))
            if pin is not None and (asked["model"], asked["scope"]) == (pin["model"], pin["scope"]):
                return web.json_response(pin)
        return web.json_response({}, status=404)

    async def delete_pin(self, request: web.Request) -> web.Response:
        pin = self.known(request.match_info["session"], request.query["model"])
        if pin is not None:
            self.ended.append(pin["session"])
            del self.pins[pin["session"], pin["model"]]
        return web.json_response({"ended": pin is not None})

    async def post_chat(self, request: web.Request) -> web.StreamResponse:
        self.seen.append({name.lower(): value for name, value in request.headers.items()})
        body = await request.read()
        self.bodies.append(body)
        self.paths.append(request.path)
        self.arrived.set()
        headers = request.headers
        if headers["authorization"] != bearer_of(self.replica):
            return error(401, "invalid_token")
        if headers["x-homeport-replica"] != self.replica:
            return misdirected("replica")
        if headers["x-homeport-incarnation"] != str(self.incarnation):
            return misdirected("incarnation")
        if self.parts(headers):
            return misdirected("parted")
        if (
            headers["x-homeport-pin"] == "kept"
            and (headers["x-homeport-session-key"], MODEL) not in self.pins
        ):
            return misdirected("unknown")
        told = {
            "x-homeport-machine": self.replica.rpartition("/")[0],
            "x-homeport-replica": self.replica,
            "x-homeport-pin": self.pin(headers.get("x-homeport-session-key"), headers),
            "server": "stand-in",
        }
        if json.loads(body).get("stream"):
            return await self.stream(request, told)
        return await self.whole(request, told)

    def parts(self, headers: Mapping[str, str]) -> bool:
        """Whether a guessed turn does not go on from what its session said last."""
        key = (headers.get("x-homeport-session-key", ""), MODEL)
        said = next((history for history, at in self.histories.items() if at == key), None)
        if headers.get("x-homeport-rank") != "guessed" or said is None:
            return False
        goes_on = headers.get("x-homeport-continues", "").split(",")
        return said not in (headers["x-homeport-history"], *goes_on)

    def pin(self, session: str | None, headers: Mapping[str, str]) -> str:
        if session is None:
            return "none"
        key = (session, MODEL)
        outcome = "kept" if key in self.pins else headers["x-homeport-pin"]
        generation = int(headers["x-homeport-generation"])
        made = {"session": session, "model": MODEL, "replica": self.replica, "created_s": 1.0}
        facts = {
            "public": headers["x-homeport-public"],
            "scope": headers["x-homeport-scope"],
            "family": headers.get("x-homeport-parent-key"),
            "guessed": headers.get("x-homeport-rank") == "guessed",
        }
        self.pins.setdefault(key, made | facts | {"generation": generation})
        if (said := headers.get("x-homeport-history")) is not None:
            self.histories = {h: at for h, at in self.histories.items() if at != key} | {said: key}
        return outcome

    async def whole(self, request: web.Request, told: dict[str, str]) -> web.StreamResponse:
        message = {"role": "assistant", "content": "".join(self.words)}
        return web.json_response(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": MODEL,
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            },
            headers=told,
        )

    async def stream(self, request: web.Request, told: dict[str, str]) -> web.StreamResponse:
        response = web.StreamResponse(headers={**told, "content-type": "text/event-stream"})
        await response.prepare(request)
        try:
            await self.write(request, response)
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise
        return response

    async def write(self, request: web.Request, response: web.StreamResponse) -> None:
        for word in self.words:
            await response.write(chunk(word))
        await response.write(DONE)


def error(status: int, code: str, **more: Any) -> web.Response:
    body = {"error": {"message": f"{code} it is", "type": "t", "code": code, "param": None}, **more}
    return web.json_response(body, status=status)


def misdirected(reason: str, pin: dict[str, Any] | None = None) -> web.Response:
    return error(421, "misdirected", homeport={"reason": reason, "pin": pin})


class EndlessHost(AnswersHost):
    """Streams words until its client goes."""

    async def write(self, request: web.Request, response: web.StreamResponse) -> None:
        while True:
            await response.write(chunk("word "))
            await asyncio.sleep(0.01)


class LingersHost(AnswersHost):
    """Says all of its stream, and does not end it before its client goes."""

    async def write(self, request: web.Request, response: web.StreamResponse) -> None:
        await super().write(request, response)
        await asyncio.Event().wait()


class OnlyCommentsHost(AnswersHost):
    """Says for ever that it lives, and never a word."""

    async def write(self, request: web.Request, response: web.StreamResponse) -> None:
        while True:
            await response.write(b": still here\n\n")
            await asyncio.sleep(0.01)


class HangsHost(AnswersHost):
    """Takes a turn and never answers it."""

    async def stream(self, request: web.Request, told: dict[str, str]) -> web.StreamResponse:
        return await self.whole(request, told)

    async def whole(self, request: web.Request, told: dict[str, str]) -> web.StreamResponse:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.left.set()
            raise
        raise AssertionError


class TakenWhileItHangsHost(AnswersHost):
    """Takes the first turn and never answers it; has no place for the second; serves the third."""

    async def post_chat(self, request: web.Request) -> web.StreamResponse:
        if len(self.bodies) == 1:
            self.bodies.append(await request.read())
            return misdirected("taken")
        return await super().post_chat(request)

    async def whole(self, request: web.Request, told: dict[str, str]) -> web.StreamResponse:
        if len(self.bodies) == 1:
            await asyncio.Event().wait()
        return await super().whole(request, told)


@dataclass
class DropsMidStreamHost(AnswersHost):
    """Breaks the connection after `first` in its first `times` turns; a word is a token, a comment is none."""

    first: bytes = chunk("Hel") + b"data: {half an ev"
    times: int = 1

    async def stream(self, request: web.Request, told: dict[str, str]) -> web.StreamResponse:
        if len(self.bodies) > self.times:
            return await super().stream(request, told)
        response = web.StreamResponse(headers={**told, "content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(self.first)
        assert request.transport is not None
        request.transport.close()
        return response


@dataclass
class DropsBeforeHeadHost(AnswersHost):
    """Breaks the connection of its first `times` turns before it says anything."""

    times: int = 1

    async def post_chat(self, request: web.Request) -> web.StreamResponse:
        if len(self.bodies) < self.times:
            self.bodies.append(await request.read())
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return await super().post_chat(request)


@dataclass
class Refuses421Host(AnswersHost):
    """Answers its first `times` turns with 421 of that reason, and then serves."""

    reason: str = "taken"
    knows: dict[str, Any] | None = None
    times: int = 1

    async def post_chat(self, request: web.Request) -> web.StreamResponse:
        if len(self.seen) < self.times:
            self.seen.append({name.lower(): value for name, value in request.headers.items()})
            await request.read()
            return misdirected(self.reason, self.knows)
        return await super().post_chat(request)


@dataclass
class FailsHost(AnswersHost):
    """Answers every turn with this error."""

    status: int = 400
    code: str = "context_length_exceeded"

    async def post_chat(self, request: web.Request) -> web.StreamResponse:
        await super().post_chat(request)
        return error(self.status, self.code)


class FailsBeforePinningHost(AnswersHost):
    """Refuses every turn before it has written anything down."""

    async def post_chat(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        return error(400, "context_length_exceeded")


class FailsAfterPinningHost(AnswersHost):
    """Writes the pin down, and then its engine fails."""

    async def whole(self, request: web.Request, told: dict[str, str]) -> web.StreamResponse:
        failed = error(500, "engine_failed")
        failed.headers.update({name: value for name, value in told.items() if name != "server"})
        return failed


@dataclass
class BreaksDownHost(AnswersHost):
    """Ends its streams with an error event and without `[DONE]`."""

    async def write(self, request: web.Request, response: web.StreamResponse) -> None:
        await response.write(chunk("Hel"))
        await response.write(event(error={"message": "no place", "type": "t", "code": "queue_timeout"}))


class SplitsEverywhereHost(AnswersHost):
    """Sends its events byte by byte."""

    async def write(self, request: web.Request, response: web.StreamResponse) -> None:
        for byte in chunk("Hello") + DONE:
            await response.write(bytes([byte]))


@dataclass
class DropsPackets:
    """A port on which nothing is refused and nothing is answered: its queue of connections is full."""

    port: int = 0
    _held: list[socket.socket] = field(default_factory=list)

    async def start(self) -> None:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self.port))
        listening.listen(0)
        self.port = listening.getsockname()[1]
        self._held.append(listening)
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", self.port))
            self._held.append(filler)

    async def stop(self) -> None:
        for held in self._held:
            held.close()


@dataclass
class Controller:
    """Lists the hosts it is given and keeps the real index of pins."""

    hosts: list[AnswersHost]
    machine_state: str = "ready"
    port: int = 0
    revision: int = 1
    index: PinIndex = field(default_factory=PinIndex)
    claims: list[dict[str, Any]] = field(default_factory=list)
    models: tuple[str, ...] = (MODEL,)
    reads_journals: bool = False
    """Whether it still does, and cannot say who is new."""
    forgotten: list[str] = field(default_factory=list)
    cordoned: set[str] = field(default_factory=set)
    yielded: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By machine, as its keeper says it: by and until."""
    silent_keepers: set[str] = field(default_factory=set)
    """Machines that cannot be asked."""
    away: dict[str, float | None] = field(default_factory=dict)
    """Machines that are lost, with when they were heard last. It knows none of their replicas."""
    lost_after_s: float = 30.0
    asleep: set[str] = field(default_factory=set)
    """Machines that said that they go to sleep."""
    wakes: set[str] = field(default_factory=set)
    """Machines that can be woken."""
    woken: list[str] = field(default_factory=list)
    """Whom it was asked to wake, in order."""
    on_wake: Callable[[str], Awaitable[None]] | None = None
    there: bool = True
    """Whether its machines count as there, so that none may be forgotten."""
    told: list[dict[str, Any]] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    disowned: list[Pin] = field(default_factory=list)
    """Pins that the hosts of their homes did not have."""
    shown: ssl.SSLContext | None = None
    """With this it speaks TLS."""
    _runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/fleet", self.get_fleet)
        app.router.add_get("/metrics", self.get_metrics)
        app.router.add_post("/claim", self.post_claim)
        app.router.add_get("/pins/{session}", self.get_pin)
        app.router.add_get("/pins", self.get_pins)
        app.router.add_post("/pins", self.post_pins)
        app.router.add_delete("/pins/{session}", self.delete_pin)
        app.router.add_post("/machines/{name}/forget", self.post_forget)
        app.router.add_post("/machines/{name}/{act:cordon|uncordon}", self.post_cordon)
        app.router.add_post("/machines/{name}/yield", self.post_yield)
        app.router.add_post("/machines/{name}/wake", self.post_wake)
        self._runner = web.AppRunner(app, shutdown_timeout=0.2)
        await self._runner.setup()
        self.port = self.port or free_port()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True, ssl_context=self.shown)
        await site.start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def get_metrics(self, request: web.Request) -> web.Response:
        """Says what was asked, in a comment."""
        assert request.headers["authorization"] == f"Bearer {TOKEN}"
        if request.query.get("keeper") in self.silent_keepers:
            return web.json_response({}, status=503)
        return web.Response(text=f"# of the controller, asked {dict(request.query)}\n")

    async def get_fleet(self, request: web.Request) -> web.Response:
        assert request.headers["authorization"] == f"Bearer {TOKEN}"
        machines: dict[str, dict[str, Any]] = {}
        for host in self.hosts:
            name = host.replica.rpartition("/")[0]
            if name in self.forgotten:
                continue
            machine = machines.setdefault(
                name,
                {
                    "id": f"id-of-{name}",
                    "name": name,
                    "zone": host.zone,
                    "address": "127.0.0.1",
                    "state": self.state(name),
                    "cordoned": name in self.cordoned,
                    "yielded": self.yielded.get(name),
                    "wakes": name in self.wakes,
                    "heard_s": self.away.get(name),
                    "hardware": {"cores": [], "memory_bytes": 0, "gpus": []},
                    "reserve": {"cores": 0, "memory_bytes": 0},
                    "replicas": [],
                },
            )
            if name not in self.away:
                machine["replicas"].append(host.listed())
        models = [{"name": name, "context": 512, "engine": "llama.cpp"} for name in self.models]
        return web.json_response(
            {
                "revision": self.revision,
                "lost_after_s": self.lost_after_s,
                "models": models,
                "machines": list(machines.values()),
                "forgotten": [{"id": f"id-of-{name}", "name": name} for name in self.forgotten],
            }
        )

    def state(self, name: str) -> str:
        if name in self.asleep:
            return "asleep"
        if name in self.away:
            return "lost"
        if name in self.yielded:
            return "yielded"
        return "cordoned" if name in self.cordoned else self.machine_state

    async def post_cordon(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if not any(host.replica.startswith(f"{name}/") for host in self.hosts):
            return web.json_response({}, status=404)
        if request.match_info["act"] == "cordon":
            self.cordoned.add(name)
        else:
            self.cordoned.discard(name)
        return web.json_response({"machine": name})

    async def post_yield(self, request: web.Request) -> web.Response:
        name, asked = request.match_info["name"], await request.json()
        if not any(host.replica.startswith(f"{name}/") for host in self.hosts):
            return web.json_response({}, status=404)
        if name in self.silent_keepers:
            return web.json_response({"error": {"message": f"{name} is away."}}, status=503)
        if asked.get("end"):
            self.yielded.pop(name, None)
        else:
            for_s = asked.get("for_s")
            self.yielded[name] = {"by": "person", "until": None if for_s is None else time.time() + for_s}
        return web.json_response({"machine": name, "yielded": self.yielded.get(name)})

    async def post_wake(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        self.woken.append(name)
        if name not in self.wakes:
            told = {"error": {"message": f"The config does not say how {name} is woken."}}
            return web.json_response(told, status=409)
        if self.on_wake is not None:
            await self.on_wake(name)
        return web.json_response({"machine": name, "awake": False, "how": "packet", "by": ["attic"]})

    async def post_claim(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.claims.append(asked)
        if self.reads_journals:
            return web.json_response({}, status=503)
        order = [Candidate(each["replica"], each["free"]) for each in asked["ranked"]]
        lost = asked.get("instead_of")
        pin, known = self.index.claim(
            asked["session"],
            asked["model"],
            order,
            frozenset(asked["refused"]),
            100.0,
            None if lost is None else Lost(lost["replica"], lost["generation"]),
            asked["router"],
        )
        return web.json_response({"pin": pin.to_json(), "known": known})

    async def get_pin(self, request: web.Request) -> web.Response:
        if self.reads_journals:
            return web.json_response({}, status=503)
        name, model = request.match_info["session"], request.query["model"]
        if name.startswith("hp_"):
            # It has read the journals of the hosts that it lists.
            found = next((known for host in self.hosts if (known := host.known(name, model))), None)
            return web.json_response(found) if found else web.json_response({}, status=404)
        pin = self.index.get(name, model)
        if pin is None:
            return web.json_response({}, status=404)
        return web.json_response({**pin.to_json(), "confirmed": (name, model) not in self.index.claims})

    async def get_pins(self, request: web.Request) -> web.Response:
        pins = [pin for host in self.hosts for pin in host.pins.values()]
        return web.json_response(
            {"pins": [pin for pin in pins if pin["replica"] == request.query["replica"]]}
        )

    async def post_pins(self, request: web.Request) -> web.Response:
        pins = (await request.json())["pins"]
        self.told += pins
        for pin in pins:
            self.index.confirm([pin_from_json(pin)], pin["replica"])
        return web.json_response({"pins": pins})

    async def delete_pin(self, request: web.Request) -> web.Response:
        session, model = request.match_info["session"], request.query["model"]
        asked = await request.json()
        if "only" in asked:
            self.disowned.append(pin := pin_from_json(asked["only"]))
            self.index.disown(pin)
        else:
            self.ended.append(session)
            self.index.remove(session, model)
        return web.json_response({"ended": True})

    async def post_forget(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if not any(host.replica.startswith(f"{name}/") for host in self.hosts):
            return web.json_response({}, status=404)
        if self.there:
            told = {"error": {"message": f"{name} is there; stop it first."}}
            return web.json_response(told, status=409)
        self.forgotten.append(name)
        return web.json_response({"forgotten": name})


def model_spec(name: str = MODEL, queue_s: float = 60.0, when_lost: WhenLost = "wait") -> ModelSpec:
    return ModelSpec(
        name=name,
        engine="llama.cpp",
        source="bundled",
        machines="all",
        replicas=1,
        need=Need(1, 1 << 30, 0),
        take="needs",
        context=512,
        sessions=1,
        hold_s=min(10.0, queue_s / 2),
        queue_s=queue_s,
        when_lost=when_lost,
    )


@dataclass
class Router:
    """A router that runs, and a client for it."""

    url: str
    parts: Parts
    server: Server
    client: aiohttp.ClientSession
    registry: CollectorRegistry
    controller: Controller = field(default_factory=lambda: Controller([]))
    """The one that `routed` started."""

    async def chat(self, *, session: str | None = None, headers: Any = None, **body: Any) -> "Answer":
        messages = [{"role": "user", "content": "Hi"}]
        return await self.post(
            "/v1/chat/completions", session=session, headers=headers, **{"messages": messages, **body}
        )

    async def post(
        self, path: str, *, session: str | None = None, headers: Any = None, **body: Any
    ) -> "Answer":
        sent = {"x-session-id": session} if session else {}
        payload = {"model": MODEL, **body}
        async with self.client.post(
            self.url + path, json=payload, headers={**sent, **(headers or {})}
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, **kwargs: Any) -> "Answer":
        return await self.ask("GET", path, **kwargs)

    async def ask(self, method: str, path: str, **kwargs: Any) -> "Answer":
        async with self.client.request(method, self.url + path, **kwargs) as response:
            return Answer(response.status, response.headers, await response.read())

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait, with the fleet's own events, until something holds."""
        async with asyncio.timeout(20):
            while not holds():
                await self.parts.fleet.changed(1.0)

    async def ready(self, *replicas: str) -> None:
        def all_up() -> bool:
            known = self.parts.fleet.snapshot().replicas
            now = self.parts.relay.clock()
            return all(name in known and known[name].serves(now) for name in replicas)

        await self.until(all_up)

    def count(self, outcome: str, replica: str, model: str = MODEL) -> float:
        """Requests that ended so on the replica's machine, whatever became of their pins."""
        labels = {"status": outcome, "machine": replica.rpartition("/")[0], "model": model}
        return sum(
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == "homeport_requests_total" and labels.items() <= sample.labels.items()
        )


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> Any:
        return self.json()["error"]["code"]

    @property
    def events(self) -> list[bytes]:
        return [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: ")]


@contextlib.asynccontextmanager
async def running_router(
    home: Path,
    control_port: int,
    *,
    queue_s: float = 60.0,
    when_lost: WhenLost = "wait",
    ca_file: Path | None = None,
    limits: RouterLimits = SHORT_DRAIN,
    **more: Any,
) -> AsyncIterator[Router]:
    """A router on a free port, polling; ended with the block."""
    settings = Settings(
        host="127.0.0.1",
        port=0,
        control_url=tls.url("127.0.0.1", control_port, ca_file is not None),
        ca_file=ca_file,
        token=TOKEN,
        digest_key=b"a digest key",
        fleet_file=home / "router" / "fleet.json",
        models=(model_spec(queue_s=queue_s, when_lost=when_lost),),
        limits=limits,
        **more,
    )
    listening = socket.create_server(("127.0.0.1", 0))
    registry = CollectorRegistry()
    async with new_clients(ca_file) as clients, aiohttp.ClientSession() as client:
        parts = build(settings, clients, registry)
        server = parts.server
        polling = asyncio.create_task(parts.fleet.run())
        serving = asyncio.create_task(server.serve([listening]))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            yield Router(url, parts, server, client, registry)
        finally:
            await client.close()
            server.stop()
            await serving
            polling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await polling


@contextlib.asynccontextmanager
async def running(*parts: AnswersHost | DropsPackets | Controller) -> AsyncIterator[None]:
    """Stand-ins that run for as long as the block."""
    async with contextlib.AsyncExitStack() as stack:
        for part in parts:
            await part.start()
            stack.push_async_callback(part.stop)
        yield


@contextlib.asynccontextmanager
async def routed(home: Path, *hosts: AnswersHost, **options: Any) -> AsyncIterator[Router]:
    """Hosts, a controller that lists them, and a router that has heard of all that are ready."""
    controller = Controller(list(hosts), shown=hosts[0].shown if hosts else None)
    async with running(*hosts, controller), running_router(home, controller.port, **options) as router:
        router.controller = controller
        await router.ready(*(host.replica for host in hosts if host.state == "ready"))
        yield router
