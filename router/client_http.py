"""Connections of clients: HTTP/1.1 and 1.0 as it is in the wild, each request one call of an ASGI app.

Beside `receive` and `send` the app finds the request itself in its scope, under EXCHANGE: what is written there goes
straight to the socket, and who writes learns when its client reads no more, or is gone. httptools parses; what it calls
ambiguous is answered with 400 and the connection closed. Decides nothing about who may ask what.
"""

import asyncio
import http
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

import httptools

from router.errors import ApiError, RawHeaders, headers_too_large, malformed_request

EXCHANGE = "homeport.exchange"
"""The key in an ASGI scope."""
HEAD_BYTES_MAX = 64 << 10
"""Of a request's first line and headers."""
HEADERS_MAX = 200
UNREAD_BYTES = 64 << 10
"""So much of a body is taken in before anybody reads it."""
UNSENT_BYTES = 64 << 10
"""With more than this unsent a client counts as one that does not read."""
IDLE_S = 75.0
"""How long a connection is kept on which nothing is asked, or what is asked does not become whole."""
PIPELINED_MAX = 16

Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus
}
_BODILESS = frozenset({204, 304})


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
        "version",
    )

    def __init__(
        self,
        connection: "ClientConnection",
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
        data = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._unread = 0
        self._connection.may_read()
        return data

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
            lines += (name, b": ", value, b"\r\n")
            if name == b"content-length":
                self._chunked = False
            elif name == b"connection" and value.lower() == b"close":
                self.keep_alive = False
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
        if self.method == "HEAD" or not data:
            data = b""
        elif self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._head:
            data, self._head = self._head + data, b""
        if data:
            self._connection.write(data)

    def finish(self, data: bytes = b"") -> None:
        """The rest of the body, and the end of the answer."""
        self.ended = True
        self._wake()
        if self.method == "HEAD":
            data = b""
        elif self._chunked:
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        if self._head:
            data, self._head = self._head + data, b""
        if data:
            self._connection.write(data)
        self._connection.answered(self)

    def cut(self) -> None:
        """End the connection now, whatever was not sent yet."""
        self._connection.abort()

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


class ClientConnection(asyncio.Protocol):
    """One connection; its requests are answered one after another, also where several were sent at once."""

    def __init__(self, app: App, all_of_them: "set[ClientConnection]") -> None:
        self.client: tuple[str, int] | None = None
        self.server: tuple[str, int] | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self._app = app
        self._all = all_of_them
        self._transport: Any = None
        self._parser: Any = None
        self._loop = asyncio.get_running_loop()
        self._heard = 0.0
        """When something came last, or an answer ended."""
        self._stuck_since: float | None = None
        """Since when what was written waits for its client."""
        self._writable: asyncio.Future[None] | None = None
        self._waiting: deque[Exchange] = deque()
        self._current: Exchange | None = None
        """The one that is being answered."""
        self._incoming: Exchange | None = None
        """The one whose body is coming."""
        self._paused = False
        self._last = False
        """No further request is taken."""
        self._target = b""
        self._headers: RawHeaders = []
        self._head_bytes: int | None = 0
        """Of the head that is coming; None while none is."""
        self._expects = False

    # the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._all.add(self)
        self._parser = httptools.HttpRequestParser(self)
        self._transport.set_write_buffer_limits(UNSENT_BYTES)
        peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self.client = peer[:2] if isinstance(peer, tuple) else None
        self.server = own[:2] if isinstance(own, tuple) else None
        self._heard = self._loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.discard(self)
        self._parser = None
        self._release_writers()
        exchanges = [self._current, self._incoming, *self._waiting]
        self._waiting.clear()
        for exchange in exchanges:
            if exchange is not None and not exchange.gone:
                exchange.lost()

    def data_received(self, data: bytes) -> None:
        if self._last:
            return
        self._heard = self._loop.time()
        try:
            self._parser.feed_data(data)
            if self._head_bytes is not None:
                self._count(len(data))  # A header that does not end is not told of.
        except httptools.HttpParserUpgrade:
            self._last = True  # It is answered as HTTP/1.1; nothing follows.
        except _TooLarge:
            self._refuse(headers_too_large())
        except httptools.HttpParserError as error:
            too_large = isinstance(error.__context__, _TooLarge)
            self._refuse(headers_too_large() if too_large else malformed_request())

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()
        self._stuck_since = self._loop.time()
        if (exchange := self._current) is not None:
            exchange.paused = True
            if exchange.on_pause is not None:
                exchange.on_pause(True)

    def resume_writing(self) -> None:
        self._release_writers()
        if (exchange := self._current) is not None and exchange.paused:
            exchange.paused = False
            if exchange.on_pause is not None:
                exchange.on_pause(False)

    def _release_writers(self) -> None:
        self._stuck_since = None
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    # for exchanges

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    async def drained(self) -> None:
        if self._writable is not None:
            await asyncio.shield(self._writable)

    def abort(self) -> None:
        self._transport.abort()

    def may_read(self) -> None:
        if self._paused and not self._waiting and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def answered(self, exchange: Exchange) -> None:
        self._current = None
        if not exchange.keep_alive:
            self._last = True
            self._waiting.clear()
            self._transport.close()
        elif self._waiting:
            self._begin(self._waiting.popleft())
            self.may_read()
        elif self._last:
            self._transport.close()
        else:
            self.may_read()
            self._heard = self._loop.time()

    def sweep(self, now: float, slow_client_s: float) -> None:
        """Close what has been quiet for too long, cut who does not read. To be called now and then."""
        if self._stuck_since is not None and now - self._stuck_since > slow_client_s:
            if self._current is not None:
                self._current.slow = True
            self._transport.abort()
        elif (self._current is None or self._incoming is not None) and now - self._heard > IDLE_S:
            self._transport.abort()

    def stop(self) -> None:
        """Take no further request: close now, or once what is being answered ends."""
        self._last = True
        if self._current is None:
            self._transport.close()
        else:
            self._current.keep_alive = False

    # the parser

    def on_message_begin(self) -> None:
        self._target, self._headers, self._head_bytes, self._expects = b"", [], 0, False

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._expects = True
        self._headers.append((name, value))
        self._count(len(name) + len(value))

    def _count(self, size: int) -> None:
        self._head_bytes = (self._head_bytes or 0) + size
        if self._head_bytes > HEAD_BYTES_MAX or len(self._headers) > HEADERS_MAX:
            raise _TooLarge

    def on_headers_complete(self) -> None:
        self._head_bytes = None
        parser = self._parser
        version = parser.get_http_version()
        exchange = Exchange(
            self,
            parser.get_method().decode(),
            self._target,
            "1.0" if version == "1.0" else "1.1",
            self._headers,
            parser.should_keep_alive(),
            self._expects and version != "1.0",
        )
        self._incoming = exchange
        if self._current is None:
            self._begin(exchange)
        else:
            self._waiting.append(exchange)
            self._hold()
            if len(self._waiting) > PIPELINED_MAX:
                raise _TooLarge

    def on_body(self, data: bytes) -> None:
        exchange = self._incoming
        if exchange is not None and not exchange.ended and exchange.fed(data):
            self._hold()

    def on_message_complete(self) -> None:
        if self._incoming is not None:
            self._incoming.fed_all()
            self._incoming = None

    def _hold(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def _begin(self, exchange: Exchange) -> None:
        self._current = exchange
        exchange.paused = self._writable is not None
        task = self._loop.create_task(self._answer(exchange))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _answer(self, exchange: Exchange) -> None:
        try:
            await self._app(exchange.scope(), exchange.receive, exchange.send)
        except httptools.HttpParserInvalidURLError:
            _tell(exchange, malformed_request())
        finally:
            if not exchange.ended and not exchange.gone:
                self._transport.abort()  # Half an answer must not look like a whole one.

    def _refuse(self, error: ApiError) -> None:
        """Answer what cannot be read, once what was asked before it is answered, and take nothing more."""
        self._last = True
        broken, self._incoming = self._incoming, None
        if broken is not None and broken in self._waiting:
            self._waiting.remove(broken)
        elif broken is not None and broken is self._current:  # Nobody can say where its body ends.
            if broken.begun:
                self._transport.abort()
                return
            broken.lost()
            self._current = None
        if self._current is not None:
            self._current.keep_alive = False
            return
        _tell(Exchange(self, "POST", b"/", "1.1", [], False, False), error)


def _tell(exchange: Exchange, error: ApiError) -> None:
    body = error.body()
    exchange.keep_alive = False
    exchange.start(error.status, [*error.headers(), (b"content-length", b"%d" % len(body))])
    exchange.finish(body)


class _TooLarge(Exception):
    """More than a request's head may hold, or more requests than may wait."""
