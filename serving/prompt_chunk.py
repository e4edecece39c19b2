"""Measures how much of a prompt a step can take before the neighbours notice. What follows from it is decided in
batching.py."""

from collections.abc import Callable

from serving.backend import Backend, Span
from serving.batching import bearable, chunk_sizes, largest_chunk
from serving.engine import LoadError, Sampling, Turn

_AGAIN = 3
"""Tries for one figure, the quickest of which counts: what else runs on the machine only ever makes it slower."""


def measured_chunk(backend: Backend, most: int, clock: Callable[[], float]) -> int:
    """The chunk for a backend that holds nothing and has at least two sequences; 1 <= chunk <= `most`. Takes some
    twenty steps of one token. What the sequences hold afterwards is undefined. Raises LoadError when aborted."""
    turn = Turn(0, 0, (0,), 1, Sampling(temperature=0))
    sampler = backend.sampler(turn)

    def step(chunk: int) -> float:
        backend.keep(0, 0)
        backend.keep(1, 0)
        spans = [Span(0, 0, (0,), True)]
        if chunk:
            # Not one token again and again: a mixture of experts would use a few of them only.
            spans.append(Span(1, 0, [7 * place % 251 for place in range(chunk)], False))
        begun = clock()
        if not backend.decode(spans):
            raise LoadError("loading was given up: the engine was closed")
        backend.sample(sampler, 0)  # waits for what a GPU still does
        return clock() - begun

    def quickest(chunk: int, enough_s: float) -> float:
        best = step(chunk)
        for _ in range(_AGAIN - 1):
            if bearable(best, enough_s):
                break
            best = min(best, step(chunk))
        return best

    try:
        alone_s = quickest(0, 0.0)
        measured: list[tuple[int, float]] = []
        for size in chunk_sizes(most):
            measured.append((size, quickest(size, alone_s)))
            if not bearable(measured[-1][1], alone_s):
                break
    finally:
        backend.free(sampler)
    return min(most, largest_chunk(alone_s, measured))
