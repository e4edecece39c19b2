"""What clients are told of models: `/v1/models` in OpenAI's or Anthropic's shape, and Ollama's pages."""

from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from starlette.requests import Request

from router.dialects.dialect import Dialect
from router.dialects.fields import mapping
from router.dialects.ollama_request import model_name
from router.errors import ApiError, Rejected
from router.fleet import Fleet
from router.offer_shapes import OLLAMA, anthropic_json, ollama_json, openai_json, shown_json
from router.offers import Offer, Offers
from router.page_body import read_json
from router.request import ENDPOINTS
from router.told import refusal, told, who

ELSEWHERE = {
    "pull": "POST",
    "push": "POST",
    "create": "POST",
    "copy": "POST",
    "delete": "DELETE",
    "blobs/{digest}": "POST",
}
"""Ollama's pages that change which models there are."""


class ModelPages:
    """Answers from the picture, each key with what it may use."""

    def __init__(self, fleet: Fleet, started_s: int, list_machines: bool) -> None:
        """`started_s`: since when the models are there, for clients that want to know. `list_machines`: whether
        MODEL@MACHINE stands in lists."""
        self._fleet = fleet
        self._started_s = started_s
        self._list_machines = list_machines

    def add_to(self, pages: FastAPI) -> None:
        pages.get("/v1/models")(self.models)
        pages.get("/v1/models/{name:path}")(self.model)
        pages.get("/api/tags")(self.tags)
        pages.get("/api/ps")(self.loaded)
        pages.get("/api/version")(self.version)
        pages.post("/api/show")(self.show)
        for name, method in ELSEWHERE.items():
            pages.api_route(f"/api/{name}", methods=[method])(self.elsewhere)

    async def models(self, request: Request) -> Response:
        def listed() -> Any:
            offers = self._offers(request).each(self._list_machines)
            if not _asks_anthropic(request):
                return {"object": "list", "data": [openai_json(each, self._started_s) for each in offers]}
            data = [anthropic_json(each, self._started_s) for each in offers]
            first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
            return {"data": data, "has_more": False, "first_id": first, "last_id": last}

        return _answer(listed, _dialect(request))

    async def model(self, name: str, request: Request) -> Response:
        shape = anthropic_json if _asks_anthropic(request) else openai_json
        return _answer(lambda: shape(self._offers(request).find(name), self._started_s), _dialect(request))

    async def tags(self, request: Request) -> Response:
        def listed() -> Any:
            offers = self._offers(request).each(self._list_machines)
            return {"models": [self._tag(each) for each in offers]}

        return _answer(listed, _ollama())

    async def loaded(self, request: Request) -> Response:
        def listed() -> Any:
            offers = [each for each in self._offers(request).each() if each.is_loaded]
            return {"models": [self._tag(each) | {"context_length": each.model.context} for each in offers]}

        return _answer(listed, _ollama())

    async def version(self) -> dict[str, str]:
        return {"version": OLLAMA}

    async def show(self, request: Request) -> Response:
        try:
            name = model_name(mapping(await read_json(request), "body"))
        except Rejected as rejected:
            return _refused(rejected.error, _ollama())
        return _answer(lambda: shown_json(self._offers(request).find(name), self._started_s), _ollama())

    async def elsewhere(self) -> Response:
        message = (
            "Which models there are is said in homeport.yaml and with `homeport apply`; files are brought by "
            "`homeport pull`. Ollama's commands for it do not work here."
        )
        return _refused(ApiError(400, "unsupported_operation", message, final=True), _ollama())

    def _offers(self, request: Request) -> Offers:
        fleet = self._fleet
        return Offers(fleet.snapshot(), who(request), fleet.now(), told(request).address.machine)

    def _tag(self, offer: Offer) -> dict[str, Any]:
        of_model = (
            each.listed for each in self._fleet.known.values() if each.listed.model == offer.model.name
        )
        digest = next((each.config_digest for each in of_model if each.config_digest), None)
        return ollama_json(offer, self._started_s, digest)


def _asks_anthropic(request: Request) -> bool:
    return "anthropic-version" in request.headers


def _dialect(request: Request) -> Dialect | None:
    return ENDPOINTS["/v1/messages"].dialect if _asks_anthropic(request) else None


def _ollama() -> Dialect | None:
    return ENDPOINTS["/api/chat"].dialect


def _answer(make: Callable[[], Any], dialect: Dialect | None) -> Response:
    try:
        return JSONResponse(make())
    except Rejected as rejected:
        return _refused(rejected.error, dialect)


def _refused(error: ApiError, dialect: Dialect | None) -> Response:
    """As the dialect says errors; None: as OpenAI's clients read them."""
    if dialect is None:
        return refusal(error)
    more, body = dialect.error(error.status, msgspec.json.decode(error.body())["error"], "")
    headers = {name.decode(): value.decode() for name, value in (*error.headers(), *more)}
    return Response(body, error.status, headers)
