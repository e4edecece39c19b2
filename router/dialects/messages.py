"""Anthropic's Messages on top of chat completions, and its counting of tokens. Pure.

Source: Anthropic's API reference (Messages, streaming, errors). What is not here: batches, files, and whatever runs at
Anthropic.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.dialects.dialect import Naming, renamed
from router.dialects.messages_answer import blocks_of, message, stop_of, to_json, usage_of
from router.dialects.messages_errors import error_of
from router.dialects.messages_request import Shown, conversation, read_body, read_chat
from router.dialects.messages_stream import Stream
from router.errors import RawHeaders

NAMES = (("stop", "stop_sequences"), ("response_format", "output_config.format"))
"""What a chat's field is called here: a host speaks of its own."""


class _Anthropic:
    stream_type = b"text/event-stream; charset=utf-8"

    def error(self, status: int, error: Mapping[str, Any], request_id: str) -> tuple[RawHeaders, bytes]:
        said = error_of(status, renamed(error, NAMES))
        told = {"type": "error", "error": said, "request_id": request_id}
        return [], to_json(told)


class Messages(_Anthropic):
    """`/v1/messages`."""

    def read(self, body: bytes, naming: Naming) -> "Asked":
        asked = read_chat(read_body(body))
        return Asked(json.dumps(asked.chat).encode(), naming, asked.shown, asked.max_tokens)


class CountTokens(_Anthropic):
    """`/v1/messages/count_tokens`, asked of a host's /tokenize."""

    def read(self, body: bytes, naming: Naming) -> "CountAsked":
        return CountAsked(json.dumps(conversation(read_body(body))).encode())


@dataclass(frozen=True, slots=True)
class Asked:
    """One request to `/v1/messages`."""

    body: bytes
    naming: Naming
    shown: Shown
    max_tokens: int

    def whole(self, answer: bytes, session: str | None) -> bytes:
        told = json.loads(answer)
        choice, usage = told["choices"][0], told.get("usage")
        said = message(self.naming.unique, told["model"])
        said["content"] = blocks_of(choice["message"], self.shown)
        said |= stop_of(choice, usage, self.max_tokens)
        said["usage"] = usage_of(usage)
        if "homeport" in told:
            said["homeport"] = told["homeport"]
        return to_json(said)

    def stream(self, session: str | None) -> Stream:
        return Stream(self.naming, self.shown, self.max_tokens)


@dataclass(frozen=True, slots=True)
class CountAsked:
    """One request to `/v1/messages/count_tokens`."""

    body: bytes

    def whole(self, answer: bytes, session: str | None) -> bytes:
        return to_json({"input_tokens": json.loads(answer)["count"]})

    def stream(self, session: str | None) -> Stream:
        raise AssertionError("it is never answered as a stream")
