"""What the router needs to know of a request for a model, read without decoding the rest.

Checks no more than routing needs: the host checks the conversation itself.
"""

import random
import re
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, get_args
from urllib.parse import unquote

import msgspec

from router.clues import BodyFields
from router.decision import Ask, Send
from router.dialects import ollama
from router.dialects.dialect import Dialect
from router.dialects.messages import CountTokens, Messages
from router.dialects.responses import Responses
from router.errors import ApiError, Rejected, bad_request, body_too_large, encoded_body
from router.exchange import Exchange, Message
from router.identity import key_scope, naming_headers
from router.keys import SECRET_HEADERS
from serving.model import WhenLost

LEAST_WEIGHT = 0.001
"""The least that a host takes."""
POLICIES: tuple[WhenLost, ...] = get_args(WhenLost)
NAMING = naming_headers()
ZONE, WHEN_LOST = b"x-homeport-zone", b"x-homeport-when-lost"
FORWARDED = frozenset({b"accept", b"traceparent", b"tracestate", b"user-agent"})
"""What a host gets of the client's headers: nothing that names a person, a key or a session."""
READ = frozenset(
    (b"content-encoding", b"content-length", b"host", b"origin", b"x-request-id", ZONE, WHEN_LOST)
)
"""Other headers that are read."""

_SANE_ID = re.compile(rb"[\x21-\x7e][\x20-\x7e]{0,126}[\x21-\x7e]|[\x21-\x7e]")
_AT = re.compile(r" - at `\$\.?([^`]*)`")


class Wanted(BodyFields, frozen=True, gc=False, kw_only=True):
    """The parts of a body that routing needs."""

    model: str
    stream: bool | None = None


class Chat(Wanted, frozen=True, gc=False, kw_only=True):
    """A chat's, its messages unread."""

    messages: msgspec.Raw


class Address(msgspec.Struct, frozen=True, gc=False):
    """A path, and the session and machine that stand before it: `/s/{session}` and `/m/{machine}`, in any order."""

    path: str
    session: str | None = None
    machine: str | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A path whose requests go to a host, as they are or translated."""

    path: str
    holds: str
    """What a body holds beside the model, in a word."""
    decoder: msgspec.json.Decoder[Any]
    """Gives a Wanted."""
    sessions: bool = True
    """Whether a request belongs to the session that it names; otherwise it leaves nothing behind at any host."""
    dialect: Dialect | None = None
    """How it is spoken there, where that is not how hosts speak."""
    at_host: str = ""
    """The host's path, where it is another."""
    id_header: bytes = b""
    """Which header tells the request's id there beside `x-request-id`; none if empty."""

    @property
    def host_path(self) -> str:
        return self.at_host or self.path


ENDPOINTS = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint("/v1/chat/completions", "messages", msgspec.json.Decoder(Chat)),
        Endpoint("/v1/completions", "prompt", msgspec.json.Decoder(Wanted)),
        Endpoint("/v1/embeddings", "input", msgspec.json.Decoder(Wanted), sessions=False),
        Endpoint(
            "/v1/messages",
            "messages",
            msgspec.json.Decoder(Chat),
            dialect=Messages(),
            at_host="/v1/chat/completions",
            id_header=b"request-id",
        ),
        Endpoint(
            "/v1/messages/count_tokens",
            "messages",
            msgspec.json.Decoder(Chat),
            sessions=False,
            dialect=CountTokens(),
            at_host="/tokenize",
            id_header=b"request-id",
        ),
        Endpoint(
            "/v1/responses", "input", msgspec.json.Decoder(Chat), True, Responses(), "/v1/chat/completions"
        ),
        Endpoint(
            "/api/chat", "messages", msgspec.json.Decoder(Chat), True, ollama.chat(), "/v1/chat/completions"
        ),
        Endpoint(
            "/api/generate",
            "prompt",
            msgspec.json.Decoder(Chat),
            True,
            ollama.generate(),
            "/v1/chat/completions",
        ),
        Endpoint(
            "/api/embed", "input", msgspec.json.Decoder(Wanted), False, ollama.embed(), "/v1/embeddings"
        ),
        Endpoint(
            "/api/embeddings",
            "prompt",
            msgspec.json.Decoder(Wanted),
            False,
            ollama.embeddings(),
            "/v1/embeddings",
        ),
    )
}


