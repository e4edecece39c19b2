"""HTTP as it is in the wild, over real sockets: what a request becomes, what is refused, and how a connection ends."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from router import client_http
from router.client_server import Server
from router.exchange import EXCHANGE, Exchange, Gone
from serving.router_limits import RouterLimits

Handle = Callable[[Exchange], Awaitable[None]]


class Site:
    """A server whose app is one function; what it was asked, in order."""

    def __init__(self, handle: Handle | None, **options: Any) -> None:
        self.asked: list[tuple[str, bytes, bytes]] = []
        self.gone: list[Exchange] = []
        self.ends = 0
        self._handle = handle or self.echo
        self.server = Server(self._app, self._on_end, RouterLimits(**{"drain_s": 0.5, **options}))
        self.on_end: Callable[[], None] = lambda: None

    def _on_end(self) -> None:
        self.ends += 1
        self.on_end()

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._handle(scope[EXCHANGE])
        except Gone:
            self.gone.append(scope[EXCHANGE])

    async def echo(self, exchange: Exchange) -> None:
        body = b""
        while part := await exchange.read():
            body += part
        self.asked.append((exchange.method, exchange.target, body))
        told = exchange.method.encode() + b" " + exchange.target + b" " + body
        exchange.start(200, [(b"content-length", b"%d" % len(told))])
        exchange.finish(told)


@contextlib.asynccontextmanager
async def site(handle: Handle | None = None, **options: Any) -> AsyncIterator[tuple[Site, int]]:
    made = Site(handle, **options)
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    serving = asyncio.create_task(made.server.serve([listening]))
    await asyncio.sleep(0)
    try:
        yield made, port
    finally:
        made.server.stop()
        await asyncio.wait_for(serving, 10)


async def say(port: int, data: bytes, *, until_closed: bool = True, seconds: float = 5.0) -> bytes:
    """Send it all, and return what comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        await writer.drain()
        async with asyncio.timeout(seconds):
            return await reader.read() if until_closed else await reader.readuntil(b"\r\n\r\n")
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def bodies(answers: bytes) -> list[bytes]:
    """Of answers one behind the other, each with a length."""
    found = []
    while answers:
        head, _, rest = answers.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        found.append(rest[:length])
        answers = rest[length:]
    return found


CLOSE = b"connection: close\r\n"


async def test_a_connection_is_kept_for_the_next_request() -> None:
    async with site() as (made, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in range(3):
            writer.write(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % number)
            assert await reader.readuntil(b"GET /%d " % number)
        writer.close()
        assert [target for _, target, _ in made.asked] == [b"/0", b"/1", b"/2"]


async def test_requests_that_are_sent_at_once_are_answered_in_their_order() -> None:
    async def slow_first(exchange: Exchange) -> None:
        await asyncio.sleep(0.2 if exchange.target == b"/a" else 0.0)
        await made.echo(exchange)

    async with site(slow_first) as (made, port):
        first = b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi"
        told = await say(
            port,
            first + b"GET /b HTTP/1.1\r\nhost: x\r\n\r\nGET /c HTTP/1.1\r\nhost: x\r\n" + CLOSE + b"\r\n",
        )
        assert bodies(told) == [b"POST /a hi", b"GET /b ", b"GET /c "]


async def test_a_chunked_upload_is_put_together() -> None:
    async with site() as (_, port):
        told = await say(
            port,
            b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
            + CLOSE
            + b"\r\n3\r\nabc\r\n2;more=x\r\nde\r\n0\r\n\r\n",
        )
        assert bodies(told) == [b"POST / abcde"]


async def test_a_client_that_waits_for_it_is_told_to_go_on_once_somebody_reads() -> None:
    async with site() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n" + CLOSE + b"\r\n"
        )
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hi")
        assert bodies(await reader.read()) == [b"POST / hi"]
        writer.close()


async def test_who_is_answered_before_its_body_was_read_is_not_told_to_go_on() -> None:
    async def refuse(exchange: Exchange) -> None:
        exchange.start(413, [(b"content-length", b"0")])
        exchange.finish()

    async with site(refuse) as (_, port):
        told = await say(
            port, b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n"
        )
        assert told.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in told, "what is left of the body would be taken for a request"


