"""Connections to hosts, over real sockets: what they are kept for, and hosts that hang, stall, drop or send garbage."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import hosts as pool
from router.answer_head import Broken, read_head
from router.host_http import Answer, NotConnected, Place, Silent, place_of
from router.hosts import Hosts
from tests.standins import DropsPackets

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ASK = (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n", b"hi")
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Homeport-Pin: kept\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Host:
    """Answers each request with the next of `answers`, the last again and again; None drops the connection."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.connections = 0
        self.asked = 0
        self.closed = asyncio.Event()
        self.dribble = 0
        """So many bytes at a time."""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(2)
                self.asked += 1
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if answer is None:
                    writer.transport.abort()
                    return
                step = self.dribble or len(answer) or 1
                for at in range(0, len(answer), step):
                    writer.write(answer[at : at + step])
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed.set()
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[tuple[Hosts, Place]]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    hosts = Hosts()
    try:
        yield hosts, Place("127.0.0.1", server.sockets[0].getsockname()[1], False)
    finally:
        hosts.close()
        server.close()
        await asyncio.sleep(0)


async def whole(hosts: Hosts, place: Place, silent_s: float | None = None) -> tuple[int, bytes]:
    answer = await hosts.ask(place, ASK, silent_s)
    try:
        return answer.status, await answer.read()
    finally:
        answer.close()


def chunks(*parts: bytes) -> bytes:
    return CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


async def test_a_connection_is_kept_for_the_next_request() -> None:
    host = Host(WHOLE, chunks(b"a", b"b"), b"HTTP/1.1 204 No Content\r\n\r\n", WHOLE)
    async with serving(host) as (hosts, place):
        assert await whole(hosts, place) == (200, b"hello")
        assert await whole(hosts, place) == (200, b"ab")
        assert await whole(hosts, place) == (204, b"")
        answer = await hosts.ask(place, ASK)
        assert (answer.get(b"x-homeport-pin"), answer.get(b"x-other")) == (b"kept", None)
        assert await answer.read() == b"hello"
        answer.close()
        assert (host.connections, host.asked) == (1, 4)


async def test_requests_at_the_same_time_have_connections_of_their_own_and_few_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool, "KEPT_MAX", 2)
    host = Host(WHOLE)
    async with serving(host) as (hosts, place):
        assert await asyncio.gather(*(whole(hosts, place) for _ in range(5))) == [(200, b"hello")] * 5
        assert host.connections == 5
        await asyncio.gather(*(whole(hosts, place) for _ in range(2)))
        assert host.connections == 5
        assert len(hosts._kept[place]) == 2


async def test_there_is_a_most_of_connections_to_one_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "OPEN_MAX", 2)
    async with serving(Host(CHUNKED)) as (hosts, place):
        answers = [await hosts.ask(place, ASK) for _ in range(2)]
        with pytest.raises(NotConnected, match="2 connections"):
            await hosts.ask(place, ASK)
        answers[0].close()
        async with asyncio.timeout(5):
            while hosts._open[place] > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        (await hosts.ask(place, ASK)).close()
        answers[1].close()


async def test_what_was_kept_for_too_long_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "KEEP_S", 0.05)
    host = Host(WHOLE)
    async with serving(host) as (hosts, place):
        await whole(hosts, place)
        await asyncio.sleep(0.1)
        await whole(hosts, place)
        assert host.connections == 2
        await asyncio.sleep(0.1)
        hosts.sweep()
        assert not any(hosts._kept.values())


async def test_a_kept_connection_that_the_host_has_closed_is_replaced_once() -> None:
    host = Host(WHOLE, None, WHOLE)
    async with serving(host) as (hosts, place):
        await whole(hosts, place)
        assert await whole(hosts, place) == (200, b"hello")
        assert (host.connections, host.asked) == (2, 3)
        host.answers = [None, None, WHOLE]
        with pytest.raises(Broken):
            await whole(hosts, place)
        assert host.asked == 5, "once, not for ever"


async def test_a_host_that_went_with_a_request_on_a_kept_connection_may_have_had_it() -> None:
    """It is not told as one that was never reached: its session's pin may be written down there."""
    host = Host(WHOLE, None)
    server = await asyncio.start_server(host, "127.0.0.1", 0)
    place = Place("127.0.0.1", server.sockets[0].getsockname()[1], False)
    hosts = Hosts()
    await whole(hosts, place)
    server.close()  # It takes no new connection; the kept one goes on.
    with pytest.raises(Broken):
        await whole(hosts, place)
    assert host.asked == 2
    hosts.close()


