"""An engine without a model, for faults that a real one cannot be made to have, and a host around it.

`python -m tests.fakes SPEC.json BEHAVIOUR.json` is serving.host with a FakeEngine.
"""

import ctypes
import importlib.util
import itertools
import json
import math
import os
import queue
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from serving import answers, parked_routes
from serving.chat_format import ChatFormat
from serving.engine import (
    Began,
    Broke,
    ChoiceEnded,
    Embed,
    Embedded,
    Emit,
    Ended,
    Event,
    Finish,
    Likely,
    LoadError,
    MemoryUse,
    ModelFacts,
    Prefilled,
    PromptError,
    PromptTooLong,
    Sampled,
    SavedState,
    Text,
    Turn,
    Usage,
)
from serving.host import end_process, run_host

VOCABULARY = 0x110000
LONGEST_BYTES = 4
EMBEDDING = 4
TEMPLATE = "{% for m in messages %}{{ m.role + ':' + m.content + '\n' }}{% endfor %}assistant:"


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How a FakeEngine behaves. One character is one token, so that held and prompted text compare as they look."""

    context: int = 4000
    sequences: int = 1
    answer: str = "It is so."
    endless: bool = False
    """Say the answer again and again, up to max_tokens or the context's end."""
    step_s: float = 0.0
    breaks_after: int | None = None
    """Each turn breaks once it has made so many tokens."""
    breaks_by_request: bool = False
    """Then for what it asked for, and not because the engine failed."""
    cancels_after: int | None = None
    """Each turn is cancelled by the engine itself once it has made so many tokens."""
    hangs_after: int | None = None
    """The engine's thread never comes back once it has made so many tokens; closing waits for it."""
    aborts_after: int | None = None
    """A real assertion of llama.cpp fails once it has made so many tokens: the process is gone."""
    load_error: str | None = None
    loads_when: str | None = None
    """Loading goes on until this file exists."""
    load_error_again: str | None = None
    """Loading after a close fails with it."""
    loads_again_when: str | None = None
    """Loading after a close goes on until this file exists."""
    template: str = TEMPLATE
    """The chat template of its format, with which prompts are made."""
    layout: str = "fake"
    saves_fail: bool = False
    """A save gives nothing."""
    saves_when: str | None = None
    """The engine's thread stands in a save until this file exists."""
    restores_fail: bool = False
    """No saved state can be loaded."""
    long_prompts_when: str | None = None
    """Prompts of more than 16 KiB are not ready until this file exists."""
    prompts_fail: bool = False
    """Making a prompt raises an error that quotes it."""
    garbles_after: int | None = None
    """From a turn's token of this number on, its text is something that no writer takes, with an error that quotes
    the answer."""
    head_s: float | None = None
    """Not the engine's: its host sends the head of a stream that waits after so long; None: as in life."""
    mover_s: float | None = None
    """Likewise: so long its host waits for the next step of a move."""


