"""What is said to vLLM for a turn, and what its stream says of it. Pure.

A turn goes to /v1/completions with its prompt as token ids: template, tools and the answer's parser are homeport's, so
that both engines are one to a client. Speaks no HTTP (see vllm_engine.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from serving.engine import Finish, Likely, Sampled, Turn
from serving.prefixes import common_prefix
from serving.vllm_command import NAME

LOGPROBS_MAX = 20
"""vLLM's own limit (--max-logprobs)."""
WORDS = 300

FINISHED: Mapping[str, Finish] = {"stop": "stop", "length": "length", "abort": "cancelled"}


class Logprobs(msgspec.Struct, frozen=True):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None = None


class Choice(msgspec.Struct, frozen=True):
    index: int
    text: str = ""
    token_ids: list[int] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    """The stop string or the token that ended it."""
    logprobs: Logprobs | None = None


class Cached(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class Used(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: Cached | None = None


class Chunk(msgspec.Struct, frozen=True):
    choices: list[Choice] = []
    usage: Used | None = None
    error: dict[str, Any] | None = None


chunks = msgspec.json.Decoder(Chunk)


def unfit(turn: Turn, context: int) -> str | None:
    """Why vLLM cannot answer the turn; None if it can."""
    if not 0 < len(turn.prompt) < context:
        return f"a prompt of {len(turn.prompt)} tokens does not fit a context of {context}"
    if turn.choices < 1 or limit(turn, context) < 1:
        return "a turn makes at least one answer of at least one token"
    if turn.sampling.typical_p < 1:
        return "the engine of this model (vLLM) knows no 'typical_p'; leave it out"
    if turn.logprobs is not None and turn.logprobs > LOGPROBS_MAX:
        return f"the engine of this model (vLLM) tells of at most {LOGPROBS_MAX} likeliest tokens"
    return None


def limit(turn: Turn, context: int) -> int:
    """Tokens that an answer may have."""
    room = context - len(turn.prompt)
    return room if turn.max_tokens is None else min(turn.max_tokens, room)


def request(turn: Turn, context: int, ends: Sequence[int], salt: str) -> dict[str, Any]:
    """The body for a turn that is not unfit. `ends`: tokens that end an answer. `salt`: context is used again only by
    turns with the same one."""
    how = turn.sampling
    body: dict[str, Any] = {
        "model": NAME,
        "prompt": turn.prompt,
        "max_tokens": limit(turn, context),
        "n": turn.choices,
        "temperature": how.temperature,
        "top_p": how.top_p,
        "top_k": how.top_k,
        "min_p": how.min_p,
        "repetition_penalty": how.repeat_penalty,
        "presence_penalty": how.presence_penalty,
        "frequency_penalty": how.frequency_penalty,
        "stop": turn.stop,
        "stop_token_ids": ends,
        "skip_special_tokens": not turn.special,
        "spaces_between_special_tokens": False,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "cache_salt": salt,
    }
    if turn.choices > 1 and how.temperature == 0:
        body |= {
            "temperature": 1.0,
            "top_k": 1,
        }  # the likeliest token each time: it refuses several greedy answers
    if how.seed is not None:
        body["seed"] = how.seed
    if how.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in how.logit_bias}
    if turn.logprobs is not None:
        body["logprobs"] = turn.logprobs
        body["return_tokens_as_token_ids"] = True
    if turn.constraint is not None:
        body["structured_outputs"] = {"grammar": turn.constraint}
    return body


def sampled(told: Logprobs, top: int, piece: Callable[[int], bytes]) -> tuple[Sampled, ...]:
    """The tokens of a chunk with their log probabilities; `top`: how many of the likeliest were asked for."""
    found = []
    tops = told.top_logprobs or [None] * len(told.tokens)
    for name, logprob, likeliest in zip(told.tokens, told.token_logprobs, tops, strict=False):
        others = sorted((likeliest or {}).items(), key=lambda item: -item[1])[:top]
        found.append(
            Sampled(
                _likely(name, logprob, piece), tuple(_likely(each, value, piece) for each, value in others)
            )
        )
    return tuple(found)


def _likely(name: str, logprob: float | None, piece: Callable[[int], bytes]) -> Likely:
    token = int(name.removeprefix("token_id:"))
    return Likely(token, piece(token), -9999.0 if logprob is None else logprob)


class Split:
    """Cuts a stream of server-sent events into what each one's data is."""

    def __init__(self) -> None:
        self._rest = b""

    def push(self, data: bytes) -> list[bytes]:
        *whole, self._rest = (self._rest + data).split(b"\n\n")
        return [event.removeprefix(b"data: ") for event in whole if event.startswith(b"data: ")]


def words(error: Mapping[str, Any]) -> str:
    """vLLM's own words for a refusal, on one line, not too many of them."""
    told = error.get("message") or error.get("detail") or "it gave no reason"
    text = " ".join(str(told).split())
    return text if len(text) <= WORDS else text[:WORDS] + "…"


@dataclass(frozen=True, slots=True)
class Found:
    """What vLLM still had of a context, in the words of `engine.Began`."""

    held: int
    shared: int
    whole: bool
    """All of it that the prompt could use was there."""


def found(kept: Sequence[int], prompt: Sequence[int], reused: int, block: int) -> Found:
    """`kept`: what a sequence held, as far as anybody knows. vLLM counts whole blocks, and drops them as it needs room:
    `reused` tokens were there, which may be of another sequence's where they are not all of this one's.
    """
    if not kept:
        return Found(0, reused, whole=False)
    common = common_prefix(kept, prompt)
    # Of the last token that was made nothing is kept, and the prompt's last one is always evaluated.
    usable = min(common, len(kept) - 1, len(prompt) - 1) // block * block
    is_edited = common < len(kept) - 1
    if usable == 0:
        return Found(len(kept) if is_edited else 0, reused, whole=False)
    if reused < usable:
        return Found(0, reused, whole=False)
    return Found(len(kept) if is_edited else reused, 0, whole=True)


def is_clients(status: int) -> bool:
    """Whether what was asked for cannot be done, by an HTTP status: it is neither vLLM's fault nor its host's."""
    return status in (400, 413, 422)
