"""POST /v1/chat/completions on a host: from the router's headers and the client's body to the last byte.

Decides neither who runs (admission) nor which tokens come (the engine). Errors leave as Problem until a
stream's head is out, and as an error event without [DONE] after that.
"""

import asyncio
import math
import sqlite3
import time
import uuid
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, assert_never

import msgspec

from serving import openai_wire
from serving.admission import Admission, free_places, place_of
from serving.asgi import (
    Problem,
    Receive,
    Send,
    internal_problem,
    read_body,
    send_head,
    send_part,
    send_whole,
    until_gone,
)
from serving.chat_request import BadRequest, ChatRequest, default_sampling, read_chat_request
from serving.engine import Began, Broke, Ended, Engine, Prefilled, PromptError, PromptTooLong, Text, Usage
from serving.journal import Journal, JournalFull
from serving.model import ModelSpec
from serving.openai_wire import Outcome
from serving.pins import Pin
from serving.routing import Ask, misdirected
from serving.trouble import report
from serving.turns import Gone, Granted, Happening, Lease, Refused, Remembered, Turns

HEAD_S = 5.0
"""A stream's head goes out this long after the request's arrival at the latest."""
COMMENT_S = 10.0
"""Then a comment this often, until the first text."""
INLINE_BODY_BYTES = 16 * 2**10
"""Larger bodies are read, rendered and tokenized on another thread: the loop answers polls meanwhile."""


@dataclass(frozen=True, slots=True)
class Desk:
    """What every turn of this replica needs."""

    machine: str
    replica: str
    model: ModelSpec
    engine: Engine
    turns: Turns
    journal: Journal
    writer: Executor
    """The journal's one writing thread."""
    made: Remembered
    """Sessions that began with this process: nothing was evaluated for them before it."""

    def place_headers(self) -> tuple[tuple[str, str], ...]:
        return (("x-homeport-machine", self.machine), ("x-homeport-replica", self.replica))


async def chat(desk: Desk, ask: Ask, receive: Receive, send: Send) -> None:
    """Answer one request. Raises Problem as long as no head is out, and ClientGone while the body is read."""
    body = await read_body(receive)
    if len(body) <= INLINE_BODY_BYTES:
        request, prompt = _take_in(desk, body)
    else:
        request, prompt = await asyncio.to_thread(_take_in, desk, body)
    pinned = _check_pin(desk, ask)
    # No await between the check and the asking: the place that was free is still free.
    lease = desk.turns.ask(ask.session, ask.request_id)
    watch = asyncio.create_task(until_gone(receive, lambda: desk.turns.left(lease)))
    answer = (_Stream if request.stream else _Whole)(desk, ask, request, prompt, lease, send, pinned)
    try:
        await answer.run()
    finally:
        watch.cancel()
        desk.turns.release(lease)


def _take_in(desk: Desk, body: bytes) -> tuple[ChatRequest, tuple[int, ...]]:
    """What is asked, and its prompt. Any thread. Raises Problem."""
    request = _read(desk, body)
    _check_tokens(request, desk.engine.facts.vocabulary)
    return request, _prompt(desk, request)


def _read(desk: Desk, body: bytes) -> ChatRequest:
    if not body.strip():
        raise Problem(400, "the body is empty; send a JSON object with model and messages", "empty_body")
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Problem(400, f"the body cannot be read as JSON: {error}", "invalid_json") from None
    try:
        request = read_chat_request(decoded, default_sampling(dict(desk.model.options)))
    except BadRequest as bad:
        raise Problem(400, bad.message, bad.code, bad.param) from None
    if request.model != desk.model.name:
        message = f"this replica serves the model '{desk.model.name}'; ask the router for others"
        raise Problem(404, message, "model_not_found", "model")
    return request


def _check_tokens(request: ChatRequest, vocabulary: int) -> None:
    unknown = [token for token, _ in request.sampling.logit_bias if token >= vocabulary]
    if unknown:
        message = f"'logit_bias' names the token {unknown[0]}; this model's tokens are 0 to {vocabulary - 1}"
        raise Problem(400, message, "invalid_value", "logit_bias")


def _prompt(desk: Desk, request: ChatRequest) -> tuple[int, ...]:
    context = desk.engine.facts.context
    try:
        prompt = desk.engine.prompt(request.messages)
    except PromptTooLong as error:
        raise _too_long(f"at least {error.at_least}", context) from None
    except PromptError as error:
        raise Problem(400, str(error), "invalid_prompt", error.param) from None
    if len(prompt) >= context:
        raise _too_long(str(len(prompt)), context)
    return prompt


def _too_long(tokens: str, context: int) -> Problem:
    message = (
        f"the messages are {tokens} tokens long, and this model's context holds {context}, "
        "the answer included; shorten the conversation"
    )
    return Problem(400, message, "context_length_exceeded", "messages")


