"""One turn: from a client's request to its home, and the host's bytes back.

Where a turn goes is decided by `homes` and `choose`, and by `retries` whether it is tried again, which ends with the
engine's first event: after it a failure is an error event, and the stream ends without `[DONE]`. The host's bytes
go to the reply, which passes them on or says them in a dialect; only half an event is held back.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, assert_never

from msgspec.structs import replace

from router.addressing import Addressed
from router.decision import Ask, Refuse, Send, Wait
from router.errors import (
    ApiError,
    Rejected,
    cannot_say,
    host_error,
    host_refused,
    internal_error,
    response_cancelled,
    router_stopping,
    session_ended,
)
from router.exchange import Exchange, Gone
from router.finding import CannotSay
from router.host_http import Answer, NotConnected, Silent
from router.keys import Key
from router.patience import patience_s
from router.peers import NotYet
from router.reading import before_answer, code_of, last_code, read_disagreement, whole_events
from router.reply import EVENT_STREAM, Reply, home_headers, passed
from router.request import (
    Address,
    Endpoint,
    Head,
    host_headers,
    host_request,
    loading,
    read_body,
    read_wanted,
    with_model,
)
from router.retries import Retries, parts

if TYPE_CHECKING:
    from router.relay import Relay

HEAD_AFTER_S = 5.0
COMMENT_EVERY_S = 10.0

Interruption = Literal["client_gone", "router_stopping", "session_ended", "response_cancelled"]
ENDINGS = {
    "router_stopping": router_stopping,
    "session_ended": session_ended,
    "response_cancelled": response_cancelled,
}


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
    exchange: Exchange
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
    is_aside: bool = False
    """Made beside its session's context, as a title is; heard of only while somebody watches what arrives."""
    _addressed: Addressed | None = None
    _streams: bool = False
    _body: bytes = b""
    _held: bytes = b""
    """Half an event."""
    _comment_at: float = 0.0
    _interrupted: Interruption | None = None
    _silent: bool = False
    _begun: bool = False
    """Something of the engine's came: the boundary for retries."""

    async def run(self) -> str:
        self.arrived = self.relay.clock()
        self._comment_at = self.arrived + HEAD_AFTER_S
        try:
            addressed = await self._read()
        except Gone:
            return "client_gone"
        except Rejected as rejected:
            return self._reply.fail(rejected.error)
        self.exchange.on_gone = self._client_gone
        try:
            return await self._route(addressed)
        except Rejected as rejected:
            return self._reply.fail(rejected.error)
        except asyncio.CancelledError:
            if self._interrupted is None or self._uncancel():
                raise
            if self._interrupted == "client_gone":
                if self._reply.said_done:  # Clients close then, before the host has ended its answer.
                    return "ok"
                return "slow_client" if self.exchange.slow else "client_gone"
            return self._reply.fail(ENDINGS[self._interrupted]())
        finally:
            self.exchange.on_gone = self.exchange.on_pause = None

    @property
    def streams(self) -> bool:
        """Whether a stream is asked for."""
        return self._streams

    def broke(self) -> str:
        """The ending after a fault of the router's own; its outcome's name."""
        error = internal_error()
        return error.code if self._reply.ended else self._reply.fail(error)

    def interrupt(self, reason: Interruption) -> None:
        """End the turn wherever it is. Does nothing to one whose ending is sent."""
        if self.ask is not None and self._interrupted is None and not self._reply.ended:
            self._interrupted = reason
            self._cancel()

    def cancel(self, response: str) -> Mapping[str, Any] | None:
        """End the turn if it makes that response, which is how it stands then."""
        if (told := self._reply.cancelled(response)) is not None:
            self.interrupt("response_cancelled")
        return told

    def host_silent(self) -> None:
        """Give up on the host that has it now, as if its connection had broken."""
        if not self._silent and not self._reply.ended:
            self._silent = True
            self._cancel()

    def _cancel(self) -> None:
        if (task := self.exchange.task) is not None:
            task.cancel()

    def _client_gone(self) -> None:
        self.interrupt("client_gone")

    def _uncancel(self) -> bool:
        """Take back one cancellation of our own; True while there are others."""
        return (task := self.exchange.task) is not None and task.uncancel() > 0

    async def _read(self) -> Addressed:
        asked = await read_body(self.head, self.exchange, self.relay.limits.max_body_bytes)
        addressed = await self.relay.aside(self.exchange, asked, partial(self._understand, asked))
        self.source = addressed.identity.source
        self._reply.own[b"x-homeport-source"] = self.source.encode()
        self._take(addressed)
        return addressed

    def _understand(self, asked: bytes) -> Addressed:
        """Maybe on another thread."""
        self._body = self._reply.read(asked)
        if self._reply.only_loads:
            self.endpoint = loading(self.endpoint)
        wanted = read_wanted(self.endpoint, self._body)
        self._streams = wanted.stream is True
        addressed = self.relay.addressing.read(self.endpoint, self.head, self.address, wanted, self.key)
        if addressed.ask.model != wanted.model:
            self._body = with_model(self._body, addressed.ask.model)
        return addressed

    def _take(self, addressed: Addressed) -> Ask:
        """From here on the turn is this session's."""
        self._addressed, self.ask = addressed, addressed.ask
        if addressed.who.public:
            self._reply.own[b"x-homeport-session"] = addressed.who.public.encode()
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
        if ask.zone is ask.machine is None and (zone := await self._reply.zone(ask)) is not None:
            ask = self.ask = replace(ask, zone=zone)
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
                        return self._reply.fail(self._unavailable(ask, decision))
                    await self._wait(ask, decision, deadline)
                case Refuse():
                    return self._refuse(ask, decision)
                case _:
                    assert_never(decision)

    def _refuse(self, ask: Ask, refuse: Refuse) -> str:
        self.replica = refuse.replica or self.replica
        if not self._reply.head_sent:
            self._reply.own |= self._home_headers(ask, refuse.replica)
        more = {"reasons": list(refuse.reasons)} if refuse.status == 503 else {}
        final = refuse.status in (403, 410)
        return self._reply.fail(
            ApiError(refuse.status, refuse.code, refuse.message, refuse.param, refuse.retry_s, more, final)
        )

    async def _wait(self, ask: Ask, wait: Wait, deadline: float) -> None:
        """Until the picture changes. A stream gets its head after 5 s, then a comment every 10 s."""
        now = self.relay.clock()
        self.replica = wait.replica
        if self._streams and now >= self._comment_at:
            self._reply.begin([*EVENT_STREAM, *self._home_headers(ask, wait.replica).items()])
            waited_for = wait.replica or "a replica"
            comment = f": waiting for {waited_for}, {now - self.arrived:.0f} s so far\n\n"
            self._reply.part(comment.encode())
            self._comment_at = now + COMMENT_EVERY_S
        until = min(deadline, max(wait.until, now + 0.5))
        if self._streams:
            until = min(until, self._comment_at)
        await self.relay.fleet.changed(until - now)

    def _home_headers(self, ask: Ask, replica: str | None, meant: str = "kept") -> dict[bytes, bytes]:
        """The home as it stands: the host's word on the pin, else what was meant; a claim alone is none yet."""
        if replica is None:
            return {}
        return home_headers(
            replica, self.pin or (meant if self.relay.homes.is_told(ask, replica) else "none")
        )

    def _unavailable(self, ask: Ask, wait: Wait) -> ApiError:
        if not self._reply.head_sent:
            self._reply.own |= self._home_headers(ask, wait.replica)
        return ApiError(503, wait.reason, wait.message, retry_after_s=wait.until - self.relay.clock())

    async def _attempt(self, ask: Ask, to: Send, deadline: float) -> str | None:
        """Send it to one host. The outcome, or None where the place must be chosen again."""
        answer = None
        homes = self.relay.homes
        self.replica = self.at = to.replica
        self.relay.fleet.turn_begins(to.replica)
        homes.turn_begins(ask, to.replica)
        try:
            if (body := await self._reply.prepare(ask, to)) is not None:
                self._body = body
            answer = await self._post(ask, to, deadline)
            pin = answer.get(b"x-homeport-pin")
            if pin is not None:
                self.pin = pin.decode("latin-1")
            if self.relay.arrivals.is_watched:
                self.is_aside = answer.get(b"x-homeport-aside") is not None
            if answer.status == 200 or pin is not None:
                homes.confirm(ask, to.replica)  # its host has written the pin down
                if self._addressed is not None:
                    self.relay.addressing.went(self._addressed, to.replica.rpartition("/")[0])
            if answer.status != 200:
                return await self._not_ok(ask, to, answer)
            return await (self._pass_stream(answer) if self._streams else self._pass_whole(answer))
        except OSError as error:
            return await self._lost(ask, to, error)
        except asyncio.CancelledError:
            if answer is None:
                homes.suspect(ask, to.replica)  # its host may have written the pin down
            if not self._silent or self._uncancel():
                raise
            self._silent = False
            return await self._lost(ask, to, TimeoutError())
        finally:
            self.at = None
            self.relay.fleet.turn_ends(to.replica)
            homes.turn_ends(ask, to.replica)
            if answer is not None:
                answer.close()

    async def _post(self, ask: Ask, to: Send, deadline: float) -> Answer:
        relay = self.relay
        place = relay.fleet.place(to.replica)
        if place is None:
            raise NotConnected("it is not listed any more")
        left_s = max(0.0, deadline - relay.clock())
        assert self._addressed is not None
        bearer, size = relay.fleet.bearer(to.replica), len(self._body)
        told = host_headers(ask, to, self._addressed.who, bearer, left_s)
        head = host_request(self.endpoint.host_path, place.address, told, self.head.forwarded, size)
        silent_s = relay.limits.between_bytes_s if self._streams else None
        return await relay.hosts.ask(place, (head, self._body), silent_s)

    async def _pass_whole(self, answer: Answer) -> str:
        """A whole answer is taken in first: a host lost on the way is then an error and not half a body."""
        self._begun = True
        body = await answer.read()
        await self._reply.answer(passed(answer.headers), body)
        return "ok"

    async def _pass_stream(self, answer: Answer) -> str:
        self._reply.begin(passed(answer.headers))
        self._held = b""
        self.exchange.on_pause = answer.pause
        answer.pause(self.exchange.paused)
        left_s = self.arrived + self.relay.limits.first_token_s - self.relay.clock()
        patience = asyncio.get_running_loop().call_later(max(0.0, left_s), self._no_token, answer)
        try:
            await answer.pass_on(self._take_chunk, self._take_frame)
        finally:
            patience.cancel()
            self.exchange.on_pause = None
        reply = self._reply
        await reply.close(self._held)
        return "ok" if not self._held and reply.said_done else last_code(reply.last)

    def _take_frame(self, frame: bytes, at: int) -> None:
        """A chunk that came as one, its data from `at` on: passed on as it is where it holds whole events."""
        whole = frame.endswith(b"\n\n\r\n", at)
        if whole and self._begun and not self._held and self._reply.frame(frame):
            self._reply.last = frame
        else:
            self._take_chunk(frame[at:-2])

    def _take_chunk(self, chunk: bytes) -> None:
        """Pass on what came of a stream, in whole events."""
        if self._held or not chunk.endswith(b"\n\n"):
            chunk, self._held = whole_events(self._held + chunk)
            if not chunk:
                return
        reply = self._reply
        if not self._begun and not before_answer(chunk):
            self._begun = True
            self.first_at = self.relay.clock()
            self._body = b""
        reply.last = chunk
        reply.part(chunk)

    def _no_token(self, answer: Answer) -> None:
        if not self._begun:
            answer.give_up(Silent())

    async def _not_ok(self, ask: Ask, to: Send, answer: Answer) -> str | None:
        body = await answer.read()
        if answer.status == 421:
            told = read_disagreement(body)
            if told.reason == "unknown":
                self.pin = None
            error = await self._retries.disagreed(ask, to, told)
            if parts(ask, told) and self._addressed is not None:
                self._take(await self.relay.addressing.part(self._addressed))
            return None if error is None else self._fail_at(self.ask or ask, to, error)
        if answer.status == 401:
            return self._fail_at(ask, to, host_refused(to.replica))
        if answer.status == 503 and await self._retries.stopped_serving(ask, to):
            return None
        code = code_of(body)
        if code == "session_ended" and ask.session is not None:
            self.relay.homes.forget(ask.session, ask.model)
        if code is None:
            return self._fail_at(ask, to, host_error(to.replica, answer.status))
        if self._reply.head_sent:
            self._reply.part(b"data: " + b" ".join(body.splitlines()) + b"\n\n")
            self._reply.finish()
        else:
            self._reply.whole(answer.status, passed(answer.headers), body)
        return code

    async def _lost(self, ask: Ask, to: Send, error: Exception) -> str | None:
        self.at = None
        ending = await self._retries.lost(ask, to, error, self._begun)
        return None if ending is None else self._fail_at(ask, to, ending)

    def _fail_at(self, ask: Ask, to: Send, error: ApiError) -> str:
        """An error of the router's own about a host: it says which."""
        if not self._reply.head_sent:
            self._reply.own |= self._home_headers(ask, to.replica, to.pin)
        return self._reply.fail(error)
