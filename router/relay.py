"""The turns that are open: each is begun here, counted at its end, and can be ended from elsewhere.

How a turn goes is `turn`'s matter.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from router.addressing import Addressing
from router.arrivals import Arrivals
from router.exchange import Exchange, Gone
from router.fleet import Fleet
from router.homes import Homes
from router.hosts import Hosts
from router.kept import Kept
from router.keys import Key
from router.metrics import Metrics
from router.remembering import reply_in
from router.request import Address, Endpoint, Head
from router.retries import Retries
from router.turn import Turn
from serving.model import ModelSpec
from serving.router_limits import RouterLimits
from serving.trouble import trace_of

INLINE_BODY_BYTES = 256 << 10
"""Larger bodies are read on another thread: what others are sent goes on meanwhile."""
READ_AT_ONCE = 2
"""So many of these: threads take the loop's time all the same."""
QUEUE_S = 60.0
"""For a model whose specification this router has not seen."""

T = TypeVar("T")

log = logging.getLogger("homeport.router")


class Relay:
    """Serves a POST to one of the endpoints that a host has, and knows the turns that are open."""

    def __init__(  # noqa: PLR0913, PLR0917 - all that a turn needs
        self,
        fleet: Fleet,
        homes: Homes,
        addressing: Addressing,
        hosts: Hosts,
        kept: Kept,
        models: Mapping[str, ModelSpec],
        metrics: Metrics,
        limits: RouterLimits,
        arrivals: Arrivals,
    ) -> None:
        """`models` tell how long a turn may wait."""
        self.fleet = fleet
        self.homes = homes
        self.addressing = addressing
        self.hosts = hosts
        self.kept = kept
        self.metrics = metrics
        self.clock = fleet.now
        self.limits = limits
        self.arrivals = arrivals
        self.turns: set[Turn] = set()
        self._reading = asyncio.Semaphore(READ_AT_ONCE)
        self._models = models

    async def __call__(
        self,
        endpoint: Endpoint,
        head: Head,
        address: Address,
        key: Key,
        exchange: Exchange,
        own: dict[bytes, bytes],
    ) -> None:
        """`own`: what goes with every answer."""
        reply = reply_in(exchange, own, endpoint.dialect, self.kept)
        turn = Turn(
            self, endpoint, head, address, key, exchange, reply, Retries(self.fleet, self.homes, self.clock)
        )
        self.turns.add(turn)
        began_s = time.monotonic()  # cheaper than a clock that minds how long this process stood still
        try:
            outcome = await turn.run()
        except Exception as error:  # noqa: BLE001 - the edge; its words may be a prompt's
            log.error("request %s: internal_error\n%s", head.request_id.decode(), trace_of(error))
            outcome = turn.broke()
        finally:
            self.turns.discard(turn)
        self._note(turn, outcome, began_s)

    async def aside(self, exchange: Exchange, body: bytes, call: Callable[[], T]) -> T:
        """Call it, which reads this body. Raises Gone where its client left meanwhile."""
        if len(body) <= INLINE_BODY_BYTES:
            return call()
        async with self._reading:
            called = None if exchange.gone else await asyncio.to_thread(call)
        if called is None or exchange.gone:
            raise Gone
        return called

    def _note(self, turn: Turn, outcome: str, began_s: float) -> None:
        """Count a turn that has ended, and log one that failed."""
        ask, replica, first_at = turn.ask, turn.replica, turn.first_at
        model = None if ask is None else ask.model
        if replica is None and model not in self.fleet.snapshot().models:
            model = None  # A turn with a replica need not be looked up: only known models have any.
        self.metrics.ended(
            model,
            replica,
            outcome,
            turn.pin,
            ask is not None and ask.session is not None,
            time.monotonic() - began_s,
            None if first_at is None else first_at - turn.arrived,
        )
        if self.arrivals.is_watched:
            self.arrivals.turn(turn, outcome)
        if outcome not in ("ok", "client_gone"):
            request_id = turn.head.request_id.decode()
            log.info("request %s: %s model=%s replica=%s", request_id, outcome, model, replica)

    def queue_s(self, model: str) -> float:
        spec = self._models.get(model)
        return QUEUE_S if spec is None else spec.queue_s

    def of(self, session: str, model: str) -> list[Turn]:
        """The open turns of a session."""
        return [t for t in self.turns if t.ask and (t.ask.session, t.ask.model) == (session, model)]

    def lost(self, replica: str) -> None:
        """Its host has been silent for so long that nothing more will come of the turns it was answering."""
        for turn in list(self.turns):
            if turn.at == replica:
                turn.host_silent()

    def ended(self, session: str, model: str) -> None:
        """The session was ended: forget its home, and end the turns that no host has."""
        self.homes.forget(session, model)
        for turn in self.of(session, model):
            if turn.at is None:
                turn.interrupt("session_ended")

    def cancel(self, response: str, key_name: str) -> Mapping[str, Any] | None:
        """End the turn of this key that makes that response now: how it stands then. None: there is none here."""
        mine = (turn for turn in self.turns if turn.key.name == key_name)
        return next((told for turn in mine if (told := turn.cancel(response)) is not None), None)

    def stop(self) -> None:
        """End every open turn with an error that says so."""
        for turn in list(self.turns):
            turn.interrupt("router_stopping")
