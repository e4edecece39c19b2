"""Errors as Anthropic's Messages has them, in answers and in streams. Pure.

Source: Anthropic's API reference (errors). The code of ours stands where its SDKs read one: `details.error_code`.
"""

import re
from collections.abc import Mapping
from typing import Any

from router.errors import Rejected, bad_request

TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""By status; any other is `invalid_request_error` below 500 and `api_error` above."""

IN_STREAM = {
    "invalid_request_error": "invalid_request_error",
    "permission_error": "permission_error",
    "rate_limit_error": "rate_limit_error",
}
"""By the type of ours; an event has no status."""

PASSING = frozenset(
    {
        *("cancelled", "controller_unreachable", "host_lost", "host_stopping", "host_unsettled"),
        *("machine_lost", "machine_unavailable", "queue_timeout", "router_stopping"),
    }
)
"""Codes of what asking again helps against. In a stream clients repeat nothing but `overloaded_error`."""

TOO_LONG = "prompt is too long"
"""What clients look for before they make a history shorter."""


def wrong(where: str, message: str, code: str = "invalid_value") -> Rejected:
    """A field at fault, named by its path as Anthropic does: `messages.1.content.0`."""
    return Rejected(bad_request(f"{where}: {message}", code, where))


def error_of(status: int, error: Mapping[str, Any]) -> dict[str, Any]:
    """An error of ours as the `error` of a whole answer."""
    return _said(TYPES.get(status, "invalid_request_error" if status < 500 else "api_error"), error)


def error_in_stream(error: Mapping[str, Any]) -> dict[str, Any]:
    """The same in a stream's event."""
    if error.get("code") in PASSING:
        return _said("overloaded_error", error)
    return _said(IN_STREAM.get(str(error.get("type")), "api_error"), error)


def _said(kind: str, error: Mapping[str, Any]) -> dict[str, Any]:
    message, code = str(error["message"]), error.get("code")
    if code == "context_length_exceeded":
        message = _too_long(message)
    return {"type": kind, "message": message, "details": {"error_code": code}}


def _too_long(message: str) -> str:
    """With both numbers where clients look for them."""
    numbers = re.findall(r"\d+", message)
    told = f"{numbers[0]} tokens > {numbers[1]} maximum: " if len(numbers) == 2 else ""
    return f"{TOO_LONG}: {told}{message}"
