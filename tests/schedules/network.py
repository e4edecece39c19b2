"""A network without sockets: requests between processes, with delays, cut links, refusals and resets.

`SimClient` stands for the part of aiohttp's client that the router uses; servers are ASGI apps. A cut link drops
packets: what was sent over it arrives once it is mended, unless that takes so long that the connection breaks.
"""

import errno
import io
import random
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Mapping, MutableMapping
from typing import Any

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from multidict import CIMultiDict

from tests.schedules.clock import NOBODY, PROCESS, Process, SimLoop

BROKEN_S = 15.0
"""A connection whose packets were dropped for so long is reset once they are not."""
RESET, REFUSED, GONE, REQUEST = "reset", "refused", "gone", "request"

Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


class Link:
    """Between two machines. `slow`: how likely a packet has to be sent again."""

    def __init__(self, loop: SimLoop, rng: random.Random) -> None:
        self.loop = loop
        self.rng = rng
        self.slow = 0.0
        self.cut = False
        self.held: list[Pipe] = []

    def delay_s(self) -> float:
        if self.slow and self.rng.random() < self.slow:
            return self.rng.uniform(0.1, 0.9)
        return 0.0003 + 0.002 * self.rng.random()

    def mend(self) -> None:
        self.cut = False
        held, self.held = self.held, []
        for pipe in held:
            pipe.mend()


class Pipe:
    """One direction of an exchange: in order, nothing lost."""

    __slots__ = ("arrive", "broke", "held", "last", "link", "since")

    def __init__(self, link: Link, arrive: Callable[[Any], None], broke: Callable[[], None]) -> None:
        self.link = link
        self.arrive = arrive
        self.broke = broke
        self.held: list[Any] = []
        self.last = 0.0
        self.since = 0.0

    def push(self, item: Any) -> None:
        link = self.link
        if link.cut:
            if not self.held:
                link.held.append(self)
                self.since = link.loop.now
            self.held.append(item)
            return
        self.last = max(self.last + 1e-6, link.loop.now + link.delay_s())
        link.loop.call_at(self.last, self.arrive, item, context=NOBODY)

    def mend(self) -> None:
        held, self.held = self.held, []
        if held and self.link.loop.now - self.since > BROKEN_S:
            self.broke()
            return
        for item in held:
            self.push(item)


class Network:
    """All links and all servers. `broken(text)` is told of what no server may do."""

    def __init__(self, loop: SimLoop, rng: random.Random, broken: Callable[[str], None]) -> None:
        self.loop = loop
        self.rng = rng
        self.broken = broken
        self.servers: dict[str, tuple[Process, App]] = {}
        self._links: dict[tuple[str, str], Link] = {}

    def link(self, a: str, b: str) -> Link:
        pair = (a, b) if a < b else (b, a)
        link = self._links.get(pair)
        if link is None:
            link = self._links[pair] = Link(self.loop, self.rng)
        return link

    def listen(self, address: str, process: Process, app: App) -> None:
        """`address`: `http://machine:port`."""
        self.servers[address] = (process, app)

    def mend_all(self) -> None:
        for link in list(self._links.values()):
            link.slow = 0.0
            link.mend()


