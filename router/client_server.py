"""The router's server: takes connections of clients, looks after them, and lets them end.

What a connection does is router/client_http.py's matter. Has no signals of its own.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence

from router.client_http import ClientConnection
from router.exchange import App

BACKLOG = 2048
SWEEP_S = 1.0
SLOW_CLIENT_S = 60.0
"""A client that reads nothing of what was written to it for so long is cut."""
LAST_WORDS_S = 1.0
"""How long what was written last may take to be sent."""

log = logging.getLogger("homeport.router")


class Server:
    """`stop` ends it: no new connections, `drain_s` for open streams, then `on_end`, which ends those that are left."""

    def __init__(
        self,
        app: App,
        on_end: Callable[[], None],
        drain_s: float,
        sweep: Callable[[], None] = lambda: None,
        slow_client_s: float = SLOW_CLIENT_S,
    ) -> None:
        """`sweep`: called once a second beside the server's own."""
        self.connections: set[ClientConnection] = set()
        self._app = app
        self._on_end = on_end
        self._drain_s = drain_s
        self._sweep = sweep
        self._slow_client_s = slow_client_s
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        self._stopping.set()

    async def serve(self, sockets: Sequence[socket.socket]) -> None:
        """Until `stop`, and until what was open then has ended."""
        loop = asyncio.get_running_loop()
        servers = [
            await loop.create_server(
                lambda: ClientConnection(self._app, self.connections), sock=each, backlog=BACKLOG
            )
            for each in sockets
        ]
        sweeping = asyncio.create_task(self._sweep_all())
        try:
            await self._stopping.wait()
            for server in servers:
                server.close()
            await self._drain()
        finally:
            sweeping.cancel()
            for connection in list(self.connections):
                connection.abort()
            await asyncio.gather(*self._tasks(), return_exceptions=True)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [task for connection in self.connections for task in connection.tasks]

    async def _drain(self) -> None:
        for connection in list(self.connections):
            connection.stop()
        if tasks := self._tasks():
            await asyncio.wait(tasks, timeout=self._drain_s)
        if tasks := self._tasks():
            log.info("%d requests are cut, which had not ended after %g s", len(tasks), self._drain_s)
            self._on_end()
            await asyncio.wait(tasks, timeout=LAST_WORDS_S)
        deadline = asyncio.get_running_loop().time() + LAST_WORDS_S
        while self.connections and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - at the end only
            await asyncio.sleep(0.01)  # What was written last is on its way.

    async def _sweep_all(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_S)
            now = loop.time()
            for connection in list(self.connections):
                connection.sweep(now, self._slow_client_s)
            self._sweep()