def loading(endpoint: Endpoint) -> Endpoint:
    """The same path, asked for no more than that the model be loaded: that leaves nothing behind at any host."""
    return replace(endpoint, decoder=msgspec.json.Decoder(Wanted), sessions=False, at_host="/tokenize")


class Who(msgspec.Struct, frozen=True, gc=False):
    """What a host is told of a session beside its pin."""

    public: str = ""
    history: str = ""
    """Of a guess: the digest of all that the request says so far."""
    continues: tuple[str, ...] = ()


@dataclass(slots=True)
class Head:
    """What one pass over the request's headers finds."""

    request_id: bytes
    host: bytes | None = None
    origin: bytes | None = None
    length: int | None = None
    encoding: bytes | None = None
    named: tuple[tuple[bytes, bytes], ...] = ()
    """Headers that may name the session, in order."""
    zone: bytes | None = None
    when_lost: bytes | None = None
    forwarded: bytes = b""
    """Lines of headers that a host gets as they are."""
    shown: tuple[tuple[bytes, bytes], ...] = ()
    """Headers that may show a key."""


def read_address(scope: Message) -> Address:
    """What the path says. A name may hold whatever percent-encoding can write, slashes too."""
    whole: str = scope["path"]
    if not whole.startswith(("/s/", "/m/")):
        return Address(whole)
    parts = (scope.get("raw_path") or whole.encode()).decode("latin-1").partition("?")[0].split("/")[1:]
    found: dict[str, str] = {}
    while len(parts) > 2 and parts[0] in ("s", "m") and parts[0] not in found:
        found[parts[0]] = unquote(parts[1])
        parts = parts[2:]
    return Address("/" + "/".join(map(unquote, parts)), found.get("s"), found.get("m"))


def read_head(
    headers: Sequence[tuple[bytes, bytes]], new_id: Callable[[], str], naming: Set[bytes] = NAMING
) -> Head:
    """`headers` are lower-case. The client's request id is kept if it is 1 to 128 printable characters.

    `naming`: those that may name a session.
    """
    head = Head(b"")
    named, shown = [], []
    for name, value in headers:
        if name in naming:
            named.append((name, value))
        elif name in SECRET_HEADERS:
            shown.append((name, value))
        elif name in FORWARDED:
            head.forwarded += b"%b: %b\r\n" % (name, value)
        elif name in READ:
            _read(head, name, value)
    if not head.request_id:
        head.request_id = new_id().encode()
    head.named, head.shown = tuple(named), tuple(shown)
    return head


def _read(head: Head, name: bytes, value: bytes) -> None:
    if name == b"host":
        head.host = value
    elif name == b"content-length":
        head.length = int(value) if value.isdigit() else None
    elif name == b"origin":
        head.origin = value
    elif name == b"x-request-id":
        head.request_id = value if _SANE_ID.fullmatch(value) else b""
    elif name == b"content-encoding" and value.lower() != b"identity":
        head.encoding = value
    elif name == ZONE:
        head.zone = value if head.zone is None else head.zone
    elif name == WHEN_LOST:
        head.when_lost = value if head.when_lost is None else head.when_lost


def new_id() -> str:
    """128 random bits in hex, which tell requests apart; nothing secret, so that the kernel is not asked for them."""
    return f"{random.getrandbits(128):032x}"


