"""Ollama's API on top of chat completions and embeddings. Pure.

A stream is JSON in lines. There are no comments: what only says that the stream lives becomes a part without text.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from router.dialects.chat_events import ChatEvents, Chunk, Comment, Done, Event, Failed
from router.dialects.dialect import BROKE_OFF, Asked, Naming, renamed
from router.dialects.fields import read_object
from router.dialects.ollama_request import (
    SAME_OPTIONS,
    Chat,
    asks_nothing,
    read_chat,
    read_embed,
    read_embeddings,
    read_generate,
    read_load,
)
from router.errors import RawHeaders

NAMES = (
    ("response_format", "format"),
    ("reasoning_effort", "think"),
    ("max_tokens", "options.num_predict"),
    *((name, f"options.{name}") for name in SAME_OPTIONS),
)
"""What a chat's field is called here: a host speaks of its own."""
NS = 1_000_000_000
Said = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Words:
    """What came of an answer: some of it, or all."""

    text: str = ""
    thinking: str = ""
    calls: tuple[Said, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.thinking or self.calls)


Shape = Callable[[Words], dict[str, Any]]
"""How the words of one path's answers stand in a body."""


def in_message(words: Words) -> dict[str, Any]:
    """As `/api/chat` says them."""
    message: dict[str, Any] = {"role": "assistant", "content": words.text}
    if words.thinking:
        message["thinking"] = words.thinking
    if words.calls:
        message["tool_calls"] = list(words.calls)
    return {"message": message}


def in_response(words: Words) -> dict[str, Any]:
    """As `/api/generate` says them."""
    return {"response": words.text, **({"thinking": words.thinking} if words.thinking else {})}


class Ollama:
    """One path of Ollama's."""

    stream_type = b"application/x-ndjson"

    def __init__(
        self,
        reads: Callable[[Said], Chat],
        answers: Callable[[bytes, str, Naming], Asked],
        loads: Callable[[bytes, str, Naming], Asked] | None = None,
    ) -> None:
        """`answers`: made of the body for a host, the model's name as it was asked for, and the naming. `loads`: the
        same for a request that asks nothing; None: there is none such."""
        self._reads = reads
        self._answers = answers
        self._loads = loads

    def read(self, body: bytes, naming: Naming) -> Asked:
        told = read_object(body)
        loads = self._loads if asks_nothing(told) else None
        asked = self._reads(told) if loads is None else read_load(told)
        return (loads or self._answers)(
            json.dumps(asked).encode(), told.get("model") or asked["model"], naming
        )

    def error(self, status: int, error: Said, request_id: str) -> tuple[RawHeaders, bytes]:
        return [], error_body(renamed(error, NAMES))


def error_body(error: Said) -> bytes:
    return json.dumps({"error": error["message"], "code": error.get("code")}).encode()


@dataclass(frozen=True, slots=True)
class Answered:
    """A question whose answer is words."""

    body: bytes
    model: str
    naming: Naming
    shape: Shape

    def whole(self, answer: bytes, session: str | None) -> bytes:
        told = json.loads(answer)
        choice = told["choices"][0]
        message = choice["message"]
        calls = tuple(_calls(message.get("tool_calls", ())))
        words = Words(message.get("content") or "", message.get("reasoning_content") or "", calls)
        last = _last(choice["finish_reason"], told, self._times())
        return _line(self.part(words, _logprobs(choice)) | last)

    def stream(self, session: str | None) -> "Stream":
        return Stream(self)

    def part(self, words: Words, more: Said) -> dict[str, Any]:
        created = {"model": self.model, "created_at": timestamp(self.naming.now_s)}
        return {**created, **self.shape(words), **more, "done": False}

    def _times(self) -> dict[str, int]:
        elapsed_s = self.naming.elapsed_s
        return {} if elapsed_s is None else {"total_duration": round(elapsed_s() * NS)}


class Loading(Answered):
    """A question without words: that its model be loaded. `body` is for a host's /tokenize, which loads it and leaves
    nothing behind."""

    __slots__ = ()

    def whole(self, answer: bytes, session: str | None) -> bytes:
        return _line(self.part(Words(), {}) | {"done": True, "done_reason": "load", **self._times()})

    def stream(self, session: str | None) -> "Stream":
        raise AssertionError("it is never answered as a stream")


