"""`python -m benchmarks.relay.bare PORT HOST_PORT ...`: the floor. Passes bytes both ways and reads none of them.

Two asyncio protocols on uvloop; each connection of a client has one to a host, the hosts in turn. What a Python relay
cannot be cheaper than.
"""

import asyncio
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import uvloop


class Upstream(asyncio.Protocol):
    def __init__(self, client: "Client") -> None:
        self._client = client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._client.reached(transport)

    def data_received(self, data: bytes) -> None:
        self._client.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.transport.close()


class Client(asyncio.Protocol):
    def __init__(self, ports: Iterator[int]) -> None:
        self.transport: Any = None
        self._ports = ports
        self._up: Any = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        loop = asyncio.get_running_loop()
        self._connecting = loop.create_task(
            loop.create_connection(lambda: Upstream(self), "127.0.0.1", next(self._ports))
        )

    def reached(self, transport: Any) -> None:
        self._up = transport
        transport.writelines(self._early)
        self._early.clear()

    def data_received(self, data: bytes) -> None:
        if self._up is None:
            self._early.append(data)
        else:
            self._up.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._up is not None:
            self._up.close()


async def serve(port: int, hosts: Sequence[int]) -> None:
    turn = itertools.cycle(hosts)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Client(turn), "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


def main(words: Sequence[str]) -> None:
    port, *hosts = map(int, words)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(port, hosts))


if __name__ == "__main__":
    main(sys.argv[1:])