async def test_who_is_answered_early_comes_to_read_it_whatever_it_still_sends() -> None:
    async def refuse(exchange: Exchange) -> None:
        exchange.start(401, [(b"content-length", b"2")])
        exchange.finish(b"no")

    async with site(refuse) as (made, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4000000\r\n\r\n" + b"x" * 100_000)
        await asyncio.sleep(0.1)
        for _ in range(39):
            writer.write(b"x" * 100_000)
            await writer.drain()
        assert (await asyncio.wait_for(reader.read(), 5)).endswith(b"\r\n\r\nno")
        writer.close()
        async with asyncio.timeout(5):
            while made.server.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_who_never_ends_sending_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_http, "LINGER_S", 0.2)

    async def refuse(exchange: Exchange) -> None:
        exchange.start(401, [(b"content-length", b"0")])
        exchange.finish()

    async with site(refuse) as (made, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4000000\r\n\r\nx")
        await reader.read()
        async with asyncio.timeout(5):
            while made.server.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        writer.close()


async def stream(exchange: Exchange) -> None:
    await exchange.read()
    exchange.start(200, [])
    exchange.part(b"one ")
    exchange.finish(b"two")


@pytest.mark.parametrize(
    ("version", "more", "ends"),
    [
        (b"1.1", b"connection: close\r\n", b"4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n"),
        (b"1.0", b"", b"\r\n\r\none two"),
        (b"1.0", b"connection: keep-alive\r\n", b"\r\n\r\none two"),
    ],
)
async def test_a_client_of_http_1_0_gets_no_chunks(version: bytes, more: bytes, ends: bytes) -> None:
    async with site(stream) as (_, port):
        told = await say(port, b"GET / HTTP/%b\r\nhost: x\r\n%b\r\n" % (version, more))
        assert told.startswith(b"HTTP/1.1 200 OK\r\n")
        assert told.endswith(ends)
        assert (b"chunked" in told) is (version == b"1.1")


async def test_head_is_answered_without_a_body() -> None:
    async with site() as (_, port):
        told = await say(port, b"HEAD /x HTTP/1.1\r\nhost: x\r\n" + CLOSE + b"\r\n")
        assert b"content-length: 8\r\n" in told
        assert told.endswith(b"\r\n\r\n")


HIDDEN = b"GET /hidden HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        b"content-length: 5\r\ncontent-length: 0\r\n",
        b"content-length: 5, 0\r\n",
        b"content-length: +5\r\n",
        b"content-length: -1\r\n",
        b"content-length: 0x5\r\n",
        b"content-length : 5\r\n",
        b"transfer-encoding: xchunked\r\n",
        b"transfer-encoding: chunked, identity\r\n",
        b"transfer-encoding: identity, chunked, x\r\n",
        b"transfer-encoding : chunked\r\n",
        b"x: y\r\n transfer-encoding: chunked\r\n",
        b"x: y\r\n\tcontent-length: 5\r\n",
        b"x\0y: z\r\n",
        b"x: \0\r\n",
        b"x: a\rcontent-length: 5\r\n",
        b": y\r\n",
        b"no colon\r\n",
    ],
    ids=lambda head: repr(head)[2:-1],
)
async def test_what_could_be_understood_in_two_ways_reaches_nobody(head: bytes) -> None:
    async with site() as (made, port):
        told = await say(port, b"POST /open HTTP/1.1\r\nhost: x\r\n" + head + b"\r\n0\r\n\r\n" + HIDDEN)
        assert told.startswith(b"HTTP/1.1 400 ") or told == b"", told
        assert made.asked == [], "nothing of it may be taken for a request"


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\nab\r\n0\r\n\r\n",
        b"2\r\nabcd\r\n0\r\n\r\n",
        b"-2\r\nab\r\n0\r\n\r\n",
        b"ffffffffffffffff1\r\nab",
        b"2 \nab\r\n",
    ],
)
async def test_a_body_whose_chunks_are_wrong_reaches_nobody(chunks: bytes) -> None:
    async with site() as (made, port):
        head = b"POST /open HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        told = await say(port, head + chunks + HIDDEN)
        assert told.startswith(b"HTTP/1.1 400 "), told
        assert b'"code": "malformed_request"' in told
        assert made.asked == []
        assert len(made.gone) == 1


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\x01", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"hello\r\n\r\n"]
)
async def test_what_is_no_http_1_is_answered_and_left(data: bytes) -> None:
    async with site() as (made, port):
        assert (await say(port, data)).startswith(b"HTTP/1.1 400 ")
        assert made.asked == []


