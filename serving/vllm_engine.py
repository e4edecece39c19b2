"""The vLLM engine: a child process with an interpreter of its own, asked over a Unix socket.

Turns go to it as token ids (vllm_turns.py); which of them run and on whose place is the host's matter, as with any
engine. The child itself is vllm_child.py's; that it lives and moves is watched here.
"""

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from cluster.slices import Slice
from serving.chat_format import ChatFormat
from serving.constraint import checked
from serving.engine import (
    Broke,
    Embed,
    Emit,
    LoadError,
    MemoryUse,
    ModelFacts,
    PromptError,
    SavedState,
    Turn,
)
from serving.hf_folder import lacking
from serving.hf_model import HfModel
from serving.host_memory import used_bytes
from serving.prefixes import spelled_as
from serving.vllm_child import VllmChild
from serving.vllm_command import NoRoom
from serving.vllm_options import VllmOptions
from serving.vllm_turns import NOT_LOADED, Counts, Held, VllmTurns, Ways

STALL_S = 60.0
"""A turn is held, and in so long no token came and no prompt went on: vLLM hangs. Its /health says nothing of that."""
LOOK_S = 5.0
MOVES = (b"vllm:iteration_tokens_total_sum", b"vllm:kv_cache_usage_perc")
"""What changes while a prompt goes on: the first with a prompt's last chunk, the second with each."""
TOLD_S = 1.0


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
        self._held = [Held() for _ in range(sequences)]
        self._counts = Counts()
        self._secret = secrets.token_bytes(32)
        self._life = secrets.token_hex(8)
        """What is parked names context in the cache of this one process's vLLM."""
        self._model: HfModel | None = None
        self._facts: ModelFacts | None = None
        self._child: VllmChild | None = None
        self._turns: VllmTurns | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._calling = threading.Lock()
        """Held while something is put on the loop, so that nothing comes after its stop."""
        self._emit: Emit = lambda _: None
        self._failed: str | None = None
        self._closing = threading.Event()

    @property
    def facts(self) -> ModelFacts:
        if self._facts is None:
            raise RuntimeError("the model is not loaded")
        return self._facts

    @property
    def format(self) -> ChatFormat | None:
        return self._read().format

    @property
    def tokens_generated(self) -> int:
        return self._counts.generated

    @property
    def tokens_evaluated(self) -> int:
        return self._counts.evaluated

    def _read(self) -> HfModel:
        if self._model is None:
            raise RuntimeError("the model is not loaded")
        return self._model

    # its life

    def load(self, progress: Callable[[float], None]) -> ModelFacts:
        begun = time.monotonic()
        self._closing.clear()
        self._failed = None
        for held in self._held:
            held.tokens, held.salt = (), None
        model = self._model = self._look()
        try:
            child = self._child = VllmChild.start(
                str(self._python),
                self._folder,
                model,
                self._slice,
                self._context,
                len(self._held),
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
        self._facts = self._described(model, child, time.monotonic() - begun)
        return self._facts

    def _look(self) -> HfModel:
        """Everything but the weights. Raises LoadError for what no vLLM could serve."""
        if not self._python.is_file():
            cpu = "" if self._slice.gpus else " --cpu"
            raise LoadError(
                f"there is no vLLM on this machine ({self._python} is missing). Run `homeport setup-vllm{cpu}` here, "
                "or name the interpreter of an environment that has it in options.python."
            )
        if (lack := lacking(self._folder)) is not None:
            raise LoadError(
                f"the model's folder {self._folder}: {lack}. Run `homeport setup-vllm` here if it is the bundled "
                "model, else fetch it again."
            )
        template = self._options.chat_template
        model = HfModel(self._folder, self._options.dtype, None if template is None else Path(template))
        if self._context > model.config.context:
            raise LoadError(
                f"{self._folder.name} was trained for {model.config.context} tokens, and context is {self._context}. "
                "Set a smaller context."
            )
        return model

    def _described(self, model: HfModel, child: VllmChild, load_s: float) -> ModelFacts:
        config, kv = model.config, child.kv_cache_bytes or 0
        taken = sum(used_bytes(process) for process in child.processes())
        build = f"vLLM {child.version()}"
        return ModelFacts(
            context=self._context,
            sequences=len(self._held),
            description=f"{config.architecture} {self._folder.name}, {build}",
            kv_bytes_per_token=config.kv_bytes_per_token,
            load_s=load_s,
            template=model.format is not None,
            vocabulary=model.size,
            layout=f"{build} {self._life}",
            prompt_chunk=self._options.batch or 0,
            memory=MemoryUse(config.weight_bytes, kv, max(0, taken - config.weight_bytes - kv)),
        )

    def start(self, emit: Emit) -> None:
        self._emit = emit
        child, started = self._child, threading.Event()
        assert child is not None
        self._thread = threading.Thread(target=self._run, args=(child, started), name="vllm", daemon=True)
        self._thread.start()
        started.wait()
        threading.Thread(target=self._wait, args=(child,), name="vllm-end", daemon=True).start()

    def close(self) -> None:
        self._closing.set()
        with self._calling:
            loop, self._loop = self._loop, None
            if loop is not None:
                loop.call_soon_threadsafe(self._stopped.set)
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        if self._child is not None:
            self._child.end()

    def _run(self, child: VllmChild, started: threading.Event) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve(child, started))
        finally:
            started.set()

    async def _serve(self, child: VllmChild, started: threading.Event) -> None:
        model = self._read()
        ways = Ways(self._context, model.ends, model.piece, self._options, self._secret)
        self._stopped = asyncio.Event()
        async with aiohttp.ClientSession(
            "http://vllm",
            connector=aiohttp.UnixConnector(child.place.socket, limit=0),
            headers={"authorization": f"Bearer {child.place.api_key}"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),
        ) as session:
            turns = self._turns = VllmTurns(session, ways, self._held, self._counts, self._emit)
            self._loop = asyncio.get_running_loop()
            started.set()
            watching = asyncio.create_task(self._watch(child, session, turns))
            await self._stopped.wait()
            watching.cancel()
            await turns.stop()

    def _wait(self, child: VllmChild) -> None:
        """Until vLLM ends by itself."""
        code = child.wait()
        if child is self._child and not self._closing.is_set():
            self._give_up(child, f"vLLM ended (exit code {code}): {child.last_words()}")

    async def _watch(self, child: VllmChild, session: aiohttp.ClientSession, turns: VllmTurns) -> None:
        """Until vLLM hangs."""
        moved = b""
        while True:
            await asyncio.sleep(LOOK_S)
            if not turns.running or time.monotonic() - turns.moved_s < LOOK_S:
                continue
            now = await _moves(session)
            if now not in (b"", moved):
                moved, turns.moved_s = now, time.monotonic()
            elif time.monotonic() - turns.moved_s > STALL_S:
                why = f"vLLM hangs: a turn is held, and for {STALL_S:g} s neither a token came nor a prompt went on"
                threading.Thread(
                    target=self._give_up, args=(child, why), name="vllm-hangs", daemon=True
                ).start()
                return

    def _give_up(self, child: VllmChild, reason: str) -> None:
        """What hangs in a driver may not end at all: nobody waits for that."""
        if self._failed is not None or self._closing.is_set():
            return
        self._failed = reason
        turns, told = self._turns, threading.Event()

        def tell() -> None:
            assert turns is not None
            turns.break_all(reason)
            told.set()

        if self._call(tell):
            told.wait(TOLD_S)
        threading.Thread(target=child.end, name="vllm-ends", daemon=True).start()
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

    def spelled_as(self, held: Sequence[int], prompt: Sequence[int]) -> tuple[int, ...]:
        model = self._read()
        spell = partial(model.tokenize, context=self._context, begin=False, special=False)
        return spelled_as(held, prompt, model.plain, spell)

    def constraint(self, grammar: str) -> str:
        """vLLM compiles it itself, with the same library."""
        return checked(grammar)

    # turns

    def begin(self, turn: Turn) -> None:
        if not self._call(lambda: self._running.begin(turn)):
            self._emit([Broke(turn.id, self._failed or NOT_LOADED)])

    def embed(self, embed: Embed) -> None:
        self._emit([Broke(embed.id, "this model makes no embeddings", asked=True)])

    def cancel(self, turn: int) -> None:
        self._call(lambda: self._running.cancel(turn))

    def save(self, sequence: int) -> "Future[SavedState | None]":
        future: Future[SavedState | None] = Future()
        if not self._call(lambda: future.set_result(self._running.saved(sequence))):
            future.set_result(None)
        return future

    def erase(self, sequence: int) -> None:
        self._call(lambda: self._running.erase(sequence))

    def held(self, sequence: int) -> int:
        return len(self._held[sequence].tokens)

    def tokens(self, sequence: int) -> tuple[int, ...]:
        return self._held[sequence].tokens

    @property
    def _running(self) -> VllmTurns:
        assert self._turns is not None
        return self._turns

    def _call(self, function: Callable[[], None]) -> bool:
        """Have it done on the loop, before its stop. False: there is none."""
        with self._calling:
            if self._loop is None:
                return False
            self._loop.call_soon_threadsafe(function)
            return True


async def _moves(session: aiohttp.ClientSession) -> bytes:
    """What changes while vLLM works; empty where it does not say."""
    try:
        async with asyncio.timeout(LOOK_S), session.get("/metrics") as answer:
            lines = (await answer.read()).splitlines()
    except (OSError, TimeoutError, aiohttp.ClientError):
        return b""
    return b"".join(line for line in lines if line.startswith(MOVES))
