"""An engine that makes no tokens but takes their time, and a journal whose disk outlives its process.

A turn's first token tells whose it is, so that the checker sees which sessions run where.
"""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from serving.engine import (
    Began,
    ChoiceEnded,
    Embed,
    Emit,
    Ended,
    Event,
    MemoryUse,
    ModelFacts,
    Prefilled,
    SavedState,
    Text,
    Turn,
    Usage,
)
from tests.schedules.clock import SimLoop

VOCABULARY = 1_000_000
NAMED = 1000
"""Token 1000 + n opens the prompts of the session number n; 999 those of nobody's."""
FACTS = ModelFacts(
    4000, 2, "simulated", 1, 0.0, False, VOCABULARY, layout="sim", prompt_chunk=64, memory=MemoryUse(3, 2, 1)
)


class SimEngine:
    """`began(turn, opening)` and `ended(turn)` are told when a turn's work begins and when it is over."""

    format: Any = None

    def __init__(
        self, loop: SimLoop, step_s: float, began: Callable[[int, int], None], ended: Callable[[int], None]
    ) -> None:
        self.facts = FACTS
        self.tokens_generated = 0
        self.tokens_evaluated = 0
        self._loop = loop
        self._step_s = step_s
        self._began = began
        self._ended = ended
        self._emit: Emit = lambda events: None
        self._held: dict[int, tuple[int, ...]] = {}
        self._running: dict[int, tuple[Turn, Usage]] = {}

    def load(self, progress: Callable[[float], None]) -> ModelFacts:
        progress(1.0)
        return self.facts

    def start(self, emit: Emit) -> None:
        self._emit = emit

    def begin(self, turn: Turn) -> None:
        assert all(other.sequence != turn.sequence for other, _ in self._running.values()), "one at a time"
        restored = None
        if turn.state is not None:
            restored = True
            self._held[turn.sequence] = turn.state.tokens
        held = self._held.get(turn.sequence, ())
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(held, turn.prompt)))  # noqa: B905
        reused = min(same, len(turn.prompt) - 1)
        usage = Usage(len(turn.prompt), reused, len(turn.prompt) - reused, 0)
        self.tokens_evaluated += usage.evaluated
        self._held[turn.sequence] = turn.prompt
        self._running[turn.id] = turn, usage
        self._began(turn.id, turn.prompt[0])
        began = Began(turn.id, len(held), reused, restored=restored)
        self._later(self._step_s * 0.5, [began, Prefilled(turn.id, len(turn.prompt), len(turn.prompt))])
        self._loop.call_later(self._step_s, self._step, turn.id, 1)

    def _step(self, number: int, made: int) -> None:
        if number not in self._running:
            return
        turn, usage = self._running[number]
        self.tokens_generated += 1
        self._held[turn.sequence] += (made,)
        self._running[number] = turn, Usage(usage.prompt, usage.reused, usage.evaluated, made)
        self._emit([Text(number, "x", 1)])
        if made == turn.max_tokens:
            self._emit([ChoiceEnded(number, 0, "length")])
            self._end(number, "length")
        else:
            self._loop.call_later(self._step_s, self._step, number, made + 1)

    def _end(self, number: int, reason: Any) -> None:
        if number in self._running:
            _, usage = self._running.pop(number)
            self._ended(number)
            self._emit([Ended(number, reason, usage)])

    def cancel(self, turn: int) -> None:
        self._loop.call_later(self._step_s * 0.3, self._end, turn, "cancelled")

    def embed(self, embed: Embed) -> None:
        raise AssertionError

    def save(self, sequence: int) -> "Future[SavedState | None]":
        held = self._held.get(sequence, ())
        future: Future[SavedState | None] = Future()
        future.set_result(SavedState(held, b"x") if held else None)
        return future

    def erase(self, sequence: int) -> None:
        self._held[sequence] = ()

    def held(self, sequence: int) -> int:
        return len(self._held.get(sequence, ()))

    def tokens(self, sequence: int) -> tuple[int, ...]:
        return self._held.get(sequence, ())

    def spelled_as(self, held: Sequence[int], prompt: Sequence[int]) -> tuple[int, ...]:
        return tuple(prompt)

    def prompt(self, messages: Sequence[Any], tools: Any = (), variables: Any = None) -> tuple[int, ...]:
        return tuple(int(word) for message in messages for word in message["content"].split())

    def tokenize(self, text: str, special: bool = False) -> tuple[int, ...]:
        return tuple(int(word) for word in text.split())

    def detokenize(self, tokens: Sequence[int]) -> str:
        return " ".join(map(str, tokens))

    def constraint(self, grammar: str) -> Any:
        return grammar

    def close(self) -> None:
        self._held.clear()

    def _later(self, delay_s: float, events: list[Event]) -> None:
        def emit() -> None:
            if all(event.turn in self._running for event in events):
                self._emit(events)

        self._loop.call_later(delay_s, emit)


def opening(number: int | None) -> list[int]:
    """The prompt that opens with whose it is; None: nobody's."""
    return [NAMED - 1 if number is None else NAMED + number]


def opened_by(token: int) -> int | None:
    return token - NAMED if token >= NAMED else None
