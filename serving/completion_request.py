"""A body of the older completions endpoint, checked and frozen.

Pure: takes what a JSON reader made of the body. It counts no tokens, so limits that need the model are checked
elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.engine import Sampling
from serving.request_fields import (
    BadRequest,
    flag,
    is_token_list,
    missing,
    read_choices,
    read_fields,
    read_include_usage,
    read_model,
    read_sampling,
    read_stop,
    whole,
    wrong_type,
)

MAX_PROMPTS = 128
MAX_LOGPROBS = 20
DEFAULT_MAX_TOKENS = 16
"""OpenAI's own; clients of this endpoint count on a short answer when they say nothing."""

SUPPORTED = frozenset(
    {
        "best_of",
        "echo",
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "max_tokens",
        "min_p",
        "model",
        "n",
        "presence_penalty",
        "prompt",
        "repeat_penalty",
        "return_progress",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
    }
)
"""Parameters that are read and checked."""

HARMLESS = frozenset({"cache_prompt", "metadata", "prompt_cache_key", "session_id", "user"})
"""Parameters that change nothing about the answer: accepted and ignored."""

UNSUPPORTED = frozenset(
    {
        "grammar",
        "guided_json",
        "ignore_eos",
        "json_schema",
        "max_completion_tokens",
        "messages",
        "mirostat",
        "prompt_logprobs",
        "response_format",
        "suffix",
        "tools",
    }
)
"""Known parameters that do not work here: refused unless null, false, 0 or empty."""

Prompt = str | tuple[int, ...]
"""A text, or its token ids."""


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """What is to be continued, and how."""

    model: str
    prompts: tuple[Prompt, ...]
    """Not empty, nor is any of them. Each gets `choices` answers."""
    stream: bool
    include_usage: bool
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]
    return_progress: bool = False
    """Whether a stream tells how far its prompt is."""
    choices: int = 1
    echo: bool = False
    """The prompt's text stands before the answer's."""
    logprobs: int | None = None
    """How many of the likeliest tokens are told at each place; None: no log probabilities at all."""


def read_completion_request(body: object, defaults: Sampling) -> CompletionRequest:
    """Check a decoded body. Raises BadRequest with the field at fault; null counts as absent.

    `return_progress` means nothing without `stream`, as llama-server has it.
    """
    fields = read_fields(body, SUPPORTED, HARMLESS, UNSUPPORTED)
    stream = flag(fields, "stream")
    choices = read_choices(fields)
    if "best_of" in fields and whole(fields, "best_of", 1, 2**31 - 1) != choices:
        message = "'best_of' must be equal to n here: every answer that is made is sent; remove it"
        raise BadRequest(message, "best_of", "unsupported_parameter")
    request = CompletionRequest(
        model=read_model(fields),
        prompts=_prompts(fields),
        stream=stream,
        include_usage=read_include_usage(fields, stream),
        max_tokens=whole({"max_tokens": DEFAULT_MAX_TOKENS, **fields}, "max_tokens", 1, 2**31 - 1),
        sampling=read_sampling(fields, defaults),
        stop=read_stop(fields),
        return_progress=flag(fields, "return_progress") and stream,
        choices=choices,
        echo=flag(fields, "echo"),
        logprobs=_logprobs(fields),
    )
    if request.echo and request.logprobs is not None:
        message = "'logprobs' does not work together with 'echo': none are known of the prompt's tokens"
        raise BadRequest(message, "logprobs", "unsupported_parameter")
    return request


def _prompts(fields: Mapping[str, Any]) -> tuple[Prompt, ...]:
    prompt = fields.get("prompt")
    if prompt is None:
        raise missing("prompt")
    prompts = read_texts(prompt, "prompt")
    if len(prompts) > MAX_PROMPTS:
        raise BadRequest(f"'prompt' may hold at most {MAX_PROMPTS} prompts, not {len(prompts)}", "prompt")
    return prompts


def read_texts(value: object, name: str) -> tuple[Prompt, ...]:
    """One or several texts or lists of token ids; neither the whole nor a part may be empty. The common form of
    `prompt` and of embeddings' `input`."""
    if isinstance(value, str) or is_token_list(value):
        value = [value]
    if not isinstance(value, list):
        raise wrong_type(name, "a string, a list of strings, or token ids")
    if not value:
        raise BadRequest(f"'{name}' is empty", name, "empty_array")
    texts: list[Prompt] = []
    for index, item in enumerate(value):
        where = name if len(value) == 1 else f"{name}[{index}]"
        if isinstance(item, str):
            if not item:
                raise BadRequest(f"'{where}' is an empty text", where)
            texts.append(item)
        elif is_token_list(item):
            texts.append(tuple(item))
        elif item == []:
            raise BadRequest(f"'{where}' is empty", where, "empty_array")
        else:
            raise wrong_type(where, "a string, or a list of token ids")
    return tuple(texts)


def _logprobs(fields: Mapping[str, Any]) -> int | None:
    """A number here; false counts as absent."""
    if fields.get("logprobs", False) is False:
        return None
    return whole(fields, "logprobs", 0, MAX_LOGPROBS)
