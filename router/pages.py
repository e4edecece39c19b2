"""Everything but what hosts answer, as a FastAPI app: models, health, metrics, and what people are told.

Answers from the picture. Checks no Host and adds no request id: `app` does that for all paths.
"""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from router import admin
from router.errors import ApiError, internal_error, not_found, wrong_method
from router.fleet import Fleet
from router.peers import Peers
from router.relay import Relay


def make_pages(
    fleet: Fleet,
    peers: Peers,
    relay: Relay,
    registry: CollectorRegistry,
    clock: Callable[[], float],
    wall: Callable[[], float],
    version: str,
) -> FastAPI:
    """The app. Errors have OpenAI's shape, those of unknown paths too."""
    pages = FastAPI(title="homeport", docs_url=None, redoc_url=None, openapi_url=None)
    _add_models(pages, fleet, int(wall()))
    _add_state(pages, fleet, clock, version)
    _add_errors(pages)

    @pages.get("/api/fleet")
    async def api_fleet() -> dict[str, Any]:
        return admin.fleet_json(fleet, relay.digest_key, clock())

    @pages.get("/api/sessions")
    async def api_sessions() -> dict[str, Any]:
        return await admin.sessions_json(fleet, peers, relay, wall())

    @pages.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return pages


def _add_models(pages: FastAPI, fleet: Fleet, started_s: int) -> None:
    def model_json(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started_s, "owned_by": "homeport"}

    @pages.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_json(name) for name in sorted(fleet.snapshot().models)]}

    @pages.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        known = sorted(fleet.snapshot().models)
        if name in known:
            return JSONResponse(model_json(name))
        message = f"There is no model of that name; known models: {', '.join(known) or 'none'}."
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
            allowed = (error.headers or {}).get("allow", "GET")
            return _error(wrong_method([allowed]), {"allow": allowed})
        return _error(ApiError(error.status_code, "http_error", str(error.detail)))

    @pages.exception_handler(Exception)
    async def broken(_request: Request, _seen: Exception) -> Response:
        return _error(internal_error())


def _error(error: ApiError, headers: dict[str, str] | None = None) -> Response:
    own = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(error.body(), error.status, {**own, **(headers or {})})
