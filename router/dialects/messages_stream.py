"""A stream of chat completions as the events of Anthropic's Messages: a state machine over bytes. Pure."""

from collections.abc import Mapping
from typing import Any, Literal, assert_never

from router.dialects.chat_events import ChatEvents, Chunk, Comment, Done, Event, Failed
from router.dialects.dialect import BROKE_OFF, Naming
from router.dialects.messages_answer import message, stop_of, to_json, usage_of
from router.dialects.messages_blocks import signature
from router.dialects.messages_errors import error_in_stream
from router.dialects.messages_request import Shown

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
PING_EVERY = 32
"""Of so many parts that are not shown, one is a ping."""

Open = Literal["thinking", "text", "tool_use"]


class Stream:
    """One message: `message_start`, its blocks one after another, `message_delta`, `message_stop`; or an `error`.

    Comments stay, each with a ping behind it, which is the sign of life that Anthropic's clients know.
    """

    def __init__(self, naming: Naming, shown: Shown, max_tokens: int) -> None:
        self._naming = naming
        self._shown = shown
        self._max_tokens = max_tokens
        self._events = ChatEvents()
        self._began = False
        self._open: Open | None = None
        """The block that is not closed yet."""
        self._index = 0
        """Of that block, or of the next one."""
        self._call = -1
        """The index of the chat's call that is open."""
        self._thought = ""
        """What is not shown of the open block."""
        self._unseen = 0
        """Parts of which nothing was shown."""
        self._last: Mapping[str, Any] | None = None
        """The choice's last part."""
        self._told = False
        """How it ended was."""
        self._over = False

    def take(self, part: bytes) -> bytes:
        return b"".join(self._said(event) for event in self._events.take(part))

    def end(self) -> bytes:
        return b"" if self._over else self._failed(BROKE_OFF)

    def _said(self, event: Event) -> bytes:
        if self._over:
            return b""
        match event:
            case Comment():
                return event.line + PING
            case Failed():
                return self._failed(event.error)
            case Done():
                self._over = True
                return self._begin("", None) + self._ended({}) + _event({"type": "message_stop"})
            case Chunk():
                return self._chunk(event)
            case _:
                assert_never(event)

    def _failed(self, error: Mapping[str, Any]) -> bytes:
        self._over = True
        return _event({"type": "error", "error": error_in_stream(error)})

    def _chunk(self, chunk: Chunk) -> bytes:
        if (progress := chunk.data.get("prompt_progress")) is not None:
            if self._began:
                return PING
            counted = {"prompt_tokens": progress["total"], "completion_tokens": 0}
            counted["prompt_tokens_details"] = {"cached_tokens": progress["cache"]}
            return self._begin(chunk.data["model"], counted)
        said = self._begin(chunk.data["model"], None)
        choice = chunk.choice
        if choice is None:
            return said + self._ended(chunk.data)
        delta = choice["delta"]
        if thought := delta.get("reasoning_content"):
            said += self._think(thought)
        if text := delta.get("content"):
            said += self._into("text", {"type": "text", "text": ""})
            said += self._delta({"type": "text_delta", "text": text})
        for call in delta.get("tool_calls") or ():
            said += self._called(call)
        if choice.get("finish_reason") is not None:
            self._last = choice
            said += self._close()
        return said

    def _begin(self, model: str, counted: Mapping[str, Any] | None) -> bytes:
        """`counted`: the usage so far, where it is known this early."""
        if self._began:
            return b""
        self._began = True
        begun = message(self._naming.unique, model) | {"usage": usage_of(counted)}
        return _event({"type": "message_start", "message": begun})

    def _think(self, thought: str) -> bytes:
        if self._shown == "nothing":
            return self._unshown()
        said = self._into("thinking", {"type": "thinking", "thinking": "", "signature": ""})
        if self._shown == "signed":
            self._thought += thought
            return said + self._unshown()
        return said + self._delta({"type": "thinking_delta", "thinking": thought})

    def _unshown(self) -> bytes:
        """A sign of life now and then, while nothing else is to be seen."""
        self._unseen += 1
        return PING if self._unseen % PING_EVERY == 0 else b""

    def _called(self, call: Mapping[str, Any]) -> bytes:
        """Which call goes on is told by its index: engines may repeat its id with its last part."""
        function, said = call["function"], b""
        if self._open != "tool_use" or call["index"] != self._call:
            said, self._call = self._close(), call["index"]
            block = {"type": "tool_use", "id": call["id"], "name": function["name"], "input": {}}
            said += self._into("tool_use", block)
        if arguments := function.get("arguments"):
            said += self._delta({"type": "input_json_delta", "partial_json": arguments})
        return said

    def _into(self, kind: Open, block: Mapping[str, Any]) -> bytes:
        """Be in a block of this kind, which begins like this."""
        if self._open == kind:
            return b""
        said = self._close()
        self._open = kind
        return said + _event({"type": "content_block_start", "index": self._index, "content_block": block})

    def _delta(self, delta: Mapping[str, Any]) -> bytes:
        return _event({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        said = b""
        if self._open == "thinking":
            signed = signature(self._thought, self._shown == "whole")
            said = self._delta({"type": "signature_delta", "signature": signed})
        said += _event({"type": "content_block_stop", "index": self._index})
        self._open, self._thought = None, ""
        self._index += 1
        return said

    def _ended(self, told: Mapping[str, Any]) -> bytes:
        """How it ended and what it used, once."""
        if self._told:
            return b""
        self._told = True
        usage = told.get("usage")
        delta = {"type": "message_delta", "delta": stop_of(self._last, usage, self._max_tokens)}
        delta["usage"] = usage_of(usage)
        if "homeport" in told:
            delta["homeport"] = told["homeport"]
        return self._close() + _event(delta)


def _event(data: Mapping[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (data["type"].encode(), to_json(data))