async def test_what_breaks_late_was_no_stale_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "STALE_S", 0.05)

    async def thinks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\nhi")
        writer.write(WHOLE)
        await reader.readuntil(b"\r\n\r\nhi")
        asked.append(1)
        await asyncio.sleep(0.2)
        writer.transport.abort()

    asked: list[int] = []
    async with serving(thinks) as (hosts, place):
        await whole(hosts, place)
        with pytest.raises(Broken):
            await whole(hosts, place)
        assert asked == [1]


async def test_a_first_connection_that_is_dropped_is_not_asked_again() -> None:
    host = Host(None, WHOLE)
    async with serving(host) as (hosts, place):
        with pytest.raises(Broken):
            await whole(hosts, place)
        assert host.asked == 1


async def test_nothing_is_asked_again_once_a_byte_came() -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\nhi")
        writer.write(WHOLE)
        await reader.readuntil(b"\r\n\r\nhi")
        asked.append(1)
        writer.write(b"HTTP/1.1 2")
        writer.close()

    asked: list[int] = []
    async with serving(half) as (hosts, place):
        await whole(hosts, place)
        with pytest.raises(Broken):
            await whole(hosts, place)
        assert asked == [1]


async def test_an_answer_comes_byte_by_byte() -> None:
    parts = (b"data: one\n\n", b"x" * 300, b"data: [DONE]\n\n")
    host = Host(chunks(*parts))
    host.dribble = 1
    async with serving(host) as (hosts, place):
        assert await whole(hosts, place) == (200, b"".join(parts))
        await whole(hosts, place)
        assert host.connections == 1


async def test_an_event_of_a_mebibyte_comes_whole() -> None:
    parts = (b"x" * (1 << 20), b"y" * (1 << 20))
    async with serving(Host(chunks(*parts))) as (hosts, place):
        assert await whole(hosts, place) == (200, b"".join(parts))


async def test_an_interim_answer_is_passed_over() -> None:
    async with serving(Host(b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE)) as (hosts, place):
        assert await whole(hosts, place) == (200, b"hello")


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: y\r\n folded: z\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: y\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20000,
        CHUNKED + b"zz\r\n",
        CHUNKED + b"-1\r\n",
        CHUNKED + b"2\r\nabcd\r\n",
        CHUNKED + b"5" * 2000,
        CHUNKED + b"0\r\n" + b"x" * (70 << 10),
    ],
    ids=lambda answer: repr(answer[:60])[2:-1],
)
async def test_what_is_not_http_is_broken(answer: bytes) -> None:
    host = Host(answer)
    async with serving(host) as (hosts, place):
        with pytest.raises(Broken):
            async with asyncio.timeout(5):
                await whole(hosts, place)
        await asyncio.wait_for(host.closed.wait(), 5)


async def test_what_follows_an_answer_without_being_asked_for_ends_the_connection() -> None:
    host = Host(WHOLE + b"HTTP/1.1 200 OK\r\n", WHOLE)
    async with serving(host) as (hosts, place):
        assert await whole(hosts, place) == (200, b"hello")
        assert await whole(hosts, place) == (200, b"hello")
        assert host.connections == 2


async def test_a_host_that_closes_after_its_answer_is_not_asked_on_that_connection() -> None:
    host = Host(WHOLE.replace(b"X-Homeport-Pin: kept", b"connection: close"))
    async with serving(host) as (hosts, place):
        await whole(hosts, place)
        await whole(hosts, place)
        assert host.connections == 2


@pytest.mark.parametrize("answer", [b"", CHUNKED, chunks(b"one")[:-5]])
async def test_a_host_that_stalls_is_silent(answer: bytes) -> None:
    host = Host(answer)
    async with serving(host) as (hosts, place):
        with pytest.raises(Silent):
            await whole(hosts, place, silent_s=0.2)
        await asyncio.wait_for(host.closed.wait(), 5)


