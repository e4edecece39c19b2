"""What the relay reads in a host's bytes: where events end, and the names of errors. Pure.

Nothing here changes a byte, and nothing runs per token but `whole_events` where an event came in pieces.
"""

import json
from dataclasses import dataclass
from typing import Any

from serving.pins import Pin, pin_from_json

HELD_BYTES = 64 << 10
"""The most of an unfinished event that is held back; more than that passes in pieces."""

CODES = frozenset(
    {
        *("body_too_large", "cancelled", "context_length_exceeded", "empty_array", "empty_body"),
        *("engine_failed", "failed", "host_stopping", "invalid_json", "invalid_prompt", "invalid_type"),
        *("invalid_value", "journal_failed", "loading", "missing_required_parameter", "model_not_found"),
        *("queue_timeout", "session_ended", "state_folder_full", "unknown_parameter", "unsupported_content"),
        *("unsupported_parameter", "unsupported_value"),
    }
)
"""Codes of hosts that are outcomes by their own name; any other counts as `host_error`."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A host's 421: why it does not take the turn, and the pin that it knows."""

    reason: str
    pin: Pin | None


def whole_events(data: bytes) -> tuple[bytes, bytes]:
    """(what ends with an event's end, the unfinished rest). A rest beyond 64 KiB is not held back."""
    cut = data.rfind(b"\n\n") + 2
    if cut == 1:
        return (b"", data) if len(data) <= HELD_BYTES else (data, b"")
    rest = data[cut:]
    return (data[:cut], rest) if len(rest) <= HELD_BYTES else (data, b"")


PROGRESS = b'"prompt_progress":'
"""Is in an event that tells how far a prompt is, and in no other: within a text the quotes are escaped."""


def before_answer(chunk: bytes) -> bool:
    """Whether there is nothing of the answer in it: comments, and how far the prompt is."""
    return all(not line or line.startswith(b":") or PROGRESS in line for line in chunk.split(b"\n"))


def code_of(body: bytes) -> str | None:
    """The outcome's name of an error body; None where it is not one of ours."""
    error = _error(body)
    if error is None:
        return None
    code = error.get("code")
    return code if isinstance(code, str) and code in CODES else "host_error"


def last_code(chunk: bytes) -> str:
    """The outcome's name of a stream that ended with this chunk and without `[DONE]`."""
    _, found, event = chunk.rstrip().rpartition(b"data: ")
    return (code_of(event) if found else None) or "host_error"


def read_disagreement(body: bytes) -> Disagreement:
    """Unknown reasons and broken pins are read as a plain mismatch."""
    told = _object(body).get("homeport")
    if not isinstance(told, dict):
        return Disagreement("incarnation", None)
    pin = told.get("pin")
    try:
        known = pin_from_json(pin) if isinstance(pin, dict) else None
    except ValueError:
        known = None
    return Disagreement(str(told.get("reason")), known)


def _error(body: bytes) -> dict[str, Any] | None:
    error = _object(body).get("error")
    return error if isinstance(error, dict) else None


def _object(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
