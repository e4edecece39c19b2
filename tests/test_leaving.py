"""Clients that leave at random moments, in the line, in the prefill and while tokens flow: nothing of them is left."""

import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.standins import MODEL, AnswersHost, chunk, routed

CLIENTS, AT_ONCE = 1000, 100
LONGEST_S = 0.4
PATIENCE_S = 20.0
FILES = Path("/proc/self/fd")
MORE_FILES = 32
"""Connections that are kept beside those to hosts: of the test's own client, and for questions."""


class Phases(AnswersHost):
    """Each turn goes on for ever in one phase; which, its session says. Counts those that are open."""

    open = 0
    begun = 0

    async def stream(self, request: web.Request, told: dict[str, str]) -> web.StreamResponse:
        self.open += 1
        self.begun += 1
        try:
            return await super().stream(request, told)
        finally:
            self.open -= 1

    async def write(self, request: web.Request, response: web.StreamResponse) -> None:
        phase = self.begun % 3
        while True:
            if phase == 0:
                await response.write(b": 2 before this one\n\n")
            elif phase == 1:
                await response.write(chunk("word "))
            await asyncio.sleep(0.01)


def open_files() -> int:
    return len(list(FILES.iterdir()))


async def leave(port: int, number: int, rng: random.Random) -> None:
    body = json.dumps(
        {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nx-session-id: s{number % 50}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    whole = head + body
    writer.write(whole[: rng.randrange(len(whole))] if rng.random() < 0.1 else whole)
    await asyncio.sleep(rng.uniform(0, LONGEST_S))
    if rng.random() < 0.5:
        writer.transport.abort()
    else:
        writer.close()


async def test_of_a_thousand_clients_that_leave_nothing_is_left(tmp_path: Path) -> None:
    rng = random.Random(7)
    hosts = [Phases("den/0"), Phases("attic/0")]
    async with routed(tmp_path, *hosts) as router:
        port = int(router.url.rpartition(":")[2])
        parts: Any = router.parts
        pool = parts.relay.hosts
        files = open_files()
        for first in range(0, CLIENTS, AT_ONCE):
            await asyncio.gather(*(leave(port, first + n, rng) for n in range(AT_ONCE)))
        begun = sum(host.begun for host in hosts)
        assert begun > CLIENTS / 2, f"only {begun} turns came to a host"

        def left() -> dict[str, int]:
            return {
                "turns": len(parts.relay.turns),
                "at hosts": sum(host.open for host in hosts),
                "clients": len(parts.server.connections),
                "to hosts": sum(pool._open.values()),  # kept ones are ended after some seconds
                "turns at replicas": len(parts.fleet._open),
                "files": max(0, open_files() - files - MORE_FILES),
                "tasks": sum("ClientConnection" in repr(task.get_coro()) for task in asyncio.all_tasks()),
            }

        deadline = time.monotonic() + PATIENCE_S
        while any(left().values()):
            assert time.monotonic() < deadline, str(left())
            await asyncio.sleep(0.05)
        assert router.count("client_gone", "den/0") + router.count("client_gone", "attic/0") > CLIENTS / 3
        assert (await router.get("/health")).status == 200