def _check_pin(desk: Desk, ask: Ask) -> bool:
    """Whether the journal has the pin already. 421 when the router's picture of this session or of this replica's
    places is old."""
    known = desk.journal.get(ask.session, desk.model.name) if ask.session is not None else None
    if known is not None and known.generation > ask.generation:
        message = f"this session's pin has generation {known.generation}, not {ask.generation}"
        raise misdirected(message, "generation", known)
    claims = known is None and ask.claim_free and ask.pin == "new"
    if claims and free_places(desk.turns.state) == 0 and not _is_here(desk.turns.state, ask.session):
        raise misdirected(f"no place is free in {desk.replica} any more", "taken", None)
    return known is not None and known.generation >= ask.generation


def _is_here(state: Admission, session: str | None) -> bool:
    """Whether an earlier turn of the session has a place or waits for one; its pin may not be written yet."""
    if session is None:
        return False
    return place_of(state, session) is not None or any(turn.session == session for turn in state.line)


class _Answer:
    """One turn from its lease to its end, however the bytes are written."""

    def __init__(
        self,
        desk: Desk,
        ask: Ask,
        request: ChatRequest,
        prompt: tuple[int, ...],
        lease: Lease,
        send: Send,
        pinned: bool,
    ) -> None:
        self.desk = desk
        self.ask = ask
        self.request = request
        self.prompt = prompt
        self.lease = lease
        self.send = send
        self.id = "chatcmpl-" + uuid.uuid4().hex
        self.created = int(time.time())
        self.pin: str | None = "none" if ask.session is None else "kept" if pinned else None
        """The pin's outcome; None until the journal has it."""
        self.began: Began | None = None

    async def run(self) -> None:
        """Until the turn's end, the client's leaving or a refusal. Raises Problem as long as no head is out."""
        try:
            await self.until_over()
        except Problem as problem:
            await self.fail(problem)
        except Exception as error:  # noqa: BLE001  (logged without its words)
            report(error)
            await self.fail(internal_problem())

    async def fail(self, problem: Problem) -> None:
        """Tell the client how the turn ended, and the router what became of the pin."""
        problem.headers = (*problem.headers, *self.standing())
        raise problem

    async def until_over(self) -> None:
        while True:
            for happening in await self.happened():
                if await self.over(happening):
                    return
            await self.flush()

    async def over(self, happening: Happening) -> bool:
        """Take in what happened; whether the answer is over with it. Raises Problem when it ends badly."""
        match happening:
            case Granted():
                await self.ensure_pin()
                asked = self.request
                self.desk.turns.begin(self.lease, self.prompt, asked.max_tokens, asked.sampling, asked.stop)
            case Began():
                self.began = happening
            case Prefilled():
                pass
            case Text(_, text, _):
                self.text(text)
            case Ended(_, "cancelled", _):
                message = "the host ended this turn; try again"
                raise Problem(503, message, "cancelled", headers=(("retry-after", "1"),))
            case Ended(_, reason, usage):
                self.touch()
                await self.end(reason, usage)
                return True
            case Broke(_, message):
                raise Problem(500, f"the engine failed this turn: {message}", "engine_failed")
            case Refused(code):
                raise self.refusal(code)
            case Gone():
                return True
            case _:
                assert_never(happening)
        return False

    async def happened(self) -> list[Happening]:
        return await self.lease.next()

    def text(self, text: str) -> None:
        raise NotImplementedError

    async def flush(self) -> None:
        """Send what `text` has gathered."""

    async def end(self, reason: str, usage: Usage) -> None:
        raise NotImplementedError

    async def ensure_pin(self) -> None:
        """Have the session's pin on disk before the response head. Raises Problem if that cannot be."""
        session = self.ask.session
        if session is None or self.pin is not None:
            return
        desk = self.desk
        try:
            known = desk.journal.get(session, desk.model.name)
            if known is not None and known.generation >= self.ask.generation:
                self.pin = "kept"
                return
            pin = Pin(session, desk.model.name, desk.replica, self.ask.generation, time.time())
            loop = asyncio.get_running_loop()
            winner = await loop.run_in_executor(desk.writer, desk.journal.insert, pin)
        except JournalFull as error:
            raise Problem(507, str(error), "state_folder_full") from None
        except sqlite3.Error as error:
            raise Problem(
                500, f"the pin could not be written to the journal: {error}", "journal_failed"
            ) from None
        made = known is None and winner is pin
        self.pin = "new" if made and self.ask.pin == "new" else "kept"
        # A first home that only the router knew of: its first turn never came here.
        if made and (self.ask.pin == "new" or pin.generation == 1):
            desk.made.add(session)

    def touch(self) -> None:
        if self.ask.session is not None:
            desk = self.desk
            # Nobody waits for it: a pin that looks unused for a turn longer does no harm.
            desk.writer.submit(desk.journal.touch, self.ask.session, desk.model.name, time.time())

    def outcome(self, usage: Usage) -> Outcome:
        desk = self.desk
        return Outcome(
            desk.machine,
            desk.replica,
            self.pin or "none",
            _context(self.began),
            usage.reused,
            usage.evaluated,
            self.cause(),
        )

    def cause(self) -> str | None:
        """Why context was evaluated anew; None when all that was held was used again."""
        session, granted, began = self.ask.session, self.lease.granted, self.began
        if session is None:
            return "new"
        if granted is not None and granted.resident and began is not None and began.held > 0:
            # An engine evaluates at least the prompt's last token, held or not.
            whole = began.reused == began.held or began.reused == began.held - 1 == len(self.prompt) - 1
            return None if whole else f"edited@{began.reused}"
        if self.lease.warm:
            return "evicted"
        return "new" if session in self.desk.made else "engine_changed"

    def headers(self) -> list[tuple[str, str]]:
        """What is known of the outcome by now, in an answer's head; `ensure_pin` comes before it."""
        headers = [*self.desk.place_headers(), *self.standing()]
        if self.began is not None:
            headers.append(("x-homeport-context", _context(self.began)))
        return headers

    def standing(self) -> list[tuple[str, str]]:
        """The pin once the journal has it, and the wait once it is over: good for answers and refusals."""
        standing = [("x-homeport-pin", self.pin)] if self.pin is not None else []
        if self.lease.waited_s is not None:
            standing.append(("x-homeport-waited-ms", str(round(self.lease.waited_s * 1000))))
        return standing

    def refusal(self, code: str) -> Problem:
        if code == "host_stopping":
            message = f"{self.desk.replica} is stopping; its sessions wait for it, try again"
            return Problem(503, message, code, headers=(("retry-after", "5"),))
        model, now = self.desk.model, self.desk.turns.now()
        quiet = [p.since_s + model.hold_s - now for p in self.desk.turns.state.places if p.state == "quiet"]
        wait_s = max(1, math.ceil(min(quiet, default=model.hold_s)))
        message = (
            f"{self.desk.replica} on machine {self.desk.machine} is busy with another session; waited "
            f"{model.queue_s:g} s for it. Try again in about {wait_s} s, "
            f"or serve more replicas of '{model.name}'"
        )
        return Problem(429, message, code, headers=(("retry-after", str(wait_s)),))


