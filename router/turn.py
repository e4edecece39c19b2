"""One turn: from a client's request to its home, and the host's bytes back.

Where a turn goes is decided by `homes` and `choose`, and by `retries` whether it is tried again, which ends with the
engine's first event: after it a failure is an error event, and the stream ends without `[DONE]`. The host's bytes pass
unchanged; only half an event is held back.
"""

import asyncio
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, assert_never

import aiohttp

from router.addressing import Addressed
from router.decision import Ask, Refuse, Send, Wait
from router.errors import (
    ApiError,
    RawHeaders,
    Rejected,
    cannot_say,
    host_error,
    host_refused,
    internal_error,
    router_stopping,
    session_ended,
)
from router.finding import CannotSay
from router.keys import Key
from router.patience import patience_s
from router.peers import NotYet
from router.reading import code_of, last_code, only_comments, read_disagreement, whole_events
from router.reply import DONE, EVENT_STREAM, Reply, home_headers, passed
from router.request import (
    Address,
    ClientGone,
    Endpoint,
    Head,
    Message,
    Receive,
    Wanted,
    host_headers,
    read_body,
    read_wanted,
    with_model,
)
from router.retries import Retries, parts

if TYPE_CHECKING:
    from router.relay import Relay

STREAM = aiohttp.ClientTimeout(total=None, sock_connect=2.0, sock_read=120.0)
WHOLE = aiohttp.ClientTimeout(total=None, sock_connect=2.0)
"""A whole answer takes as long as it takes; a host that falls silent meanwhile is noticed by the fleet."""
HEAD_AFTER_S = 5.0
COMMENT_EVERY_S = 10.0
IN_ONE_PIECE = 1 << 20

Interruption = Literal["client_gone", "router_stopping", "session_ended"]