class FakeEngine:
    """An Engine on a thread of its own, as the protocol says. No context is shared between sequences, constraints
    are taken and not kept, and every stop string is ignored."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.tokens_generated = 0
        self.tokens_evaluated = 0
        self.loads = 0
        self._format = ChatFormat(behaviour.template, "", "", datetime.now)
        self._held: list[list[int]] = [[] for _ in range(behaviour.sequences)]
        self._running: dict[int, _Running] = {}
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._emit: Emit = lambda events: None

    @property
    def facts(self) -> ModelFacts:
        return ModelFacts(
            self.behaviour.context,
            self.behaviour.sequences,
            "a fake",
            1,
            0.0,
            True,
            vocabulary=VOCABULARY,
            layout=self.behaviour.layout,
            prompt_chunk=64,
            memory=MemoryUse(3, 2, 1),
            embedding=EMBEDDING,
        )

    @property
    def format(self) -> Any:
        return self._format

    def load(self, progress: Callable[[float], None]) -> ModelFacts:
        told = self.behaviour
        again, self.loads = self.loads > 0, self.loads + 1
        progress(0.5)
        _stand(told.loads_again_when if again else told.loads_when)
        error = told.load_error_again if again else told.load_error
        if error is not None:
            raise LoadError(error)
        progress(1.0)
        return self.facts

    def start(self, emit: Emit) -> None:
        self._emit = emit
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> tuple[int, ...]:
        if self.behaviour.prompts_fail:
            raise RuntimeError(f"cannot take {messages}")
        text = self._format.render(messages, tools, variables)
        tokens = self.tokenize(text)
        if len(text) > 16 * 2**10:
            _stand(self.behaviour.long_prompts_when)
        return tokens

    def tokenize(self, text: str, special: bool = False) -> tuple[int, ...]:
        at_least = -(-len(text.encode()) // LONGEST_BYTES)
        if at_least >= self.behaviour.context:
            raise PromptTooLong(at_least)
        return tuple(map(ord, text))

    def detokenize(self, tokens: Sequence[int]) -> str:
        for token in tokens:
            if not 0 <= token < VOCABULARY:
                raise PromptError(f"there is no token {token}", "tokens")
        return "".join(map(chr, tokens))

    def constraint(self, grammar: str) -> Any:
        if "nonsense" in grammar:
            raise PromptError("the grammar makes no sense", "response_format")
        return grammar

    def begin(self, turn: Turn) -> None:
        self._commands.put(lambda: self._begin(turn))

    def embed(self, embed: Embed) -> None:
        self._commands.put(lambda: self._embed(embed))

    def cancel(self, turn: int) -> None:
        self._commands.put(lambda: self._end(turn, "cancelled"))

    def save(self, sequence: int) -> "Future[SavedState | None]":
        future: Future[SavedState | None] = Future()
        if self._thread is None:
            future.set_result(None)
        else:
            self._commands.put(lambda: future.set_result(self._saved(sequence)))
        return future

    def erase(self, sequence: int) -> None:
        def erase() -> None:
            self._check_quiet(sequence)
            self._held[sequence].clear()

        self._commands.put(erase)

    def held(self, sequence: int) -> int:
        return len(self._held[sequence])

    def tokens(self, sequence: int) -> tuple[int, ...]:
        self._check_quiet(sequence)
        return tuple(self._held[sequence])

    def spelled_as(self, held: Sequence[int], prompt: Sequence[int]) -> tuple[int, ...]:
        return tuple(prompt)

    def close(self) -> None:
        self._commands.put(None)
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for turn in list(self._running):
            self._end(turn, "cancelled")
        for held in self._held:
            held.clear()
        self._commands = queue.SimpleQueue()

    def _run(self) -> None:
        while True:
            deadline = time.monotonic() + self.behaviour.step_s
            while True:
                try:
                    left_s = max(0.0, deadline - time.monotonic()) if self._running else None
                    command = self._commands.get(timeout=left_s)
                except queue.Empty:
                    break
                if command is None:
                    return
                command()
            for running in list(self._running.values()):
                self._step(running)

    def _check_quiet(self, sequence: int) -> None:
        assert all(running.turn.sequence != sequence for running in self._running.values())

    def _saved(self, sequence: int) -> SavedState | None:
        self._check_quiet(sequence)
        _stand(self.behaviour.saves_when)
        held = tuple(self._held[sequence])
        if self.behaviour.saves_fail or not held:
            return None
        return SavedState(held, "".join(map(chr, held)).encode(), ((1, b"first"),))

    def _begin(self, turn: Turn) -> None:
        self._check_quiet(turn.sequence)
        held = self._held[turn.sequence]
        restored = None
        if turn.state is not None:
            restored = not self.behaviour.restores_fail
            held[:] = map(ord, turn.state.data.decode()) if restored else ()
        same = sum(
            1
            for _ in itertools.takewhile(
                lambda pair: pair[0] == pair[1], zip(held, turn.prompt, strict=False)
            )
        )
        reused = min(same, len(turn.prompt) - 1)
        began = Began(turn.id, len(held), reused, restored=restored)
        evaluated = len(turn.prompt) - reused
        self.tokens_evaluated += evaluated
        running = _Running(turn, reused, evaluated, self._words())
        held[:] = turn.prompt
        self._running[turn.id] = running
        self._emit([began, Prefilled(turn.id, len(turn.prompt), len(turn.prompt))])

    def _words(self) -> "itertools.cycle[str] | Any":
        answer = self.behaviour.answer
        return itertools.cycle(answer) if self.behaviour.endless else iter(answer)

    def _embed(self, embed: Embed) -> None:
        count = sum(map(len, embed.inputs))
        self.tokens_evaluated += count
        vectors = tuple(struct.pack("<4f", 1.0, 0.0, 0.0, 0.0) for _ in embed.inputs)
        self._emit([Embedded(embed.id, vectors), Ended(embed.id, "stop", Usage(count, 0, count, 0))])

    def _step(self, running: "_Running") -> None:
        turn, behaviour = running.turn, self.behaviour
        if running.made == behaviour.breaks_after:
            del self._running[turn.id]
            self._held[turn.sequence].clear()
            self._emit([Broke(turn.id, "as it was told to", asked=behaviour.breaks_by_request)])
            return
        if running.made == behaviour.cancels_after:
            self._end(turn.id, "cancelled")
            return
        held = self._held[turn.sequence]
        letter = next(running.words, None)
        if letter is None:
            self._choice_over(running, "stop")
        elif running.made_here == turn.max_tokens or len(held) >= behaviour.context:
            self._choice_over(running, "length")
        else:
            running.made += 1
            running.made_here += 1
            self.tokens_generated += 1
            held.append(ord(letter))
            text: Any = letter
            if behaviour.garbles_after is not None and running.made > behaviour.garbles_after:
                text = type(behaviour.answer, (), {})()
            self._emit([Text(turn.id, text, 1, running.choice, _sampled(letter, turn.logprobs))])
            if self.tokens_generated == behaviour.hangs_after:
                threading.Event().wait()
            if self.tokens_generated == behaviour.aborts_after:
                _abort()

    def _choice_over(self, running: "_Running", reason: Finish) -> None:
        turn = running.turn
        self._emit([ChoiceEnded(turn.id, running.choice, reason)])
        if running.choice == 0:
            self._end(turn.id, reason)
            return
        running.choice -= 1
        running.made_here = 0
        running.words = self._words()
        self._held[turn.sequence][:] = turn.prompt

    def _end(self, turn_id: int, reason: Finish) -> None:
        running = self._running.pop(turn_id, None)
        if running is not None:
            usage = Usage(len(running.turn.prompt), running.reused, running.evaluated, running.made)
            events: list[Event] = [Ended(turn_id, reason, usage)]
            self._emit(events)


class _Running:
    def __init__(self, turn: Turn, reused: int, evaluated: int, words: "itertools.cycle[str] | Any") -> None:
        self.turn = turn
        self.reused = reused
        self.evaluated = evaluated
        self.words = words
        self.choice = turn.choices - 1
        self.made = 0
        """Tokens of all choices."""
        self.made_here = 0
        """Tokens of the choice that is being made."""


def _stand(gate: str | None) -> None:
    """Until this file exists."""
    while gate is not None and not Path(gate).exists():
        time.sleep(0.01)


def _sampled(letter: str, logprobs: int | None) -> tuple[Sampled, ...]:
    """Every token is as likely as the next one."""
    if logprobs is None:
        return ()
    likely = [
        Likely(token, chr(token).encode(), math.log(0.5))
        for token in range(ord(letter), ord(letter) + logprobs)
    ]
    return (Sampled(Likely(ord(letter), letter.encode(), math.log(0.5)), tuple(likely)),)


def _abort() -> None:
    """End the process as GGML_ASSERT does."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.origin is not None
    library = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("lib/libggml-base.*"))))
    library.ggml_abort(b"made-up.cpp", 7, b"GGML_ASSERT(%s) failed", b"n_tokens_all <= cparams.n_batch")


if __name__ == "__main__":
    told = Behaviour(**json.loads(Path(sys.argv[2]).read_bytes()))
    answers.HEAD_S = answers.HEAD_S if told.head_s is None else told.head_s
    parked_routes.HOLD_S = parked_routes.HOLD_S if told.mover_s is None else told.mover_s
    end_process(run_host(Path(sys.argv[1]), os.environ, lambda spec: FakeEngine(told)))