def host_headers(ask: Ask, to: Send, who: Who, bearer: str, left_s: float) -> str:
    """What a host is told beside the body, in lines: what the router believes.

    `left_s`: how long the turn may still wait in line.
    """
    key = ask.key
    lines = (
        f"authorization: {bearer}\r\ncontent-type: application/json\r\nx-request-id: {ask.request_id}\r\n"
        f"x-homeport-replica: {to.replica}\r\nx-homeport-incarnation: {to.incarnation}\r\n"
        f"x-homeport-pin: {to.pin}\r\nx-homeport-scope: {key_scope(key.name)}\r\n"
        f"x-homeport-queue-left-ms: {round(left_s * 1000)}\r\n"
    )
    if key.places is not None:
        lines += f"x-homeport-key-places: {key.places}\r\n"
    if key.weight != 1.0:
        lines += f"x-homeport-weight: {max(key.weight, LEAST_WEIGHT):g}\r\n"
    if ask.session is not None:
        lines += (
            f"x-homeport-session-key: {ask.session}\r\nx-homeport-generation: {to.generation}\r\n"
            f"x-homeport-public: {who.public}\r\n"
        )
        if (machines := only_machines(ask)) is not None:
            lines += f"x-homeport-machines: {machines}\r\n"
        if ask.rank == "guessed":
            lines += f"x-homeport-rank: guessed\r\nx-homeport-history: {who.history}\r\n"
            if who.continues:
                lines += f"x-homeport-continues: {','.join(who.continues)}\r\n"
        if ask.family is not None:
            lines += f"x-homeport-parent-key: {ask.family}\r\n"
    if to.claim_free:
        lines += "x-homeport-claim: free\r\n"
    return lines


def only_machines(ask: Ask) -> str | None:
    """Where the session may be at home, by name, for whoever moves it later; None: anywhere in its zone."""
    if ask.machine is not None:
        return ask.machine
    return None if ask.key.machines is None else ",".join(sorted(ask.key.machines))


def read_policy(head: Head, default: WhenLost) -> WhenLost:
    """What becomes of the turn if its session's machine is lost. Raises Rejected (400)."""
    if (told := head.when_lost) is None:
        return default
    for policy in POLICIES:
        if told == policy.encode():
            return policy
    name = WHEN_LOST.decode()
    raise Rejected(bad_request(f"The header {name} must be wait, move or fail.", "invalid_value", name))


def read_zone(head: Head) -> str | None:
    """The zone that the request names. Raises Rejected (400)."""
    if (told := head.zone) is None:
        return None
    if not re.fullmatch(rb"[A-Za-z0-9._-]{1,63}", told):
        name = ZONE.decode()
        raise Rejected(bad_request(f"The header {name} must hold a zone's name.", "invalid_value", name))
    return told.decode()


def with_model(body: bytes, model: str) -> bytes:
    """The same body with this model; all else keeps its bytes."""
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)


def host_request(path: str, host: str, told: str, forwarded: bytes, length: int) -> bytes:
    """The head of a POST to a host. `told`, `forwarded`: lines of headers, of the router and of the client."""
    lines = f"POST {path} HTTP/1.1\r\nhost: {host}\r\n{told}content-length: {length}\r\n"
    return b"%b%b\r\n" % (lines.encode(), forwarded)


async def read_body(head: Head, exchange: Exchange, max_bytes: int) -> bytes:
    """The whole body. Raises Gone, or Rejected (415; 413 before reading what is declared too large)."""
    if head.encoding is not None:
        raise Rejected(encoded_body(head.encoding.decode("latin-1")))
    if head.length is not None and head.length > max_bytes:
        raise Rejected(body_too_large(max_bytes))
    parts: list[bytes] = []
    size = 0
    while part := await exchange.read():
        size += len(part)
        if size > max_bytes:
            raise Rejected(body_too_large(max_bytes))
        parts.append(part)
    return b"".join(parts)


def read_wanted(endpoint: Endpoint, body: bytes) -> Wanted:
    """Raises Rejected (400) with the field at fault."""
    try:
        wanted: Wanted = endpoint.decoder.decode(body)
    except msgspec.ValidationError as error:
        raise Rejected(_bad_field(str(error))) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if not body.strip():
            message = f"The request body is empty; send a JSON object with model and {endpoint.holds}."
            raise Rejected(bad_request(message, "empty_body")) from error
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
