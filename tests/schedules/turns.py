"""A turn's two ends without sockets: the request of a client, and the answer of a host, as the relay uses them.

They stand for router/exchange.py and router/hosts.py over the network of network.py.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import aiohttp

from router.answer_head import Broken
from router.exchange import EXCHANGE, Gone
from router.host_http import NotConnected, Place, Silent, Sink
from router.peers import connection_refused
from tests.schedules.network import Answer, App, Message, SimClient

CONNECT_S = 2.0


class SimExchange:
    """router.exchange.Exchange for one call of an ASGI app."""

    def __init__(self, scope: Message, receive: Any, send: Any, spawn: Callable[[Any], Any]) -> None:
        self.method = scope["method"]
        self.version = "1.1"
        self.headers = scope["headers"]
        self.keep_alive = True
        self.task: asyncio.Task[Any] | None = asyncio.current_task()
        self.continue_due = self.gone = self.ended = self.paused = self.slow = False
        self.on_gone: Callable[[], None] | None = None
        self.on_pause: Callable[[bool], None] | None = None
        self._receive = receive
        self._send = send
        self._spawn = spawn
        self._was_read = False

    async def read(self) -> bytes:
        if self._was_read:
            return b""
        self._was_read = True
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Gone
        self._spawn(self._watch())
        body: bytes = message["body"]
        return body

    async def _watch(self) -> None:
        await self._receive()
        self.gone = True
        if self.on_gone is not None and not self.ended:
            self.on_gone()

    def start(self, status: int, headers: Any) -> None:
        _at_once(self._send({"type": "http.response.start", "status": status, "headers": headers}))

    def part(self, data: bytes) -> None:
        _at_once(self._send({"type": "http.response.body", "body": data, "more_body": True}))

    def frame(self, _data: bytes) -> bool:
        return False

    def whole(self, status: int, headers: Any, body: bytes) -> None:
        self.start(status, headers)
        self.finish(body)

    def finish(self, data: bytes = b"") -> None:
        self.ended = True
        _at_once(self._send({"type": "http.response.body", "body": data, "more_body": False}))


def with_exchange(app: App, spawn: Callable[[Any], Any]) -> App:
    """An app that finds its request in the scope."""

    async def called(
        scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        await app({**scope, EXCHANGE: SimExchange(scope, receive, send, spawn)}, receive, send)

    return called


def _at_once(sending: Coroutine[Any, Any, None]) -> None:
    """The network of the simulation takes what it is given without waiting."""
    try:
        sending.send(None)
    except StopIteration:
        return
    raise AssertionError("it waited")


class SimHosts:
    """router.hosts.Hosts."""

    def __init__(self, client: SimClient) -> None:
        self._client = client

    async def ask(self, place: Place, request: Sequence[bytes], silent_s: float | None = None) -> "SimAnswer":
        head, body = request
        first, *lines = head.decode().removesuffix("\r\n\r\n").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        url = f"http://{place.address}:{place.port}{first.split(' ')[1]}"
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=silent_s)
        try:
            return SimAnswer(await self._client.post(url, data=body, headers=headers, timeout=limits))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _as_ours(error) from error

    def sweep(self) -> None: ...

    def close(self) -> None: ...


class SimAnswer:
    """router.host_http.Answer."""

    def __init__(self, answer: Answer) -> None:
        self.status = answer.status
        self.headers = [(name.lower(), value) for name, value in answer.raw_headers]
        self._answer = answer

    def get(self, name: bytes) -> bytes | None:
        return next((value for each, value in self.headers if each == name), None)

    async def read(self) -> bytes:
        try:
            return await self._answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _as_ours(error) from error

    async def pass_on(self, sink: Sink, frames: object = None) -> None:
        try:
            while chunk := await self._answer.readany():
                sink(chunk)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _as_ours(error) from error

    def pause(self, paused: bool) -> None:
        assert not paused, "no client is slow here"

    def give_up(self, error: Exception) -> None:
        raise AssertionError("no host says comments for ten minutes")

    def close(self) -> None:
        self._answer.close()


def _as_ours(error: Exception) -> OSError:
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return NotConnected(str(error), connection_refused(error))
    return Silent() if isinstance(error, TimeoutError) else Broken(str(error))
