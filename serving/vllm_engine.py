"""The vLLM engine: a child process with an interpreter of its own, asked over a Unix socket.

Turns go to it as token ids (vllm_wire.py); which of them run and on whose place is the host's matter, as with any
engine. What a sequence holds is what vLLM's prefix cache may have of it: how much of that was really used again only
vLLM knows, and it says so at a turn's end. The child itself is vllm_child.py's.
"""

import asyncio
import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import uvloop

from cluster.slices import Slice
from serving.chat_format import ChatFormat
from serving.engine import (
    Began,
    Broke,
    ChoiceEnded,
    Embed,
    Emit,
    Ended,
    Event,
    Finish,
    LoadError,
    MemoryUse,
    ModelFacts,
    PromptError,
    Sampled,
    SavedState,
    Text,
    Turn,
    Usage,
)
from serving.hf_model import HfModel
from serving.host_memory import used_bytes
from serving.vllm_child import VllmChild
from serving.vllm_command import NoRoom
from serving.vllm_options import VllmOptions
from serving.vllm_wire import FINISHED, Chunk, Split, chunks, held, is_ours, request, sampled, unfit, words

STALL_S = 60.0
"""A turn is held, and in so long no token came and no prompt went on: vLLM hangs. Its /health says nothing of that."""
LOOK_S = 5.0
STEPPED = b"vllm:iteration_tokens_total_sum"
"""Counts the tokens of all steps, prompts' chunks too."""
GIVEN_UP = "vLLM hangs: a turn is held, and for 60 s neither a token came nor a prompt went on"


@dataclass(slots=True)
class _Sequence:
    """What a sequence holds, as far as the host is concerned."""

    tokens: tuple[int, ...] = ()
    salt: str | None = None
    """Its own, where sessions share nothing."""


@dataclass(slots=True)
class _Run:
    """A turn that runs."""

    turn: Turn
    task: "asyncio.Task[None] | None" = None
    made: list[int] = field(default_factory=list)
    """Choice 0's tokens."""
    generated: int = 0
    finished: dict[int, Finish] = field(default_factory=dict)