@dataclass(eq=False, slots=True)
class Turn:
    """One request's way through the router.

    `run` returns its outcome's name and has then sent exactly one ending.
    """

    relay: "Relay"
    endpoint: Endpoint
    head: Head
    address: Address
    key: Key
    receive: Receive
    _reply: Reply
    _retries: Retries
    ask: Ask | None = None
    replica: str | None = None
    """The last one that it was sent to, or whose return it waits for."""
    at: str | None = None
    """The one whose host has it now."""
    pin: str | None = None
    first_at: float | None = None
    """When the engine's first event came; known of streams only."""
    arrived: float = 0.0
    source: str = "none"
    """What named its session."""
    _addressed: Addressed | None = None
    _wanted: Wanted | None = None
    _body: bytes = b""
    _comment_at: float = 0.0
    _task: "asyncio.Task[object] | None" = None
    _interrupted: Interruption | None = None
    _silent: bool = False
    _begun: bool = False
    """Something of the engine's came: the boundary for retries."""

    async def run(self) -> str:
        self.arrived = self.relay.clock()
        self._comment_at = self.arrived + HEAD_AFTER_S
        self._task = asyncio.current_task()
        try:
            addressed = await self._read()
        except ClientGone:
            return "client_gone"
        except Rejected as rejected:
            if rejected.error.status in (413, 415):
                return await self._reply.fail_unread(rejected.error, self.head, self.receive)
            return await self._reply.fail(rejected.error)
        watcher = asyncio.ensure_future(self.receive())
        watcher.add_done_callback(self._heard)
        try:
            return await self._route(addressed)
        except Rejected as rejected:
            return await self._reply.fail(rejected.error)
        except asyncio.CancelledError:
            if self._interrupted is None or self._uncancel():
                raise
            if self._interrupted == "client_gone":
                return "client_gone"
            ending = router_stopping() if self._interrupted == "router_stopping" else session_ended()
            return await self._reply.fail(ending)
        finally:
            watcher.cancel()

    async def broke(self) -> str:
        """The ending after a fault of the router's own; its outcome's name."""
        error = internal_error()
        return error.code if self._reply.ended else await self._reply.fail(error)

    def interrupt(self, reason: Interruption) -> None:
        """End the turn wherever it is. Does nothing to one whose ending is sent."""
        if self.ask is not None and self._interrupted is None and not self._reply.ended:
            self._interrupted = reason
            self._cancel()

    def host_silent(self) -> None:
        """Give up on the host that has it now, as if its connection had broken."""
        if not self._silent and not self._reply.ended:
            self._silent = True
            self._cancel()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _heard(self, watcher: "asyncio.Future[Message]") -> None:
        if not watcher.cancelled() and watcher.exception() is None:
            self.interrupt("client_gone")

    def _uncancel(self) -> bool:
        """Take back one cancellation of our own; True while there are others."""
        return self._task is not None and self._task.uncancel() > 0

    async def _read(self) -> Addressed:
        self._body = await read_body(self.head, self.receive)
        self._wanted = read_wanted(self.endpoint, self._body)
        addressed = self.relay.addressing.read(self.endpoint, self.head, self.address, self._wanted, self.key)
        self.source = addressed.identity.source
        self._reply.say(b"x-homeport-source", self.source.encode())
        self._take(addressed)
        if addressed.ask.model != self._wanted.model:
            self._body = with_model(self._body, addressed.ask.model)
        return addressed

    def _take(self, addressed: Addressed) -> Ask:
        """From here on the turn is this session's."""
        self._addressed, self.ask = addressed, addressed.ask
        if addressed.who.public:
            self._reply.say(b"x-homeport-session", addressed.who.public.encode())
        return addressed.ask

    async def _find(self, addressed: Addressed, settle_at: float, deadline: float) -> Ask:
        """Ask who it is, for as long as that cannot be said yet. Raises Rejected."""
        while True:
            try:
                return self._take(await self.relay.addressing.find(addressed))
            except (NotYet, CannotSay) as error:
                replicas = error.replicas if isinstance(error, CannotSay) else ()
                if self.relay.clock() >= (settle_at if replicas else deadline):
                    raise Rejected(cannot_say(replicas)) from error
                later = Wait("machine_unavailable", cannot_say(replicas).message, self.relay.clock() + 1.0)
            await self._wait(addressed.ask, later, deadline)

    async def _route(self, addressed: Addressed) -> str:
        queue_s = self.relay.queue_s(addressed.ask.model)
        deadline = self.arrived + queue_s
        settle_at = self.arrived + patience_s(queue_s, self.relay.fleet.has_heard_controller)
        ask = await self._find(addressed, settle_at, deadline)
        while True:
            decision = await self.relay.homes.decide(ask, self._retries.refused, settle_at)
            match decision:
                case Send():
                    outcome = await self._attempt(ask, decision, deadline)
                    if outcome is not None:
                        return outcome
                    ask = self.ask or ask
                case Wait():
                    if self.relay.clock() >= deadline:
                        return await self._reply.fail(self._unavailable(ask, decision))
                    await self._wait(ask, decision, deadline)
                case Refuse():
                    return await self._refuse(ask, decision)
                case _:
                    assert_never(decision)

    async def _refuse(self, ask: Ask, refuse: Refuse) -> str:
        self.replica = refuse.replica or self.replica
        if not self._reply.head_sent:
            self._reply.own += self._home_headers(ask, refuse.replica)
        more = {"reasons": list(refuse.reasons)} if refuse.status == 503 else {}
        final = refuse.status in (403, 410)
        return await self._reply.fail(
            ApiError(refuse.status, refuse.code, refuse.message, refuse.param, refuse.retry_s, more, final)
        )

    async def _wait(self, ask: Ask, wait: Wait, deadline: float) -> None:
        """Until the picture changes. A stream gets its head after 5 s, then a comment every 10 s."""
        now = self.relay.clock()
        self.replica = wait.replica
        if self._streams and now >= self._comment_at:
            await self._reply.begin([*EVENT_STREAM, *self._home_headers(ask, wait.replica)])
            waited_for = wait.replica or "a replica"
            comment = f": waiting for {waited_for}, {now - self.arrived:.0f} s so far\n\n"
            await self._reply.part(comment.encode())
            self._comment_at = now + COMMENT_EVERY_S
        until = min(deadline, max(wait.until, now + 0.5))
        if self._streams:
            until = min(until, self._comment_at)
        await self.relay.fleet.changed(until - now)

    def _home_headers(self, ask: Ask, replica: str | None, meant: str = "kept") -> RawHeaders:
        """The home as it stands: the host's word on the pin, else what was meant; a claim alone is none yet."""
        if replica is None:
            return []
        return home_headers(
            replica, self.pin or (meant if self.relay.homes.is_told(ask, replica) else "none")
        )

    def _unavailable(self, ask: Ask, wait: Wait) -> ApiError:
        if not self._reply.head_sent:
            self._reply.own += self._home_headers(ask, wait.replica)
        return ApiError(503, wait.reason, wait.message, retry_after_s=wait.until - self.relay.clock())

    async def _attempt(self, ask: Ask, to: Send, deadline: float) -> str | None:
        """Send it to one host. The outcome, or None where the place must be chosen again."""
        response = None
        homes = self.relay.homes
        self.replica = self.at = to.replica
        with self.relay.fleet.turn_at(to.replica), homes.turn_at(ask, to.replica):
            try:
                response = await self._post(ask, to, deadline)
                self.pin = response.headers.get("x-homeport-pin", self.pin)
                if response.status == 200 or "x-homeport-pin" in response.headers:
                    homes.confirm(ask, to.replica)  # its host has written the pin down
                    if self._addressed is not None:
                        self.relay.addressing.went(self._addressed, to.replica.rpartition("/")[0])
                if response.status != 200:
                    return await self._not_ok(ask, to, response)
                return await (self._pass_stream(response) if self._streams else self._pass_whole(response))
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                return await self._lost(ask, to, error)
            except asyncio.CancelledError:
                if response is None:
                    homes.suspect(ask, to.replica)  # its host may have written the pin down
                if not self._silent or self._uncancel():
                    raise
                self._silent = False
                return await self._lost(ask, to, TimeoutError())
            finally:
                self.at = None
                if response is not None:
                    response.close()

    async def _post(self, ask: Ask, to: Send, deadline: float) -> aiohttp.ClientResponse:
        url = f"{self.relay.fleet.base(to.replica)}{self.endpoint.path}"
        data = self._body if len(self._body) <= IN_ONE_PIECE else io.BytesIO(self._body)
        timeout = STREAM if self._streams else WHOLE
        left_s = max(0.0, deadline - self.relay.clock())
        assert self._addressed is not None
        headers = host_headers(
            ask, to, self._addressed.who, self.head, self.relay.fleet.bearer(to.replica), left_s
        )
        return await self.relay.client.post(url, data=data, headers=headers, timeout=timeout)

    async def _pass_whole(self, response: aiohttp.ClientResponse) -> str:
        """A whole answer is taken in first: a host lost on the way is then an error and not half a body."""
        self._begun = True
        body = await response.read()
        await self._reply.whole(200, passed(response.raw_headers), body)
        return "ok"

    async def _pass_stream(self, response: aiohttp.ClientResponse) -> str:
        await self._reply.begin(passed(response.raw_headers))
        send, read = self._reply.part, response.content.readany
        held = last = b""
        while chunk := await read():
            if held or not chunk.endswith(b"\n\n"):
                chunk, held = whole_events(held + chunk)
                if not chunk:
                    continue
            if not self._begun and not only_comments(chunk):
                self._begun = True
                self.first_at = self.relay.clock()
                self._body = b""
            last = chunk
            await send(chunk)
        await self._reply.finish(held)
        return "ok" if not held and last.endswith(DONE) else last_code(last)

    async def _not_ok(self, ask: Ask, to: Send, response: aiohttp.ClientResponse) -> str | None:
        body = await response.read()
        if response.status == 421:
            told = read_disagreement(body)
            if told.reason == "unknown":
                self.pin = None
            error = await self._retries.disagreed(ask, to, told)
            if parts(ask, told) and self._addressed is not None:
                self._take(self.relay.addressing.part(self._addressed))
            return None if error is None else await self._fail_at(self.ask or ask, to, error)
        if response.status == 401:
            return await self._fail_at(ask, to, host_refused(to.replica))
        if response.status == 503 and await self._retries.stopped_serving(ask, to):
            return None
        code = code_of(body)
        if code == "session_ended" and ask.session is not None:
            self.relay.homes.forget(ask.session, ask.model)
        if code is None:
            return await self._fail_at(ask, to, host_error(to.replica, response.status))
        if self._reply.head_sent:
            await self._reply.part(b"data: " + b" ".join(body.splitlines()) + b"\n\n")
            await self._reply.finish()
        else:
            await self._reply.whole(response.status, passed(response.raw_headers), body)
        return code

    async def _lost(self, ask: Ask, to: Send, error: Exception) -> str | None:
        self.at = None
        ending = await self._retries.lost(ask, to, error, self._begun)
        return None if ending is None else await self._fail_at(ask, to, ending)

    async def _fail_at(self, ask: Ask, to: Send, error: ApiError) -> str:
        """An error of the router's own about a host: it says which."""
        if not self._reply.head_sent:
            self._reply.own += self._home_headers(ask, to.replica, to.pin)
        return await self._reply.fail(error)

    @property
    def _streams(self) -> bool:
        return self._wanted is not None and self._wanted.stream is True
