"""The OpenAPI description of the public paths, served at `/openapi.json`. Pure; kept by hand, held against what is
served by tests.

Names no model, machine or session. The board's files and what a browser makes of them are not described.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from router import openapi_schemas as of
from router.openapi_schemas import Schema
from serving.drain_plan import LONGEST_DRAIN_S

PATH = "/openapi.json"
JSON, EVENTS, LINES = "application/json", "text/event-stream", "application/x-ndjson"
CHECKED = (400, 401, 403, 431)
"""What any request may come to: it is checked, its key and its headers are."""
BODY = (413,)
ASKS = (429, 503)
"""What asks hosts or the controller is counted for its key, and nobody may be there."""
TURN = (404, 409, 410, *BODY, 415, *ASKS, 502, 504)
ACTION = (404, 409, *ASKS, 502, 504)
MEANINGS = {
    200: "Done.",
    400: "The request is at fault; `param` says where.",
    401: "No key that is known came with it.",
    403: "This key, name or site may not.",
    404: "There is no such thing for this key.",
    409: "It cannot be done as things stand.",
    410: "The session's machine is lost, and it was to fail then.",
    413: "The body is too large.",
    415: "The body is encoded.",
    429: "The key asks too often, or the session's machine is busy for too long.",
    431: "The headers are too large.",
    502: "A host or the controller failed.",
    503: "Whoever is needed is not there now; `Retry-After` says when to ask again.",
    504: "A host or the controller took too long.",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    summary: str
    answers: Mapping[str, Schema]
    """By content type."""
    body: Schema | None = None
    needs_body: bool = True
    errors: tuple[int, ...] = ()
    """Beside CHECKED."""
    error: Schema = field(default_factory=lambda: of.ERROR)
    query: tuple[tuple[str, Schema], ...] = ()
    is_open: bool = False
    """Whether it asks for no key."""


def _turn(
    path: str,
    summary: str,
    body: Schema,
    answer: Schema,
    streams: str | None = EVENTS,
    error: Schema = of.ERROR,
) -> Operation:
    answers = {JSON: answer, **({streams: {}} if streams else {})}
    return Operation("post", path, summary, answers, body, errors=TURN, error=error)


def _get(path: str, summary: str, answer: Schema, errors: tuple[int, ...] = (), **more: Any) -> Operation:
    return Operation("get", path, summary, {JSON: answer}, errors=errors, **more)


def _act(name: str, summary: str, body: Schema | None = None, needs_body: bool = True) -> Operation:
    errors = ACTION if body is None else (*ACTION, *BODY)
    path = f"/api/machines/{{name}}/{name}"
    return Operation("post", path, summary, {JSON: of.MACHINE_ANSWER}, body, needs_body, errors)


def _ollama(path: str, summary: str, body: Schema, answer: Schema, streams: bool = True) -> Operation:
    return _turn(path, summary, body, answer, LINES if streams else None, OLLAMA_ERRORS)


OLLAMA_ERRORS = of.either(of.OLLAMA_ERROR, of.ERROR)
"""What is refused before its path is looked at has OpenAI's shape."""
MODEL_ERRORS = of.either(of.ERROR, of.ANTHROPIC_ERROR)
PAGING = (
    ("order", of.one_of("asc", "desc")),
    ("after", of.TEXT),
    ("limit", {"type": "integer", "minimum": 1, "maximum": 100}),
)

