"""Gives the files of fetched models to the other machines of the zone: `GET /files/{SHA-256}`, whole or from a byte on.

A thread and a loop of its own in the keeper's process. Gives nothing but whole models by their digests, and only to who
has the token for files and says that it is in this zone. Written by hand: a web framework would cost a keeper more
memory than all the rest of it.
"""

import asyncio
import hmac
import logging
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from cluster import tls
from serving.copy_rate import CopyRate, NoSuchBytes, byte_range

HEAD_BYTES_MAX = 8192
HEAD_S = 10.0
SENT_S = 60.0
"""A machine that takes nothing for so long is left."""
PIECE_BYTES = 1024**2
AT_ONCE = 16
"""Files that are given."""
OPEN_MAX = 256
"""Connections, of strangers too."""
REASONS = {
    200: "OK",
    206: "Partial Content",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    416: "Range Not Satisfiable",
    503: "Service Unavailable",
}

log = logging.getLogger(__name__)


class FileServer:
    """`find` says where the file of a digest lies, if it is whole here. It may be called in another thread. `shown`:
    the machine's certificate; None: it serves plain HTTP."""

    def __init__(
        self, token: str, zone: str, find: Callable[[str], Path | None], shown: tls.ServerTls | None = None
    ) -> None:
        self._shown = shown
        self._expected = f"Bearer {token}".encode()
        self._zone = zone.encode()
        self._find = find
        self._rate = CopyRate(None)
        self._open: dict[asyncio.Task[Any] | None, asyncio.StreamWriter] = {}
        """Connections: who serves each."""
        self._giving = 0
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._over: asyncio.Event
        self._where: tuple[str, int] | None = None
        self.problem: str | None = None
        """Why it does not listen."""
        self.sent = 0
        """Bytes of files since it began."""

    @property
    def port(self) -> int | None:
        return None if self._where is None or self.problem else self._where[1]

    def limit(self, bytes_s: int | None) -> None:
        """All connections together give no more a second; None: no limit."""
        if self._rate.bytes_s != bytes_s:
            self._rate = CopyRate(bytes_s)

    def listen(self, address: str, port: int) -> None:
        """Listen there, and no longer elsewhere. Again is nothing, but where it failed before."""
        if self._shown is not None:
            with suppress(OSError):  # else the former certificate is shown on
                self._shown.renew()
        if self._where == (address, port) and self.problem is None:
            return
        self.close()
        self._where, self.problem = (address, port), None
        started = threading.Event()
        run = partial(self._run, address, port, started)
        self._thread = threading.Thread(target=run, name="files", daemon=True)
        self._thread.start()
        started.wait()

    def close(self) -> None:
        """Listen no longer; what is being given breaks off."""
        thread, self._thread, self._where = self._thread, None, None
        if thread is not None:
            with suppress(RuntimeError, AttributeError):  # it has ended by itself, or never began
                self._loop.call_soon_threadsafe(self._over.set)
            thread.join()

    def _run(self, address: str, port: int, started: threading.Event) -> None:
        serving = self._serve(address, port, started)
        try:
            # Not uvloop, as Ray sets it for its workers: that has no sendfile.
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(serving)
        except OSError as error:  # there are no more descriptors for a loop
            self.problem = f"models cannot be copied from here: {error.strerror or error}"
        finally:
            serving.close()
            started.set()

    async def _serve(self, address: str, port: int, started: threading.Event) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        try:
            context = None if self._shown is None else self._shown.context
            server = await asyncio.start_server(
                self._connected,
                address,
                port,
                limit=HEAD_BYTES_MAX,
                ssl=context,
                ssl_handshake_timeout=HEAD_S if context else None,
            )
        except OSError as error:
            why = error.strerror or error
            self.problem = f"models cannot be copied from here: port {port} of {address}: {why}"
            return
        finally:
            started.set()
        await self._over.wait()
        server.close()
        for writer in self._open.values():
            writer.transport.abort()
        await asyncio.gather(*(task for task in self._open if task), return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[asyncio.current_task()] = writer
        try:
            if len(self._open) > OPEN_MAX:
                return
            async with asyncio.timeout(HEAD_S):
                head = await reader.readuntil(b"\r\n\r\n")
            await self._answer(head, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        except Exception:
            log.exception("a file could not be given")
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            del self._open[asyncio.current_task()]

    async def _answer(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        first, *lines = head.split(b"\r\n")
        told = {name.strip().lower(): value.strip() for name, _, value in (x.partition(b":") for x in lines)}
        words = first.split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return await _refuse(writer, 400)
        if not hmac.compare_digest(told.get(b"authorization", b""), self._expected):
            return await _refuse(writer, 401)
        if told.get(b"x-homeport-zone") != self._zone:
            return await _refuse(writer, 403)
        if words[0] != b"GET":
            return await _refuse(writer, 405)
        if self._giving >= AT_ONCE:
            return await _refuse(writer, 503)
        self._giving += 1
        try:
            return await self._find_and_give(words[1], told.get(b"range"), writer)
        finally:
            self._giving -= 1

    async def _find_and_give(self, name: bytes, asked: bytes | None, writer: asyncio.StreamWriter) -> None:
        named = re.fullmatch(rb"/files/([0-9a-f]{64})", name)
        path = await asyncio.to_thread(self._find, named[1].decode()) if named else None
        if path is None:
            return await _refuse(writer, 404)
        return await self._give(path, asked, writer)

    async def _give(self, path: Path, asked: bytes | None, writer: asyncio.StreamWriter) -> None:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            try:
                part = byte_range(None if asked is None else asked.decode("latin-1"), size)
            except NoSuchBytes:
                return await _refuse(writer, 416, f"content-range: bytes */{size}\r\n")
            at, end = part or (0, size)
            more = f"content-range: bytes {at}-{end - 1}/{size}\r\n" if part else ""
            await _begin(writer, 206 if part else 200, end - at, more)
            loop = asyncio.get_running_loop()
            while at < end:
                if writer.transport.is_closing():
                    return None
                count = min(self._rate.piece(PIECE_BYTES), end - at)
                file.seek(at)  # over TLS it reads from where the file is, if `at` is 0
                async with asyncio.timeout(SENT_S):
                    count = await loop.sendfile(writer.transport, file, at, count)
                if count == 0:
                    return None  # it was cut while it was read
                at += count
                self.sent += count
                wait_s = self._rate.after(count, time.monotonic())
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
        return None


async def _begin(writer: asyncio.StreamWriter, status: int, length: int, more: str = "") -> None:
    head = (
        f"HTTP/1.1 {status} {REASONS[status]}\r\ncontent-length: {length}\r\n{more}connection: close\r\n\r\n"
    )
    writer.write(head.encode())
    async with asyncio.timeout(SENT_S):
        await writer.drain()


async def _refuse(writer: asyncio.StreamWriter, status: int, more: str = "") -> None:
    await _begin(writer, status, 0, more)
