"""Everything but what hosts answer, as a FastAPI app: models, health, metrics, and what people are told.

Answers from the picture. Checks no Host and no key, and adds no request id: `app` does that for all paths.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from router import admin
from router.conversations_api import add_conversations
from router.errors import (
    ApiError,
    Rejected,
    internal_error,
    not_found,
    wrong_method,
)
from router.exchange import EXCHANGE
from router.fleet import Fleet
from router.keys import Entry, Key
from router.page_body import read_json
from router.peers import Peers
from router.responses_api import add_responses
from router.scrape import Scrape
from router.sessions import Sessions, wanted_machine, wanted_time
from router.watch import Watch
from router.web import add_web, read_files
from serving.exposition import CONTENT_TYPE


@dataclass(frozen=True, slots=True)
class Told:
    """What `app` found out about a request: whose it is, and the machine that stood before its path."""

    entry: Entry | None
    machine: str | None
    is_below: bool = False
    """Whether a session or a machine stood before its path."""


def told(request: Request) -> Told:
    found = request.scope.get("homeport")
    return found if isinstance(found, Told) else Told(None, None)


def who(request: Request) -> Key:
    """Whose request it is; `app` lets nobody in without a key but to pages that do not ask for it."""
    return _entry(request)[0]


def _entry(request: Request) -> Entry:
    return told(request).entry or (Key(""), b"")


class Board(StreamingResponse):
    """The events of one board. Raises Rejected where the key has as many boards as it may."""

    def __init__(self, watch: Watch, entry: Entry) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(watch.events(entry), 200, headers, "text/event-stream")
        self._watch = watch
        self._key = entry[0]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = scope[EXCHANGE]
        with self._watch.seat(self._key, lambda: exchange.paused):
            await super().__call__(scope, receive, send)


def make_pages(
    fleet: Fleet,
    peers: Peers,
    sessions: Sessions,
    watch: Watch,
    scrape: Scrape,
    clock: Callable[[], float],
    wall: Callable[[], float],
    version: str,
) -> FastAPI:
    """The app. Errors have OpenAI's shape, those of unknown paths too."""
    pages = FastAPI(title="homeport", docs_url=None, redoc_url=None, openapi_url=None)
    relay = sessions.relay
    _add_models(pages, fleet, int(wall()))
    _add_state(pages, fleet, clock, version)
    _add_errors(pages)
    _add_actions(pages, sessions)
    add_responses(pages, relay.kept, sessions.cancel, who)
    add_conversations(pages, relay.kept, who, lambda request: told(request).machine, wall)
    add_web(pages, read_files(), lambda request: told(request).is_below)

    @pages.get("/api/fleet", response_model=None)
    async def api_fleet(request: Request) -> dict[str, Any] | Response:
        if "watch" in request.query_params:
            return Board(watch, _entry(request))
        return admin.fleet_json(fleet, relay.addressing.digest_key, clock(), wall(), who(request))

    @pages.get("/api/sessions")
    async def api_sessions(request: Request) -> dict[str, Any]:
        return await admin.sessions_json(fleet, peers, sessions, wall(), who(request))

    @pages.get("/metrics")
    async def metrics(role: str | None = None, name: str | None = None) -> Response:
        return Response(await scrape.metrics(role, name), media_type=CONTENT_TYPE)

    @pages.get("/sd")
    async def targets(request: Request) -> list[dict[str, Any]]:
        return scrape.targets(request.headers.get("host", ""))

    return pages


def _add_actions(pages: FastAPI, sessions: Sessions) -> None:
    @pages.delete("/api/sessions/{session:path}")  # a name may hold slashes
    async def end(session: str, request: Request) -> dict[str, Any]:
        return await sessions.end(session, who(request))

    @pages.post("/api/sessions/{session:path}/move")
    async def move(session: str, request: Request) -> dict[str, Any]:
        return await sessions.move(session, wanted_machine(await read_json(request)), who(request))

    @pages.post("/api/machines/{name}/forget")
    async def forget(name: str) -> dict[str, Any]:
        return await sessions.forget(name)

    @pages.post("/api/machines/{name}/cordon")
    async def cordon(name: str) -> dict[str, Any]:
        return await sessions.cordon(name, True)

    @pages.post("/api/machines/{name}/wake")
    async def wake(name: str) -> dict[str, Any]:
        return await sessions.wake(name)

    @pages.post("/api/machines/{name}/uncordon")
    async def uncordon(name: str) -> dict[str, Any]:
        return await sessions.cordon(name, False)

    @pages.post("/api/machines/{name}/yield")
    async def yield_machine(name: str, request: Request) -> dict[str, Any]:
        return await sessions.yield_machine(name, await read_json(request))

    @pages.post("/api/machines/{name}/drain")
    async def drain(name: str, request: Request) -> dict[str, Any]:
        return await sessions.drain(name, wanted_time(await read_json(request, "{}")))


def _add_models(pages: FastAPI, fleet: Fleet, started_s: int) -> None:
    def model_json(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started_s, "owned_by": "homeport"}

    def known(request: Request) -> list[str]:
        """What this key may use: of the machine that the path names, if it names one."""
        snapshot, key, machine = fleet.snapshot(), who(request), told(request).machine
        names = {name for name in snapshot.models if key.allows_model(name)}
        if machine is not None:
            mine = [
                each.name for each in snapshot.machines.values() if key.allows_place(each.name, each.zone)
            ]
            if machine not in mine:
                machines = ", ".join(sorted(mine)) or "none"
                message = f"There is no machine of that name; known machines: {machines}."
                raise Rejected(ApiError(404, "machine_not_found", message))
            names &= {each.model for each in snapshot.replicas.values() if each.machine == machine}
        return sorted(names)

    @pages.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        return {"object": "list", "data": [model_json(name) for name in known(request)]}

    @pages.get("/v1/models/{name:path}")
    async def model(name: str, request: Request) -> Response:
        names = known(request)
        if name in names:
            return JSONResponse(model_json(name))
        message = f"There is no model of that name; known models: {', '.join(names) or 'none'}."
        return _error(ApiError(404, "model_not_found", message, "model"))


def _add_state(pages: FastAPI, fleet: Fleet, clock: Callable[[], float], version: str) -> None:
    @pages.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "alive", "version": version}

    @pages.get("/ready")
    async def ready() -> Response:
        now, snapshot = clock(), fleet.snapshot()
        serving = {replica.model for replica in snapshot.replicas.values() if replica.serves(now)}
        states = {name: name in serving for name in sorted(snapshot.models)}
        if any(states.values()):
            return JSONResponse({"status": "ready", "models": states})
        message = "No replica of any model serves yet; `homeport status` shows how far they are."
        return _error(ApiError(503, "not_ready", message, retry_after_s=2, more={"models": states}))


def _add_errors(pages: FastAPI) -> None:
    @pages.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return _error(not_found(request.url.path))
        if error.status_code == 405:
            allowed = Headers(error.headers).get("allow", "GET")
            if request.method == "OPTIONS":
                return Response(status_code=204, headers={"allow": f"{allowed}, OPTIONS"})
            return _error(wrong_method([allowed]), {"allow": allowed})
        return _error(ApiError(error.status_code, "http_error", str(error.detail)))

    @pages.exception_handler(Rejected)
    async def rejected(_request: Request, seen: Rejected) -> Response:
        return _error(seen.error)

    @pages.exception_handler(Exception)
    async def broken(_request: Request, _seen: Exception) -> Response:
        return _error(internal_error())


def _error(error: ApiError, headers: dict[str, str] | None = None) -> Response:
    own = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(error.body(), error.status, {**own, **(headers or {})})
