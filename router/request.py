"""What the router needs to know of a request for a model, read without decoding the rest.

Checks no more than routing needs: the host checks the conversation itself.
"""

import asyncio
import ipaddress
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from multidict import CIMultiDict

from router.choose import Ask, Send
from router.errors import ApiError, Rejected, bad_request, body_too_large, encoded_body

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
SendMessage = Callable[[Message], Awaitable[None]]
Scope = MutableMapping[str, Any]

MAX_BODY = 32 << 20
DISCARD_LIMIT = 64 << 20
DISCARD_S = 5.0
LOOPBACK_NAMES = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})
NOT_YET = frozenset({b"x-homeport-zone", b"x-homeport-parent", b"x-homeport-when-lost"})
"""Headers that ask for a promise which this version cannot keep; to ignore them would be to break it."""
FORWARDED = frozenset({b"accept", b"traceparent", b"tracestate", b"user-agent"})
"""What a host gets of the client's headers: nothing that names a person, a key or a session."""

_SANE_ID = re.compile(rb"[\x21-\x7e][\x20-\x7e]{0,126}[\x21-\x7e]|[\x21-\x7e]")
_AT = re.compile(r" - at `\$\.?([^`]*)`")


class ClientGone(Exception):
    """The client left before its request was complete."""


class Wanted(msgspec.Struct, frozen=True, gc=False):
    """The parts of a body that routing needs."""

    model: str
    stream: bool | None = None


class _Chat(Wanted, frozen=True, gc=False, kw_only=True):
    messages: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A path whose requests go to a host as they are."""

    path: str
    holds: str
    """What a body holds beside the model, in a word."""
    decoder: msgspec.json.Decoder[Any]
    """Gives a Wanted."""
    sessions: bool = True
    """Whether a request belongs to the session that it names; otherwise it leaves nothing behind at any host."""


ENDPOINTS = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint("/v1/chat/completions", "messages", msgspec.json.Decoder(_Chat)),
        Endpoint("/v1/completions", "prompt", msgspec.json.Decoder(Wanted)),
        Endpoint("/v1/embeddings", "input", msgspec.json.Decoder(Wanted), sessions=False),
    )
}


@dataclass(slots=True)
class Head:
    """What one pass over the request's headers finds."""

    request_id: bytes
    host: bytes | None = None
    origin: bytes | None = None
    length: int | None = None
    encoding: bytes | None = None
    expects_continue: bool = False
    named: tuple[tuple[bytes, bytes], ...] = ()
    """Headers that may name the session or promise something, in order."""
    forwarded: tuple[tuple[str, str], ...] = ()


def read_head(headers: Sequence[tuple[bytes, bytes]], new_id: Callable[[], str]) -> Head:
    """`headers` are lower-case. The client's request id is kept if it is 1 to 128 printable characters."""
    head = Head(b"")
    named, forwarded = [], []
    for name, value in headers:
        if name in FORWARDED:
            forwarded.append((name.decode(), value.decode("latin-1")))
        elif name == b"host":
            head.host = value
        elif name == b"content-length":
            head.length = int(value) if value.isdigit() else None
        elif name == b"origin":
            head.origin = value
        elif name == b"x-request-id":
            head.request_id = value if _SANE_ID.fullmatch(value) else b""
        elif name == b"expect":
            head.expects_continue = value.lower() == b"100-continue"
        elif name == b"content-encoding" and value.lower() != b"identity":
            head.encoding = value
        elif name.startswith(b"x-homeport-") or name == b"x-session-id":
            named.append((name, value))
    if not head.request_id:
        head.request_id = new_id().encode()
    head.named, head.forwarded = tuple(named), tuple(forwarded)
    return head


def host_headers(ask: Ask, to: Send, head: Head, bearer: str, scope: str, left_s: float) -> CIMultiDict[str]:
    """What a host is told beside the body: what the router believes, and a little of the client.

    `scope`: the key's, see `key_scope`. `left_s`: how long the turn may still wait in line.
    """
    headers = CIMultiDict(head.forwarded)
    headers["authorization"] = bearer
    headers["content-type"] = "application/json"
    headers["x-request-id"] = ask.request_id
    headers["x-homeport-replica"] = to.replica
    headers["x-homeport-incarnation"] = str(to.incarnation)
    headers["x-homeport-pin"] = to.pin
    headers["x-homeport-scope"] = scope
    headers["x-homeport-queue-left-ms"] = str(round(left_s * 1000))
    if ask.session is not None:
        headers["x-homeport-session-key"] = ask.session
        headers["x-homeport-generation"] = str(to.generation)
    if to.claim_free:
        headers["x-homeport-claim"] = "free"
    return headers


def is_loopback(authority: bytes) -> bool:
    """Whether a Host header (`name` or `name:port`) names this machine's loopback."""
    name, colon, port = authority.lower().rpartition(b":")
    if not colon or not port.isdigit():
        name = authority.lower()
    if name in LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(name.decode().strip("[]")).is_loopback
    except ValueError:
        return False


def is_loopback_origin(origin: bytes) -> bool:
    scheme, _, authority = origin.partition(b"://")
    return scheme in (b"http", b"https") and is_loopback(authority)


def refuse_promises(head: Head) -> None:
    """Raises Rejected where a header asks for what does not work yet."""
    for name, _ in head.named:
        if name in NOT_YET:
            text = name.decode()
            raise Rejected(
                bad_request(
                    f"The header {text} does not work yet in this version; leave it out.",
                    "unsupported_header",
                    text,
                )
            )


async def read_body(head: Head, receive: Receive) -> bytes:
    """The whole body. Raises ClientGone, or Rejected (415; 413 before reading what is declared too large)."""
    if head.encoding is not None:
        raise Rejected(encoded_body(head.encoding.decode("latin-1")))
    if head.length is not None and head.length > MAX_BODY:
        raise Rejected(body_too_large(MAX_BODY))
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY:
            raise Rejected(body_too_large(MAX_BODY))
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def discard_body(receive: Receive) -> None:
    """Read away what a refused client still sends, within limits, so that it comes to read its answer."""
    left = DISCARD_LIMIT
    try:
        async with asyncio.timeout(DISCARD_S):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def read_wanted(endpoint: Endpoint, body: bytes) -> Wanted:
    """Raises Rejected (400) with the field at fault."""
    if not body.strip():
        message = f"The request body is empty; send a JSON object with model and {endpoint.holds}."
        raise Rejected(bad_request(message, "empty_body"))
    try:
        wanted: Wanted = endpoint.decoder.decode(body)
    except msgspec.ValidationError as error:
        raise Rejected(_bad_field(str(error))) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected(
            bad_request(f"The request body is not JSON that can be read: {error}.", "invalid_json")
        ) from error
    if not wanted.model:
        raise Rejected(
            bad_request("`model` is empty; GET /v1/models lists the names.", "invalid_value", "model")
        )
    return wanted


def _bad_field(text: str) -> ApiError:
    if missing := re.search(r"missing required field `(\w+)`", text):
        field = missing.group(1)
        hint = "GET /v1/models lists the names" if field == "model" else "a list with at least one message"
        return bad_request(f"`{field}` is missing: {hint}.", "missing_required_parameter", field)
    at = _AT.search(text)
    field = at.group(1) if at else ""
    wrong = _AT.sub("", text)
    if not field:
        return bad_request(f"The request body must be a JSON object ({wrong}).", "invalid_type")
    return bad_request(f"`{field}` has the wrong type ({wrong}).", "invalid_type", field)
