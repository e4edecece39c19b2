"""One request of a client and its answer, as whoever answers has them: read what is asked, write what is answered.

Beside `receive` and `send` an ASGI app finds it in its scope, under EXCHANGE: what is written there goes straight to
the socket, and who writes learns when its client reads no more, or is gone. Connections: router/client_http.py.
"""

import asyncio
import http
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol
from urllib.parse import unquote

import httptools

from router.errors import ApiError, RawHeaders

EXCHANGE = "homeport.exchange"
"""The key in an ASGI scope."""
UNREAD_BYTES = 64 << 10
"""So much of a body is taken in before anybody reads it."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
SendMessage = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, SendMessage], Awaitable[None]]

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus
}
_BODILESS = frozenset({204, 304})


class Wire(Protocol):
    """The connection over which an exchange goes."""

    client: tuple[str, int] | None
    server: tuple[str, int] | None

    def write(self, data: bytes) -> None: ...

    async def drained(self) -> None:
        """Until the client has read enough of what was written."""

    def may_read(self) -> None:
        """There is room for more of a request."""

    def answered(self, exchange: "Exchange") -> None:
        """All of the answer was handed over."""


class Gone(Exception):
    """The client left before its request was complete."""


class Exchange:
    """One request and its answer.

    What is written is never waited for: whoever writes much sets `on_pause` and stops while it has said True.
    """

    __slots__ = (
        "_arrived",
        "_body",
        "_chunked",
        "_connection",
        "_head",
        "_read_all",
        "_told_all",
        "_unread",
        "continue_due",
        "ended",
        "gone",
        "headers",
        "keep_alive",
        "method",
        "on_gone",
        "on_pause",
        "paused",
        "slow",
        "target",
        "task",
        "version",
    )

    def __init__(
        self,
        connection: Wire,
        method: str,
        target: bytes,
        version: str,
        headers: RawHeaders,
        keep_alive: bool,
        continue_due: bool,
    ) -> None:
        self.method = method
        self.target = target
        """As it was sent: path and query."""
        self.version = version
        """`1.1` or `1.0`."""
        self.headers = headers
        """With lower-case names."""
        self.keep_alive = keep_alive
        self.continue_due = continue_due
        self.gone = False
        """The client is."""
        self.ended = False
        """The last part was handed over."""
        self.paused = False
        """The client reads more slowly than it is written to."""
        self.slow = False
        """It did so for too long, and that is why it is gone."""
        self.task: asyncio.Task[None] | None = None
        """The one that answers it."""
        self.on_gone: Callable[[], None] | None = None
        self.on_pause: Callable[[bool], None] | None = None
        self._connection = connection
        self._body: list[bytes] = []
        self._unread = 0
        self._read_all = False
        self._told_all = False
        self._arrived: asyncio.Future[None] | None = None
        self._head = b""
        self._chunked: bool | None = None

    # what is asked

    async def read(self) -> bytes:
        """More of the body; b"" at its end. Raises Gone."""
        while not self._body:
            if self._read_all:
                return b""
            if self.gone:
                raise Gone
            if self.continue_due:
                self.continue_due = False
                self._connection.write(CONTINUE)
            await self._news()
        data = b"".join(self._body)
        self._body.clear()
        self._unread = 0
        self._connection.may_read()
        return data

    @property
    def is_whole(self) -> bool:
        """Whether all of the request has come."""
        return self._read_all

    async def _news(self) -> None:
        """Until more of the body came, or all of it, or the client is gone, or the answer has ended."""
        self._arrived = asyncio.get_running_loop().create_future()
        try:
            await self._arrived
        finally:
            self._arrived = None

    def fed(self, data: bytes) -> bool:
        """More of the body came. Whether that is enough for now."""
        self._body.append(data)
        self._unread += len(data)
        self._wake()
        return self._unread > UNREAD_BYTES

    def fed_all(self) -> None:
        self._read_all = True
        self._wake()

    def lost(self) -> None:
        """The connection is."""
        self.gone = True
        self._wake()
        if self.on_gone is not None and not self.ended:
            self.on_gone()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    # what is answered

    def start(self, status: int, headers: RawHeaders) -> None:
        """The head; it leaves with what comes next. Names are lower-case. Without a content-length the body is chunked,
        or ends with the connection where the client knows no chunks."""
        lines = [_STATUS.get(status) or b"HTTP/1.1 %d \r\n" % status]
        self._chunked = status not in _BODILESS
        for name, value in headers:
            if name == b"connection":  # It is said below.
                self.keep_alive = self.keep_alive and value.lower() != b"close"
                continue
            lines.append(b"%b: %b\r\n" % (name, value))
            if name == b"content-length":
                self._chunked = False
        if self._chunked and self.version == "1.0":
            self._chunked = False
            self.keep_alive = False
        if self._chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        if not self._read_all:
            self.keep_alive = False  # What is left of the request would be taken for the next one.
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        elif self.version == "1.0":
            lines.append(b"connection: keep-alive\r\n")
        lines.append(b"\r\n")
        self._head = b"".join(lines)

    def part(self, data: bytes) -> None:
        """Some of the body."""
        if data and self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._write(data)

    def frame(self, data: bytes) -> bool:
        """Some of the body, as a chunk already. Whether it could be passed on so."""
        if not self._chunked or self._head or self.method == "HEAD":
            return False
        self._connection.write(data)
        return True

    def whole(self, status: int, headers: RawHeaders, body: bytes) -> None:
        """All of the answer at once."""
        self.start(status, [*headers, (b"content-length", b"%d" % len(body))])
        self.finish(body)

    def finish(self, data: bytes = b"") -> None:
        """The rest of the body, and the end of the answer."""
        self.ended = True
        self._wake()
        if self._chunked:
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        self._write(data)
        self._connection.answered(self)

    def _write(self, data: bytes) -> None:
        """Some of the body, behind the head if that is still here."""
        if self.method == "HEAD":
            data = b""
        if self._head:
            data, self._head = self._head + data, b""
        if data:
            self._connection.write(data)

    # as ASGI has it

    @property
    def begun(self) -> bool:
        """Whether an answer is."""
        return self._chunked is not None

    def scope(self) -> Message:
        """Raises httptools.HttpParserInvalidURLError."""
        target = self.target
        if target[:1] != b"/":
            parts = httptools.parse_url(target)
            target = (parts.path or b"/") + (b"?" + parts.query if parts.query else b"")
        path, _, query = target.partition(b"?")
        text = path.decode("latin-1")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": self.version,
            "method": self.method,
            "scheme": "http",
            "path": unquote(text) if "%" in text else text,
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": self.headers,
            "client": self._connection.client,
            "server": self._connection.server,
            EXCHANGE: self,
        }

    async def receive(self) -> Message:
        while self._told_all and not (self.gone or self.ended):
            await self._news()
        if self.ended or self._told_all:
            return {"type": "http.disconnect"}
        try:
            data = await self.read()
        except Gone:
            return {"type": "http.disconnect"}
        self._told_all = self._read_all and not self._body
        return {"type": "http.request", "body": data, "more_body": not self._told_all}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.start(message["status"], [(name.lower(), value) for name, value in message["headers"]])
            return
        await self._connection.drained()
        body = bytes(message.get("body", b""))
        if message.get("more_body", False):
            self.part(body)
        else:
            self.finish(body)


def tell(exchange: Exchange, error: ApiError) -> None:
    """Answer with an error, and take nothing more on that connection."""
    exchange.keep_alive = False
    exchange.whole(error.status, error.headers(), error.body())
