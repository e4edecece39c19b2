"""A chat-completions body, checked and frozen.

Pure: takes what a JSON reader made of the body. It renders no prompt and counts no tokens, so limits that
need the model (the context, the vocabulary, what its template knows) are checked elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serving.chat_messages import read_messages
from serving.chat_tools import JsonOutput, ToolUse, read_json_output, read_tool_use, read_variables
from serving.engine import Sampling
from serving.request_fields import (
    MAX_TOP_LOGPROBS,
    BadRequest,
    flag,
    read_choices,
    read_fields,
    read_include_usage,
    read_model,
    read_sampling,
    read_stop,
    whole,
)

SUPPORTED = frozenset(
    {
        "chat_template_kwargs",
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "min_p",
        "modalities",
        "model",
        "n",
        "parallel_tool_calls",
        "presence_penalty",
        "reasoning_effort",
        "repeat_penalty",
        "response_format",
        "return_progress",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "tool_choice",
        "tools",
        "top_k",
        "top_logprobs",
        "top_p",
        "typical_p",
    }
)
"""Parameters that are read and checked."""

HARMLESS = frozenset(
    {
        "cache_prompt",
        "conversation",
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "session_id",
        "store",
        "user",
        "verbosity",
    }
)
"""Parameters that change nothing about the answer, or that only other models obey: accepted and ignored."""

UNSUPPORTED = frozenset(
    {
        "audio",
        "best_of",
        "chat_template",
        "documents",
        "dry_multiplier",
        "echo",
        "frequency_penalty_range",
        "function_call",
        "functions",
        "grammar",
        "guided_json",
        "ignore_eos",
        "json_schema",
        "mirostat",
        "moderation",
        "prediction",
        "previous_response_id",
        "prompt_logprobs",
        "suffix",
        "web_search_options",
        "xtc_probability",
    }
)
"""Known parameters that would change the answer and do not work here: refused unless null, false, 0 or
empty."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One turn as the client asked for it."""

    model: str
    messages: tuple[Mapping[str, Any], ...]
    """As `read_messages` gives them."""
    stream: bool
    include_usage: bool
    max_tokens: int | None
    """None: up to the context's end."""
    sampling: Sampling
    stop: tuple[str, ...]
    return_progress: bool = False
    """Whether a stream tells how far its prompt is."""
    choices: int = 1
    logprobs: int | None = None
    """How many of the likeliest tokens are told at each place; None: no log probabilities at all."""
    tool_use: ToolUse = field(default_factory=ToolUse)
    json_output: JsonOutput | None = None
    variables: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    """For the model's template."""


def read_chat_request(body: object, defaults: Sampling) -> ChatRequest:
    """Check a decoded body. Raises BadRequest with the field at fault; null counts as absent.

    `return_progress` means nothing without `stream`, as llama-server has it.
    """
    fields = read_fields(body, SUPPORTED, HARMLESS, UNSUPPORTED)
    if fields.get("modalities", ["text"]) not in (["text"], []):
        raise BadRequest("this model answers with text only", "modalities", "unsupported_parameter")
    stream = flag(fields, "stream")
    request = ChatRequest(
        model=read_model(fields),
        messages=read_messages(fields),
        stream=stream,
        include_usage=read_include_usage(fields, stream),
        max_tokens=_max_tokens(fields),
        sampling=read_sampling(fields, defaults),
        stop=read_stop(fields),
        return_progress=flag(fields, "return_progress") and stream,
        choices=read_choices(fields),
        logprobs=_logprobs(fields),
        tool_use=read_tool_use(fields),
        json_output=read_json_output(fields),
        variables=read_variables(fields),
    )
    _check_forms(request)
    return request


def _check_forms(request: ChatRequest) -> None:
    if request.json_output is not None and request.tool_use.choice == "required":
        message = (
            "an answer cannot be a tool's call and JSON of a 'response_format' at once; send one of them"
        )
        raise BadRequest(message, "response_format", "unsupported_parameter")


def _max_tokens(fields: Mapping[str, Any]) -> int | None:
    chosen = None
    for name in ("max_tokens", "max_completion_tokens"):
        if name in fields:
            chosen = whole(fields, name, 1, 2**31 - 1)
    return chosen


def _logprobs(fields: Mapping[str, Any]) -> int | None:
    wanted = flag(fields, "logprobs")
    top = whole(fields, "top_logprobs", 0, MAX_TOP_LOGPROBS) if "top_logprobs" in fields else 0
    if top and not wanted:
        raise BadRequest("'top_logprobs' goes with logprobs = true only", "top_logprobs")
    return top if wanted else None
