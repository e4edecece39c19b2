"""One connection to a host, and the answer that comes over it: HTTP/1.1 as hosts speak it.

A body's bytes are handed on as they come, in whole chunks of the transfer where they came so. Knows no turns; which
connections there are is router/hosts.py's matter.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from router.answer_head import Broken, read_head
from router.errors import RawHeaders

HEAD_BYTES_MAX = 64 << 10
EARLY_BYTES_MAX = 64 << 10
WHOLE_BYTES_MAX = 256 << 20

_CHUNK = re.compile(rb"([0-9a-fA-F]{1,8})(?:[ \t]*;[^\r\n]*)?\r\n")
_PLAIN_CHUNK = re.compile(rb"([0-9a-fA-F]{1,8})\r\n")


class NotConnected(OSError):
    """There is no connection to the host. `refused`: nobody listens there."""

    def __init__(self, reason: str, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


class Silent(TimeoutError):
    """Nothing came for too long."""


class Place(NamedTuple):
    """Where a host listens."""

    address: str
    port: int
    tls: bool


def place_of(url: str) -> Place:
    """Of a base URL, as `cluster.tls.url` makes it."""
    parts = urlsplit(url)
    return Place(parts.hostname or "", parts.port or 0, parts.scheme == "https")


Sink = Callable[[bytes], None]
FrameSink = Callable[[bytes, int], None]
"""Takes a whole chunk as it came, its size and line ends too; and where its data begins, which end two bytes before."""


class Pool(Protocol):
    """Where a connection belongs to."""

    loop: asyncio.AbstractEventLoop
    buffer: memoryview
    """Into which each reads; what is read is handed on before the next one reads."""

    def keep(self, answer: "Answer") -> None:
        """Its answer has come to its end: another request may be sent on it."""

    def lost(self, answer: "Answer") -> None:
        """It is closed."""


class Answer(asyncio.BufferedProtocol):
    """A connection, and the answer that is coming over it. To be closed by whoever got it."""

    def __init__(self, pool: Pool, place: Place) -> None:
        self.status = 0
        self.headers: RawHeaders = []
        """With lower-case names."""
        self.place = place
        self.is_open = False
        self.kept_until = 0.0
        self._pool = pool
        self._loop = pool.loop
        self._transport: Any = None
        self._given_up = False
        self._timer: asyncio.TimerHandle | None = None
        self._silent_s: float | None = None
        self._buffer = pool.buffer
        self._begin()

    def _begin(self) -> None:
        self._got = b""
        self._heard = False
        self._head: asyncio.Future[None] | None = None
        self._done: asyncio.Future[None] | None = None
        self._sink: Sink | None = None
        self._frames: FrameSink | None = None
        self._at_chunk = False
        """A chunk is to begin, and may be handed on in its frame."""
        self._early: list[bytes] = []
        self._early_bytes = 0
        self._chunked = False
        self._left = 0
        self._chunk_end = False
        self._ended = False
        self._keeps = True
        self._error: Exception | None = None
        self._last = 0.0
        self._paused = False

    # asking

    async def ask(self, request: Sequence[bytes], silent_s: float | None) -> None:
        """Send it and wait for the head of the answer. Raises Broken and Silent.

        `silent_s`: how long nothing may come, in the answer too.
        """
        self._begin()
        self._head = self._loop.create_future()
        self._silent_s = silent_s
        self._last = self._loop.time()
        if silent_s is not None:
            self._timer = self._loop.call_later(silent_s, self._check)
        try:
            self._transport.writelines(request) if len(request) > 1 else self._transport.write(request[0])
            await self._head
        finally:
            self._head = None

    @property
    def was_stale(self) -> bool:
        """Whether it broke before a byte of the answer came."""
        return not self._heard

    def get(self, name: bytes) -> bytes | None:
        return next((value for each, value in self.headers if each == name), None)

    async def read(self) -> bytes:
        """The whole body. Raises Broken and Silent."""
        if self._ended and self._error is None:
            return b"".join(self._early)
        parts: list[bytes] = []
        size = 0

        def take(data: bytes) -> None:
            nonlocal size
            size += len(data)
            if size > WHOLE_BYTES_MAX:
                self.give_up(Broken("an answer without an end"))
            parts.append(data)

        self.pause(False)
        await self.pass_on(take)
        return b"".join(parts)

    async def pass_on(self, sink: Sink, frames: FrameSink | None = None) -> None:
        """Call `sink` with what comes of the body, until it ends; `frames` in its stead with what comes as one chunk.
        Where much came before, it goes on only once `pause` was called. Raises Broken and Silent."""
        self._sink, self._frames = sink, frames
        if self._early:
            early, self._early = b"".join(self._early), []
            sink(early)
        self._look_for_chunk()
        if not self._ended and self._error is None:
            self._done = self._loop.create_future()
            try:
                await self._done
            finally:
                self._done = None
        if self._error is not None:
            raise self._error

    def pause(self, paused: bool) -> None:
        """Read nothing more from the host, or go on."""
        if paused != self._paused and self.is_open and not self._transport.is_closing():
            self._paused = paused
            self._last = self._loop.time()
            (self._transport.pause_reading if paused else self._transport.resume_reading)()

    def give_up(self, error: Exception) -> None:
        """End it as if this had happened."""
        self._fail(error)

    def close(self) -> None:
        """Keep the connection where the answer has come to its end, else end it: the host sees that nobody listens."""
        self._sink = None
        self._at_chunk = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._ended and self._keeps and self._error is None and self.is_open:
            self._pool.keep(self)
        else:
            self.abort()

    def abort(self) -> None:
        self._given_up = True
        if self._transport is not None:
            self._transport.abort()

    # the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.is_open = True
        if self._given_up:  # while it was made
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._pool.lost(self)
        if not self._ended:
            self._fail(Broken(str(exc) if exc else "the host closed the connection"))

    def eof_received(self) -> bool:
        return False

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self._buffer[:nbytes])
        self._last = self._loop.time()
        if self._at_chunk and self._frames is not None and (size := _PLAIN_CHUNK.match(data)) is not None:
            at, end = size.end(), nbytes - 2
            if at + int(size[1], 16) == end > at and data.endswith(b"\r\n"):
                self._frames(data, at)
                return
        self._feed(data)
        self._look_for_chunk()

    def _look_for_chunk(self) -> None:
        unfinished = self._got or self._left or self._chunk_end or self._ended
        self._at_chunk = self._sink is not None and self._chunked and not unfinished

    def _feed(self, data: bytes) -> None:
        if self._ended or self._error is not None:
            self.abort()  # Nothing was asked.
            return
        try:
            if self._head is not None and not self._head.done():
                self._heard = True
                self._read_head(data)
            else:
                self._read_body(data)
        except Broken as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self._error is None and not self._ended:
            self._error = error
            self.abort()
            if self._head is not None and not self._head.done():
                self._head.set_exception(error)
            if self._done is not None and not self._done.done():
                self._done.set_result(None)

    def _check(self) -> None:
        if self._silent_s is None or self._ended or self._error is not None:
            return
        left = self._last + self._silent_s - self._loop.time()
        if left <= 0 and not self._paused:
            self._fail(Silent())
        else:
            self._timer = self._loop.call_later(max(left, 1.0), self._check)

    # the head

    def _read_head(self, data: bytes) -> None:
        got = self._got + data
        at = got.find(b"\r\n\r\n")
        if at < 0:
            if len(got) > HEAD_BYTES_MAX:
                raise Broken("a head without an end")
            self._got = got
            return
        self._got = b""
        head, rest = read_head(got[:at]), got[at + 4 :]
        if head.status < 200:
            if rest:
                self._read_head(rest)
            return
        self.status, self.headers = head.status, head.headers
        self._chunked, self._left, self._keeps = head.length is None, head.length or 0, head.keeps
        if self._head is not None:
            self._head.set_result(None)
        if head.length == 0:
            self._end(rest)
        elif rest:
            self._read_body(rest)

    # the body

    def _read_body(self, data: bytes) -> None:
        if self._chunked:
            self._read_chunks(data)
            return
        take = data[: self._left]
        self._left -= len(take)
        self._hand(take)
        if not self._left:
            self._end(data[len(take) :])

    def _read_chunks(self, data: bytes) -> None:
        if self._got:
            data, self._got = self._got + data, b""
        parts: list[bytes] = []
        at, end = 0, len(data)
        while at < end:
            if self._left:
                part = data[at : at + self._left]
                parts.append(part)
                at += len(part)
                self._left -= len(part)
                self._chunk_end = not self._left
            elif self._chunk_end:
                if end - at < 2:
                    break
                if data[at : at + 2] != b"\r\n":
                    raise Broken("a chunk longer than it says")
                at += 2
                self._chunk_end = False
            elif (size := _CHUNK.match(data, at)) is None:
                if end - at > 1024 or b"\n" in data[at:]:
                    raise Broken("a chunk without a size")
                break
            else:
                self._left = int(size[1], 16)
                if not self._left:
                    self._hand(b"".join(parts))
                    self._read_trailer(data[at:], size.end() - at)
                    return
                at = size.end()
        self._got = data[at:]
        self._hand(b"".join(parts))

    def _read_trailer(self, data: bytes, at: int) -> None:
        """From the last chunk on, which has no bytes; nobody sends trailers that we would read."""
        if data[at : at + 2] == b"\r\n":
            self._end(data[at + 2 :])
        elif (end := data.find(b"\r\n\r\n", at)) >= 0:
            self._end(data[end + 4 :])
        elif len(data) > HEAD_BYTES_MAX:
            raise Broken("a trailer without an end")
        else:
            self._got = data

    def _hand(self, data: bytes) -> None:
        if not data:
            return
        if self._sink is not None:
            self._sink(data)
            return
        self._early.append(data)
        self._early_bytes += len(data)
        if self._early_bytes > EARLY_BYTES_MAX:
            self.pause(True)

    def _end(self, rest: bytes) -> None:
        if rest:
            self._keeps = False  # What was not asked for.
        self._ended = True
        self._sink = None  # Nobody asked for what may follow.
        self._at_chunk = False
        if self._done is not None and not self._done.done():
            self._done.set_result(None)
