"""Errors in OpenAI's shape: `message`, `type`, `code`, `param`. Each message says what to do next.

Builds answers; sends none. The code of an error is also its outcome's name in metrics and logs.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.slices import bytes_text

RawHeaders = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class ApiError:
    """One refused or failed request, as its client sees it."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further members of the error object."""
    final: bool = False
    """Asking again will not help: the client is told not to."""

    @property
    def type(self) -> str:
        if self.status == 429:
            return "rate_limit_error"
        if self.status == 403:
            return "permission_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def to_json(self) -> dict[str, Any]:
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error | dict(self.more)}

    def body(self) -> bytes:
        return json.dumps(self.to_json()).encode()

    def event(self) -> bytes:
        """The same as the last event of a stream whose head is out; no `[DONE]` follows it."""
        return b"data: " + self.body() + b"\n\n"

    def headers(self) -> RawHeaders:
        headers = [(b"content-type", b"application/json")]
        if self.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % max(1, math.ceil(self.retry_after_s))))
        if self.final:
            headers.append((b"x-should-retry", b"false"))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        return headers


class Rejected(Exception):
    """Carries an error to the edge, where it becomes an answer."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.code)
        self.error = error


def bad_request(message: str, code: str, param: str | None = None) -> ApiError:
    return ApiError(400, code, message, param)


def body_too_large(limit: int) -> ApiError:
    message = (
        f"The request body is larger than {bytes_text(limit)}; send a shorter history, "
        "or set a larger router.max_body in the config."
    )
    return ApiError(413, "body_too_large", message)


def malformed_request() -> ApiError:
    message = "This is no HTTP request that can be understood in one way only; it was not passed on."
    return ApiError(400, "malformed_request", message)


def headers_too_large() -> ApiError:
    message = "The request's headers are too many or too long: at most 200, together at most 64 KiB."
    return ApiError(431, "headers_too_large", message)


def encoded_body(encoding: str) -> ApiError:
    message = f"The request body is encoded ({encoding}); send it plain, without content-encoding."
    return ApiError(415, "unsupported_encoding", message)


def not_found(path: str) -> ApiError:
    return ApiError(404, "not_found", f"There is nothing at {path}; see the README for the paths that exist.")


def wrong_method(allowed: Iterable[str]) -> ApiError:
    return ApiError(405, "method_not_allowed", f"This path takes {', '.join(allowed)} only.")


def foreign_host() -> ApiError:
    message = (
        "This router does not answer to that name: call it as http://localhost:PORT or http://127.0.0.1:PORT on its "
        "own machine, elsewhere by its IP address or host name; add other names as router.names to the config."
    )
    return ApiError(403, "host_not_allowed", message)


def foreign_origin() -> ApiError:
    message = (
        "A page of another site may not use this router: open the page from localhost, "
        "call the router from a program of your own instead of a page, or list the site as router.cors in the config."
    )
    return ApiError(403, "origin_not_allowed", message)


def session_not_found() -> ApiError:
    """The same for one that is not there and one of another key's, so that neither tells of the other."""
    message = (
        "There is no such session of this key. `homeport sessions` lists them; to begin one, send a name of "
        "your own instead."
    )
    return ApiError(404, "session_not_found", message, final=True)


def session_ended() -> ApiError:
    """Not to be sent again by itself: somebody ended it on purpose."""
    message = "This session was ended while the turn waited. Ask again to begin it anew."
    return ApiError(409, "session_ended", message, final=True)


def response_cancelled() -> ApiError:
    message = "This response was cancelled while it was being made. Ask again to have another one."
    return ApiError(409, "response_cancelled", message, final=True)


def session_busy(replica: str) -> ApiError:
    message = (
        f"A turn of this session runs or waits at {replica}. Move it once that is over, or end it first."
    )
    return ApiError(409, "session_busy", message, retry_after_s=10)


def cannot_say(replicas: Iterable[str]) -> ApiError:
    silent = ", ".join(replicas)
    why = (
        f"{silent} cannot be asked whether this session's home is there"
        if silent
        else "it has not said so yet"
    )
    message = f"Only the controller knows this session's home now, and {why}. Ask again in a moment."
    return ApiError(503, "machine_unavailable", message, retry_after_s=5)


def no_controller() -> ApiError:
    message = "The controller does not answer, and without it nobody is moved. See `homeport status`."
    return ApiError(503, "controller_unreachable", message, retry_after_s=5)


def host_error(replica: str, status: int) -> ApiError:
    message = f"{replica} failed ({status}); its log says why. Ask again, or see `homeport status`."
    return ApiError(502, "host_error", message, retry_after_s=5)


def host_lost(replica: str) -> ApiError:
    message = (
        f"The host of {replica} ended in the middle of this answer. Send the request again: "
        "the session keeps its home and is answered when that is back."
    )
    return ApiError(502, "host_lost", message, retry_after_s=2)


def host_silent(replica: str) -> ApiError:
    message = (
        f"The host of {replica} said nothing for too long and may still be at work on this turn. "
        "See `homeport status`, and send the request again later: the session keeps its home."
    )
    return ApiError(502, "host_lost", message, retry_after_s=10)


def host_refused(replica: str) -> ApiError:
    message = (
        f"{replica} does not accept the token that this router has for its machine. Run `homeport join HEAD` there, "
        "with the head's address, so that both have the same one; on the head, `homeport down` and `homeport up`."
    )
    return ApiError(502, "host_refused", message, final=True)


def host_unsettled(replica: str) -> ApiError:
    message = f"{replica} and the router could not agree on who serves this session. Ask again in a moment."
    return ApiError(503, "host_unsettled", message, retry_after_s=2)


def router_stopping() -> ApiError:
    return ApiError(503, "router_stopping", "The router is stopping. Ask again in a moment.", retry_after_s=2)


def internal_error() -> ApiError:
    message = "The router failed at this request; its log says where. Please report it with the request id."
    return ApiError(500, "internal_error", message)
