"""The ASGI app around one engine: who may come in, the host's state, its pins, and chat completions.

Loads no engine and starts no server (host.py does both); any Engine will do.
"""

import asyncio
import hmac
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qs

import msgspec

from serving import admission, openai_wire
from serving.asgi import (
    ClientGone,
    Message,
    Problem,
    Receive,
    Scope,
    Send,
    header_map,
    internal_problem,
    send_whole,
)
from serving.chat import Desk, chat
from serving.engine import Engine
from serving.journal import Journal
from serving.model import ModelSpec
from serving.routing import check_home, read_ask
from serving.trouble import report
from serving.turns import Remembered, Turns

State = Literal["loading", "ready", "draining", "failed"]

MOVES: dict[State, frozenset[State]] = {
    "loading": frozenset({"ready", "failed", "draining"}),
    "ready": frozenset({"draining"}),
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


class HostApp:
    """Build it, serve it at once, call `ready` when the engine is loaded and `stop` once, all on one loop."""

    def __init__(
        self,
        about: About,
        engine: Engine,
        journal: Journal,
        token: str,
        memory: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.about = about
        self.state: State = "loading"
        self.detail = ""
        self.progress = 0.0
        self._engine = engine
        self._journal = journal
        self._token = token.encode()
        self._memory = memory
        self._writer = ThreadPoolExecutor(1, "journal")
        model = about.model
        self._turns = Turns(engine, model.sessions, model.hold_s, model.queue_s)
        self._desk = Desk(
            about.machine, about.replica, model, engine, self._turns, journal, self._writer, made=Remembered()
        )

    def loading(self, progress: float) -> None:
        """The engine has loaded this share, 0 to 1."""
        self.progress = progress

    def ready(self) -> None:
        """The engine is loaded: start it, and serve. Must be called on the loop."""
        if self.state == "loading":
            self._move("ready", self._engine.facts.description)
            self.progress = 1.0
            self._turns.attach(asyncio.get_running_loop())

    def failed(self, reason: str) -> None:
        """The engine cannot be loaded."""
        self._move("failed", reason)

    def stop(self) -> None:
        """Refuse who comes and end who is here; their requests end at once."""
        loaded = self.state == "ready"
        self._move("draining", "stopping")
        if loaded:
            self._turns.stop()

    def close(self) -> None:
        """Wait for what is still being written."""
        self._writer.shutdown()

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
            case "POST", "/v1/chat/completions":
                check_home(headers, self.about.replica, self.about.incarnation)
                self._check_ready()
                await chat(self._desk, read_ask(headers, ""), receive, send)
            case "GET", "/state":
                await send_whole(send, 200, msgspec.json.encode(self.report()))
            case "GET", "/pins":
                await send_whole(send, 200, await asyncio.to_thread(self._all_pins))
            case "GET", _ if path.startswith("/pins/"):
                await send_whole(send, 200, self._pin(path.removeprefix("/pins/"), scope["query_string"]))
            case _, "/v1/chat/completions" | "/state" | "/pins":
                raise Problem(405, f"{method} does not work on {path}", "method_not_allowed")
            case _:
                message = (
                    "a host has /v1/chat/completions, /state and /pins; everything else is at the router"
                )
                raise Problem(404, message, "not_found")

    def report(self) -> dict[str, Any]:
        """What GET /state answers."""
        about, turns = self.about, self._turns
        state, loaded, now = turns.state, self.state == "ready", turns.now()
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
            "progress": round(self.progress, 3),
            "detail": self.detail,
            "context": self._engine.facts.context if loaded else about.model.context,
            "places": len(state.places),
            "free": admission.free_places(state),
            "running": admission.running(state),
            "waiting": len(state.line),
            "residents": residents,
            "tokens_generated": self._engine.tokens_generated if loaded else 0,
            "tokens_evaluated": self._engine.tokens_evaluated if loaded else 0,
            "pins": self._journal.count(),
            "memory": dict(self._memory()),
            "turns": turns.finished,
            "recent": [
                {
                    "request_id": turn.request_id,
                    "generated": turn.generated,
                    "after_disconnect": turn.after_disconnect,
                }
                for turn in turns.recent
            ],
        }

    def _all_pins(self) -> bytes:
        pins = [
            {**entry.pin.to_json(), "used_s": entry.used_s, "turns": entry.turns}
            for entry in self._journal.all()
        ]
        return msgspec.json.encode({"pins": pins})

    def _pin(self, session: str, query: bytes) -> bytes:
        model = parse_qs(query.decode("latin-1")).get("model", [self.about.model.name])[0]
        pin = self._journal.get(session, model)
        if pin is None:
            raise Problem(404, "this host has no pin of that session and model", "pin_not_found")
        return msgspec.json.encode(pin.to_json())

    def _check_ready(self) -> None:
        match self.state:
            case "ready":
                return
            case "loading":
                message = f"{self.about.replica} is loading its model ({self.progress:.0%}); try again"
                raise Problem(503, message, "loading", headers=(("retry-after", "2"),))
            case "failed":
                raise Problem(503, f"{self.about.replica} has failed: {self.detail}", "failed")
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


def build_app(
    engine: Engine,
    about: About,
    journal: Journal,
    token: str,
    memory: Callable[[], Mapping[str, Any]],
) -> HostApp:
    """One host's app around any engine. `token` must not be empty: whoever knows it may use the host.

    `memory` tells `rss_bytes`, `limit_bytes` and `enforced`.
    """
    if not token:
        raise ValueError("a host needs the cluster's token")
    return HostApp(about, engine, journal, token, memory)
