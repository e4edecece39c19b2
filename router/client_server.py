"""The router's server: takes connections of clients, looks after them, and lets them end.

What a connection does is router/client_http.py's matter. Has no signals of its own.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence

from router.client_http import ClientConnection
from router.exchange import App
from serving.router_limits import RouterLimits

BACKLOG = 2048
SWEEP_S = 1.0
LAST_WORDS_S = 1.0
"""How long what was written last may take to be sent."""

log = logging.getLogger("homeport.router")


class Server:
    """`stop` ends it: no new connections, `drain_s` for open requests, then `on_end`, which ends those that are left.

    `hurry` is that `on_end`, at once; a second `stop` changes nothing.
    """

    def __init__(
        self,
        app: App,
        on_end: Callable[[], None],
        limits: RouterLimits,
        sweep: Callable[[], None] = lambda: None,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """`sweep`: called once a second beside the server's own. `on_stop`: at `stop`, ends what never ends itself."""
        self.connections: set[ClientConnection] = set()
        self._app = app
        self._on_end = on_end
        self._limits = limits
        self._sweep = sweep
        self._on_stop = on_stop
        self._stopping = asyncio.Event()
        self._cutting = asyncio.Event()

    def stop(self) -> None:
        self._stopping.set()

    def hurry(self) -> None:
        self._cutting.set()
        self._stopping.set()

    async def serve(self, sockets: Sequence[socket.socket]) -> None:
        """Until `stop`, and until what was open then has ended; what does not is cancelled."""
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
            self._on_stop()
            await self._drain()
        finally:
            sweeping.cancel()
            tasks = self._tasks()
            for connection in list(self.connections):
                connection.abort()
            for task in tasks:
                task.cancel()  # A page of the API takes no heed of its client's going.
            await asyncio.gather(*tasks, return_exceptions=True)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [task for connection in self.connections for task in connection.tasks]

    async def _drain(self) -> None:
        for connection in list(self.connections):
            connection.stop()
        loop = asyncio.get_running_loop()
        began = loop.time()
        if tasks := self._tasks():
            log.info("%d requests are open and may end within %g s", len(tasks), self._limits.drain_s)
            await self._until_ended(tasks)
        tasks = self._tasks()
        level = logging.WARNING if tasks else logging.INFO
        log.log(level, "%d requests are cut after %.1f s", len(tasks), loop.time() - began)
        if tasks:
            self._on_end()
            await asyncio.wait(tasks, timeout=LAST_WORDS_S)
        deadline = loop.time() + LAST_WORDS_S
        while self.connections and loop.time() < deadline:  # noqa: ASYNC110 - at the end only
            await asyncio.sleep(0.01)  # What was written last is on its way.

    async def _until_ended(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Or until `drain_s` is over, or somebody is in a hurry."""
        ended = asyncio.ensure_future(asyncio.wait(tasks))
        cutting = asyncio.ensure_future(self._cutting.wait())
        try:
            first = asyncio.FIRST_COMPLETED
            await asyncio.wait({ended, cutting}, timeout=self._limits.drain_s, return_when=first)
        finally:
            ended.cancel()
            cutting.cancel()

    async def _sweep_all(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_S)
            now = loop.time()
            for connection in list(self.connections):
                connection.sweep(now, self._limits.slow_client_s)
            self._sweep()
