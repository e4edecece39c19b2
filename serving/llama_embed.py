"""Embeddings: a context of their own beside the one that answers, and pooling by the model's word.

The bindings come as an argument, because llama_engine.py alone imports them. Pooling is done here and not in
llama.cpp, where a whole text would have to be one batch.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from serving.backend import Span
from serving.embed_room import USUAL_TOKENS, rows_of
from serving.llama_context import Batch, floats

Pooling = Literal["mean", "cls", "last"]
POOLING: dict[str, Pooling | None] = {
    "": "mean",
    "0": "mean",
    "1": "mean",
    "2": "cls",
    "3": "last",
    "4": None,
}
"""By the model's metadata, enum llama_pooling_type. None: it ranks, and embeds nothing."""


class Embedder:
    """One thread only. Its contexts are made when they are needed; `free` before the model."""

    def __init__(
        self,
        lib: Any,
        make: Callable[[int, int], Any],
        pooling: Pooling,
        context: int,
        batch: int,
        vocabulary: int,
        width: int,
    ) -> None:
        """`make(tokens, rows)` gives a context with embeddings for texts of so many tokens, at most `rows` of them a
        decode, each with an output where pooling wants all. `width`: numbers of an embedding."""
        self._lib = lib
        self._make = make
        self._pooling = pooling
        self._usual = min(context, USUAL_TOKENS)
        self._width = width
        self.rows = rows_of(batch, vocabulary)
        self._batch = Batch(lib, self.rows)
        self._kept: Any = None

    def free(self) -> None:
        if self._kept is not None:
            self._lib.llama_free(self._kept)
            self._kept = None

    def embed(self, tokens: Sequence[int], room: Callable[[], int]) -> Generator[bytes | None]:
        """As `Backend.embed`: a vector of length 1, as little-endian float32."""
        if len(tokens) > self._usual:
            context = self._make(len(tokens), self.rows)
            try:
                yield from self._parts(context, tokens, room)
            finally:
                self._lib.llama_free(context)
        else:
            if self._kept is None:
                self._kept = self._make(self._usual, self.rows)
            yield from self._parts(self._kept, tokens, room)

    def _parts(self, context: Any, tokens: Sequence[int], room: Callable[[], int]) -> Generator[bytes | None]:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(context), False)
        whole = np.zeros(self._width)
        done = 0
        while done < len(tokens):
            if done:
                yield None
            chunk = tokens[done : done + max(1, min(self.rows, room()))]
            span = Span(0, done, chunk, done + len(chunk) == len(tokens))
            result = self._lib.llama_decode(context, self._batch.fill([span], every=True))
            if result == 2:
                raise InterruptedError
            if result != 0:
                raise RuntimeError(f"llama_decode returned {result}")
            whole = self._pool(whole, self._outputs(context, len(chunk)), done)
            done += len(chunk)
        length = float(np.linalg.norm(whole))
        yield (whole / length if length else whole).astype("<f4").tobytes()

    def _pool(self, before: NDArray[Any], rows: NDArray[np.float32], start: int) -> NDArray[Any]:
        """The sum does for the mean, as only the direction stays."""
        match self._pooling:
            case "mean":
                return np.asarray(before + rows.sum(axis=0, dtype=np.float64))
            case "cls":
                return np.asarray(rows[0], dtype=np.float64) if start == 0 else before
            case "last":
                return np.asarray(rows[-1], dtype=np.float64)

    def _outputs(self, context: Any, count: int) -> NDArray[np.float32]:
        pointer = self._lib.llama_get_embeddings(context)
        if not pointer:
            raise RuntimeError("llama.cpp gave no embeddings")
        return floats(pointer, count * self._width).reshape(count, self._width)
