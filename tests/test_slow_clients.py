"""Clients that do not read: what the router holds for them, and when it lets go."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from serving.router_limits import RouterLimits
from tests.standins import MODEL, AnswersHost, Router, routed

EVENT = b"data: " + b"w" * 16_000 + b"\n\n"
HELD_BYTES = 256 << 10


class FloodHost(AnswersHost):
    """Streams as fast as it is let, and answers in one piece what no socket's buffers hold."""

    sent = 0

    async def write(self, request: Any, response: Any) -> None:
        while True:
            await response.write(EVENT)
            self.sent += len(EVENT)

    async def whole(self, request: Any, told: Any) -> Any:
        answer: Any = await super().whole(request, told)
        answer.body = b'{"x": "' + b"a" * (8 << 20) + b'"}'
        return answer


def asked(stream: bool) -> bytes:
    body = json.dumps({"model": MODEL, "stream": stream, "messages": []}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body)
    return head + body


@asynccontextmanager
async def asking(router: Router, requests: bytes) -> AsyncIterator[None]:
    """A client that sends this and reads nothing."""
    host, port = router.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(requests)
        yield


def unsent(router: Router) -> int:
    return sum(each._transport.get_write_buffer_size() for each in router.server.connections)


async def standstill(host: FloodHost) -> None:
    before = -1
    async with asyncio.timeout(20):
        while host.sent == 0 or host.sent != before:
            before = host.sent
            await asyncio.sleep(0.5)


async def test_what_is_held_of_a_stream_is_bounded(tmp_path: Path) -> None:
    host = FloodHost("den/0")
    async with routed(tmp_path, host) as router, asking(router, asked(stream=True)):
        await standstill(host)
        assert 0 < unsent(router) <= HELD_BYTES


@pytest.mark.parametrize("early", [b"", EVENT])
async def test_a_stream_that_follows_an_answer_nobody_reads_is_held_back_too(
    tmp_path: Path, early: bytes
) -> None:
    """`early`: what comes in one piece with the head, before anybody listens."""
    host = FloodHost("den/0")
    if early:
        host.write = _at_once(host)  # type: ignore[method-assign]
    async with routed(tmp_path, host) as router, asking(router, asked(stream=False) + asked(stream=True)):
        await standstill(host)
        first = unsent(router)
        assert first > 1 << 20, "the whole answer is here: it is no stream"
        await asyncio.sleep(0.5)
        assert unsent(router) - first <= HELD_BYTES


async def test_who_reads_nothing_for_too_long_is_cut_and_its_place_given_back(tmp_path: Path) -> None:
    host = FloodHost("den/0")
    async with routed(tmp_path, host, limits=RouterLimits(slow_client_s=1.0)) as router:
        async with asking(router, asked(stream=True)):
            await host.arrived.wait()
            async with asyncio.timeout(10):
                while router.count("slow_client", "den/0") == 0:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        assert router.parts.relay.turns == set()
        assert router.parts.fleet.snapshot().open_turns == {}
        await asyncio.wait_for(host.left.wait(), 5)


def _at_once(host: FloodHost) -> Any:
    async def write(request: Any, response: Any) -> None:
        chunk = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
        transport = request.transport
        while not transport.is_closing():
            if transport.get_write_buffer_size() < 200_000:
                transport.write(chunk)
                host.sent += len(EVENT)
            await asyncio.sleep(0)

    return write
