"""The ASGI app around one engine: who may come in, the host's state, its pins, and the ways to its endpoints.

Loads no engine and starts no server (host.py does both); any Engine will do.
"""

import asyncio
import hmac
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from serving import exposition, host_metrics, openai_wire
from serving.abilities import abilities_of
from serving.asgi import (
    ClientGone,
    Message,
    Problem,
    Receive,
    Scope,
    Send,
    header_map,
    internal_problem,
    read_body,
    send_whole,
)
from serving.desk import Desk, decode
from serving.egress import Egress
from serving.endpoints import ENDPOINTS
from serving.engine import Engine
from serving.engine_life import EngineLife, NotLoaded
from serving.host_memory import MemoryWatch
from serving.journal import Journal
from serving.kept import KeptRecords
from serving.kept_routes import KeptRoutes
from serving.model import ModelSpec
from serving.parked_routes import ParkedRoutes
from serving.parking import Parking
from serving.parking_plan import memory_budget
from serving.pin_routes import PinRoutes
from serving.pins import is_session
from serving.places import free_places, running
from serving.request_fields import BadRequest
from serving.routing import check_home, read_ask
from serving.settings import Settings, read_settings, settings_of
from serving.staying_awake import StayAwake
from serving.trouble import report
from serving.turns import Turns

PARK_S_MAX = 60.0
OWN_PATHS = ("/state", "/metrics", "/settings", "/park", "/egress")
"""Beside those of the endpoints and the pins."""
PARKED = "parked"
"""The folder of parked sessions in a replica's own."""
KEPT = "kept.sqlite"
"""Beside it: what sessions said."""

State = Literal["loading", "ready", "draining", "failed"]

MOVES: dict[State, frozenset[State]] = {
    "loading": frozenset({"ready", "failed", "draining"}),
    "ready": frozenset({"failed", "draining"}),
    "draining": frozenset(),
    "failed": frozenset({"draining"}),
}


@dataclass(frozen=True, slots=True)
class About:
    """Who this host is; it does not change while the process lives."""

    replica: str
    machine: str
    slot: int
    model: ModelSpec
    incarnation: int
    config_digest: str
    start_time: int
    """Of this process, in clock ticks since boot, as its record has it."""
    folder: Path
    """The replica's own, where its sessions are parked."""


