"""A chat-completions body, checked and frozen.

Pure: takes what a JSON reader made of the body. It renders no prompt and counts no tokens, so limits that
need the model (the context, the vocabulary) are checked elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from serving.engine import Sampling

MAX_STOPS = 16
MAX_LOGIT_BIASES = 1024

SUPPORTED = frozenset(
    {
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
        "presence_penalty",
        "repeat_penalty",
        "response_format",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "tool_choice",
        "top_k",
        "top_p",
    }
)
"""Parameters that are read and checked; of some, only the value that asks for nothing special works."""

HARMLESS = frozenset(
    {
        "cache_prompt",
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning_effort",
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
        "chat_template_kwargs",
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
        "tools",
        "top_logprobs",
        "typical_p",
        "web_search_options",
        "xtc_probability",
    }
)
"""Known parameters that would change the answer and do not work here: refused unless null, false, 0 or
empty."""


class BadRequest(Exception):
    """The body cannot be served. `param` names the field at fault; None: the body as a whole."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One turn as the client asked for it."""

    model: str
    messages: tuple[Mapping[str, Any], ...]
    """Not empty; each has `role` (system, user, assistant), `content` (a text), and `name` if it was
    given."""
    stream: bool
    include_usage: bool
    max_tokens: int | None
    """None: up to the context's end."""
    sampling: Sampling
    stop: tuple[str, ...]


def default_sampling(options: Mapping[str, int | float | str | bool]) -> Sampling:
    """How tokens are chosen when a request says nothing: the config's options over the engine's defaults."""
    names = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty")
    given: dict[str, Any] = {name: options[name] for name in names if name in options}
    return replace(Sampling(), **given)


def read_chat_request(body: object, defaults: Sampling) -> ChatRequest:
    """Check a decoded body. Raises BadRequest with the field at fault; null counts as absent."""
    if not isinstance(body, Mapping):
        raise BadRequest("the body must be a JSON object", None, "invalid_type")
    fields = {key: value for key, value in body.items() if value is not None}
    _refuse_unsupported(fields)
    stream = _flag(fields, "stream")
    return ChatRequest(
        model=_model(fields),
        messages=_messages(fields),
        stream=stream,
        include_usage=_include_usage(fields, stream),
        max_tokens=_max_tokens(fields),
        sampling=_sampling(fields, defaults),
        stop=_stop(fields),
    )


def _refuse_unsupported(fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if name in HARMLESS or name in SUPPORTED:
            continue
        if name not in UNSUPPORTED:
            raise BadRequest(f"unknown parameter '{name}'; remove it", name, "unknown_parameter")
        if value not in (False, 0, "", [], {}):
            raise _unsupported(name)
    if fields.get("n", 1) != 1 or isinstance(fields.get("n"), bool):
        raise BadRequest("only n = 1 works here: one answer a request", "n", "unsupported_parameter")
    if fields.get("logprobs", False) is not False:
        raise _unsupported("logprobs")
    if fields.get("tool_choice", "none") not in ("none", "auto"):
        raise _unsupported("tool_choice")
    if fields.get("modalities", ["text"]) not in (["text"], []):
        raise BadRequest("this model answers with text only", "modalities", "unsupported_parameter")
    form = fields.get("response_format", {"type": "text"})
    if not isinstance(form, Mapping):
        raise _wrong_type("response_format", "an object")
    if form.get("type") != "text":
        raise BadRequest(
            "only response_format {'type': 'text'} works here", "response_format", "unsupported_parameter"
        )


def _model(fields: Mapping[str, Any]) -> str:
    model = fields.get("model")
    if model is None:
        raise BadRequest("'model' is missing", "model", "missing_required_parameter")
    if not isinstance(model, str):
        raise _wrong_type("model", "a string")
    return model


def _messages(fields: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    messages = fields.get("messages")
    if messages is None:
        raise BadRequest("'messages' is missing", "messages", "missing_required_parameter")
    if not isinstance(messages, list):
        raise _wrong_type("messages", "a list")
    if not messages:
        raise BadRequest("'messages' must hold at least one message", "messages", "empty_array")
    return tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages))


def _message(message: object, where: str) -> Mapping[str, Any]:
    """Role, text and name of one message. What else clients send back (ids, reasoning) is left out."""
    if not isinstance(message, Mapping):
        raise _wrong_type(where, "an object")
    role = message.get("role")
    if role in ("tool", "function"):
        raise BadRequest(
            f"messages of role '{role}' do not work here: tools are not supported", f"{where}.role"
        )
    if role not in ("system", "developer", "user", "assistant"):
        raise BadRequest(
            "a message's role must be one of system, developer, user, assistant", f"{where}.role"
        )
    for name in ("tool_calls", "function_call", "audio"):
        if message.get(name):
            raise BadRequest(
                f"'{name}' in a message does not work here", f"{where}.{name}", "unsupported_parameter"
            )
    content = message.get("content")
    if content is None and role == "assistant":
        content = ""
    read = {
        "role": "system" if role == "developer" else role,
        "content": _content(content, f"{where}.content"),
    }
    author = message.get("name")
    if author is not None:
        if not isinstance(author, str):
            raise _wrong_type(f"{where}.name", "a string")
        read["name"] = author
    return read


