"""An answer from the engine's waking to the last byte, whatever endpoint it is for.

Decides neither who runs (admission) nor which tokens come (the engine) nor how they are written (forms). Errors leave
as Problem until a stream's head is out, and as an error event without [DONE] after that.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import assert_never

from serving import openai_wire
from serving.answer_form import Form
from serving.asgi import (
    ClientGone,
    Problem,
    Receive,
    Send,
    internal_problem,
    send_head,
    send_part,
    send_whole,
    until_gone,
)
from serving.desk import Desk
from serving.engine import Began, Broke, ChoiceEnded, Embedded, Ended, Prefilled, Text, Turn, Usage
from serving.lease import Gone, Granted, Happening, Lease, Refused
from serving.openai_wire import Outcome
from serving.pinning import Pinning
from serving.routing import Ask
from serving.trouble import report

HEAD_S = 5.0
"""A stream's head goes out this long after the request's arrival at the latest."""
COMMENT_S = 10.0
"""Then a comment this often, until the first text."""

Inputs = tuple[tuple[int, ...], ...]
"""Texts to make embeddings of, as token ids."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the engine is asked for, in order, and how its words are written. The turns' `id` and `sequence` are
    filled in once each has its lease."""

    jobs: tuple[Turn | Inputs, ...]
    form: Form


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
        whole_or_stream.release()


class _Answer:
    """One request's answer, however the bytes are written."""

    def __init__(self, desk: Desk, ask: Ask, send: Send) -> None:
        self.desk = desk
        self.ask = ask
        self.send = send
        self.form: Form
        self.pinning = Pinning(desk, ask)
        self.arrived_s = desk.turns.now()
        self.gone = asyncio.Event()
        self.lease: Lease | None = None
        """The last turn's."""
        self.began: Began | None = None
        self.prompt_tokens = 0
        """Of the last turn."""
        self.waited_before_s = 0.0
        """In the lines of earlier turns."""

    def left(self) -> None:
        """The client is gone."""
        self.gone.set()
        if self.lease is not None:
            self.desk.turns.left(self.lease)

    def release(self) -> None:
        """Whatever happened, no lease stays taken."""
        if self.lease is not None:
            self.desk.turns.release(self.lease)

    async def run(self, prepare: Callable[[], Prepared], aside: bool) -> None:
        """Until the answer's end, the client's leaving or a refusal. Raises Problem as long as no head is out."""
        try:
            await self.awake()
            prepared = await asyncio.to_thread(prepare) if aside else prepare()
            self.form = prepared.form
            self.check_pin()
            # No await between the check and the asking: the place that was free is still free.
            usage = await self.turns(prepared.jobs)
            if usage is not None:
                self.pinning.touch()
                await self.end(usage)
        except Problem as problem:
            await self.fail(problem)
        except ClientGone:
            raise
        except Exception as error:  # noqa: BLE001  (logged without its words)
            report(error)
            await self.fail(internal_problem())

    async def awake(self) -> None:
        """Until the engine is loaded. Raises Problem, and ClientGone."""
        waking, leaving = map(asyncio.ensure_future, (self.desk.awake(), self.gone.wait()))
        try:
            while not waking.done():
                await asyncio.wait({waking, leaving}, timeout=self.quiet_s(), return_when="FIRST_COMPLETED")
                if self.gone.is_set():
                    raise ClientGone
                if not waking.done():
                    await self.sign("loading the model")
            waking.result()
        finally:
            waking.cancel()
            leaving.cancel()

    def check_pin(self) -> None:
        """Raises Problem 421 when the router's picture is old, and ClientGone."""
        if self.gone.is_set():
            raise ClientGone
        self.pinning.check()

    async def turns(self, jobs: tuple[Turn | Inputs, ...]) -> Usage | None:
        """Do all of it, one after another. What it took; None: the client left. Raises Problem when one ends
        badly."""
        total = Usage(0, 0, 0, 0)
        for number, job in enumerate(jobs):
            if self.gone.is_set():
                return None
            self.form.prompt(number)
            usage = await self.turn(self.lease_for(number), job)
            if usage is None:
                return None
            self.prompt_tokens = usage.prompt
            total = _sum(total, usage)
        return total

    def lease_for(self, number: int) -> Lease:
        """Ask for the next turn's."""
        self.release()
        queue_s = None
        if number == 0 and self.ask.queue_left_s is not None:
            queue_s = max(0.0, self.ask.queue_left_s - (self.desk.turns.now() - self.arrived_s))
        self.waited_before_s = self.waited_s or 0.0
        self.lease = self.desk.turns.ask(self.ask.session, self.ask.request_id, queue_s)
        return self.lease

    @property
    def waited_s(self) -> float | None:
        """In all turns' lines; None in the first one's."""
        if self.lease is None or self.lease.waited_s is None:
            return self.waited_before_s or None
        return self.waited_before_s + self.lease.waited_s

    async def turn(self, lease: Lease, job: Turn | Inputs) -> Usage | None:
        text = self.text
        while True:
            for happening in await self.happened(lease):
                match happening:
                    case Text():
                        text(happening)
                    case Ended(_, "cancelled", _):
                        message = "the host ended this turn; try again"
                        raise Problem(503, message, "cancelled", headers=(("retry-after", "1"),))
                    case Ended(_, _, usage):
                        return usage
                    case Gone():
                        return None
                    case _:
                        await self.take(lease, job, happening)
            await self.flush()

    async def take(self, lease: Lease, job: Turn | Inputs, happening: Happening) -> None:
        """What does not come once a token. Raises Problem when it is the turn's bad end."""
        match happening:
            case Granted(place):
                await self.pinning.ensure()
                if isinstance(job, Turn):
                    await self.desk.turns.begin(lease, replace(job, id=lease.turn, sequence=place))
                else:
                    await self.desk.turns.embed(lease, job)
            case Began():
                self.began = happening
            case Prefilled():
                pass
            case ChoiceEnded():
                self.put(self.form.ended(happening))
            case Embedded():
                self.form.embedded(happening)
            case Broke(_, message, asked=True):
                raise Problem(
                    400, f"{message}; ask for less with 'response_format' or 'tools'", "invalid_value"
                )
            case Broke(_, message):
                raise Problem(500, f"the engine failed this turn: {message}", "engine_failed")
            case Refused(code):
                raise self.refusal(code)
            case Text() | Ended() | Gone():
                raise AssertionError
            case _:
                assert_never(happening)

    def text(self, event: Text) -> None:
        """Take in new text."""
        self.put(self.form.text(event))

    def put(self, data: bytes) -> None:
        """Have this sent with the next `flush`; an answer in one piece has nothing before its end."""

    async def happened(self, lease: Lease) -> list[Happening]:
        return await lease.next()

    async def flush(self) -> None:
        """Send what was put."""

    def quiet_s(self) -> float | None:
        """How long the client may still wait without a sign of life; None: for ever."""
        return None

    async def sign(self, word: str) -> None:
        """Give the client a sign of life that says what it waits for."""

    async def end(self, usage: Usage) -> None:
        raise NotImplementedError

    async def fail(self, problem: Problem) -> None:
        """Tell the client how the turn ended, and the router what became of the pin."""
        problem.headers = (*problem.headers, *self.standing())
        raise problem

    def outcome(self, usage: Usage) -> Outcome:
        desk, lease = self.desk, self.lease
        assert lease is not None
        return Outcome(
            desk.machine,
            desk.replica,
            self.pinning.outcome or "none",
            lease.context(self.began),
            usage.reused,
            usage.evaluated,
            lease.cause(self.began, self.prompt_tokens),
        )

    def headers(self) -> list[tuple[str, str]]:
        """What is known of the outcome by now, in an answer's head."""
        headers = [*self.desk.place_headers(), *self.standing()]
        if self.began is not None and self.lease is not None:
            headers.append(("x-homeport-context", self.lease.context(self.began)))
        return headers

    def standing(self) -> list[tuple[str, str]]:
        """The pin once the journal has it, and the wait once it is over: good for answers and refusals."""
        outcome = self.pinning.outcome
        standing = [("x-homeport-pin", outcome)] if outcome is not None else []
        if self.waited_s is not None:
            standing.append(("x-homeport-waited-ms", str(round(self.waited_s * 1000))))
        return standing

    def refusal(self, code: str) -> Problem:
        if code == "host_stopping":
            message = f"{self.desk.replica} is stopping; its sessions wait for it, try again"
            return Problem(503, message, code, headers=(("retry-after", "5"),))
        state, now = self.desk.turns.state, self.desk.turns.now()
        quiet = [place.since_s + state.hold_s - now for place in state.places if place.state == "quiet"]
        wait_s = max(1, math.ceil(min(quiet, default=state.hold_s)))
        message = (
            f"{self.desk.replica} on machine {self.desk.machine} is busy with another session; waited "
            f"{self.waited_s or 0.0:.0f} s for it. Try again in about {wait_s} s, "
            f"or serve more replicas of '{self.desk.model.name}'"
        )
        return Problem(429, message, code, headers=(("retry-after", str(wait_s)),))


class _Whole(_Answer):
    """The answer in one piece, at its end."""

    async def end(self, usage: Usage) -> None:
        body = self.form.end(usage, self.outcome(usage))
        await send_whole(self.send, 200, body, self.headers())


class _Stream(_Answer):
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
        if not self.head_out or self.gone.is_set():
            super().check_pin()

    async def happened(self, lease: Lease) -> list[Happening]:
        happened = await lease.next(self.sign_due)
        if not happened:
            await self.sign("waiting" if lease.granted is None else "evaluating")
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


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(
        one.prompt + other.prompt,
        one.reused + other.reused,
        one.evaluated + other.evaluated,
        one.generated + other.generated,
    )
