"""What engines have in common that make their tokens in this process: turns go through a decode loop.

Loads nothing and makes no prompt; those are each engine's own.
"""

from collections.abc import Sequence
from concurrent.futures import Future

from serving.decode_loop import DecodeLoop
from serving.engine import Embed, Emit, ModelFacts, SavedState, Turn


class LoopEngine:
    """The part of `Engine` that is the loop's."""

    def __init__(self, loop: DecodeLoop) -> None:
        self._loop = loop
        self._facts: ModelFacts | None = None
        """Set by `load`."""

    @property
    def facts(self) -> ModelFacts:
        if self._facts is None:
            raise RuntimeError("the model is not loaded")
        return self._facts

    @property
    def tokens_generated(self) -> int:
        return self._loop.tokens_generated

    @property
    def tokens_evaluated(self) -> int:
        return self._loop.tokens_evaluated

    def start(self, emit: Emit) -> None:
        self._loop.start(emit)

    def spelled_as(self, held: Sequence[int], prompt: Sequence[int]) -> tuple[int, ...]:
        return tuple(prompt)

    def begin(self, turn: Turn) -> None:
        self._loop.begin(turn)

    def embed(self, embed: Embed) -> None:
        self._loop.embed(embed)

    def cancel(self, turn: int) -> None:
        self._loop.cancel(turn)

    def save(self, sequence: int) -> "Future[SavedState | None]":
        return self._loop.save(sequence)

    def erase(self, sequence: int) -> None:
        self._loop.erase(sequence)

    def held(self, sequence: int) -> int:
        return self._loop.held(sequence)

    def tokens(self, sequence: int) -> tuple[int, ...]:
        return self._loop.tokens(sequence)

    def close(self) -> None:
        self._loop.close()