def _content(content: object, where: str) -> str:
    """A message's text; parts are joined by line breaks, as other servers do it."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _wrong_type(where, "a string or a list of parts")
    texts = []
    for index, part in enumerate(content):
        if not isinstance(part, Mapping):
            raise _wrong_type(f"{where}[{index}]", "an object")
        kind = part.get("type")
        if kind != "text":
            known = kind if isinstance(kind, str) and len(kind) <= 40 else "?"
            message = f"content of type '{known}' does not work here: this model reads text only"
            raise BadRequest(message, f"{where}[{index}].type", "unsupported_content")
        text = part.get("text")
        if not isinstance(text, str):
            raise _wrong_type(f"{where}[{index}].text", "a string")
        texts.append(text)
    return "\n".join(texts)


def _include_usage(fields: Mapping[str, Any], stream: bool) -> bool:
    options = fields.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, Mapping):
        raise _wrong_type("stream_options", "an object")
    if not stream:
        raise BadRequest("'stream_options' goes with stream = true only", "stream_options")
    for name in options:
        if name not in ("include_usage", "include_obfuscation"):
            raise BadRequest(
                f"unknown parameter 'stream_options.{name}'; remove it",
                f"stream_options.{name}",
                "unknown_parameter",
            )
    include = options.get("include_usage")
    if not isinstance(include, bool | None):
        raise _wrong_type("stream_options.include_usage", "true or false")
    return bool(include)


def _max_tokens(fields: Mapping[str, Any]) -> int | None:
    chosen = None
    for name in ("max_tokens", "max_completion_tokens"):
        if name in fields:
            chosen = _whole(fields, name, 1, 2**31 - 1)
    return chosen


def _sampling(fields: Mapping[str, Any], defaults: Sampling) -> Sampling:
    changes: dict[str, Any] = {}
    for name, low, high in (
        ("temperature", 0.0, 2.0),
        ("top_p", 0.0, 1.0),
        ("min_p", 0.0, 1.0),
        ("presence_penalty", -2.0, 2.0),
        ("frequency_penalty", -2.0, 2.0),
        ("repeat_penalty", 0.01, 2.0),
    ):
        if name in fields:
            changes[name] = _number(fields, name, low, high)
    if "top_k" in fields:
        changes["top_k"] = max(0, _whole(fields, "top_k", -1, 2**31 - 1))
    if "seed" in fields:
        seed = _whole(fields, "seed", -(2**63), 2**63 - 1)
        # -1 asks for a random seed by llama.cpp's custom, and its samplers take 2**32 - 1 for the same.
        changes["seed"] = None if seed == -1 else seed % (2**32 - 1)
    if "logit_bias" in fields:
        changes["logit_bias"] = _logit_bias(fields["logit_bias"])
    return replace(defaults, **changes)


def _logit_bias(value: object) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, Mapping):
        raise _wrong_type("logit_bias", "an object")
    if len(value) > MAX_LOGIT_BIASES:
        raise BadRequest(f"'logit_bias' may name at most {MAX_LOGIT_BIASES} tokens", "logit_bias")
    biases = []
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit() and len(token) <= 9):
            raise BadRequest("the keys of 'logit_bias' are token ids", "logit_bias")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise BadRequest("the values of 'logit_bias' are numbers from -100 to 100", "logit_bias")
        biases.append((int(token), float(bias)))
    return tuple(biases)


def _stop(fields: Mapping[str, Any]) -> tuple[str, ...]:
    stop = fields.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(text, str) for text in stops):
        raise _wrong_type("stop", "a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise BadRequest(f"'stop' may hold at most {MAX_STOPS} strings, not {len(stops)}", "stop")
    if "" in stops:
        raise BadRequest("a string in 'stop' is empty", "stop")
    return tuple(stops)


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise _wrong_type(name, "true or false")
    return value


def _number(fields: Mapping[str, Any], name: str, low: float, high: float) -> float:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, "a number")
    if not low <= value <= high:
        raise BadRequest(f"'{name}' must be from {low:g} to {high:g}, not {_short(value)}", name)
    return float(value)


def _whole(fields: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type(name, "a whole number")
    if not low <= value <= high:
        raise BadRequest(f"'{name}' must be from {low} to {high}, not {_short(value)}", name)
    return value


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:24] + "…"


def _wrong_type(param: str, wanted: str) -> BadRequest:
    return BadRequest(f"'{param}' must be {wanted}", param, "invalid_type")


def _unsupported(name: str) -> BadRequest:
    return BadRequest(f"'{name}' does not work here; remove it", name, "unsupported_parameter")
