"""Measures how much of a prompt a step can take before the neighbours notice. What follows from it is decided in
batching.py."""

from collections.abc import Callable

from serving.backend import Backend, Span
from serving.batching import bearable, chunk_sizes, largest_chunks
from serving.engine import LoadError, Sampling, Turn

_AGAIN = 3
"""Tries for one figure, the quickest of which counts: what else runs on the machine only ever makes it slower."""


def measured_chunks(
    backend: Backend, sequences: int, most: int, clock: Callable[[], float]
) -> tuple[int, ...]:
    """The chunks beside 1, 2, … up to sequences - 1 decoding turns, each from 1 to `most`, never falling.

    The backend holds nothing and has `sequences`, at least 2. Takes some thirty steps of one token. What the sequences
    hold afterwards is undefined. Raises LoadError when aborted.
    """
    turn = Turn(0, 0, (0,), 1, Sampling(temperature=0))
    sampler = backend.sampler(turn)

    def step(decoding: int, chunk: int) -> float:
        for sequence in range(max(decoding, 2)):
            backend.keep(sequence, 0)
        spans = [Span(sequence, 0, (0,), True) for sequence in range(decoding)]
        if chunk:
            # Not one token again and again: a mixture of experts would use a few of them only.
            spans.append(Span(1, 0, [7 * place % 251 for place in range(chunk)], False))
        begun = clock()
        if not backend.decode(spans):
            raise LoadError("loading was given up: the engine was closed")
        backend.sample(sampler, 0)  # waits for what a GPU still does
        return clock() - begun

    try:
        alone_s = min(step(1, 0) for _ in range(_AGAIN))
        all_s = min(step(sequences, 0) for _ in range(_AGAIN))
        measured: list[tuple[int, float]] = []
        for size in chunk_sizes(most):
            best = step(1, size)
            for _ in range(_AGAIN - 1):
                if bearable(best, alone_s, alone_s):
                    break
                best = min(best, step(1, size))
            measured.append((size, best))
            if not bearable(best, alone_s, all_s):
                break
    finally:
        backend.free(sampler)
    return tuple(min(most, chunk) for chunk in largest_chunks(alone_s, all_s, sequences, measured))
