"""Everything but models and what hosts answer, as a FastAPI app: health, metrics, and what people are told.

Answers from the picture. Checks no Host and no key, and adds no request id: `app` does that for all paths.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from router import admin, openapi
from router.addressing import Addressing
from router.arrivals import Arrivals
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
from router.keys import Entry
from router.model_pages import ModelPages
from router.page_body import read_json
from router.peers import Peers
from router.responses_api import add_responses
from router.scrape import Scrape
from router.sessions import Sessions, wanted_machine, wanted_time
from router.told import entry_of, refusal, told, who
from router.watch import Watch
from router.web import add_web, read_files
from serving.exposition import CONTENT_TYPE, version


class Board(StreamingResponse):
    """The events of one board, or of another who looks on. Raises Rejected where the key has as many as it may."""

    def __init__(self, watch: Watch, entry: Entry, events: AsyncIterator[bytes]) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(events, 200, headers, "text/event-stream")
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
    offered: ModelPages,
    watch: Watch,
    scrape: Scrape,
    clock: Callable[[], float],
    wall: Callable[[], float],
) -> FastAPI:
    """The app. Errors have OpenAI's shape, those of unknown paths too."""
    pages = FastAPI(title="homeport", docs_url=None, redoc_url=None, openapi_url=None)
    relay = sessions.relay
    offered.add_to(pages)
    _add_state(pages, fleet, clock)
    description = JSONResponse(openapi.describe(version()))
    pages.get(openapi.PATH)(lambda: description)
    _add_errors(pages, relay.arrivals)
    _add_actions(pages, sessions)
    add_responses(pages, relay.kept, sessions.cancel, who)
    add_conversations(pages, relay.kept, who, _held_in(relay.addressing), wall)
    add_web(pages, read_files(), lambda request: told(request).is_below)

    @pages.get("/api/fleet", response_model=None)
    async def api_fleet(request: Request) -> dict[str, Any] | Response:
        if "watch" in request.query_params:
            entry = entry_of(request)
            return Board(watch, entry, watch.events(entry))
        return admin.fleet_json(fleet, relay.addressing.digest_key, clock(), wall(), who(request))

    @pages.get("/api/arrivals", response_model=None)
    async def api_arrivals(request: Request) -> Response:
        entry = entry_of(request)
        return Board(watch, entry, relay.arrivals.events(entry))

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


def _held_in(addressing: Addressing) -> Callable[[str, Request], str]:
    def held_in(conversation: str, request: Request) -> str:
        found = told(request)
        return addressing.held_in(conversation, found.head, found.address, who(request))

    return held_in


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


def _add_state(pages: FastAPI, fleet: Fleet, clock: Callable[[], float]) -> None:
    @pages.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "alive", "version": version()}

    @pages.get("/ready")
    async def ready() -> Response:
        now, snapshot = clock(), fleet.snapshot()
        serving = {replica.model for replica in snapshot.replicas.values() if replica.serves(now)}
        states = {name: name in serving for name in sorted(snapshot.models)}
        if any(states.values()):
            return JSONResponse({"status": "ready", "models": states})
        message = "No replica of any model serves yet; `homeport status` shows how far they are."
        return refusal(ApiError(503, "not_ready", message, retry_after_s=2, more={"models": states}))


def _add_errors(pages: FastAPI, arrivals: Arrivals) -> None:
    @pages.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            if arrivals.is_watched and request.method == "POST":
                arrivals.refused(request.url.path, request.headers.raw, "not_found")
            return refusal(not_found(request.url.path))
        if error.status_code == 405:
            allowed = Headers(error.headers).get("allow", "GET")
            if request.method == "OPTIONS":
                return Response(status_code=204, headers={"allow": f"{allowed}, OPTIONS"})
            return refusal(wrong_method([allowed]), {"allow": allowed})
        return refusal(ApiError(error.status_code, "http_error", str(error.detail)))

    @pages.exception_handler(Rejected)
    async def rejected(_request: Request, seen: Rejected) -> Response:
        return refusal(seen.error)

    @pages.exception_handler(Exception)
    async def broken(_request: Request, _seen: Exception) -> Response:
        return refusal(internal_error())
