"""What all bodies in OpenAI's shape have in common: usage, outcome, log probabilities, errors. Pure.

Knows no HTTP and no endpoint.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.engine import Likely, Sampled, Usage

DONE = b"data: [DONE]\n\n"
LEAST_LOGPROB = -9999.0
"""What OpenAI's API says of a token that cannot come; JSON has no infinity."""

text_json = json.JSONEncoder(ensure_ascii=False).encode
"""For what is sent once a token."""
compact_json = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Envelope:
    """What stands in each part of one answer."""

    id: str
    created: int
    """Unix time in whole seconds."""
    model: str
    include_usage: bool = False
    """Of a stream: its last event tells the usage."""
    return_progress: bool = False
    """Of a stream: events before the answer tell how far its prompt is."""


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


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """How far a prompt is, as llama-server tells it: `processed` of `total` tokens, those of the `cache` included,
    which did not have to be evaluated; `time_ms` since its evaluation began."""

    total: int
    cache: int
    processed: int
    time_ms: int

    def to_json(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}


def sse_event(data: str) -> bytes:
    """One server-sent event of a JSON text."""
    return f"data: {data}\n\n".encode()


def error_body(
    status: int, message: str, code: str, param: str | None = None, homeport: Mapping[str, Any] | None = None
) -> bytes:
    """An error as OpenAI's clients read it. `homeport` is added beside it, for the router."""
    body: dict[str, Any] = {
        "error": {"message": message, "type": _error_type(status), "code": code, "param": param}
    }
    if homeport is not None:
        body["homeport"] = dict(homeport)
    return compact_json(body).encode()


def error_event(status: int, message: str, code: str, param: str | None = None) -> bytes:
    """The same as a stream's last event. No [DONE] comes after it."""
    return b"data: " + error_body(status, message, code, param) + b"\n\n"


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


def logprobs_json(sampled: Sequence[Sampled]) -> dict[str, Any]:
    """Log probabilities of a chat's tokens."""
    content = [
        {**_likely(token.chosen), "top_logprobs": [_likely(other) for other in token.top]}
        for token in sampled
    ]
    return {"content": content, "refusal": None}


def token_text(likely: Likely) -> str:
    """What a token stands for; a part of a character shows as U+FFFD."""
    return likely.piece.decode(errors="replace")


def finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)


def _likely(likely: Likely) -> dict[str, Any]:
    return {
        "token": token_text(likely),
        "logprob": finite(likely.logprob),
        "bytes": list(likely.piece),
    }


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