@pytest.mark.parametrize(
    "head",
    [
        b"x: " + b"y" * (70 << 10) + b"\r\n\r\n",
        b"x: " + b"y" * (200 << 10),
        b"".join(b"x%d: y\r\n" % number for number in range(300)) + b"\r\n",
    ],
    ids=["long", "without an end", "many"],
)
async def test_a_head_has_its_limits(head: bytes) -> None:
    async with site() as (made, port):
        told = await say(port, b"GET / HTTP/1.1\r\nhost: x\r\n" + head)
        assert told == b"" or told.startswith(b"HTTP/1.1 431 "), told[:200]
        assert made.asked == []


async def test_a_head_of_usual_size_passes_in_pieces() -> None:
    async with site() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in (b"GET /x HT", b"TP/1.1\r", b"\nho", b"st: x\r\n" + CLOSE, b"\r", b"\n"):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        assert bodies(await reader.read()) == [b"GET /x "]
        writer.close()


@pytest.mark.parametrize(
    ("target", "path"),
    [(b"http://x/a?b=c", "/a"), (b"/a%20b", "/a b"), (b"/%2e%2e/x", "/../x"), (b"*", None)],
)
async def test_targets_of_every_form_are_read(target: bytes, path: str | None) -> None:
    seen: list[Any] = []

    async def look(exchange: Exchange) -> None:
        seen.append(exchange.scope()["path"])
        await made.echo(exchange)

    method = b"OPTIONS" if path is None else b"GET"
    async with site(look) as (made, port):
        await say(port, method + b" " + target + b" HTTP/1.1\r\nhost: x\r\n" + CLOSE + b"\r\n")
    assert seen == ([path] if path is not None else seen)


async def test_who_leaves_is_noticed_at_once() -> None:
    left: list[float] = []
    ready = asyncio.Event()

    async def wait(exchange: Exchange) -> None:
        await exchange.read()
        done = asyncio.Event()

        def gone() -> None:
            left.append(time.monotonic())
            done.set()

        exchange.on_gone = gone
        ready.set()
        await done.wait()

    async with site(wait) as (_, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await ready.wait()
        began = time.monotonic()
        writer.transport.abort()
        async with asyncio.timeout(5):
            while not left:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert left[0] - began < 2.0


async def test_a_client_that_reads_nothing_stops_what_is_written_and_is_cut() -> None:
    paused: list[bool] = []
    ended = asyncio.Event()
    written = 0

    async def flood(exchange: Exchange) -> None:
        nonlocal written
        await exchange.read()
        exchange.on_gone = ended.set
        exchange.on_pause = paused.append
        exchange.start(200, [])
        while not exchange.paused and not exchange.gone:
            exchange.part(b"x" * 4096)
            written += 4096
            await asyncio.sleep(0)
        await ended.wait()
        assert exchange.slow

    async with site(flood, slow_client_s=0.3) as (made, port):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port))
            client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            async with asyncio.timeout(10):
                await ended.wait()
        assert paused == [True]
        assert written < 16 << 20
        async with asyncio.timeout(5):
            while made.server.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_client_that_reads_on_is_written_to_again() -> None:
    paused: list[bool] = []

    async def flood(exchange: Exchange) -> None:
        await exchange.read()
        resumed = asyncio.Event()

        def pause(on: bool) -> None:
            paused.append(on)
            (resumed.clear if on else resumed.set)()

        exchange.on_pause = pause
        exchange.start(200, [])
        while not paused:
            exchange.part(b"x" * 65536)
            await asyncio.sleep(0)
        await resumed.wait()
        exchange.finish(b"end")

    async with site(flood) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n" + CLOSE + b"\r\n")
        while not paused:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert (await reader.read()).endswith(b"3\r\nend\r\n0\r\n\r\n")
        assert paused == [True, False]
        writer.close()


