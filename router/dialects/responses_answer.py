"""The response object: what stands in it beside the items of its output. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from router.dialects.dialect import Naming
from router.dialects.responses_ids import response_id
from router.dialects.responses_request import Request

INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""By how a chat's answer ended: why a response is not all that the model would have said."""


def response_object(
    request: Request,
    naming: Naming,
    session: str | None,
    model: str,
    status: str,
    output: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """A response as it stands while `status`; `usage`, `error` and `incomplete_details` come with its end."""
    told, reasoning, form = request.told, request.told.get("reasoning", {}), request.told.get("text", {})
    conversation = request.goes_on and request.goes_on.conversation
    return {
        "id": response_id(naming, session),
        "object": "response",
        "created_at": naming.now_s,
        "status": status,
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": told.get("instructions"),
        "max_output_tokens": told.get("max_output_tokens"),
        "max_tool_calls": told.get("max_tool_calls"),
        "model": model,
        "output": list(output),
        "parallel_tool_calls": told.get("parallel_tool_calls", True),
        "previous_response_id": told.get("previous_response_id"),
        "conversation": conversation and {"id": conversation},
        "prompt_cache_key": told.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "safety_identifier": told.get("safety_identifier"),
        "service_tier": "default",
        "store": request.stores,
        "temperature": told.get("temperature"),
        "text": {"format": form.get("format", {"type": "text"}), "verbosity": form.get("verbosity")},
        "tool_choice": request.toolbox.choice,
        "tools": list(request.toolbox.told),
        "top_logprobs": told.get("top_logprobs", 0),
        "top_p": told.get("top_p"),
        "truncation": "disabled",
        "usage": None,
        "user": told.get("user"),
        "metadata": told.get("metadata", {}),
    }


def usage_of(told: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A chat's usage in the terms of a response."""
    if told is None:
        return None
    cached = (told.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    thought = (told.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": told["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": told["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": told["prompt_tokens"] + told["completion_tokens"],
    }
