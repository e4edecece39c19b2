"""The two ways to write an answer, whatever endpoint it is for: in one piece, or as a stream of events.

What is done for it until then is answering.py's. Errors leave as Problem until a stream's head is out, and as an error
event without [DONE] after that.
"""

import asyncio
from collections.abc import Callable

from serving import openai_wire, signs
from serving.answering import Answering, Inputs, Prepared
from serving.asgi import Problem, Receive, Send, send_head, send_part, send_whole, until_gone
from serving.desk import Desk
from serving.engine import Turn, Usage
from serving.lease import Happening, Lease
from serving.routing import Ask

HEAD_S = 5.0
"""A stream's head goes out this long after the request's arrival at the latest."""
COMMENT_S = 9.5
"""From then on until the first text a sign of life this often, so that never more than 10 s pass between two bytes."""


async def answer(
    desk: Desk,
    ask: Ask,
    receive: Receive,
    send: Send,
    prepare: Callable[[], Prepared],
    *,
    stream: bool,
    aside: bool,
) -> None:
    """Answer one request whose body was read. `prepare` is called once the engine is loaded, `aside`: on another
    thread; it may raise Problem. Raises Problem as long as no head is out, and ClientGone."""
    whole_or_stream = (_Stream if stream else _Whole)(desk, ask, send)
    watch = asyncio.create_task(until_gone(receive, whole_or_stream.left))
    try:
        await whole_or_stream.run(prepare, aside)
    finally:
        watch.cancel()
        whole_or_stream.over()


class _Whole(Answering):
    """The answer in one piece, at its end."""

    async def end(self, usage: Usage) -> None:
        body = self.form.end(usage, self.outcome(usage))
        await send_whole(self.send, 200, body, self.headers())


class _Stream(Answering):
    """Server-sent events: the head with the first text or after HEAD_S, then comments until there is text."""

    def __init__(self, desk: Desk, ask: Ask, send: Send) -> None:
        super().__init__(desk, ask, send)
        self.loop = asyncio.get_running_loop()
        self.sign_due: float | None = self.loop.time() + HEAD_S
        """When the waiting client is to see a sign of life; None while there is text."""
        self.head_out = False
        self.pending: list[bytes] = []

    def check_pin(self) -> None:
        # Behind the head nobody can choose another place: the turn waits here.
        if not self.head_out:
            super().check_pin()

    async def happened(self, lease: Lease) -> list[Happening]:
        happened = await lease.next(self.sign_due)
        if not happened:
            granted = lease.granted is not None
            await self.sign(
                self.prefill.word() if granted else signs.waiting(*self.desk.turns.estimate(lease))
            )
        return happened

    async def turn(self, lease: Lease, job: Turn | Inputs) -> Usage | None:
        if self.sign_due is None:  # An earlier turn had text.
            self.sign_due = self.loop.time() + COMMENT_S
        return await super().turn(lease, job)

    def quiet_s(self) -> float | None:
        return None if self.sign_due is None else max(0.0, self.sign_due - self.loop.time())

    async def sign(self, word: str) -> None:
        if not self.head_out:
            if self.lease is None:  # The pin that is made now must be one that the router may have.
                self.pinning.check()
            await self.pinning.ensure()
            await self.head()
        await send_part(self.send, openai_wire.comment(word), more=True)
        self.sign_due = self.loop.time() + COMMENT_S

    def put(self, data: bytes) -> None:
        if data:
            self.sign_due = None
            self.pending.append(data)

    def tell_progress(self) -> None:
        data = self.form.progress(self.prefill.progress(self.desk.turns.now()))
        if data:
            self.pending.append(data)
            self.sign_due = self.loop.time() + COMMENT_S

    async def flush(self) -> None:
        if self.pending:
            await self.head()
            data, self.pending = b"".join(self.pending), []
            await send_part(self.send, data, more=True)

    async def end(self, usage: Usage) -> None:
        self.put(self.form.end(usage, self.outcome(usage)))
        await self.flush()
        await send_part(self.send, b"", more=False)

    async def fail(self, problem: Problem) -> None:
        if not self.head_out:
            await super().fail(problem)
        event = openai_wire.error_event(problem.status, problem.message, problem.code, problem.param)
        await send_part(self.send, event, more=False)

    async def head(self) -> None:
        if not self.head_out:
            self.head_out = True
            headers = [("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache")]
            await send_head(self.send, 200, [*headers, ("x-accel-buffering", "no"), *self.headers()])
