"""The load: clients as bare protocols that write one ready request and count what comes.

Works on the running loop. Knows no relay: it is given a port and the bytes to send.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.relay import wire

OPENING_AT_ONCE = 50
FIRST_S = 60.0
"""How long the slowest relay may take until all streams have begun."""
OK = b"HTTP/1.1 200"


class Refused(RuntimeError):
    """An answer other than 200, or none."""


class Load:
    """Clients of one port, and what they got so far."""

    def __init__(self, port: int) -> None:
        self.done = 0
        """Events or answers."""
        self.reads = 0
        self.wrong: str | None = None
        self._port = port
        self._clients: list[Any] = []

    async def open_streams(self, requests: Sequence[bytes]) -> None:
        """One stream for each; on return all have had their first event. Raises Refused."""
        for at in range(0, len(requests), OPENING_AT_ONCE):
            some = [_Stream(self, request) for request in requests[at : at + OPENING_AT_ONCE]]
            await self._connect(some)
            try:
                async with asyncio.timeout(FIRST_S):
                    for stream in some:
                        await stream.begun.wait()
            except TimeoutError:
                raise Refused(f"streams have not begun after {FIRST_S:.0f} s") from None
            self.check()

    async def start_asking(self, requests: Sequence[bytes]) -> None:
        """A client for each request, which sends it again once it is answered, until `close`."""
        await self._connect([_Asker(self, request) for request in requests])

    def check(self) -> None:
        """Raises Refused if anything but 200 came, or a connection was lost."""
        if self.wrong is not None:
            raise Refused(self.wrong)

    def close(self) -> None:
        for client in self._clients:
            client.closes = True
            client.transport.abort()
        self._clients.clear()

    async def _connect(self, clients: Sequence[Any]) -> None:
        loop = asyncio.get_running_loop()
        for client in clients:
            await loop.create_connection(partial(_same, client), "127.0.0.1", self._port)
            self._clients.append(client)


def _same(protocol: asyncio.Protocol) -> asyncio.Protocol:
    return protocol


class _Client(asyncio.Protocol):
    def __init__(self, load: Load, request: bytes) -> None:
        self.transport: Any = None
        self.closes = False
        self._load = load
        self._request = request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closes:
            self._wrong(f"a connection was lost ({exc})")
            self.ended()

    def ended(self) -> None:
        """Nothing more will come."""

    def _wrong(self, what: str) -> None:
        self._load.wrong = self._load.wrong or what


class _Stream(_Client):
    def __init__(self, load: Load, request: bytes) -> None:
        super().__init__(load, request)
        self.begun = asyncio.Event()
        self._early = b""

    def data_received(self, data: bytes) -> None:
        self._load.reads += 1
        self._load.done += data.count(wire.MARK)
        if not self.begun.is_set():
            self._begin(data)

    def ended(self) -> None:
        self.begun.set()

    def _begin(self, data: bytes) -> None:
        """A relay may send comments before the first event."""
        self._early += data
        if not self._early.startswith(OK) or b'"error"' in data:
            self._wrong(self._early[:300].decode(errors="replace"))
            self.begun.set()
        elif wire.MARK in self._early:
            self.begun.set()
            self._early = b""


class _Asker(_Client):
    def __init__(self, load: Load, request: bytes) -> None:
        super().__init__(load, request)
        self._got = b""

    def data_received(self, data: bytes) -> None:
        got = self._got + data if self._got else data
        if not is_whole(got):
            self._got = got
            return
        self._got = b""
        if not got.startswith(OK):
            self._wrong(got[:300].decode(errors="replace"))
            self.closes = True
            self.transport.abort()
            return
        self._load.reads += 1
        self._load.done += 1
        self.transport.write(self._request)


def is_whole(got: bytes) -> bool:
    """Whether a response is complete."""
    at = got.find(wire.HEAD_END)
    if at < 0:
        return False
    length = wire.LENGTH.search(got, 0, at)
    if length:
        return len(got) >= at + len(wire.HEAD_END) + int(length[1])
    return got.endswith(wire.LAST_CHUNK)


class Probe(asyncio.Protocol):
    """Asks for short streams one after another and takes the time to the first event of each."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._got = b""
        self._began = 0.0
        self._first_s: float | None = None
        self._ended: asyncio.Future[float] | None = None

    @classmethod
    async def at(cls, port: int) -> "Probe":
        _, probe = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return probe

    async def ask(self, request: bytes) -> float:
        """Seconds to the first event; returns after the last. Raises Refused."""
        self._got, self._first_s = b"", None
        self._ended = asyncio.get_running_loop().create_future()
        self._began = time.perf_counter()
        self._transport.write(request)
        async with asyncio.timeout(FIRST_S):
            return await self._ended

    def close(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._got += data
        if self._first_s is None and wire.MARK in self._got:
            self._first_s = now - self._began
        if self._ended is None or self._ended.done() or not is_whole(self._got):
            return
        if self._first_s is None or not self._got.startswith(OK) or b"[DONE]" not in self._got:
            self._ended.set_exception(Refused(self._got[:300].decode(errors="replace")))
        else:
            self._ended.set_result(self._first_s)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(Refused(f"the connection was lost ({exc})"))


async def left_at(control_port: int) -> float:
    """When a host saw last that a client had left (time.monotonic)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", control_port)
    try:
        writer.write(f"GET {wire.LEFT} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        head = await reader.readuntil(wire.HEAD_END)
        length = wire.LENGTH.search(head)
        return float(await reader.readexactly(int(length[1]) if length else 0))
    finally:
        writer.close()


async def first_events(
    ports: Sequence[int], request: bytes, seconds: float, rng: random.Random
) -> list[list[float]]:
    """Times to the first event at each port, asked in turn for so long; pauses between keep them out of step."""
    probes = [await Probe.at(port) for port in ports]
    times: list[list[float]] = [[] for _ in ports]
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            for probe, taken in zip(probes, times, strict=True):
                taken.append(await probe.ask(request))
                await asyncio.sleep(rng.uniform(0, 0.002))
    finally:
        for probe in probes:
            probe.close()
    return times