class VllmEngine:
    """One model's folder in one vLLM, as `Engine` says. Makes no embeddings.

    `on_death` is called, on a thread of its own, when vLLM ended or hangs: every turn has ended by then, and no other
    will be answered.
    """

    def __init__(
        self,
        python: Path,
        folder: Path,
        context: int,
        sequences: int,
        carved: Slice,
        *,
        options: VllmOptions,
        log: Path,
        on_death: Callable[[str], None],
    ) -> None:
        self._python = python
        self._folder = folder
        self._context = context
        self._slice = carved
        self._options = options
        self._log = log
        self._on_death = on_death
        self._sequences = [_Sequence() for _ in range(sequences)]
        self._runs: dict[int, _Run] = {}
        self._secret = secrets.token_bytes(32)
        self._model: HfModel | None = None
        self._facts: ModelFacts | None = None
        self._child: VllmChild | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._emit: Emit = lambda _: None
        self._failed: str | None = None
        self._closing = threading.Event()
        self._moved_s = 0.0
        """When a token came last, or a prompt went on."""
        self.tokens_generated = 0
        self.tokens_evaluated = 0

    @property
    def facts(self) -> ModelFacts:
        if self._facts is None:
            raise RuntimeError("the model is not loaded")
        return self._facts

    @property
    def format(self) -> ChatFormat | None:
        return self._read().format

    def _read(self) -> HfModel:
        if self._model is None:
            raise RuntimeError("the model is not loaded")
        return self._model

    # its life

    def load(self, progress: Callable[[float], None]) -> ModelFacts:
        begun = time.monotonic()
        self._closing.clear()
        self._failed = None
        if not self._python.is_file():
            raise LoadError(
                f"there is no vLLM on this machine ({self._python} is missing). Run `homeport setup-vllm` here, or "
                "name the interpreter of an environment that has it in options.python."
            )
        template = self._options.chat_template
        model = self._model = HfModel(
            self._folder, self._options.dtype, None if template is None else Path(template)
        )
        if self._context > model.config.context:
            raise LoadError(
                f"{self._folder.name} was trained for {model.config.context} tokens, and context is {self._context}. "
                "Set a smaller context."
            )
        try:
            child = self._child = VllmChild.start(
                str(self._python),
                self._folder,
                model,
                self._slice,
                self._context,
                len(self._sequences),
                self._options,
                self._log,
            )
        except NoRoom as refused:
            raise LoadError(f"{refused}.") from None
        except OSError as error:
            raise LoadError(f"vLLM cannot be started: {error}.") from error
        try:
            child.until_ready(progress, self._closing.is_set)
        except BaseException:
            child.end()
            raise
        for sequence in self._sequences:
            sequence.tokens, sequence.salt = (), None
        self._facts = self._described(model, child, time.monotonic() - begun)
        return self._facts

    def _described(self, model: HfModel, child: VllmChild, load_s: float) -> ModelFacts:
        config, kv = model.config, child.kv_cache_bytes or 0
        taken = sum(used_bytes(process) for process in child.processes())
        build = f"vLLM {child.version()}"
        return ModelFacts(
            context=self._context,
            sequences=len(self._sequences),
            description=f"{config.architecture} {self._folder.name}, {build}",
            kv_bytes_per_token=config.kv_bytes_per_token,
            load_s=load_s,
            template=model.format is not None,
            vocabulary=model.size,
            # What is parked names context in the cache of this one life.
            layout=f"{build} {secrets.token_hex(8)}",
            prompt_chunk=self._options.batch or 0,
            memory=MemoryUse(config.weight_bytes, kv, max(0, taken - config.weight_bytes - kv)),
        )

    def start(self, emit: Emit) -> None:
        self._emit = emit
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="vllm", daemon=True)
        self._thread.start()
        started.wait()
        threading.Thread(target=self._wait, args=(self._child,), name="vllm-end", daemon=True).start()

    def close(self) -> None:
        self._closing.set()
        loop, thread = self._loop, self._thread
        if loop is not None and thread is not None and thread.is_alive():
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._stop)
            thread.join()
        self._loop = self._thread = None
        if self._child is not None:
            self._child.end()

    def _run(self, started: threading.Event) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self._stopped = asyncio.Event()
            child = self._child
            assert child is not None
            headers = {"authorization": f"Bearer {child.place.api_key}"}
            connector = aiohttp.UnixConnector(child.place.socket, limit=0)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0)
            async with aiohttp.ClientSession(
                "http://vllm", connector=connector, headers=headers, timeout=timeout
            ) as session:
                self._session = session
                started.set()
                watching = asyncio.create_task(self._watch())
                await self._stopped.wait()
                watching.cancel()
                tasks = [run.task for run in self._runs.values() if run.task is not None]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(watching, *tasks, return_exceptions=True)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())

    def _stop(self) -> None:
        self._stopped.set()

    def _wait(self, child: VllmChild | None) -> None:
        """Until vLLM ends by itself."""
        assert child is not None
        code = child.wait()
        if not self._closing.is_set():
            self._give_up(f"vLLM ended (exit code {code}): {child.last_words()}")

    async def _watch(self) -> None:
        """Until vLLM hangs."""
        counted = b""
        while True:
            await asyncio.sleep(LOOK_S)
            if not self._runs:
                self._moved_s = time.monotonic()
                continue
            if time.monotonic() - self._moved_s < LOOK_S:
                continue
            now = await self._steps()
            if now is not None and now != counted:
                counted, self._moved_s = now, time.monotonic()
            elif time.monotonic() - self._moved_s > STALL_S:
                threading.Thread(target=self._give_up, args=(GIVEN_UP,), name="vllm-hangs").start()
                return

    async def _steps(self) -> bytes | None:
        try:
            async with asyncio.timeout(LOOK_S), self._session.get("/metrics") as answer:
                lines = (await answer.read()).splitlines()
        except (OSError, TimeoutError, aiohttp.ClientError):
            return None
        return b"".join(line for line in lines if line.startswith(STEPPED))

    def _give_up(self, reason: str) -> None:
        if self._failed is not None or self._closing.is_set():
            return
        self._failed = reason
        assert self._child is not None
        self._child.end()  # every turn's connection breaks with it
        deadline = time.monotonic() + 1.0
        while self._runs and time.monotonic() < deadline:
            time.sleep(0.01)
        self._on_death(reason)

    # prompts

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> tuple[int, ...]:
        model = self._read()
        if model.format is None:
            raise PromptError(
                f"{self._folder.name} brings no chat template: it is a base model. Use one that is tuned for chat, or "
                "name a template in options.chat_template."
            )
        text = model.format.render(messages, tools, variables)
        return model.tokenize(text, self._context, begin=False, special=True)

    def tokenize(self, text: str, special: bool = False) -> tuple[int, ...]:
        return self._read().tokenize(text, self._context, begin=True, special=special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        return self._read().detokenize(tokens)

    def constraint(self, grammar: str) -> str:
        """vLLM compiles it itself, with the same library."""
        return checked(grammar)

    # turns

    def begin(self, turn: Turn) -> None:
        self._call(self._begin, turn)

    def embed(self, embed: Embed) -> None:
        self._call(self._emit, [Broke(embed.id, "this model makes no embeddings", asked=True)])

    def cancel(self, turn: int) -> None:
        self._call(self._cancel, turn)

    def save(self, sequence: int) -> "Future[SavedState | None]":
        future: Future[SavedState | None] = Future()
        if not self._call(lambda: future.set_result(self._saved(sequence))):
            future.set_result(None)
        return future

    def erase(self, sequence: int) -> None:
        self._call(self._erase, sequence)

    def held(self, sequence: int) -> int:
        return len(self._sequences[sequence].tokens)

    def tokens(self, sequence: int) -> tuple[int, ...]:
        return self._sequences[sequence].tokens

    def _call(self, function: Callable[..., None], *args: object) -> bool:
        if self._loop is None:
            return False
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            return False
        return True

    def _saved(self, number: int) -> SavedState | None:
        """vLLM keeps what it has of a context until it needs the blocks: its tokens and their salt are all it takes to
        find it again."""
        sequence = self._sequences[number]
        if not sequence.tokens:
            return None
        return SavedState(sequence.tokens, (sequence.salt or "").encode())

    def _erase(self, number: int) -> None:
        sequence = self._sequences[number]
        sequence.tokens, sequence.salt = (), None

    def _begin(self, turn: Turn) -> None:
        reason = self._failed or unfit(turn, self._context)
        if reason is not None:
            self._erase(turn.sequence)
            self._emit([Broke(turn.id, reason, asked=self._failed is None)])
            return
        sequence = self._sequences[turn.sequence]
        if turn.state is not None:
            sequence.tokens, sequence.salt = turn.state.tokens, turn.state.data.decode() or None
        run = self._runs[turn.id] = _Run(turn)
        self._moved_s = time.monotonic()
        run.task = asyncio.get_running_loop().create_task(self._turn(run))

    def _cancel(self, turn: int) -> None:
        run = self._runs.get(turn)
        if run is not None and run.task is not None:
            run.task.cancel()

    def _salt(self, turn: Turn) -> str:
        """Context is shared within an API key, or by nobody but the session itself."""
        sequence = self._sequences[turn.sequence]
        if self._options.share_prefix == "key" and turn.scope is not None:
            return hmac.new(self._secret, turn.scope.encode(), hashlib.sha256).hexdigest()
        if sequence.salt is None:
            sequence.salt = secrets.token_hex(32)
        return sequence.salt

    async def _turn(self, run: _Run) -> None:
        """From its request to its last event."""
        turn = run.turn
        used: Usage | None = None
        broke: Broke | None = None
        try:
            body = request(turn, self._context, self._read().ends, self._salt(turn))
            async with self._session.post(
                "/v1/completions", data=msgspec.json.encode(body), headers=JSON
            ) as answer:
                if answer.status != 200:
                    told = _error(await answer.read())
                    broke = Broke(turn.id, words(told), asked=is_ours(answer.status))
                else:
                    split = Split()
                    async for data in answer.content.iter_any():
                        for event in split.push(data):
                            if event == b"[DONE]":
                                continue
                            chunk = chunks.decode(event)
                            if chunk.error is not None:
                                broke = Broke(turn.id, words(chunk.error))
                            elif chunk.usage is not None:
                                used = self._used(run, chunk)
                            else:
                                self._take(run, chunk)
                    if used is None and broke is None:
                        broke = Broke(turn.id, self._failed or "vLLM's answer broke off")
        except asyncio.CancelledError:
            self._end(run, "cancelled", Usage(len(turn.prompt), 0, 0, run.generated))
            return
        except (OSError, aiohttp.ClientError, msgspec.MsgspecError, ValueError) as error:
            broke = Broke(turn.id, self._failed or f"vLLM cannot be asked ({type(error).__name__})")
        if broke is not None or used is None:
            del self._runs[turn.id]
            self._erase(turn.sequence)
            self._emit([broke or Broke(turn.id, "vLLM's answer broke off")])
            return
        self._end(run, run.finished.get(0, "stop"), used)

    def _take(self, run: _Run, chunk: Chunk) -> None:
        self._moved_s = time.monotonic()
        turn, events = run.turn, list[Event]()
        for choice in chunk.choices:
            tokens = choice.token_ids or []
            run.generated += len(tokens)
            self.tokens_generated += len(tokens)
            if choice.index == 0:
                run.made += tokens
            told: tuple[Sampled, ...] = ()
            if turn.logprobs is not None and choice.logprobs is not None:
                told = sampled(choice.logprobs, turn.logprobs, self._read().piece)
            if choice.text or tokens:
                events.append(Text(turn.id, choice.text, len(tokens), choice.index, told))
            if choice.finish_reason is not None:
                run.finished[choice.index] = FINISHED.get(choice.finish_reason, "stop")
                events.append(ChoiceEnded(turn.id, choice.index, run.finished[choice.index]))
        self._emit(events)

    def _used(self, run: _Run, chunk: Chunk) -> Usage:
        used = chunk.usage
        assert used is not None
        details = used.prompt_tokens_details
        cached = 0 if details is None else details.cached_tokens or 0
        return Usage(used.prompt_tokens, cached, used.prompt_tokens - cached, run.generated)

    def _end(self, run: _Run, reason: Finish, usage: Usage) -> None:
        turn = run.turn
        sequence = self._sequences[turn.sequence]
        del self._runs[turn.id]
        events: list[Event] = []
        if usage.reused + usage.evaluated + usage.generated > 0:
            self.tokens_evaluated += usage.evaluated
            restored = None if turn.state is None else usage.reused > 0
            there = held(sequence.tokens, turn.prompt, usage.reused, self._options.block_size)
            events.append(Began(turn.id, there, usage.reused, 0, restored))
            sequence.tokens = (*turn.prompt, *run.made)
        self._emit([*events, Ended(turn.id, reason, usage)])


JSON = {"content-type": "application/json"}


def checked(grammar: str) -> str:
    """The grammar, if the library takes it. Raises PromptError with its words."""
    from serving.constraint import faults

    if (fault := faults(grammar)) is not None:
        raise PromptError(f"this constraint cannot be used: {fault}")
    return grammar


def _error(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        return {}
    error = found.get("error", found) if isinstance(found, dict) else {}
    return error if isinstance(error, dict) else {"message": error}
