"""Fields that requests of several kinds have in common, checked one by one. Pure.

`fields` is always a decoded JSON object without its nulls. Every check raises BadRequest with the field at fault.
"""

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from serving.engine import Sampling

MAX_STOPS = 16
MAX_LOGIT_BIASES = 1024
MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20
LONGEST_SHOWN = 64
"""Characters of what a client sent that an error repeats."""


class BadRequest(Exception):
    """The body cannot be served. `param` names the field at fault; None: the body as a whole."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


def read_fields(
    body: object, supported: Set[str], harmless: Set[str], unsupported: Set[str]
) -> dict[str, Any]:
    """The body's fields; null counts as absent. Those that would change the answer and do not work here are refused
    unless they ask for nothing, and so is what nobody knows."""
    if not isinstance(body, Mapping):
        raise BadRequest("the body must be a JSON object", None, "invalid_type")
    fields = {key: value for key, value in body.items() if value is not None}
    for name, value in fields.items():
        if name in harmless or name in supported:
            continue
        if name not in unsupported:
            short = _short(name)
            raise BadRequest(f"unknown parameter '{short}'; remove it", short, "unknown_parameter")
        if value not in (False, 0, "", [], {}):
            raise does_not_work(name)
    return fields


def read_model(fields: Mapping[str, Any]) -> str:
    model = fields.get("model")
    if model is None:
        raise missing("model")
    if not isinstance(model, str):
        raise wrong_type("model", "a string")
    return model


def default_sampling(options: Mapping[str, Any]) -> Sampling:
    """How tokens are chosen when a request says nothing: the config's options over the engine's defaults."""
    names = ("temperature", "top_p", "top_k", "min_p", "typical_p", "repeat_penalty")
    given: dict[str, Any] = {name: options[name] for name in names if name in options}
    return replace(Sampling(), **given)


def read_sampling(fields: Mapping[str, Any], defaults: Sampling) -> Sampling:
    changes: dict[str, Any] = {}
    for name, low, high in (
        ("temperature", 0.0, 2.0),
        ("top_p", 0.0, 1.0),
        ("min_p", 0.0, 1.0),
        ("typical_p", 0.0, 1.0),
        ("presence_penalty", -2.0, 2.0),
        ("frequency_penalty", -2.0, 2.0),
        ("repeat_penalty", 0.01, 2.0),
    ):
        if name in fields:
            changes[name] = number(fields, name, low, high)
    if "top_k" in fields:
        changes["top_k"] = max(0, whole(fields, "top_k", -1, 2**31 - 1))
    if "seed" in fields:
        seed = whole(fields, "seed", -(2**63), 2**63 - 1)
        # -1 asks for a random seed by llama.cpp's custom, and its samplers take 2**32 - 1 for the same.
        changes["seed"] = None if seed == -1 else seed % (2**32 - 1)
    if "logit_bias" in fields:
        changes["logit_bias"] = _logit_bias(fields["logit_bias"])
    return replace(defaults, **changes)


def _logit_bias(value: object) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, Mapping):
        raise wrong_type("logit_bias", "an object")
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


def read_stop(fields: Mapping[str, Any]) -> tuple[str, ...]:
    stop = fields.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(text, str) for text in stops):
        raise wrong_type("stop", "a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise BadRequest(f"'stop' may hold at most {MAX_STOPS} strings, not {len(stops)}", "stop")
    if "" in stops:
        raise BadRequest("a string in 'stop' is empty", "stop")
    return tuple(stops)


def read_choices(fields: Mapping[str, Any]) -> int:
    """`n`, 1 where it is not there."""
    return whole(fields, "n", 1, MAX_CHOICES) if "n" in fields else 1


def read_include_usage(fields: Mapping[str, Any], stream: bool) -> bool:
    options = fields.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, Mapping):
        raise wrong_type("stream_options", "an object")
    if not stream:
        raise BadRequest("'stream_options' goes with stream = true only", "stream_options")
    for name in options:
        if name not in ("include_usage", "include_obfuscation"):
            where = f"stream_options.{_short(name)}"
            raise BadRequest(f"unknown parameter '{where}'; remove it", where, "unknown_parameter")
    include = options.get("include_usage")
    if not isinstance(include, bool | None):
        raise wrong_type("stream_options.include_usage", "true or false")
    return bool(include)


def is_token_list(value: object) -> bool:
    """Whether it is a list of whole numbers that could be token ids; not empty."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value)
    )


def flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise wrong_type(name, "true or false")
    return value


def number(fields: Mapping[str, Any], name: str, low: float, high: float) -> float:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type(name, "a number")
    if not low <= value <= high:
        raise BadRequest(f"'{name}' must be from {low:g} to {high:g}, not {_short(value)}", name)
    return float(value)


def whole(fields: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type(name, "a whole number")
    if not low <= value <= high:
        raise BadRequest(f"'{name}' must be from {low} to {high}, not {_short(value)}", name)
    return value


def missing(name: str) -> BadRequest:
    return BadRequest(f"'{name}' is missing", name, "missing_required_parameter")


def wrong_type(param: str, wanted: str) -> BadRequest:
    return BadRequest(f"'{param}' must be {wanted}", param, "invalid_type")


def does_not_work(name: str) -> BadRequest:
    return BadRequest(f"'{name}' does not work here; remove it", name, "unsupported_parameter")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "…"