class Stream:
    """A stream's lines: its parts as they come, but a tool's call as a whole."""

    def __init__(self, asked: Answered) -> None:
        self._asked = asked
        self._events = ChatEvents()
        self._calls: list[dict[str, Any]] = []
        self._reason = "stop"
        self._told: Said = {}
        """The event with the usage."""
        self._first_s: float | None = None
        """When the first words came."""
        self._over = False

    def take(self, part: bytes) -> bytes:
        return b"".join(self._said(event) for event in self._events.take(part) if not self._over)

    def end(self) -> bytes:
        return b"" if self._over else self._failed(BROKE_OFF)

    def _failed(self, error: Said) -> bytes:
        self._over = True
        return error_body(error) + b"\n"

    def _said(self, event: Event) -> bytes:
        match event:
            case Comment():
                return _line(self._asked.part(Words(), {}))
            case Failed():
                return self._failed(event.error)
            case Done():
                self._over = True
                last = _last(self._reason, self._told, self._times())
                return _line(self._asked.part(Words(), {}) | last)
            case Chunk() if event.choice is None:
                self._told = event.data
                return b""
            case Chunk():
                return self._part(event.choice)

    def _part(self, choice: Said) -> bytes:
        delta = choice["delta"]
        for told in delta.get("tool_calls") or ():
            self._gather(told)
        ended = choice.get("finish_reason")
        self._reason = ended or self._reason
        calls = tuple(_calls(self._calls)) if ended else ()
        words = Words(delta.get("content") or "", delta.get("reasoning_content") or "", calls)
        more = _logprobs(choice)
        if not words and not more:
            return b""
        if self._first_s is None and self._asked.naming.elapsed_s is not None:
            self._first_s = self._asked.naming.elapsed_s()
        return _line(self._asked.part(words, more))

    def _gather(self, told: Said) -> None:
        function = told["function"]
        if told["index"] == len(self._calls):
            self._calls.append({"id": told.get("id"), "function": {"name": "", "arguments": ""}})
        gathered = self._calls[told["index"]]["function"]
        for name in ("name", "arguments"):
            gathered[name] += function.get(name) or ""

    def _times(self) -> dict[str, int]:
        elapsed_s, first_s = self._asked.naming.elapsed_s, self._first_s
        if elapsed_s is None:
            return {}
        now_s = elapsed_s()
        times = {"total_duration": round(now_s * NS)}
        if first_s is not None:
            times |= {
                "prompt_eval_duration": round(first_s * NS),
                "eval_duration": round((now_s - first_s) * NS),
            }
        return times


@dataclass(frozen=True, slots=True)
class Embedded:
    """Texts that become vectors."""

    body: bytes
    model: str
    naming: Naming
    is_old: bool
    """Whether it was asked on the path that takes one text."""

    def whole(self, answer: bytes, session: str | None) -> bytes:
        told = json.loads(answer)
        vectors = [each["embedding"] for each in told["data"]]
        if self.is_old:
            return json.dumps({"embedding": vectors[0]}).encode()
        usage = {"prompt_eval_count": told["usage"]["prompt_tokens"]}
        made = {"model": self.model, "embeddings": vectors, **usage, "homeport": told.get("homeport")}
        return json.dumps(made).encode()

    def stream(self, session: str | None) -> Stream:
        raise AssertionError("vectors are never streamed")


def chat() -> Ollama:
    """`/api/chat`."""
    return _talks(read_chat, in_message)


def generate() -> Ollama:
    """`/api/generate`."""
    return _talks(read_generate, in_response)


def embed() -> Ollama:
    """`/api/embed`."""
    return Ollama(read_embed, lambda body, model, naming: Embedded(body, model, naming, is_old=False))


def embeddings() -> Ollama:
    """`/api/embeddings`."""
    return Ollama(read_embeddings, lambda body, model, naming: Embedded(body, model, naming, is_old=True))


def _talks(reads: Callable[[Said], Chat], shape: Shape) -> Ollama:
    return Ollama(
        reads,
        lambda body, model, naming: Answered(body, model, naming, shape),
        lambda body, model, naming: Loading(body, model, naming, shape),
    )


def _last(reason: str, told: Said, times: Said) -> dict[str, Any]:
    """What the last line says beside the words. `told`: where usage and homeport's own word stand."""
    last: dict[str, Any] = {"done": True, "done_reason": "length" if reason == "length" else "stop", **times}
    if (usage := told.get("usage")) is not None:
        last |= {"prompt_eval_count": usage["prompt_tokens"], "eval_count": usage["completion_tokens"]}
    return last if told.get("homeport") is None else last | {"homeport": told["homeport"]}


def _calls(told: Sequence[Said]) -> Iterator[Said]:
    """Those that are whole: one whose arguments were cut off, or are no object, is nothing to be carried out."""
    for index, call in enumerate(told):
        function = call["function"]
        try:
            arguments = json.loads(function["arguments"] or "{}")
        except (ValueError, RecursionError):
            continue
        if not isinstance(arguments, dict):
            continue
        said = {"index": index, "name": function["name"], "arguments": arguments}
        yield {"id": call["id"], "function": said}


def _logprobs(choice: Said) -> dict[str, Any]:
    told = choice.get("logprobs")
    return {} if told is None else {"logprobs": told["content"]}


def _line(data: Said) -> bytes:
    return json.dumps(data, ensure_ascii=False).encode() + b"\n"


def timestamp(epoch_s: int) -> str:
    """RFC 3339 in UTC. Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms" (civil_from_days)."""
    days, seconds = divmod(epoch_s, 86400)
    era, day_of_era = divmod(days + 719468, 146097)
    year = (day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146096) // 365
    day_of_year = day_of_era - (365 * year + year // 4 - year // 100)
    shifted = (5 * day_of_year + 2) // 153
    """The month, March being 0."""
    day = day_of_year - (153 * shifted + 2) // 5 + 1
    month = shifted + 3 if shifted < 10 else shifted - 9
    year += era * 400 + (month <= 2)
    clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{year:04d}-{month:02d}-{day:02d}T{clock}Z"
