"""The little of ASGI that a host needs: headers, a body, an answer, and the moment when the client leaves.

Routes nothing and knows no errors but the one that every handler may raise.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from serving.router_limits import BODY_BYTES_MAX

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Iterable[tuple[str, str]]


class Problem(Exception):
    """A request that is answered with an error; the app's edge gives it OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        homeport: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = headers
        self.homeport = homeport


def internal_problem() -> Problem:
    """A 500 for an error that nobody expected; what it was stands in the host's log."""
    return Problem(500, "something went wrong inside the host; its log says where", "internal_error")


class ClientGone(Exception):
    """The client left before its request was whole: nobody is there to answer."""


def header_map(scope: Scope) -> dict[str, str]:
    """Request headers by lower-case name; of a repeated one the last."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


async def read_body(receive: Receive) -> bytes:
    """The whole body. Raises Problem 413 beyond what any router passes on, and ClientGone."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > BODY_BYTES_MAX:
            raise Problem(
                413, f"the body is larger than {BODY_BYTES_MAX} bytes; shorten it", "body_too_large"
            )
        if not message.get("more_body", False):
            return b"".join(parts)


async def until_gone(receive: Receive, gone: Callable[[], None]) -> None:
    """Call `gone` once the client has left. For a task beside the one that answers; the body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    gone()


async def send_head(send: Send, status: int, headers: Headers) -> None:
    """Status and headers; the body is still to come."""
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": raw})


async def send_part(send: Send, body: bytes, more: bool) -> None:
    """A part of the body; the last one has `more` False."""
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def send_whole(
    send: Send, status: int, body: bytes, headers: Headers = (), content_type: str = "application/json"
) -> None:
    """An answer in one piece."""
    length = ("content-length", str(len(body)))
    await send_head(send, status, (("content-type", content_type), length, *headers))
    await send_part(send, body, more=False)