class _Whole(_Answer):
    """The answer in one piece, at the end of the turn."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.parts: list[str] = []

    def text(self, text: str) -> None:
        self.parts.append(text)

    async def end(self, reason: str, usage: Usage) -> None:
        body = openai_wire.completion(
            self.id,
            self.created,
            self.request.model,
            "".join(self.parts),
            reason,
            usage,
            self.outcome(usage),
        )
        await send_whole(self.send, 200, body, self.headers())


class _Stream(_Answer):
    """Server-sent events: the head with the first text or after HEAD_S, then comments until there is text."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.writer = openai_wire.ChunkWriter(
            self.id, self.created, self.request.model, self.request.include_usage
        )
        self.loop = asyncio.get_running_loop()
        self.sign_due: float | None = self.loop.time() + HEAD_S
        """When the waiting client is to see a sign of life; None once there is text."""
        self.head_out = False
        self.pending: list[bytes] = []

    async def until_over(self) -> None:
        await super().until_over()
        if self.head_out:
            await send_part(self.send, b"", more=False)

    async def fail(self, problem: Problem) -> None:
        if not self.head_out:
            await super().fail(problem)
        event = openai_wire.error_event(problem.status, problem.message, problem.code)
        await send_part(self.send, event, more=False)

    async def happened(self) -> list[Happening]:
        happened = await self.lease.next(self.sign_due)
        if not happened:
            await self.ensure_pin()
            await self.head()
            word = "waiting" if self.lease.granted is None else "evaluating"
            await send_part(self.send, openai_wire.comment(word), more=True)
            self.sign_due = self.loop.time() + COMMENT_S
        return happened

    def text(self, text: str) -> None:
        if self.sign_due is not None:
            self.sign_due = None
            self.pending.append(self.writer.role())
        self.pending.append(self.writer.text(text))

    async def flush(self) -> None:
        if self.pending:
            await self.head()
            data, self.pending = b"".join(self.pending), []
            await send_part(self.send, data, more=True)

    async def end(self, reason: str, usage: Usage) -> None:
        if self.sign_due is not None:
            self.sign_due = None
            self.pending.append(self.writer.role())
        self.pending.append(self.writer.end(reason, usage, self.outcome(usage)))
        await self.flush()

    async def head(self) -> None:
        if not self.head_out:
            self.head_out = True
            headers = [("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache")]
            await send_head(self.send, 200, [*headers, ("x-accel-buffering", "no"), *self.headers()])


def _context(began: Began | None) -> str:
    return "resident" if began is not None and began.reused > 0 else "evaluated"
