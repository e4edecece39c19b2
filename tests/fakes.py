"""An engine without a model, for faults that a real one cannot be made to have, and a host around it.

`python -m tests.fakes SPEC.json BEHAVIOUR.json` is serving.host with a FakeEngine.
"""

import itertools
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.engine import (
    Began,
    Broke,
    Emit,
    Ended,
    Event,
    Finish,
    LoadError,
    ModelFacts,
    Prefilled,
    PromptTooLong,
    Text,
    Turn,
    Usage,
)
from serving.host import end_process, run_host

VOCABULARY = 0x110000
LONGEST_BYTES = 4


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
    cancels_after: int | None = None
    """Each turn is cancelled by the engine itself once it has made so many tokens."""
    hangs_after: int | None = None
    """The engine's thread never comes back once it has made so many tokens; closing waits for it."""
    load_error: str | None = None
    loads_when: str | None = None
    """Loading goes on until this file exists."""
    long_prompts_when: str | None = None
    """Prompts of more than 16 KiB are not ready until this file exists."""
    prompts_fail: bool = False
    """Making a prompt raises an error that quotes it."""
    garbles_after: int | None = None
    """From a turn's token of this number on, its text is something that no writer takes, with an error that quotes
    the answer."""


class FakeEngine:
    """An Engine on a thread of its own, as the protocol says."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.tokens_generated = 0
        self.tokens_evaluated = 0
        self._held: list[list[int]] = [[] for _ in range(behaviour.sequences)]
        self._running: dict[int, _Running] = {}
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._emit: Emit = lambda events: None

    @property
    def facts(self) -> ModelFacts:
        return ModelFacts(
            self.behaviour.context, self.behaviour.sequences, "a fake", 1, 0.0, True, vocabulary=VOCABULARY
        )

    def load(self, progress: Callable[[float], None]) -> ModelFacts:
        progress(0.5)
        gate = self.behaviour.loads_when
        while gate is not None and not Path(gate).exists():
            time.sleep(0.01)
        if self.behaviour.load_error is not None:
            raise LoadError(self.behaviour.load_error)
        progress(1.0)
        return self.facts

    def start(self, emit: Emit) -> None:
        self._emit = emit
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        text = "".join(f"{message['role']}:{message['content']}\n" for message in messages)
        if self.behaviour.prompts_fail:
            raise RuntimeError(f"cannot take {text}")
        at_least = -(-len(text.encode()) // LONGEST_BYTES)
        if at_least >= self.behaviour.context:
            raise PromptTooLong(at_least)
        gate = self.behaviour.long_prompts_when
        while gate is not None and len(text) > 16 * 2**10 and not Path(gate).exists():
            time.sleep(0.01)
        return tuple(map(ord, text + "assistant:"))

    def begin(self, turn: Turn) -> None:
        self._commands.put(lambda: self._begin(turn))

    def cancel(self, turn: int) -> None:
        self._commands.put(lambda: self._end(turn, "cancelled"))

    def erase(self, sequence: int) -> None:
        def erase() -> None:
            assert all(running.turn.sequence != sequence for running in self._running.values())
            self._held[sequence].clear()

        self._commands.put(erase)

    def held(self, sequence: int) -> int:
        return len(self._held[sequence])

    def close(self) -> None:
        self._commands.put(None)
        if self._thread is not None:
            self._thread.join()

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

    def _begin(self, turn: Turn) -> None:
        held = self._held[turn.sequence]
        same = sum(
            1
            for _ in itertools.takewhile(
                lambda pair: pair[0] == pair[1], zip(held, turn.prompt, strict=False)
            )
        )
        reused = min(same, len(turn.prompt) - 1)
        began = Began(turn.id, len(held), reused)
        evaluated = len(turn.prompt) - reused
        held[:] = turn.prompt
        self.tokens_evaluated += evaluated
        answer = self.behaviour.answer
        words = itertools.cycle(answer) if self.behaviour.endless else iter(answer)
        self._running[turn.id] = _Running(turn, reused, evaluated, words)
        self._emit([began, Prefilled(turn.id, len(turn.prompt), len(turn.prompt))])

    def _step(self, running: "_Running") -> None:
        turn, behaviour = running.turn, self.behaviour
        if running.made == behaviour.breaks_after:
            del self._running[turn.id]
            self._held[turn.sequence].clear()
            self._emit([Broke(turn.id, "as it was told to")])
            return
        if running.made == behaviour.cancels_after:
            self._end(turn.id, "cancelled")
            return
        held = self._held[turn.sequence]
        letter = next(running.words, None)
        if letter is None:
            self._end(turn.id, "stop")
        elif running.made == turn.max_tokens or len(held) >= behaviour.context:
            self._end(turn.id, "length")
        else:
            running.made += 1
            self.tokens_generated += 1
            held.append(ord(letter))
            text: Any = letter
            if behaviour.garbles_after is not None and running.made > behaviour.garbles_after:
                text = type(behaviour.answer, (), {})()
            self._emit([Text(turn.id, text, 1)])
            if self.tokens_generated == behaviour.hangs_after:
                threading.Event().wait()

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
        self.made = 0


if __name__ == "__main__":
    told = Behaviour(**json.loads(Path(sys.argv[2]).read_bytes()))
    end_process(run_host(Path(sys.argv[1]), os.environ, lambda spec: FakeEngine(told)))
