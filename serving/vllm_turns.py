"""Turns that run in vLLM, on one event loop: asked for, streamed, ended each in exactly one Ended or Broke.

Says what sequences hold as far as vLLM's prefix cache may have it. Starts, watches and ends no process (vllm_engine.py
does), and knows neither flags nor templates.
"""

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from serving.engine import (
    Began,
    Broke,
    ChoiceEnded,
    Emit,
    Ended,
    Event,
    Finish,
    Sampled,
    SavedState,
    Text,
    Turn,
    Usage,
)
from serving.trouble import trace_of
from serving.vllm_options import VllmOptions
from serving.vllm_wire import (
    FINISHED,
    Chunk,
    Split,
    chunks,
    found,
    is_clients,
    request,
    sampled,
    unfit,
    words,
)

logger = logging.getLogger(__name__)

JSON = {"content-type": "application/json"}
NOT_LOADED = "the engine is not loaded"
BROKE_OFF = "vLLM's answer broke off"


@dataclass(slots=True)
class Held:
    """What a sequence holds, as far as the host is concerned."""

    tokens: tuple[int, ...] = ()
    salt: str | None = None
    """Its own, where sessions share nothing."""


class Counts:
    """Over all of an engine's life. Never fall."""

    def __init__(self) -> None:
        self.generated = 0
        self.evaluated = 0


@dataclass(frozen=True, slots=True)
class Ways:
    """What turns need to know of the model and the config."""

    context: int
    ends: Sequence[int]
    piece: Callable[[int], bytes]
    options: VllmOptions
    secret: bytes
    """Of which the salts of API keys are made."""


@dataclass(slots=True)
class _Run:
    turn: Turn
    task: "asyncio.Task[None] | None" = None
    made: list[int] = field(default_factory=list)
    """Choice 0's tokens."""
    generated: int = 0
    finished: dict[int, Finish] = field(default_factory=dict)