MODELS = (
    _get("/v1/models", "The models that this key may use", of.MODELS, error=MODEL_ERRORS),
    _get("/v1/models/{name}", "One model", of.MODEL, (404,), error=MODEL_ERRORS),
)
OPENAI = (
    _turn("/v1/chat/completions", "A turn of a chat", of.CHAT, of.CHAT_ANSWER),
    _turn("/v1/completions", "Text that goes on from a prompt", of.COMPLETION, of.COMPLETION_ANSWER),
    _turn("/v1/embeddings", "Texts as vectors", of.EMBEDDING, of.EMBEDDING_ANSWER, None),
    _turn("/v1/responses", "A turn in the words of the Responses API", of.RESPONSE, of.RESPONSE_ANSWER),
    _get("/v1/responses/{response}", "An answer that is kept", of.RESPONSE_ANSWER, (404, *ASKS)),
    Operation("delete", "/v1/responses/{response}", "Remove it", {JSON: of.DELETED}, errors=(404, *ASKS)),
    Operation(
        "post",
        "/v1/responses/{response}/cancel",
        "End its making",
        {JSON: of.RESPONSE_ANSWER},
        errors=(404, *ASKS),
    ),
    _get("/v1/responses/{response}/input_items", "What it was asked", of.PAGE, (404, *ASKS), query=PAGING),
    Operation(
        "post",
        "/v1/conversations",
        "A name for a conversation",
        {JSON: of.CONVERSATION},
        of.record({}, {"metadata": of.OBJECT}),
        needs_body=False,
        errors=(*BODY, *ASKS),
    ),
    _get("/v1/conversations/{name}", "The name again", of.CONVERSATION, ASKS),
    Operation("delete", "/v1/conversations/{name}", "Forget it", {JSON: of.DELETED}, errors=ASKS),
    _get("/v1/conversations/{name}/items", "What was said in it", of.PAGE, ASKS, query=PAGING),
    Operation("post", "/v1/conversations/{name}/items", "Refused: turns say what is said", {}, errors=ASKS),
)
ANTHROPIC = (
    _turn(
        "/v1/messages",
        "A turn in the words of Anthropic's Messages",
        of.MESSAGES,
        of.MESSAGE_ANSWER,
        error=of.ANTHROPIC_ERROR,
    ),
    _turn(
        "/v1/messages/count_tokens",
        "How many tokens a conversation has",
        of.COUNT_TOKENS,
        of.record({"input_tokens": of.COUNT}),
        None,
        of.ANTHROPIC_ERROR,
    ),
)
OLLAMA = (
    _ollama(
        "/api/chat", "A turn of a chat", of.OLLAMA_CHAT, of.record({**of.OLLAMA_MADE, "message": of.OBJECT})
    ),
    _ollama(
        "/api/generate", "An answer", of.OLLAMA_GENERATE, of.record({**of.OLLAMA_MADE, "response": of.TEXT})
    ),
    _ollama(
        "/api/embed", "Texts as vectors", of.OLLAMA_EMBED, of.record({"embeddings": of.listed(of.ANY)}), False
    ),
    _ollama(
        "/api/embeddings",
        "One text as a vector",
        of.OLLAMA_EMBEDDINGS,
        of.record({"embedding": of.ANY}),
        False,
    ),
    _get("/api/tags", "The models", of.OLLAMA_MODELS, error=OLLAMA_ERRORS),
    _get("/api/ps", "Those that are loaded", of.OLLAMA_MODELS, error=OLLAMA_ERRORS),
    _get("/api/version", "The version of Ollama whose API this is", of.record({"version": of.TEXT})),
    Operation(
        "post",
        "/api/show",
        "One model",
        {
            JSON: of.record(
                {"details": of.OBJECT, "model_info": of.OBJECT, "capabilities": of.listed(of.TEXT)}
            )
        },
        of.record({"model": of.NAME}),
        errors=(404, *BODY),
        error=OLLAMA_ERRORS,
    ),
    *(
        Operation(method, f"/api/{name}", "Refused: models are the config's matter", {}, error=OLLAMA_ERRORS)
        for name, method in (
            ("pull", "post"),
            ("push", "post"),
            ("create", "post"),
            ("copy", "post"),
            ("delete", "delete"),
            ("blobs/{digest}", "post"),
        )
    ),
)
PEOPLE = (
    _get("/api/fleet", "Machines and replicas; with `?watch` the board's events", of.OBJECT),
    Operation(
        "get",
        "/api/arrivals",
        "What arrives, told as it does while somebody looks",
        {EVENTS: {}},
        errors=(429,),
    ),
    _get("/api/sessions", "The sessions of this key, an admin's all", of.OBJECT, ASKS),
    Operation(
        "delete",
        "/api/sessions/{session}",
        "End a session and forget it",
        {JSON: of.record({"id": of.TEXT, "ended": of.FLAG, "models": of.listed(of.TEXT)})},
        errors=ACTION,
    ),
    Operation(
        "post",
        "/api/sessions/{session}/move",
        "Give a session another home",
        {JSON: of.record({"id": of.TEXT, "machine": of.TEXT, "replicas": of.listed(of.TEXT)})},
        of.record({"machine": of.NAME}),
        errors=(*ACTION, *BODY),
    ),
    _act("cordon", "Let it take no new sessions"),
    _act("uncordon", "Let it take them again"),
    _act(
        "drain",
        "Move its sessions away by a time",
        of.record({}, {"within_s": of.number(0, LONGEST_DRAIN_S)}),
        needs_body=False,
    ),
    _act("yield", "Its person wants it, or no longer", of.YIELD),
    _act("wake", "Wake it"),
    _act("forget", "It is gone for good"),
)
STATE = (
    _get(
        "/health",
        "Whether the router lives",
        of.record({"status": of.TEXT, "version": of.TEXT}),
        is_open=True,
    ),
    _get(
        "/ready",
        "Whether a model serves",
        of.record({"status": of.TEXT, "models": of.OBJECT}),
        (503,),
        is_open=True,
    ),
    Operation(
        "get",
        "/metrics",
        "For Prometheus",
        {"text/plain": of.TEXT},
        errors=(404, *ASKS, 502),
        query=(("role", of.TEXT), ("name", of.TEXT)),
    ),
    _get("/sd", "Where Prometheus finds the rest", of.listed(of.record({"targets": of.listed(of.TEXT)}))),
    _get(PATH, "This description", of.OBJECT, is_open=True),
)
OPERATIONS = (*MODELS, *OPENAI, *ANTHROPIC, *OLLAMA, *PEOPLE, *STATE)


