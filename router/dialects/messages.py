"""Anthropic's Messages on top of chat completions. Pure.

Source: Anthropic's API reference (Messages, streaming, errors).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.dialects.chat_events import ChatEvents, Chunk, Comment, Done, Failed
from router.dialects.dialect import Naming
from router.errors import RawHeaders, Rejected, bad_request

STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class Messages:
    """`/v1/messages`."""

    stream_type = b"text/event-stream; charset=utf-8"

    def read(self, body: bytes, naming: Naming) -> "Asked":
        try:
            told = json.loads(body)
        except (ValueError, RecursionError) as error:
            message = f"The request body is not JSON that can be read: {error}."
            raise Rejected(bad_request(message, "invalid_json")) from error
        if not isinstance(told, dict):
            raise Rejected(bad_request("The request body must be a JSON object.", "invalid_type"))
        stream = told.get("stream") is True
        chat = {
            "model": told.get("model"),
            "messages": told.get("messages"),
            "max_tokens": told.get("max_tokens"),
            "stream": stream,
        }
        if stream:
            chat["stream_options"] = {"include_usage": True}
        if "metadata" in told:
            chat["metadata"] = told["metadata"]
        return Asked(json.dumps(chat).encode(), naming)

    def error(self, status: int, error: Mapping[str, Any], request_id: str) -> tuple[RawHeaders, bytes]:
        return [], json.dumps(
            {"type": "error", "error": _error(status, error), "request_id": request_id}
        ).encode()


@dataclass(frozen=True, slots=True)
class Asked:
    """One request to `/v1/messages`."""

    body: bytes
    naming: Naming

    def whole(self, answer: bytes, session: str | None) -> bytes:
        told = json.loads(answer)
        choice = told["choices"][0]
        text = choice["message"].get("content") or ""
        return json.dumps(
            {
                "id": f"msg_{self.naming.unique}",
                "type": "message",
                "role": "assistant",
                "model": told["model"],
                "content": [{"type": "text", "text": text}],
                "stop_reason": STOPS[choice["finish_reason"]],
                "stop_sequence": None,
                "usage": _usage(told.get("usage")),
                "homeport": told.get("homeport"),
            }
        ).encode()

    def stream(self, session: str | None) -> "Stream":
        return Stream(self.naming, json.loads(self.body)["model"])


class Stream:
    """A stream's events, one after another."""

    def __init__(self, naming: Naming, model: str) -> None:
        self._naming = naming
        self._model = model
        self._events = ChatEvents()
        self._began = False
        self._stop: str | None = None

    def take(self, part: bytes) -> bytes:
        return b"".join(self._said(event) for event in self._events.take(part))

    def end(self) -> bytes:
        return b""

    def _said(self, event: Comment | Chunk | Failed | Done) -> bytes:
        match event:
            case Comment():
                return event.line
            case Failed():
                return _event("error", {"type": "error", "error": _error(500, event.error)})
            case Done():
                return _event("message_stop", {"type": "message_stop"})
            case Chunk() if event.choice is None:
                delta = {"stop_reason": self._stop, "stop_sequence": None}
                usage, home = _usage(event.data.get("usage")), event.data.get("homeport")
                told = {"type": "message_delta", "delta": delta, "usage": usage, "homeport": home}
                return _event("message_delta", told)
            case Chunk():
                return self._part(event.choice)

    def _part(self, choice: Mapping[str, Any]) -> bytes:
        said = b"" if self._began else self._begin()
        if text := choice["delta"].get("content"):
            delta = {"type": "text_delta", "text": text}
            said += _event("content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta})
        if (reason := choice.get("finish_reason")) is not None:
            self._stop = STOPS[reason]
            said += _event("content_block_stop", {"type": "content_block_stop", "index": 0})
        return said

    def _begin(self) -> bytes:
        self._began = True
        message = {
            "id": f"msg_{self._naming.unique}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }
        block = {"type": "text", "text": ""}
        return _event("message_start", {"type": "message_start", "message": message}) + _event(
            "content_block_start", {"type": "content_block_start", "index": 0, "content_block": block}
        )


def _error(status: int, error: Mapping[str, Any]) -> dict[str, Any]:
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": kind, "message": error["message"]}


def _usage(told: Mapping[str, Any] | None) -> dict[str, int]:
    if told is None:
        return {"input_tokens": 0, "output_tokens": 0}
    return {"input_tokens": told["prompt_tokens"], "output_tokens": told["completion_tokens"]}


def _event(name: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
