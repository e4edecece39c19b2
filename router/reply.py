"""What a client gets for one turn: headers, parts, and exactly one ending.

Knows no host and chooses nothing. Bytes pass as they are, or are said in a dialect.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from router.decision import Ask, Send
from router.dialects.dialect import Asked, Dialect, Naming, Stream
from router.dialects.ollama import Loading
from router.errors import ApiError, RawHeaders
from router.exchange import Exchange
from router.request import new_id

DROPPED = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade content-length server date "
    b"x-request-id x-homeport-session x-homeport-source x-homeport-aside".split()
)
"""Of a host's response headers: hop-by-hop ones, those that the router itself says, and one that is for it alone."""

DONE = b"data: [DONE]\n\n"
EVENT_STREAM: RawHeaders = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Reply:
    """One response on its way. `own` are the router's headers by name; they go out with whichever head is sent."""

    __slots__ = ("_exchange", "ended", "frame", "head_sent", "last", "own", "part")

    def __init__(self, exchange: Exchange, own: dict[bytes, bytes]) -> None:
        self.own = own
        self.head_sent = False
        self.ended = False
        """The last part was handed over: nothing may follow."""
        self._exchange = exchange
        self.last = b""
        """What was passed on last of a stream, with the end of its chunk or without."""
        self.part: Callable[[bytes], None] = exchange.part
        """Some of a stream's body: whole events."""
        self.frame: Callable[[bytes], bool] = exchange.frame
        """The same, as a chunk already. Whether it could be passed on so."""

    def read(self, body: bytes) -> bytes:
        """What a host is asked for this body. Raises Rejected."""
        return body

    async def prepare(self, ask: Ask, to: Send) -> bytes | None:
        """The turn is about to go there: what its host is asked from now on, where that is something else. Raises
        Rejected, and NotConnected where that host cannot be asked what it takes."""
        return None

    async def zone(self, ask: Ask) -> str | None:
        """Where the turn has to stay for what it goes on from; None: that says nothing of it. Raises Rejected."""
        return None

    @property
    def only_loads(self) -> bool:
        """Whether nothing is asked but that the model be loaded."""
        return False

    @property
    def said_done(self) -> bool:
        """Whether the stream's own last word is out."""
        return self.last.endswith((DONE, DONE + b"\r\n"))

    def whole(self, status: int, headers: RawHeaders, body: bytes) -> None:
        """The whole response at once."""
        self.ended = True
        self._exchange.whole(status, [*self.own.items(), *headers], body)

    async def answer(self, headers: RawHeaders, body: bytes) -> None:
        """A host's whole answer."""
        self.whole(200, headers, body)

    def begin(self, headers: RawHeaders) -> None:
        """The head of a stream; nothing where one is out already."""
        if not self.head_sent:
            self.head_sent = True
            self._exchange.start(200, [*self.own.items(), *headers])

    def finish(self, data: bytes = b"") -> None:
        """The end of a stream."""
        self.ended = True
        self._exchange.finish(data)

    async def close(self, data: bytes) -> None:
        """The end of a host's stream. `data`: what it left behind its last whole event."""
        self.finish(data)

    def cancelled(self, response: str) -> Mapping[str, Any] | None:
        """How that response stands if it is cancelled now; None: it is none that this reply makes."""
        return None

    def fail(self, error: ApiError) -> str:
        """End with an error: a response of its own, or an event where the head is out. Returns its name; `ok` where
        all was said before."""
        if self.said_done:
            self.finish()
            return "ok"
        if self.head_sent:
            self.finish(error.event())
        else:
            self.whole(error.status, error.headers(), error.body())
        return error.code


class Spoken(Reply):
    """The same in a dialect: all that is said of chat completions is translated on its way out."""

    __slots__ = ("_asked", "_dialect", "_stream")

    def __init__(self, exchange: Exchange, own: dict[bytes, bytes], dialect: Dialect) -> None:
        super().__init__(exchange, own)
        self._dialect = dialect
        self._asked: Asked | None = None
        self._stream: Stream | None = None
        self.part = self._said
        self.frame = lambda _frame: False

    def read(self, body: bytes) -> bytes:
        self._asked = self._dialect.read(body, new_naming())
        return self._asked.body

    @property
    def only_loads(self) -> bool:
        return isinstance(self._asked, Loading)

    def whole(self, status: int, headers: RawHeaders, body: bytes) -> None:
        if status == 200 and self._asked is not None:
            body = self._asked.whole(body, self._session())
        else:
            error = msgspec.json.decode(body)["error"]
            more, body = self._dialect.error(status, error, self.own.get(b"x-request-id", b"").decode())
            headers = [*headers, *more]
        super().whole(status, headers, body)

    def begin(self, headers: RawHeaders) -> None:
        if not self.head_sent and self._asked is not None:
            self._stream = self._asked.stream(self._session())
            kept = [each for each in headers if each[0] != b"content-type"]
            headers = [(b"content-type", self._dialect.stream_type), *kept]
        super().begin(headers)

    def finish(self, data: bytes = b"") -> None:
        if self._stream is not None:
            data = self._stream.take(data) + self._stream.end()
        super().finish(data)

    def _said(self, data: bytes) -> None:
        if self._stream is not None and (out := self._stream.take(data)):
            self._exchange.part(out)

    def _session(self) -> str | None:
        told = self.own.get(b"x-homeport-session")
        return None if told is None else told.decode()


def new_naming() -> Naming:
    """For an answer that begins now."""
    began_s = time.monotonic()
    return Naming(new_id(), int(time.time()), lambda: time.monotonic() - began_s)


def passed(raw_headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """A host's response headers, with lower-case names, as its client gets them."""
    return [each for each in raw_headers if each[0] not in DROPPED]


def home_headers(replica: str, pin: str) -> dict[bytes, bytes]:
    """What is known of the home that a turn waits for, or whose host failed it."""
    return {
        b"x-homeport-machine": replica.rpartition("/")[0].encode(),
        b"x-homeport-replica": replica.encode(),
        b"x-homeport-pin": pin.encode(),
    }
