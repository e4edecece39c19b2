"""Bodies in OpenAI's shape: answers, stream events, usage, errors. Pure: values in, bytes out.

Knows no HTTP and no engine. A stream's events are made from parts that are ready beforehand, because one is
made for nearly every token.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.engine import Usage

DONE = b"data: [DONE]\n\n"

_text = json.JSONEncoder(ensure_ascii=False).encode
_json = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Outcome:
    """What homeport says of a turn, in the body's last part; DESIGN.md has the words."""

    machine: str
    replica: str
    pin: str
    context: str
    reused_tokens: int
    evaluated_tokens: int
    cause: str | None

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def error_body(
    status: int, message: str, code: str, param: str | None = None, homeport: Mapping[str, Any] | None = None
) -> bytes:
    """An error as OpenAI's clients read it. `homeport` is added beside it, for the router."""
    body: dict[str, Any] = {
        "error": {"message": message, "type": _error_type(status), "code": code, "param": param}
    }
    if homeport is not None:
        body["homeport"] = dict(homeport)
    return _json(body).encode()


def error_event(status: int, message: str, code: str) -> bytes:
    """The same as a stream's last event. No [DONE] comes after it."""
    return b"data: " + error_body(status, message, code) + b"\n\n"


def comment(text: str) -> bytes:
    """A line that clients skip and proxies count as life."""
    return f": {text}\n\n".encode()


def usage_json(usage: Usage) -> dict[str, Any]:
    """Token counts; `cached_tokens` are those that were not evaluated."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.generated,
        "total_tokens": usage.prompt + usage.generated,
        "prompt_tokens_details": {"cached_tokens": usage.reused},
    }


def completion(
    answer_id: str, created: int, model: str, text: str, finish: str, usage: Usage, outcome: Outcome
) -> bytes:
    """A whole answer."""
    message = {"role": "assistant", "content": text, "refusal": None}
    return _json(
        {
            "id": answer_id,
            "object": "chat.completion",
            "created": created,
            "model": model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
            "usage": usage_json(usage),
            "homeport": outcome.to_json(),
        }
    ).encode()


class ChunkWriter:
    """The events of one streamed answer, in the order role, text …, end, DONE."""

    __slots__ = ("_include_usage", "_open", "_text_close", "_text_open")

    def __init__(self, answer_id: str, created: int, model: str, include_usage: bool) -> None:
        head = {"id": answer_id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._include_usage = include_usage
        self._open = "data: " + _json(head)[:-1]
        self._text_open = self._open + ',"choices":[{"index":0,"delta":{"content":'
        close = '},"logprobs":null,"finish_reason":null}]'
        self._text_close = close + (',"usage":null}\n\n' if include_usage else "}\n\n")

    def role(self) -> bytes:
        """The first event: whose words follow."""
        return self._event([_choice({"role": "assistant", "content": "", "refusal": None}, None)])

    def text(self, text: str) -> bytes:
        """New text."""
        return (self._text_open + _text(text) + self._text_close).encode()

    def end(self, finish: str, usage: Usage, outcome: Outcome) -> bytes:
        """The finish reason and, if it was asked for, the usage event; `homeport` is in the last of them."""
        homeport = {"homeport": outcome.to_json()}
        choices = [_choice({}, finish)]
        if not self._include_usage:
            return self._event(choices, homeport) + DONE
        return self._event(choices) + self._event([], {"usage": usage_json(usage), **homeport}) + DONE

    def _event(self, choices: list[dict[str, Any]], more: Mapping[str, Any] | None = None) -> bytes:
        rest: dict[str, Any] = {"choices": choices}
        if self._include_usage:
            rest["usage"] = None
        rest.update(more or {})
        return f"{self._open},{_json(rest)[1:]}\n\n".encode()


def _choice(delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}


def _error_type(status: int) -> str:
    match status:
        case 401 | 403:
            return "authentication_error"
        case 429:
            return "rate_limit_error"
        case _ if status < 500:
            return "invalid_request_error"
        case _:
            return "server_error"
