"""What a client gets for one turn: headers, parts, and exactly one ending.

Knows no host and chooses nothing. Bytes pass as they are.
"""

from collections.abc import Iterable

from router.errors import ApiError, RawHeaders
from router.exchange import Exchange

DROPPED = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade content-length server date "
    b"x-request-id x-homeport-session x-homeport-source".split()
)
"""Of a host's response headers: hop-by-hop ones, and those that the router itself says."""

DONE = b"data: [DONE]\n\n"
EVENT_STREAM: RawHeaders = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Reply:
    """One response on its way. `own` are the router's headers by name; they go out with whichever head is sent."""

    __slots__ = ("_exchange", "ended", "head_sent", "last", "own", "part")

    def __init__(self, exchange: Exchange, own: dict[bytes, bytes]) -> None:
        self.own = own
        self.head_sent = False
        self.ended = False
        """The last part was handed over: nothing may follow."""
        self._exchange = exchange
        self.last = b""
        """What was passed on last of a stream, with the end of its chunk or without."""
        self.part = exchange.part
        """Some of a stream's body: whole events."""

    @property
    def said_done(self) -> bool:
        """Whether the stream's own last word is out."""
        return self.last.endswith((DONE, DONE + b"\r\n"))

    def whole(self, status: int, headers: RawHeaders, body: bytes) -> None:
        """The whole response at once."""
        self.ended = True
        self._exchange.whole(status, [*self.own.items(), *headers], body)

    def begin(self, headers: RawHeaders) -> None:
        """The head of a stream; nothing where one is out already."""
        if not self.head_sent:
            self.head_sent = True
            self._exchange.start(200, [*self.own.items(), *headers])

    def finish(self, data: bytes = b"") -> None:
        """The end of a stream."""
        self.ended = True
        self._exchange.finish(data)

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
