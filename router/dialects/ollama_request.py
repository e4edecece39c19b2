"""Requests in Ollama's API as bodies in OpenAI's shape. Pure.

Checks what it translates, the rest the host checks. Fields and options that nobody here knows are let be, as
Ollama does. What would make another answer than the one that was asked for is refused by its name.

Source: Ollama's API reference (docs/api.md) and `api/types.go`.
"""

import json
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from router.dialects.fields import flag, listed, mapping, missing, text, unsupported, whole, wrong_type

Chat = dict[str, Any]
LATEST = ":latest"
SAME_OPTIONS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
)
"""Options that a chat has by the same name."""
NAMING = ("metadata", "prompt_cache_key", "conversation", "session_id", "user", "safety_identifier")
"""Ollama has none of these; a client that sends one names its session, for `router.identity`."""
LEVELS = ("low", "medium", "high", "max")
IMAGES = "is about pictures, and models here read text only; leave it out"
TOKENS = "a conversation as tokens does not work here; send its messages to /api/chat"


def model_name(told: Mapping[str, Any]) -> str:
    """The model's name, without the tag by which Ollama's clients call what has none."""
    name = told.get("model") or told.get("name")
    if name is None:
        raise missing("model")
    return text(name, "model").removesuffix(LATEST)


def asks_nothing(told: Mapping[str, Any]) -> bool:
    """Whether neither a prompt nor a message is in it: so clients have a model loaded."""
    return not told.get("messages") and not told.get("prompt")


def read_load(told: Mapping[str, Any]) -> Chat:
    """Of such a request: an empty text, for a host's /tokenize."""
    return {"model": model_name(told), "prompt": ""}


def read_chat(told: Mapping[str, Any]) -> Chat:
    """Of `/api/chat`. Raises Rejected."""
    messages = listed(told.get("messages"), "messages")
    chat = _common(told)
    chat["messages"] = chat_messages(messages)
    if tools := listed(told.get("tools", []), "tools"):
        chat["tools"] = tools
    return chat


def read_generate(told: Mapping[str, Any]) -> Chat:
    """Of `/api/generate`: a chat of one question, as Ollama makes it with the model's template."""
    for name, message in (
        ("raw", "text that goes to the model as it is belongs to /v1/completions"),
        ("suffix", "no model here fills a gap; leave it out"),
        ("template", "a model keeps its own template; leave it out"),
        ("context", TOKENS),
        ("images", IMAGES),
    ):
        if told.get(name):
            raise unsupported(name, f"`{name}`: {message}.")
    prompt = text(told.get("prompt"), "prompt")
    system = text(told.get("system", ""), "system")
    chat = _common(told)
    opening = [{"role": "system", "content": system}] if system else []
    chat["messages"] = [*opening, {"role": "user", "content": prompt}]
    return chat


def read_embed(told: Mapping[str, Any]) -> Chat:
    """Of `/api/embed`."""
    if "input" not in told:
        raise missing("input")
    asked = {"model": model_name(told), "input": told["input"]}
    return asked | {name: told[name] for name in ("dimensions",) if name in told}


def read_embeddings(told: Mapping[str, Any]) -> Chat:
    """Of `/api/embeddings`, which is older and takes one text."""
    return {"model": model_name(told), "input": text(told.get("prompt"), "prompt")}


def _common(told: Mapping[str, Any]) -> Chat:
    """What both kinds of questions have."""
    stream = flag(told.get("stream", True), "stream")
    chat: Chat = {"model": model_name(told), "stream": stream}
    if stream:
        chat["stream_options"] = {"include_usage": True}
    chat |= _options(mapping(told.get("options", {}), "options"))
    chat |= _thinking(told.get("think"))
    if (form := told.get("format", "")) != "":
        chat["response_format"] = _form(form)
    return chat | {name: told[name] for name in (*NAMING, "logprobs", "top_logprobs") if name in told}


