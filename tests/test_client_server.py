"""How the server ends: what is open may go on for a while, and nothing keeps it for longer."""

import asyncio
import socket
import time

from tests.test_client_http import site


async def test_what_never_ends_is_cancelled_once_its_time_is_over() -> None:
    asked, ended = asyncio.Event(), asyncio.Event()

    async def never(_: object) -> None:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with site(never, drain_s=0.2) as (made, port):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"POST /api/sessions/tea/move HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
            await asyncio.wait_for(asked.wait(), 5)
            began = time.monotonic()
            made.server.stop()
            await asyncio.wait_for(ended.wait(), 5)
    assert 0.2 <= time.monotonic() - began < 3.2
