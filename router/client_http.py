"""Connections of clients: HTTP/1.1 and 1.0 as it is in the wild, each request one call of an ASGI app.

httptools parses; what it calls ambiguous is answered with 400 and the connection closed. What the app has of a request
is router/exchange.py's matter. Decides nothing about who may ask what.
"""

import asyncio
from collections import deque
from typing import Any

import httptools

from router.errors import ApiError, RawHeaders, headers_too_large, malformed_request
from router.exchange import App, Exchange, tell

HEAD_BYTES_MAX = 64 << 10
"""Of a request's first line and headers."""
HEADERS_MAX = 200
UNSENT_BYTES = 64 << 10
"""With more than this unsent a client counts as one that does not read."""
IDLE_S = 75.0
"""How long a connection is kept on which nothing is asked, or what is asked does not become whole."""
PIPELINED_MAX = 16
LINGER_S, LINGER_BYTES = 5.0, 64 << 20
"""How long, and how much, of what a client still sends is read away, so that it comes to read why it was answered
early."""


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
        self._unwanted = 0
        """Bytes that came all the same."""
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
            self._unwanted += len(data)
            if self._unwanted > LINGER_BYTES:
                self._transport.abort()
            return
        self._heard = self._loop.time()
        try:
            self._parser.feed_data(data)
            if self._head_bytes is not None:
                self._head_bytes += len(data)  # A header that does not end is not told of.
                if self._head_bytes > HEAD_BYTES_MAX:
                    raise _TooLarge
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
            self._close(exchange)
        elif self._waiting:
            self._begin(self._waiting.popleft())
            self.may_read()
        elif self._last:
            self._transport.close()
        else:
            self.may_read()
            self._heard = self._loop.time()

    def _close(self, exchange: Exchange) -> None:
        if exchange.is_whole or self._transport.is_closing():
            self._transport.close()
            return
        # With something unread the kernel would reset the connection, and the answer could be lost.
        self._transport.write_eof()
        self.may_read()
        self._loop.call_later(LINGER_S, self._transport.abort)

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
        self._head_bytes = (self._head_bytes or 0) + len(name) + len(value)
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
        exchange.task = self._loop.create_task(self._answer(exchange))
        self.tasks.add(exchange.task)

    async def _answer(self, exchange: Exchange) -> None:
        try:
            await self._app(exchange.scope(), exchange.receive, exchange.send)
        except httptools.HttpParserInvalidURLError:
            tell(exchange, malformed_request())
        finally:
            if not exchange.ended and not exchange.gone:
                self._transport.abort()  # Half an answer must not look like a whole one.
            if exchange.task is not None:
                self.tasks.discard(exchange.task)

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
        tell(Exchange(self, "POST", b"/", "1.1", [], False, False), error)


class _TooLarge(Exception):
    """More than a request's head may hold, or more requests than may wait."""
