"""A body's fields, read one by one. Pure: what does not fit raises Rejected with the field at fault."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from router.errors import Rejected, bad_request

LONGEST_SHOWN = 64
"""Characters of what a client sent that an error repeats."""
DEEPEST = 200
"""How deep lists and objects may stand in each other: far enough from what Python can still write, with more around
it."""


def read_object(body: bytes) -> dict[str, Any]:
    """A body's JSON object, without its nulls: null counts as absent. Read as strictly as hosts read, so that what was
    taken here can be written again: no NaN, no half characters, nothing too deep. Raises Rejected."""
    if not body.strip():
        raise Rejected(bad_request("The request body is empty; send a JSON object.", "empty_body"))
    try:
        told = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        raise _unreadable(str(error)) from error
    if not isinstance(told, dict):
        raise Rejected(bad_request("The request body must be a JSON object.", "invalid_type"))
    if _is_too_deep(told):
        raise _unreadable(f"lists and objects stand in each other more than {DEEPEST} deep")
    return {name: value for name, value in told.items() if value is not None}


def _unreadable(why: str) -> Rejected:
    return Rejected(bad_request(f"The request body is not JSON that can be read: {why}.", "invalid_json"))


def _is_too_deep(told: object) -> bool:
    level = [told]
    for _ in range(DEEPEST + 1):
        held = [
            each.values() if isinstance(each, dict) else each
            for each in level
            if isinstance(each, dict | list)
        ]
        if not held:
            return False
        level = [each for values in held for each in values]
    return True


def mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise wrong_type(where, "an object")
    return value


def listed(value: object, where: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise wrong_type(where, "a list")
    return value


def text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise missing(where) if value is None else wrong_type(where, "a string")
    return value


def name(value: object, where: str) -> str:
    """A text that is not empty."""
    if not text(value, where):
        raise wrong_type(where, "a string that is not empty")
    return str(value)


def whole(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type(where, "a whole number")
    return value


def flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise wrong_type(where, "true or false")
    return value


def missing(where: str) -> Rejected:
    return Rejected(bad_request(f"`{where}` is missing.", "missing_required_parameter", where))


def wrong_type(where: str, wanted: str) -> Rejected:
    return Rejected(bad_request(f"`{where}` must be {wanted}.", "invalid_type", where))


def wrong_value(where: str, message: str) -> Rejected:
    return Rejected(bad_request(message, "invalid_value", where))


def unsupported(where: str, message: str) -> Rejected:
    return Rejected(bad_request(message, "unsupported_parameter", where))


def unknown(where: str) -> Rejected:
    where = shown(where)
    return Rejected(bad_request(f"`{where}` is no parameter; remove it.", "unknown_parameter", where))


def shown(value: object) -> str:
    """What a client sent, short enough for a message."""
    words = str(value)
    return words if len(words) <= LONGEST_SHOWN else words[:LONGEST_SHOWN] + "…"
