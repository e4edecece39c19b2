"""One request's way from the engine's waking to what its turns took, however its bytes are written (answers.py).

Decides neither who runs (admission) nor which tokens come (the engine) nor how they are written (forms). Errors leave
as Problem.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeVar, assert_never

from serving import signs
from serving.answer_form import Form
from serving.asgi import ClientGone, Problem, Send, internal_problem
from serving.desk import Desk
from serving.engine import Began, Broke, ChoiceEnded, Embedded, Ended, Prefilled, Text, Turn, Usage
from serving.lease import Chosen, Gone, Granted, Happening, Lease, Refused
from serving.openai_wire import Outcome
from serving.pinning import Pinning
from serving.places import Standing
from serving.refusals import refusal
from serving.routing import Ask
from serving.signs import Prefill
from serving.trouble import report

Inputs = tuple[tuple[int, ...], ...]
"""Texts to make embeddings of, as token ids."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the engine is asked for, in order, and how its words are written. The turns' `id` and `sequence` are
    filled in once each has its lease."""

    jobs: tuple[Turn | Inputs, ...]
    form: Form


class Answering:
    """One request's. Its kinds say how the bytes are written, and what the client sees meanwhile."""

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
        self.prefill = Prefill(0)
        """Of the last turn."""
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

    def over(self) -> None:
        """Nothing more comes of the request."""
        self.release()
        self.pinning.over()

    async def run(self, prepare: Callable[[], Prepared], aside: bool) -> None:
        """Until the answer's end, the client's leaving or a refusal. Raises Problem as long as no head is out."""
        try:
            await self.patiently(self.desk.awake(), signs.LOADING)
            if aside:
                prepared = await self.patiently(asyncio.to_thread(prepare), signs.READING)
            else:
                prepared = prepare()
            self.form = prepared.form
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

    async def patiently(self, work: Awaitable[T], word: str | None) -> T:
        """What comes of the work, with signs of life until then that have this `word`; None: without any. Raises what
        it raises, and ClientGone."""
        working = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(self.gone.wait())
        try:
            while not working.done():
                quiet_s = None if word is None else self.quiet_s()
                await asyncio.wait({working, leaving}, timeout=quiet_s, return_when="FIRST_COMPLETED")
                if self.gone.is_set():
                    raise ClientGone
                if word is not None and not working.done():
                    await self.sign(word)
            return working.result()
        finally:
            working.cancel()
            leaving.cancel()

    async def turns(self, jobs: tuple[Turn | Inputs, ...]) -> Usage | None:
        """Do all of it, one after another. What it took; None: the client left. Raises Problem when one ends
        badly."""
        total = Usage(0, 0, 0, 0)
        for number, job in enumerate(jobs):
            context = await self.context_for(job)
            if self.gone.is_set():
                return None
            if number == 0:
                self.check_pin()
            # No await between the check and the asking: the place that was free is still free.
            lease = self.lease_for(number, context)
            self.form.prompt(number)
            usage = await self.turn(lease, job)
            if usage is None:
                return None
            self.prompt_tokens = usage.prompt
            total = _sum(total, usage)
        return total

    async def context_for(self, job: Turn | Inputs) -> Chosen | None:
        """The context that it runs on: the session's, or its scratch's. None: a transient."""
        session = self.ask.session
        if session is None or not isinstance(job, Turn):
            return None
        departures = self.desk.departures
        while True:
            # Without a sign of life: once a head is out, the turn cannot be sent after its session.
            await self.patiently(departures.over(session), None)
            chosen = await self.desk.turns.context_for(session, job.prompt)
            if session not in departures:
                return chosen

    def check_pin(self) -> None:
        """Raises Problem 421 when the router's picture is old."""
        self.pinning.check()

    def lease_for(self, number: int, context: Chosen | None) -> Lease:
        """Ask for the next turn's."""
        self.release()
        ask = self.ask
        queue_s = None
        if number == 0 and ask.queue_left_s is not None:
            queue_s = max(0.0, ask.queue_left_s - (self.desk.turns.now() - self.arrived_s))
        self.waited_before_s = self.waited_s or 0.0
        family = self.pinning.family
        if family is None and context is not None and context.name != context.session:
            # What a session does aside is of its family, so that the two take turns there.
            family = context.session
        standing = Standing(ask.scope, ask.rank, family, ask.weight, ask.places)
        self.lease = self.desk.turns.ask(context, ask.request_id, queue_s, standing)
        return self.lease

    @property
    def waited_s(self) -> float | None:
        """In all turns' lines; None in the first one's."""
        if self.lease is None or self.lease.waited_s is None:
            return self.waited_before_s or None
        return self.waited_before_s + self.lease.waited_s

    async def turn(self, lease: Lease, job: Turn | Inputs) -> Usage | None:
        self.prefill = Prefill(len(job.prompt) if isinstance(job, Turn) else sum(map(len, job)))
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
                await self.begin(lease, job, place)
            case Began():
                self.began = happening
                self.prefill.began(happening.reused, self.desk.turns.now())
                self.tell_progress()
            case Prefilled(_, done, _):
                if self.prefill.evaluated(done):
                    self.tell_progress()
            case ChoiceEnded():
                self.put(self.form.ended(happening))
            case Embedded():
                self.form.embedded(happening)
            case Broke(_, message, asked=True):
                raise Problem(400, message, "invalid_value")
            case Broke(_, message):
                raise Problem(500, f"the engine failed this turn: {message}", "engine_failed")
            case Refused(code):
                if code == "session_ended":
                    self.pinning.outcome = None
                _, about_s = self.desk.turns.estimate(lease)
                raise refusal(self.desk, code, self.waited_s or 0.0, about_s)
            case Text() | Ended() | Gone():
                raise AssertionError
            case _:
                assert_never(happening)

    async def begin(self, lease: Lease, job: Turn | Inputs, place: int) -> None:
        """Run the granted turn. What it needs of its session may have to be read from disk first."""
        if lease.lost.is_set():  # A session that was ended gets no pin.
            return
        await self.pinning.ensure()
        turns = self.desk.turns
        if not isinstance(job, Turn):
            await turns.embed(lease, job)
            return
        if lease.session is not None and lease.session != self.ask.session:
            turns.made.add(lease.session)
        else:
            lease.moved = self.pinning.outcome == "moved"
        turn = replace(job, id=lease.turn, sequence=place)
        await self.patiently(turns.begin(lease, turn), self.prefill.word())

    def text(self, event: Text) -> None:
        """Take in new text."""
        self.put(self.form.text(event))

    def put(self, data: bytes) -> None:
        """Have this sent with the next `flush`; an answer in one piece has nothing before its end."""

    def tell_progress(self) -> None:
        """Have the client told how far its prompt is, if it asked for that."""

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
            if self.lease.session != self.ask.session:
                headers.append(("x-homeport-aside", "yes"))  # for the router
        return headers

    def standing(self) -> list[tuple[str, str]]:
        """The pin once the journal has it, and the wait once it is over: good for answers and refusals."""
        outcome = self.pinning.outcome
        standing = [("x-homeport-pin", outcome)] if outcome is not None else []
        if self.waited_s is not None:
            standing.append(("x-homeport-waited-ms", str(round(self.waited_s * 1000))))
        return standing


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(
        one.prompt + other.prompt,
        one.reused + other.reused,
        one.evaluated + other.evaluated,
        one.generated + other.generated,
    )