class HostApp:
    """Build it, serve it at once, call `load`, `stop` and `park` once each, all on one loop."""

    def __init__(
        self,
        about: About,
        engine: Engine,
        journal: Journal,
        token: str,
        memory: MemoryWatch,
        fingerprint: Callable[[str], str],
        on_failed: Callable[[str, bool], None],
    ) -> None:
        self.about = about
        self.state: State = "loading"
        self.detail = ""
        self._engine = engine
        self._journal = journal
        self._token = token.encode()
        self._memory = memory
        self._fingerprint = fingerprint
        self._on_failed = on_failed
        self._writer = ThreadPoolExecutor(1, "journal")
        model = about.model
        self._settings = settings_of(model)
        self._used_bytes = 0
        """What the engine took when it was loaded first."""
        self._life = EngineLife(engine, self._prepare, self._loaded, self._failed)
        self._parking = Parking(about.folder / PARKED, model.parking)
        self._turns = Turns(engine, model.sessions, model.hold_s, model.queue_s, self._parking)
        self._awake = StayAwake()
        self._turns.on_leases = self._awake.leases
        self._working = 0
        """Requests that may need the engine."""
        self._quiet: asyncio.TimerHandle | None = None
        self._unloading: asyncio.Task[None] | None = None
        self._desk = Desk(
            about.machine, about.replica, model, engine, self._turns, journal, self._writer, awake=self.awake
        )
        self._egress = Egress()
        self._parked = ParkedRoutes(self._desk, self._parking)
        self._kept = KeptRoutes(self._desk, KeptRecords(about.folder / KEPT))
        self._pins = PinRoutes(
            self._desk, self._kept, keep_s=lambda: self._settings.parking.keep_s, moves_in=self._moves_in
        )

    @property
    def loaded(self) -> bool:
        """Whether the engine is to be closed in the end."""
        return self._life.loaded

    def load(self) -> None:
        """Begin to load the engine; then serve. A load that fails is told to `on_failed`, now or later."""
        self._loop = asyncio.get_running_loop()
        self._kept.begin()
        self._life.begin()

    async def awake(self) -> None:
        """Until the engine is loaded, which begins now if it was freed. Raises Problem if it cannot be."""
        try:
            await self._life.awake()
        except NotLoaded:  # Why, names files: that is for `status`, not for whoever asks.
            if self._life.state != "failed":
                self._check_ready()
            message = f"{self.about.replica} could not load its model again; `homeport status` says why"
            raise Problem(503, message, "failed") from None

    def stop(self) -> None:
        """Refuse who comes and end who is here; their requests end at once."""
        served = self.state == "ready"
        self._move("draining", "stopping")
        self._life.end()
        self._pins.stop()
        self._desk.departures.close()
        if self._quiet is not None:
            self._quiet.cancel()
        if served:
            self._turns.stop()

    async def park(self, until_s: float) -> int:
        """After `stop`: write to disk what it lacks of contexts, until the loop's clock is at `until_s` at the latest.
        How many sessions' could not be written."""
        return await self._turns.park_all(until_s)

    def close(self) -> None:
        """Wait for what is still being written to the journal. What is not parked yet will not be."""
        self._kept.close()
        self._parking.close()
        self._awake.close()
        self._writer.shutdown()

    def _prepare(self) -> None:
        """On the loading thread, once the engine is loaded."""
        facts, used_bytes = self._engine.facts, self._memory.note_loaded()
        if self.state == "loading":
            self._used_bytes = max(used_bytes, facts.memory.total)
            self._parking.open(self._fingerprint(facts.layout), self._room(self._settings))

    async def _moves_in(self, session: str) -> None:
        """Its pin is about to be written here."""
        await self._parked.adopt(session)
        await self._kept.adopt(session)

    def _room(self, settings: Settings) -> int:
        """Bytes that parked contexts may take in memory."""
        return memory_budget(settings.parking.memory_bytes, self._memory.limit_bytes, self._used_bytes)

    def adjust(self, settings: Settings) -> None:
        """The config has other values now. Raises Problem unless the host is ready. To be called in `_work`, whose end
        begins to count the quiet time anew."""
        self._check_ready()
        self._settings = settings
        self._parking.adjust(settings.parking, self._room(settings))
        self._turns.adjust(settings.hold_s, settings.queue_s)

    def _loaded(self) -> None:
        if self.state == "loading":
            self._move("ready", self._engine.facts.description)
        self._turns.attach(self._loop)
        if self.state == "ready":
            self._pins.begin()
        self._await_quiet()

    def _failed(self, reason: str, permanent: bool) -> None:
        self._move("failed", reason)
        self._on_failed(reason, permanent)

    @contextmanager
    def _work(self) -> Iterator[None]:
        """A request that may need the engine is open: it is not freed."""
        self._working += 1
        try:
            yield
        finally:
            self._working -= 1
            self._pins.settle()
            self._await_quiet()

    def _await_quiet(self) -> None:
        """Free the engine if nobody needs it from now on for as long as the config says."""
        if self._quiet is not None:
            self._quiet.cancel()
            self._quiet = None
        after_s = self._settings.unload_s
        if after_s is not None and self._working == 0 and self.state == "ready" and self._life.loaded:
            self._quiet = self._loop.call_later(after_s, self._unload)

    def _unload(self) -> None:
        if running(self._turns.state):  # Its client left, and the engine has not come to its end.
            self._await_quiet()
        elif self._working == 0 and self.state == "ready" and self._life.loaded:
            self._unloading = self._loop.create_task(self._life.unload(self._turns.unload))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = header_map(scope)
        head_out = False

        async def noted_send(message: Message) -> None:
            nonlocal head_out
            head_out = True  # A head is what is sent first.
            await send(message)

        problem: Problem | None = None
        try:
            self._authorize(headers)
            if scope["method"] == "POST" and scope["path"] in (*ENDPOINTS, "/settings"):
                with self._work():
                    await self._route(scope, headers, receive, noted_send)
            else:
                await self._route(scope, headers, receive, noted_send)
        except ClientGone:
            pass
        except Problem as refusal:
            problem = refusal
        except Exception as error:  # noqa: BLE001  (whatever is raised further, the server logs with its words)
            report(error)
            problem = internal_problem()
        # An answer that broke off behind its head is left unfinished: the server closes the connection.
        if problem is not None and not head_out:
            await self._refuse(problem, send)

    def _authorize(self, headers: Mapping[str, str]) -> None:
        given = headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(given, b"Bearer " + self._token):
            message = (
                "a host answers only to its cluster: send the cluster's token, or ask the router instead"
            )
            raise Problem(401, message, "invalid_token")

    async def _route(self, scope: Scope, headers: Mapping[str, str], receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        match method, path:
            case "POST", _ if path in ENDPOINTS:
                check_home(headers, self.about.replica, self.about.incarnation)
                self._check_ready()
                await ENDPOINTS[path](self._desk, read_ask(headers, ""), receive, send)
            case "POST", "/settings":
                self.adjust(await _read_settings(receive))
                await send_whole(send, 200, msgspec.json.encode(self._settings.to_json()))
            case "POST", "/egress":
                await self._egress.answer(receive, send)
            case "POST", "/park":
                self._check_ready()
                until_s = self._loop.time() + await _read_park_s(receive)
                await send_whole(
                    send, 200, msgspec.json.encode({"left": await self._turns.write_all(until_s)})
                )
            case "GET", "/state":
                await send_whole(send, 200, msgspec.json.encode(self.report()))
            case "GET", "/metrics":
                labels = {"model": self.about.model.name, "machine": self.about.machine}
                told = host_metrics.own({**labels, "replica": self.about.replica}, self.report())
                await send_whole(send, 200, told, content_type=exposition.CONTENT_TYPE)
            case _ if path == "/pins" or path.startswith("/pins/"):
                await self._pins.answer(method, path, scope["query_string"], receive, send)
            case _ if path.startswith("/kept/"):
                await self._kept.answer(method, path, scope["query_string"], receive, send)
            case _ if path.startswith("/parked/") and is_session(session := path.removeprefix("/parked/")):
                self._check_ready()
                with self._work():
                    await self._parked.answer(method, session, scope["query_string"], headers, receive, send)
            case _ if path in (*OWN_PATHS, *ENDPOINTS):
                raise Problem(405, f"{method} does not work on {path}", "method_not_allowed")
            case _:
                paths = ", ".join((*ENDPOINTS, *OWN_PATHS, "/pins"))
                message = f"a host has {paths}, /kept and /parked; everything else is at the router"
                raise Problem(404, message, "not_found")

    def report(self) -> dict[str, Any]:
        """What GET /state answers."""
        about, turns = self.about, self._turns
        state, loaded, known, now = turns.state, self._life.there, self.state == "ready", turns.now()
        residents = [
            {
                "session": place.session,
                "quiet_s": round(now - place.since_s, 3) if place.state == "quiet" else 0.0,
                "busy": place.state == "running",
                "tokens": self._engine.held(place.number) if loaded else 0,
            }
            for place in state.places
            if place.session is not None
        ]
        return {
            "replica": about.replica,
            "machine": about.machine,
            "slot": about.slot,
            "model": about.model.name,
            "incarnation": about.incarnation,
            "config_digest": about.config_digest,
            "pid": os.getpid(),
            "start_time": about.start_time,
            "state": self.state,
            "loaded": loaded,
            "progress": round(self._life.progress, 3),
            "detail": self.detail,
            "context": self._engine.facts.context if known else about.model.context,
            "settings": self._settings.to_json(),
            "places": len(state.places),
            "free": free_places(state),
            "running": running(state),
            "waiting": len(state.line),
            "line": [
                {
                    "session": waiting.session,
                    "position": waiting.position,
                    "waited_s": round(waiting.waited_s, 3),
                    "about_s": waiting.about_s,
                }
                for waiting in turns.line()
            ],
            "residents": residents,
            "tokens_generated": self._engine.tokens_generated if known else 0,
            "tokens_evaluated": self._engine.tokens_evaluated if known else 0,
            "prompt_chunk": self._engine.facts.prompt_chunk if known else 0,
            "abilities": abilities_of(self._engine.facts, self._engine.format) if known else None,
            "pins": self._journal.count(),
            "journal": str(self._journal.mark()),
            "memory": {
                **self._memory.report(),
                "engine": asdict(self._engine.facts.memory) if known else None,
            },
            "parking": {
                **self._parking.report(place.session for place in state.places if place.session is not None),
                "layout": self._engine.facts.layout if known else "",
            },
            "awake": self._awake.report(),
            "turns": turns.finished,
            "rates": turns.rates.report(),
            "counts": turns.counts.report(),
            "recent": [
                {
                    "request_id": turn.request_id,
                    "generated": turn.generated,
                    "after_disconnect": turn.after_disconnect,
                }
                for turn in turns.recent
            ],
        }

    def _check_ready(self) -> None:
        match self.state:
            case "ready":
                return
            case "loading":
                message = f"{self.about.replica} is loading its model ({self._life.progress:.0%}); try again"
                raise Problem(503, message, "loading", headers=(("retry-after", "2"),))
            case "failed":
                message = f"{self.about.replica} has failed; `homeport status` says why"
                raise Problem(503, message, "failed")
            case "draining":
                message = f"{self.about.replica} is stopping; its sessions wait for it, try again"
                raise Problem(503, message, "host_stopping", headers=(("retry-after", "5"),))

    async def _refuse(self, problem: Problem, send: Send) -> None:
        body = openai_wire.error_body(
            problem.status, problem.message, problem.code, problem.param, problem.homeport
        )
        await send_whole(send, problem.status, body, (*self._desk.place_headers(), *problem.headers))

    def _move(self, state: State, detail: str) -> None:
        if state not in MOVES[self.state]:
            raise ValueError(f"a host that is {self.state} cannot become {state}")
        self.state, self.detail = state, detail


async def _read_park_s(receive: Receive) -> float:
    """`{"seconds": N}`: for how long the host may write."""
    told = decode(await read_body(receive), "how many seconds there are")
    seconds = told.get("seconds") if isinstance(told, dict) else None
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds <= PARK_S_MAX:
        message = f"say how many seconds there are: a number of more than 0, at most {PARK_S_MAX:.0f}"
        raise Problem(400, message, "invalid_value", "seconds")
    return float(seconds)


async def _read_settings(receive: Receive) -> Settings:
    try:
        return read_settings(decode(await read_body(receive), "the settings"))
    except BadRequest as bad:
        raise Problem(400, bad.message, bad.code, bad.param) from None


def build_app(
    engine: Engine,
    about: About,
    journal: Journal,
    token: str,
    memory: MemoryWatch,
    fingerprint: Callable[[str], str],
    on_failed: Callable[[str, bool], None],
) -> HostApp:
    """One host's app around any engine. `token` must not be empty: whoever knows it may use the host.

    `fingerprint` makes 64 hex digits of `ModelFacts.layout` for all that saved contexts are bound to; it is called on
    another thread. `on_failed` gets the reason of a load that failed, and whether it would fail again.
    """
    if not token:
        raise ValueError("a host needs the cluster's token")
    return HostApp(about, engine, journal, token, memory, fingerprint, on_failed)