def describe(version: str) -> dict[str, Any]:
    """The whole description, in OpenAPI 3.1."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    name = {"default": "name", "description": "Percent-encoded."}
    return {
        "openapi": "3.1.0",
        "info": {"title": "homeport", "version": version},
        "servers": [
            {"url": "/"},
            {"url": "/s/{session}", "description": "This session", "variables": {"session": name}},
            {"url": "/m/{machine}", "description": "This machine only", "variables": {"machine": name}},
        ],
        "security": [{"key": []}, {"x-api-key": []}, {}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            }
        },
    }


def _described(operation: Operation) -> dict[str, Any]:
    told: dict[str, Any] = {"summary": operation.summary, "operationId": _id(operation)}
    if operation.is_open:
        told["security"] = []
    if parameters := [*_in_path(operation.path), *_in_query(operation)]:
        told["parameters"] = parameters
    if operation.body is not None:
        told["requestBody"] = {
            "required": operation.needs_body,
            "content": {JSON: {"schema": operation.body}},
        }
    told["responses"] = {
        **({"200": _answer(200, operation.answers)} if operation.answers else {}),
        **{
            str(status): _answer(status, {JSON: operation.error})
            for status in sorted({*CHECKED, *operation.errors})
        },
    }
    return told


def _answer(status: int, content: Mapping[str, Schema]) -> dict[str, Any]:
    return {
        "description": MEANINGS[status],
        "content": {kind: {"schema": schema} if schema else {} for kind, schema in content.items()},
    }


def _in_path(path: str) -> list[dict[str, Any]]:
    names = re.findall(r"{(\w+)}", path)
    return [{"name": name, "in": "path", "required": True, "schema": of.NAME} for name in names]


def _in_query(operation: Operation) -> list[dict[str, Any]]:
    return [{"name": name, "in": "query", "schema": schema} for name, schema in operation.query]


def _id(operation: Operation) -> str:
    return "_".join([operation.method, *re.findall(r"\w+", operation.path)])