def _options(options: Mapping[str, Any]) -> Chat:
    if options.get("mirostat"):
        raise unsupported("options.mirostat", "`options.mirostat` does not work here; leave it out.")
    chat = {name: options[name] for name in SAME_OPTIONS if options.get(name) is not None}
    limit = whole(options.get("num_predict") or -1, "options.num_predict")
    return chat if limit < 0 else chat | {"max_tokens": limit}


def _thinking(think: object) -> Chat:
    """Families of models have either of these two, and a template minds no variable that it does not know."""
    if think is None:
        return {}
    if isinstance(think, bool):
        return {"chat_template_kwargs": {"enable_thinking": think}}
    if think not in LEVELS:
        raise wrong_type("think", f"true, false or one of {', '.join(LEVELS)}")
    effort = "high" if think == "max" else think
    return {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": effort}


def _form(form: object) -> Chat:
    if form == "json":
        return {"type": "json_object"}
    if not isinstance(form, dict):
        raise wrong_type("format", "json or a JSON schema")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": form}}


def chat_messages(messages: Sequence[Any]) -> list[Chat]:
    """The same history, word for word. Answers of tools are joined to the calls before them: by the call's id, else by
    the tool's name, else in their order."""
    made: list[Chat] = []
    waiting = _Waiting([])
    for index, told in enumerate(messages):
        where = f"messages[{index}]"
        message = {name: value for name, value in mapping(told, where).items() if value is not None}
        if message.get("images"):
            raise unsupported(f"{where}.images", f"`{where}.images` {IMAGES}.")
        role = text(message.get("role"), f"{where}.role")
        chat: Chat = {"role": role, "content": text(message.get("content", ""), f"{where}.content")}
        if role == "assistant":
            if thinking := message.get("thinking"):
                chat["reasoning_content"] = text(thinking, f"{where}.thinking")
            if calls := listed(message.get("tool_calls", []), f"{where}.tool_calls"):
                chat["tool_calls"] = [
                    _call(call, f"{where}.tool_calls[{at}]", index, at) for at, call in enumerate(calls)
                ]
                waiting = _Waiting([(call["id"], call["function"]["name"]) for call in chat["tool_calls"]])
        elif role == "tool":
            chat |= _answered(message, where, waiting)
        made.append(chat)
    return made


def _call(told: object, where: str, message: int, at: int) -> Chat:
    """A call without an id gets one that is the same in every turn, as long as Mistral's templates want it."""
    call = mapping(told, where)
    function = mapping(call.get("function"), f"{where}.function")
    arguments = mapping(function.get("arguments") or {}, f"{where}.function.arguments")
    said = json.dumps(arguments, ensure_ascii=False)
    name = text(function.get("name"), f"{where}.function.name")
    call_id = text(call.get("id") or f"c{message:05d}{at:03d}", f"{where}.id")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": said}}


class _Waiting:
    """Calls that are not answered yet. Each is looked at once, however many there are: a body may hold a million."""

    def __init__(self, calls: Sequence[tuple[str, str]]) -> None:
        """By id and name, in their order."""
        self._calls = calls
        self._answered = [False] * len(calls)
        self._by: dict[tuple[str, str], deque[int]] = {}
        for at, (call_id, name) in enumerate(calls):
            for key in (("id", call_id), ("name", name), ("", "")):
                self._by.setdefault(key, deque()).append(at)

    def take(self, call_id: str, name: str) -> tuple[str, str] | None:
        """The first that has this id; without an id, this name; without either, the first of all."""
        key = ("id", call_id) if call_id else ("name", name) if name else ("", "")
        places = self._by.get(key) or deque()
        while places:
            at = places.popleft()
            if not self._answered[at]:
                self._answered[at] = True
                return self._calls[at]
        return None


def _answered(message: Mapping[str, Any], where: str, waiting: _Waiting) -> Chat:
    """Which call a tool answers; it leaves `waiting`."""
    name = text(message.get("tool_name", message.get("name", "")), f"{where}.tool_name")
    call_id = text(message.get("tool_call_id", ""), f"{where}.tool_call_id")
    if (found := waiting.take(call_id, name)) is not None:
        call_id, name = found[0], name or found[1]
    return {key: value for key, value in (("tool_call_id", call_id), ("name", name)) if value}