@pytest.mark.parametrize(
    "data", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nab"]
)
async def test_a_connection_on_which_nothing_becomes_whole_is_ended(
    monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr(client_http, "IDLE_S", 0.2)
    async with site() as (made, port):
        assert await say(port, data) == b""
        assert made.asked == []


async def test_half_an_answer_does_not_look_like_a_whole_one() -> None:
    async def breaks(exchange: Exchange) -> None:
        exchange.start(200, [])
        exchange.part(b"half")

    async with site(breaks) as (_, port):
        told = await say(port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert not told.endswith(b"0\r\n\r\n")


async def test_what_is_open_at_the_end_may_end_and_nothing_new_begins() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait(exchange: Exchange) -> None:
        await exchange.read()
        begun.set()
        await go_on.wait()
        exchange.start(200, [(b"content-length", b"3")])
        exchange.finish(b"end")

    async with site(wait, drain_s=10.0) as (made, port):
        idle_reader, idle = await asyncio.open_connection("127.0.0.1", port)
        asking = asyncio.create_task(say(port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"))
        await begun.wait()
        made.server.stop()
        assert await asyncio.wait_for(idle_reader.read(), 5) == b"", "nothing is asked on it"
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        go_on.set()
        told = await asking
        assert told.endswith(b"end")
        assert b"connection: close" in told
        assert made.ends == 0
        idle.close()


async def test_who_still_sends_what_it_asks_at_the_end_is_answered_and_what_it_asks_after_it_is_not() -> None:
    async with site(drain_s=10.0) as (made, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nab")
        while not any(connection.tasks for connection in made.server.connections):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        made.server.stop()
        await asyncio.sleep(0.05)
        writer.write(b"cdGET /b HTTP/1.1\r\nhost: x\r\n\r\n")
        told = await asyncio.wait_for(reader.read(), 5)
        assert told.endswith(b"POST /a abcd")
        assert b"connection: close" in told
        assert [target for _, target, _ in made.asked] == [b"/a"]
        writer.close()


async def test_what_does_not_end_in_time_is_told_and_cut() -> None:
    begun, end = asyncio.Event(), asyncio.Event()

    async def wait(exchange: Exchange) -> None:
        await exchange.read()
        exchange.start(200, [])
        exchange.part(b"half ")
        begun.set()
        await end.wait()
        exchange.finish(b"cut")

    async with site(wait, drain_s=0.1) as (made, port):
        made.on_end = end.set
        asking = asyncio.create_task(say(port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"))
        await begun.wait()
        made.server.stop()
        assert (await asking).endswith(b"3\r\ncut\r\n0\r\n\r\n")
        assert made.ends == 1


@pytest.mark.parametrize(("hurries", "cut"), [(False, ("INFO", 0)), (True, ("WARNING", 1))])
async def test_who_is_in_a_hurry_does_not_wait_and_how_many_are_cut_is_logged(
    hurries: bool, cut: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    begun, end = asyncio.Event(), asyncio.Event()

    async def wait(exchange: Exchange) -> None:
        await exchange.read()
        begun.set()
        await end.wait()
        exchange.whole(200, [], b"")

    caplog.set_level("INFO", logger="homeport.router")
    async with site(wait, drain_s=30.0) as (made, port):
        made.on_end = end.set
        asking = asyncio.create_task(say(port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"))
        await begun.wait()
        made.server.stop()
        made.server.stop()
        if hurries:
            made.server.hurry()
        else:
            await asyncio.sleep(0.1)
            assert not asking.done(), "asking twice is no hurry"
            end.set()
        assert b"200 OK" in await asking
        assert made.ends == hurries
    (record,) = [each for each in caplog.records if "are cut" in each.msg]
    assert isinstance(record.args, tuple)
    assert (record.levelname, record.args[0]) == cut