class VllmTurns:
    """Of one life of vLLM. Everything is called on its loop."""

    def __init__(
        self, session: aiohttp.ClientSession, ways: Ways, held: Sequence[Held], counts: Counts, emit: Emit
    ) -> None:
        self._session = session
        self._ways = ways
        self._held = held
        self._counts = counts
        self._emit = emit
        self._runs: dict[int, _Run] = {}
        self._over: str | None = None
        """Why no turn is taken any more."""
        self.moved_s = time.monotonic()
        """When a token came last, or a turn began while none ran."""

    @property
    def running(self) -> bool:
        return bool(self._runs)

    def begin(self, turn: Turn) -> None:
        if self._over is not None:
            self._emit([Broke(turn.id, self._over)])
            return
        held = self._held[turn.sequence]
        reason = unfit(turn, self._ways.context)
        if reason is not None:
            held.tokens, held.salt = (), None
            self._emit([Broke(turn.id, reason, asked=True)])
            return
        if turn.state is not None:
            held.tokens, held.salt = turn.state.tokens, turn.state.data.decode() or None
        if not self._runs:
            self.moved_s = time.monotonic()
        run = self._runs[turn.id] = _Run(turn)
        run.task = asyncio.get_running_loop().create_task(self._turn(run))
        # A task that is cancelled before its first step never runs.
        run.task.add_done_callback(lambda task: self._over_without_end(run, task))

    def cancel(self, turn: int) -> None:
        run = self._runs.get(turn)
        if run is not None and run.task is not None:
            run.task.cancel()

    def saved(self, sequence: int) -> SavedState | None:
        """vLLM keeps what it has of a context until it needs the blocks: its tokens and their salt are all it takes to
        find it again."""
        held = self._held[sequence]
        return SavedState(held.tokens, (held.salt or "").encode()) if held.tokens else None

    def erase(self, sequence: int) -> None:
        held = self._held[sequence]
        held.tokens, held.salt = (), None

    def break_all(self, reason: str) -> None:
        """Every turn ends so, those to come too."""
        self._over = reason
        for run in list(self._runs.values()):
            self._break(run, Broke(run.turn.id, reason))
            if run.task is not None:
                run.task.cancel()

    async def stop(self) -> None:
        """Every turn ends as cancelled, and no other is taken."""
        self._over = self._over or NOT_LOADED
        tasks = [run.task for run in self._runs.values() if run.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # what is to be done once they are over

    async def _turn(self, run: _Run) -> None:
        turn = run.turn
        try:
            ended = await self._ask(run)
        except (OSError, aiohttp.ClientError, msgspec.MsgspecError, ValueError) as error:
            ended = Broke(turn.id, f"vLLM cannot be asked ({type(error).__name__})")
        if isinstance(ended, Broke):
            self._break(run, ended)
        else:
            self._end(run, run.finished.get(0, "stop"), ended)

    async def _ask(self, run: _Run) -> Usage | Broke:
        """What it used, or how it broke."""
        turn, ways = run.turn, self._ways
        body = msgspec.json.encode(request(turn, ways.context, ways.ends, self._salt(turn)))
        ended: Usage | Broke = Broke(turn.id, BROKE_OFF)
        async with self._session.post("/v1/completions", data=body, headers=JSON) as answer:
            if answer.status != 200:
                return Broke(turn.id, words(_error(await answer.read())), asked=is_clients(answer.status))
            split = Split()
            async for data in answer.content.iter_any():
                for event in split.push(data):
                    if event == b"[DONE]":
                        continue
                    chunk = chunks.decode(event)
                    if chunk.error is not None:
                        return Broke(turn.id, words(chunk.error))
                    if chunk.usage is not None:
                        ended = _usage(chunk, run.generated)
                    else:
                        self._take(run, chunk)
        return ended

    def _salt(self, turn: Turn) -> str:
        """Context is shared within an API key, or by nobody but the session itself."""
        held = self._held[turn.sequence]
        if self._ways.options.share_prefix == "key" and turn.scope is not None:
            return hmac.new(self._ways.secret, turn.scope.encode(), hashlib.sha256).hexdigest()
        if held.salt is None:
            held.salt = secrets.token_hex(32)
        return held.salt

    def _take(self, run: _Run, chunk: Chunk) -> None:
        self.moved_s = time.monotonic()
        turn, events = run.turn, list[Event]()
        for choice in chunk.choices:
            tokens = choice.token_ids or []
            run.generated += len(tokens)
            self._counts.generated += len(tokens)
            if choice.index == 0:
                run.made += tokens
            told: tuple[Sampled, ...] = ()
            if turn.logprobs is not None and choice.logprobs is not None:
                told = sampled(choice.logprobs, turn.logprobs, self._ways.piece)
            if choice.text or tokens:
                events.append(Text(turn.id, choice.text, len(tokens), choice.index, told))
            if choice.finish_reason is not None:
                run.finished[choice.index] = FINISHED.get(choice.finish_reason, "stop")
                stop = choice.stop_reason if isinstance(choice.stop_reason, str) else None
                events.append(ChoiceEnded(turn.id, choice.index, run.finished[choice.index], stop))
        self._emit(events)

    def _over_without_end(self, run: _Run, task: "asyncio.Task[None]") -> None:
        """Where its task has not ended the turn, it was cancelled, or there is a fault in what is written here."""
        if run.turn.id not in self._runs:
            return
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a turn failed:\n%s", trace_of(error))
            self._break(run, Broke(run.turn.id, "the engine failed at this answer; its log says where"))
            return
        # Only at its end vLLM says how much it used again: so all of it counts as evaluated.
        prompt = len(run.turn.prompt)
        self._end(run, "cancelled", Usage(prompt, 0, prompt if run.generated else 0, run.generated))

    def _end(self, run: _Run, reason: Finish, usage: Usage) -> None:
        turn, held = run.turn, self._held[run.turn.sequence]
        del self._runs[turn.id]
        events: list[Event] = []
        if usage.evaluated + usage.generated > 0:
            self._counts.evaluated += usage.evaluated
            kept = () if reason == "cancelled" else held.tokens
            there = found(kept, turn.prompt, usage.reused, self._ways.options.block_size)
            restored = True if there.whole and turn.state is not None else None
            events.append(Began(turn.id, there.held, usage.reused, there.shared, restored))
            held.tokens = (*turn.prompt, *run.made)
        self._emit([*events, Ended(turn.id, reason, usage)])

    def _break(self, run: _Run, broke: Broke) -> None:
        if self._runs.pop(run.turn.id, None) is not None:
            self.erase(run.turn.sequence)
            self._emit([broke])


def _usage(chunk: Chunk, generated: int) -> Usage:
    used = chunk.usage
    assert used is not None
    details = used.prompt_tokens_details
    cached = 0 if details is None else details.cached_tokens or 0
    return Usage(used.prompt_tokens, cached, used.prompt_tokens - cached, generated)


def _error(body: bytes) -> dict[str, Any]:
    try:
        told = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        return {}
    error = told.get("error", told) if isinstance(told, dict) else {}
    return error if isinstance(error, dict) else {"message": error}
