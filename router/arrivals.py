"""`/api/arrivals`: what arrives at the router, told while somebody looks. The streams that tell it, and what they tell.

Nothing is kept or counted while nobody looks. The router's other workers are asked once a second what came to them.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence

import msgspec

from router.arrival import Arrival, Arrived, astray, naming_header, product
from router.errors import RawHeaders
from router.identity import public_id
from router.keys import Entry
from router.request import ENDPOINTS
from router.siblings import Siblings
from router.turn import Turn

LOOK_S = 1.0
LAPSE_S = 5.0
"""After a sibling asked, so long it is taken to look."""
TRIES = 3
"""How often a sibling is asked before one who looks is told that it may begin."""
COMMENT_S = 10.0
COMMENT = b": watching\n\n"
KEPT = 256
"""How many of the last ones are kept for those who look."""


class Arrivals:
    """One worker's. `stop` ends the streams."""

    def __init__(
        self,
        siblings: Siblings,
        digest_key: bytes,
        ladder: Sequence[bytes],
        holds: Callable[[Entry], bool],
    ) -> None:
        """`ladder`: the headers that may name a session, best first. `holds`: whether a key is still one."""
        self.is_watched = False
        """Whether anything needs to be told."""
        self._siblings = siblings
        self._digest_key = digest_key
        self._ladder = ladder
        self._holds = holds
        self._kept: deque[tuple[int, Arrival]] = deque(maxlen=KEPT)
        self._last = 0
        self._looking: set[asyncio.Event] = set()
        self._lapse: asyncio.TimerHandle | None = None
        self._stopped = False

    def turn(self, turn: Turn, outcome: str) -> None:
        """A turn that has ended. Called while watched."""
        ask = turn.ask
        session = None if ask is None else ask.session
        self._tell(
            Arrival(
                path=turn.endpoint.path,
                outcome=outcome,
                agent=_agent(turn.exchange.headers),
                source=turn.source,
                header=naming_header(turn.head.named, self._ladder) if turn.source == "header" else "",
                session="" if session is None else public_id(self._digest_key, session),
                pin=turn.pin or "",
                machine=(turn.replica or "").rpartition("/")[0],
                streams=turn.streams,
                is_aside=turn.is_aside,
                is_child=ask is not None and ask.family is not None,
            )
        )

    def refused(self, path: str, headers: RawHeaders, outcome: str) -> None:
        """A POST that became no turn. Called while watched."""
        where = astray(path, ENDPOINTS)
        self._tell(Arrival(path="" if where else path, outcome=outcome, agent=_agent(headers), astray=where))

    def since(self, number: int) -> Arrived:
        """What came after that one, for a sibling, which is taken to look for a while; -1: what comes from now on."""
        if self._lapse is not None:
            self._lapse.cancel()
        self._lapse = asyncio.get_running_loop().call_later(LAPSE_S, self._lapsed)
        self.is_watched = True
        if number < 0:
            return Arrived(self._last)
        return Arrived(self._last, tuple(self._after(number if number <= self._last else 0)))

    async def events(self, entry: Entry) -> AsyncGenerator[bytes, None]:
        """The events for one who looks, until the router stops or the key is no more. Begins with a comment once all
        workers tell."""
        news = asyncio.Event()
        self._looking.add(news)
        self.is_watched = True
        seen, others = self._last, dict[int, int]()
        try:
            for _ in range(TRIES):
                await self._siblings.arrived(others)
                if len(others) == self._siblings.count:
                    break
            yield COMMENT
            said_s = asyncio.get_running_loop().time()
            while not self._stopped and self._holds(entry):
                news.clear()
                arrivals = [*self._after(seen), *await self._siblings.arrived(others)]
                seen = self._last
                for each in arrivals:
                    yield b"data: " + msgspec.json.encode(each) + b"\n\n"
                now_s = asyncio.get_running_loop().time()
                if now_s - said_s >= COMMENT_S:
                    yield COMMENT
                    said_s = now_s
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await news.wait()
        finally:
            self._looking.discard(news)
            self._rest()

    def stop(self) -> None:
        self._stopped = True
        for news in self._looking:
            news.set()

    def _tell(self, arrival: Arrival) -> None:
        self._last += 1
        self._kept.append((self._last, arrival))
        for news in self._looking:
            news.set()

    def _after(self, number: int) -> list[Arrival]:
        return [each for at, each in self._kept if at > number]

    def _lapsed(self) -> None:
        self._lapse = None
        self._rest()

    def _rest(self) -> None:
        """Nothing is kept any more where nobody looks."""
        self.is_watched = bool(self._looking) or self._lapse is not None
        if not self.is_watched:
            self._kept.clear()


def _agent(headers: RawHeaders) -> str:
    found = next((value for name, value in headers if name == b"user-agent"), b"")
    return product(found.decode("latin-1"))
