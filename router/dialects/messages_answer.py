"""What a chat's answer is in Anthropic's Messages: its blocks, why it ended, what it used. Pure."""

import json
from collections.abc import Mapping
from typing import Any

from router.dialects.messages_blocks import signature
from router.dialects.messages_request import Shown

STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
NOTHING_USED: Mapping[str, Any] = {"prompt_tokens": 0, "completion_tokens": 0}

_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def to_json(value: object) -> bytes:
    """As Anthropic writes it. A half character, which only a client can have sent, becomes a question mark."""
    return _json(value).encode("utf-8", "replace")


def message(unique: str, model: str) -> dict[str, Any]:
    """A message before anything is in it."""
    return {
        "id": f"msg_{unique}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def usage_of(told: Mapping[str, Any] | None) -> dict[str, int]:
    """Anthropic counts apart what was in a cache: the context that did not have to be evaluated."""
    told = told or NOTHING_USED
    cached = (told.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return {
        "input_tokens": told["prompt_tokens"] - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": told["completion_tokens"] or 0,
    }


def stop_of(
    choice: Mapping[str, Any] | None, usage: Mapping[str, Any] | None, max_tokens: int
) -> dict[str, Any]:
    """Why the answer ended, from its choice's last part. One that had fewer tokens than it might have filled the
    context."""
    choice = choice or {}
    reason, sequence = choice.get("finish_reason"), choice.get("stop_reason")
    stop = STOPS.get(str(reason), "end_turn")
    if reason == "stop" and isinstance(sequence, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": sequence}
    if reason == "length" and usage is not None and (usage["completion_tokens"] or 0) < max_tokens:
        stop = "model_context_window_exceeded"
    return {"stop_reason": stop, "stop_sequence": None}


def blocks_of(told: Mapping[str, Any], shown: Shown) -> list[dict[str, Any]]:
    """The content of a chat's whole message."""
    blocks: list[dict[str, Any]] = []
    if shown != "nothing" and (thought := told.get("reasoning_content")):
        signed = signature(thought, shown == "whole")
        text = thought if shown == "whole" else ""
        blocks.append({"type": "thinking", "thinking": text, "signature": signed})
    if text := told.get("content"):
        blocks.append({"type": "text", "text": text})
    for call in told.get("tool_calls") or ():
        function = call["function"]
        given = _input(function["arguments"])
        blocks.append({"type": "tool_use", "id": call["id"], "name": function["name"], "input": given})
    return blocks


def _input(arguments: str) -> Mapping[str, Any]:
    """A call's arguments; those that were cut off, in the form that Anthropic's guide gives them."""
    try:
        read = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        read = None
    return read if isinstance(read, dict) else {"INVALID_JSON": arguments}