@pytest.mark.parametrize("cut", [10, len(CHUNKED) + 3, len(chunks(b"hello")) - 2])
async def test_a_host_that_drops_in_the_middle_is_broken(cut: int) -> None:
    async def drops(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(chunks(b"hello")[:cut])
        writer.close()

    async with serving(drops) as (hosts, place):
        with pytest.raises(Broken):
            await whole(hosts, place)


async def test_where_nobody_listens_is_told_from_where_nobody_answers() -> None:
    silent = DropsPackets()
    await silent.start()
    try:
        hosts = Hosts()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            nobody = Place("127.0.0.1", probe.getsockname()[1], False)
        with pytest.raises(NotConnected) as refused:
            await hosts.ask(nobody, ASK)
        assert refused.value.refused
        with pytest.raises(NotConnected) as unanswered:
            await hosts.ask(Place("127.0.0.1", silent.port, False), ASK)
        assert not unanswered.value.refused
        assert not hosts._open
    finally:
        await silent.stop()


async def test_who_is_cancelled_lets_the_host_know() -> None:
    host = Host(CHUNKED)
    async with serving(host) as (hosts, place):
        asking = asyncio.create_task(whole(hosts, place))
        while not host.asked:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.wait_for(host.closed.wait(), 5)
        assert not hosts._all


async def test_a_pause_holds_the_host_back() -> None:
    sent = 0

    async def floods(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while True:
                writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                await writer.drain()
                sent += 65536

    got = 0

    def take(data: bytes) -> None:
        nonlocal got
        got += len(data)
        if got > 1 << 20:
            answer.pause(True)

    async with serving(floods) as (hosts, place):
        answer: Answer = await hosts.ask(place, ASK, 0.3)
        passing = asyncio.create_task(answer.pass_on(take))
        await asyncio.sleep(1.0)
        assert not passing.done(), "it is not silent: nobody reads"
        assert got < (1 << 20) + (2 << 16)
        held = sent, got
        await asyncio.sleep(0.2)
        assert (sent, got) == held
        answer.pause(False)
        async with asyncio.timeout(5):
            while got == held[1]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        answer.close()
        passing.cancel()
        await asyncio.gather(passing, return_exceptions=True)


# the parser


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.lists(st.integers(1, 60), max_size=12),
    st.sampled_from([b"0\r\n\r\n", b"0;x=y\r\n\r\n", b"0\r\nx: y\r\n\r\n"]),
)
def test_however_chunks_are_cut_the_same_comes_out(parts: list[bytes], cuts: list[int], last: bytes) -> None:
    data = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + last
    got: list[bytes] = []
    answer = an_answer()
    listen(answer, got)
    at = 0
    for cut in [*cuts, len(data)]:
        if at < len(data):
            comes(answer, data[at : at + cut])
            at += cut
    assert b"".join(got) == b"".join(parts)
    assert answer._ended
    assert answer._keeps


def test_what_comes_behind_the_end_is_handed_to_nobody() -> None:
    """Also where it looks like one more event, before anybody has closed the answer."""
    got: list[bytes] = []
    answer = an_answer()
    listen(answer, got)
    for data in (b"1\r\na\r\n", b"0\r\n\r\n", b"1\r\nb\r\n"):
        comes(answer, data)
    assert got == [b"a"]
    assert answer._given_up


@pytest.mark.parametrize(
    ("data", "framed"),
    [
        (b"4\r\ndata\r\n", True),
        (b"0004\r\ndata\r\n", True),
        (b"4;x=y\r\ndata\r\n", False),  # a client might read an extension otherwise
        (b"1\r\na\r\n1\r\nb\r\n", False),
        (b"4\r\nda", False),
        (b"5\r\ndata\r\n", False),
        (b"2\r\n\r\n", False),
        (b"0\r\n\r\n", False),
    ],
)
def test_what_comes_as_one_chunk_is_handed_on_in_its_frame(data: bytes, framed: bool) -> None:
    frames: list[tuple[bytes, int]] = []
    answer = an_answer()
    listen(answer, [])
    answer._frames = lambda frame, at: frames.append((frame, at))
    comes(answer, data)
    assert frames == ([(data, data.index(b"data"))] if framed else [])


def listen(answer: Answer, got: list[bytes]) -> None:
    """As `pass_on` does, without a loop."""
    answer._sink = got.append
    answer._frames = lambda frame, at: got.append(frame[at:-2])
    answer._look_for_chunk()


def comes(answer: Answer, data: bytes) -> None:
    answer.get_buffer(-1)[: len(data)] = data
    answer.buffer_updated(len(data))


def an_answer() -> Answer:
    pool: Any = type("Pool", (), {"loop": asyncio.new_event_loop(), "buffer": memoryview(bytearray(4096))})()
    try:
        answer = Answer(pool, Place("x", 1, False))
    finally:
        pool.loop.close()
    answer._chunked = True
    return answer


def test_a_head_is_read() -> None:
    head = read_head(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A:\t b c \r\nConnection: Close")
    assert head.headers == [(b"content-length", b"5"), (b"x-a", b"b c"), (b"connection", b"Close")]
    assert (head.status, head.length, head.keeps) == (200, 5, False)


def test_a_place_is_read_from_a_url() -> None:
    assert place_of("https://10.0.0.1:8100") == Place("10.0.0.1", 8100, True)
    assert place_of("http://[fd00::1]:8100") == Place("fd00::1", 8100, False)
