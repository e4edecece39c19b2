"""The front door: one ASGI callable. Host, Origin, key and request id are the same matter on every path.

What a model answers goes straight to `relay`, everything else to FastAPI. Decides nothing about sessions.
"""

from collections.abc import Callable
from urllib.parse import parse_qsl, quote

from fastapi import FastAPI

from router.cors import answered, is_listed, preflight
from router.errors import ApiError, foreign_host, foreign_origin, wrong_method
from router.exchange import EXCHANGE, Exchange, Message, Receive, SendMessage
from router.keys import Key, KeyRing, guard, secret_of, too_many
from router.metrics import Metrics
from router.names import Names, may_come_from, may_name
from router.relay import Relay
from router.remembering import reply_in
from router.request import ENDPOINTS, Address, Endpoint, Head, new_id, read_address, read_head
from router.told import Told

ASKS_HOSTS = ("/api/sessions", "/v1/responses/", "/v1/conversations/")
"""What is answered here and below asks hosts: it counts as a request, as a turn does."""
OURS = ("/api/fleet", "/api/sessions", "/api/machines", "/api/arrivals")
"""What begins so is no request to a model."""
WATCHED = "/api/fleet"
"""With `watch` it asks hosts too."""


class Front:
    """The ASGI callable. Host, Origin, key and request id are the same matter on every path."""

    def __init__(
        self,
        relay: Relay,
        pages: FastAPI,
        metrics: Metrics,
        names: Names,
        ring: KeyRing,
        naming: frozenset[bytes],
        clock: Callable[[], float],
        origins: frozenset[bytes],
    ) -> None:
        """`naming`: headers that may name a session. `origins`: of other sites whose pages may come in."""
        self._relay = relay
        self.pages = pages
        self._metrics = metrics
        self._names = names
        self._ring = ring
        self._naming = naming
        self._clock = clock
        self._origins = origins

    async def __call__(self, scope: Message, receive: Receive, send: SendMessage) -> None:
        if scope["type"] != "http":
            return
        exchange: Exchange = scope[EXCHANGE]
        head = read_head(scope["headers"], new_id, self._naming)
        address = read_address(scope)
        entry = self._ring.entry(secret_of(head.shown) if self._ring.required else None)
        key = None if entry is None else entry[0]
        own = {b"x-request-id": head.request_id}
        error = self._foreign(scope, head)
        if self._origins:
            own |= answered(head.origin, self._origins)
            asks = error is None and scope["method"] == "OPTIONS" and is_listed(head.origin, self._origins)
            if asks and (told := preflight(scope["headers"])) is not None:
                _empty(exchange, own | told)
                return
        error = error or guard(self._ring, key, scope["method"], address.path)
        endpoint = ENDPOINTS.get(address.path)
        if endpoint is not None and endpoint.id_header:
            own[endpoint.id_header] = head.request_id
        if error is None and endpoint is not None:
            error = wrong_method(["POST"]) if scope["method"] != "POST" else self._too_many(key)
            if error is None and key is not None:
                await self._relay(endpoint, head, address, key, exchange, own)
                return
        elif error is None and _asks_hosts(scope, address.path):
            error = self._too_many(key)
        if error is not None:
            self._refuse(exchange, error, own, address, endpoint)
            return

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *own.items()]
            await send(message)

        await self.pages(_inner(scope, Told(entry, head, address)), receive, send_named)

    def _too_many(self, key: Key | None) -> ApiError | None:
        wait_s = None if key is None else self._ring.allow(key, self._clock())
        return None if key is None or wait_s is None else too_many(key, wait_s)

    def _refuse(
        self,
        exchange: Exchange,
        error: ApiError,
        own: dict[bytes, bytes],
        address: Address,
        endpoint: Endpoint | None,
    ) -> None:
        """Only requests to a model are counted."""
        arrivals = self._relay.arrivals
        if arrivals.is_watched and exchange.method == "POST" and not address.path.startswith(OURS):
            arrivals.refused(address.path, exchange.headers, error.code)
        if error.status == 405:
            own[b"allow"] = b"POST, OPTIONS"
            if exchange.method == "OPTIONS":
                _empty(exchange, own)
                return
        if endpoint is not None:
            self._metrics.refused(error.code)
        dialect = None if endpoint is None else endpoint.dialect
        reply_in(exchange, own, dialect, self._relay.kept).fail(error)

    def _foreign(self, scope: Message, head: Head) -> ApiError | None:
        """Why it may not come in: a name that is not this router's (DNS rebinding), or a page of another site."""
        if head.host is None:
            if scope.get("http_version") != "1.0":
                return foreign_host()
        elif not may_name(head.host, self._names):
            return foreign_host()
        if head.origin is not None and not (
            may_come_from(head.origin, self._names) or is_listed(head.origin, self._origins)
        ):
            return foreign_origin()
        return None


def _empty(exchange: Exchange, headers: dict[bytes, bytes]) -> None:
    exchange.start(204, [*headers.items()])
    exchange.finish()


def _asks_hosts(scope: Message, path: str) -> bool:
    if path.startswith(WATCHED):
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        return any(name == "watch" for name, _ in query)
    return path.startswith(ASKS_HOSTS)


def _inner(scope: Message, told: Told) -> Message:
    """What the pages see: the path without what stands before it, which they are told beside it."""
    path = told.address.path
    if path == scope["path"]:
        return {**scope, "homeport": told}
    return {**scope, "path": path, "raw_path": quote(path).encode(), "homeport": told}
