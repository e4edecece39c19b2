"""The connections to hosts: made, kept for the next request, and given up.

Asks nothing twice but what a kept connection lost at once, before a byte of the answer came.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Sequence

from cluster.sockets import recover_soon
from router.answer_head import Broken
from router.host_http import Answer, NotConnected, Place
from router.tally import Tally

CONNECT_S = 2.0
KEEP_S = 4.0
"""How long a connection is kept for the next request: less than hosts keep it."""
KEPT_MAX = 64
"""How many are, for each host."""
STALE_S = 1.0
"""A kept connection that the host had closed breaks within a round trip; one that breaks later was taken."""
OPEN_MAX = 4096
"""How many there may be to one host at once."""
READ_BYTES = 64 << 10


class Hosts:
    """The connections of one router, on the running loop. `trust`: by whom hosts are known that speak TLS."""

    def __init__(self, trust: ssl.SSLContext | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.buffer = memoryview(bytearray(READ_BYTES))
        """Into which each reads; what is read is handed on before the next one reads."""
        self._trust = trust
        self._kept: dict[Place, list[Answer]] = {}
        self._open: Tally[Place] = Tally()
        self._all: set[Answer] = set()

    async def ask(self, place: Place, request: Sequence[bytes], silent_s: float | None = None) -> Answer:
        """The head of the host's answer is there. Raises NotConnected, Broken and Silent."""
        stale: Broken | None = None
        if (kept := self._take(place)) is not None:
            since = self.loop.time()
            try:
                return await self._ask(kept, request, silent_s)
            except Broken as error:
                if not kept.was_stale or self.loop.time() > since + STALE_S:
                    raise
                stale = error
        try:
            answer = await self._connect(place)
        except NotConnected:
            if stale is not None:
                raise stale from None  # The host may have had the request before it went.
            raise
        return await self._ask(answer, request, silent_s)

    async def _ask(self, answer: Answer, request: Sequence[bytes], silent_s: float | None) -> Answer:
        try:
            await answer.ask(request, silent_s)
        except BaseException:
            answer.close()
            raise
        return answer

    def keep(self, answer: Answer) -> None:
        kept = self._kept.setdefault(answer.place, [])
        if len(kept) >= KEPT_MAX:
            answer.abort()
            return
        answer.kept_until = self.loop.time() + KEEP_S
        kept.append(answer)

    def lost(self, answer: Answer) -> None:
        if answer not in self._all:
            return  # It was given up while it was made.
        self._all.discard(answer)
        self._open.down(answer.place)
        kept = self._kept.get(answer.place)
        if kept is not None and answer in kept:
            kept.remove(answer)
            if not kept:
                del self._kept[answer.place]

    def sweep(self) -> None:
        """End what was kept for too long. To be called now and then."""
        now = self.loop.time()
        for answers in list(self._kept.values()):
            for answer in [each for each in answers if each.kept_until <= now]:
                answers.remove(answer)
                answer.abort()

    def close(self) -> None:
        for answer in list(self._all):
            answer.abort()

    def _take(self, place: Place) -> Answer | None:
        kept = self._kept.get(place)
        now = self.loop.time()
        while kept:
            answer = kept.pop()
            if answer.is_open and answer.kept_until > now:
                return answer
            answer.abort()
        return None

    async def _connect(self, place: Place) -> Answer:
        if self._open.get(place, 0) >= OPEN_MAX:
            raise NotConnected(f"{OPEN_MAX} connections to it are open")
        answer, made = Answer(self, place), None
        self._open.up(place)
        self._all.add(answer)
        try:
            async with asyncio.timeout(CONNECT_S):
                family = socket.AF_INET6 if ":" in place.address else socket.AF_INET
                made = recover_soon(socket.socket(family, socket.SOCK_STREAM))
                made.setblocking(False)
                await self.loop.sock_connect(made, (place.address, place.port))
                await self.loop.create_connection(
                    lambda: answer,
                    sock=made,
                    ssl=self._trust if place.tls else None,
                    server_hostname=place.address if place.tls else None,
                )
        except BaseException as error:
            self.lost(answer)
            answer.abort()
            if made is not None and not answer.is_open:
                made.close()
            if isinstance(error, TimeoutError):
                raise NotConnected("it does not answer") from None
            if isinstance(error, OSError):  # ssl.SSLError is one
                raise NotConnected(str(error), error.errno == errno.ECONNREFUSED) from error
            raise
        return answer