class Exchange:
    """One request and its answer, both ends of it."""

    def __init__(self, net: Network, client: Process, url: str, scope: Message, body: bytes) -> None:
        cut = url.index("/", 7)
        self.net = net
        self.address = url[:cut]
        self.client = client
        self.server: Process | None = None
        link = net.link(client.machine, self.address[7:].partition(":")[0])
        self.up = Pipe(link, self._up_arrives, self._break)
        self.down = Pipe(link, self._down_arrives, self._break)
        self._scope = scope
        self._body: bytes | None = body
        self._start: Message | None = None
        self._left = False
        self._watchers: list[Any] = []
        self._ended = False
        self.arrived: deque[Any] = deque()
        """What has come to the client and was not taken yet."""
        self.connected = False
        self.closed = False
        """By the client."""
        self._waiter: Any = None
        client.open[self] = None
        self.up.push(REQUEST)

    # the client's end

    async def next(self, within_s: float | None) -> Any:
        """What comes next. `within_s`: None is for ever; raises TimeoutError."""
        if not self.arrived:
            loop = self.net.loop
            self._waiter = loop.create_future()
            alarm = None if within_s is None else loop.call_later(max(0.0, within_s), self._expire)
            try:
                await self._waiter
            finally:
                self._waiter = None
                if alarm is not None:
                    alarm.cancel()
        return self.arrived.popleft()

    def close(self) -> None:
        if not self.closed and self.client.alive:
            self.closed = True
            self.client.open.pop(self, None)
            self._hang_up()

    def _hang_up(self) -> None:
        if REQUEST in self.up.held:
            self.up.held.clear()  # it never left
        elif not self._ended:
            self.up.push(GONE)

    def _expire(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(TimeoutError())

    def _down_arrives(self, item: Any) -> None:
        if not self.closed and self.client.alive:
            self.arrived.append(item)
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    # the server's end

    def _up_arrives(self, item: Any) -> None:
        if item is GONE:
            self._leave()
            return
        process, app = self.net.servers.get(self.address, (None, None))
        if process is None or app is None or not process.alive:
            self.down.push(REFUSED)
            return
        self.connected = True
        self.server = process
        process.open[self] = None
        self.net.loop.create_task(self._serve(app), context=process.context)

    async def _serve(self, app: App) -> None:
        try:
            await app(self._scope, self._receive, self._send)
        except Exception as error:  # noqa: BLE001 whatever a server raises is a fault of it
            self.net.broken(f"{self._scope['path']} raised {type(error).__name__}: {error}")
        if not self._ended:
            if not self._left:
                self.net.broken(f"{self._scope['path']} at {self.address} was left without an end")
            self.down.push(RESET)
        assert self.server is not None
        self.server.open.pop(self, None)

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        if not self._left:
            watcher = self.net.loop.create_future()
            self._watchers.append(watcher)
            await watcher
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if self._start is not None or self._ended:
                self.net.broken(f"{self._scope['path']} at {self.address} sent two heads")
            self._start = message
            return
        if self._start is None or self._ended:
            self.net.broken(f"{self._scope['path']} at {self.address} sent a part outside of its answer")
            return
        start, self._start = self._start, {}
        more = message.get("more_body", False)
        self._ended = not more
        self.down.push((start or None, message.get("body", b""), more))

    def _leave(self) -> None:
        self._left = True
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            if not watcher.done():
                watcher.set_result(None)

    def died(self, process: Process) -> None:
        """One of the two was killed: its kernel says so to the other."""
        if process is self.client:
            self._hang_up()
        elif not self._ended:
            self.down.push(RESET)

    def _break(self) -> None:
        self._down_arrives(RESET)
        self._leave()


class Answer:
    """The part of aiohttp's response that is used."""

    def __init__(self, exchange: Exchange, first: Any, limits: aiohttp.ClientTimeout) -> None:
        start, body, more = first
        self.status: int = start["status"]
        self.raw_headers = tuple(start["headers"])
        self.headers = CIMultiDict((name.decode(), value.decode()) for name, value in self.raw_headers)
        self.content = self
        self._exchange = exchange
        self._limits = limits
        self._data = body
        self._more = more
        if not more:
            exchange.close()

    async def readany(self) -> bytes:
        while not self._data and self._more:
            await self._take()
        data: bytes = self._data
        self._data = b""
        return data

    async def read(self) -> bytes:
        while self._more:
            await self._take()
        data: bytes = self._data
        self._data = b""
        return data

    def close(self) -> None:
        self._exchange.close()

    release = close

    async def _take(self) -> None:
        try:
            item = await self._exchange.next(self._limits.sock_read)
        except TimeoutError:
            self._exchange.close()
            raise aiohttp.SocketTimeoutError from None
        if item is RESET:
            self._more = False
            self._exchange.close()
            raise aiohttp.ClientPayloadError("the connection was reset")
        _, body, self._more = item
        self._data += body
        if not self._more:
            self._exchange.close()


class _Asking:
    """What a request is until it is awaited or entered."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self._ask = ask
        self._answer: Answer | None = None

    def __await__(self) -> Generator[Any, None, Answer]:
        answer: Answer = yield from self._ask().__await__()
        return answer

    async def __aenter__(self) -> Answer:
        self._answer = answer = await self._ask()
        assert isinstance(answer, Answer)
        return answer

    async def __aexit__(self, *_error: object) -> None:
        assert self._answer is not None
        self._answer.close()


class SimClient:
    """An aiohttp.ClientSession of whatever process uses it."""

    def __init__(self, net: Network) -> None:
        self._net = net

    def post(self, url: str, **more: Any) -> _Asking:
        return self.request("POST", url, **more)

    def get(self, url: str, **more: Any) -> _Asking:
        return self.request("GET", url, **more)

    def delete(self, url: str, **more: Any) -> _Asking:
        return self.request("DELETE", url, **more)

    def request(
        self,
        method: str,
        url: str,
        *,
        data: Any = None,
        params: Mapping[str, str] | None = None,
        headers: Any = None,
        timeout: Any = None,
    ) -> _Asking:
        return _Asking(lambda: self._request(method, url, data, params or {}, headers or {}, timeout))

    async def _request(
        self, method: str, url: str, data: Any, params: Mapping[str, str], headers: Any, limits: Any
    ) -> Answer:
        limits = limits or aiohttp.ClientTimeout()
        body = data.read() if isinstance(data, io.BytesIO) else (data or b"")
        process = PROCESS.get()
        assert process is not None
        loop = self._net.loop
        exchange = Exchange(self._net, process, url, _scope(method, url, params, headers), body)
        until = None if limits.total is None else loop.now + limits.total
        try:
            first = await self._first(exchange, limits, until)
        except BaseException:
            exchange.close()
            raise
        if first is REFUSED:
            exchange.close()
            key = ConnectionKey(exchange.address, 0, False, False, None, None, None, None)
            raise aiohttp.ClientConnectorError(key, OSError(errno.ECONNREFUSED, "refused"))
        if first is RESET:
            exchange.close()
            raise aiohttp.ServerDisconnectedError
        return Answer(exchange, first, limits)

    async def _first(self, exchange: Exchange, limits: Any, until: float | None) -> Any:
        loop = self._net.loop
        left = None if until is None else until - loop.now
        if limits.sock_connect is not None and (left is None or limits.sock_connect < left):
            try:
                return await exchange.next(limits.sock_connect)
            except TimeoutError:
                if not exchange.connected:
                    raise aiohttp.ConnectionTimeoutError from None
            left = limits.sock_read if until is None else until - loop.now
        try:
            return await exchange.next(left)
        except TimeoutError:
            if until is None:
                raise aiohttp.SocketTimeoutError from None
            raise


def _scope(method: str, url: str, params: Mapping[str, str], headers: Any) -> Message:
    at, _, query = url[url.index("/", 7) :].partition("?")
    more = "&".join(f"{name}={value}" for name, value in params.items())
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": at,
        "raw_path": at.encode(),
        "query_string": (query or more).encode(),
        "headers": [(name.lower().encode(), str(value).encode()) for name, value in headers.items()],
    }
