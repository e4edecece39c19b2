"""Which cores the measured engines have, and which the measuring itself: neither takes time from the other."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GGML_N_THREADS")


@dataclass(frozen=True, slots=True)
class Cores:
    """CPUs by number. `engines` are shared by all that is measured: one is asked at a time."""

    engines: tuple[int, ...]
    rest: tuple[int, ...]

    @property
    def threads(self) -> int:
        return len(self.engines)


def share_out(threads: int | None = None) -> Cores:
    """All but one CPU to the engines, or as many as `threads`; with one for each, the measuring has none of its own."""
    cpus = sorted(os.sched_getaffinity(0))
    wanted = min(threads or max(1, len(cpus) - 1), len(cpus))
    return Cores(tuple(cpus[:wanted]), tuple(cpus[wanted:]) or tuple(cpus))


@contextmanager
def starting_on(cpus: Sequence[int]) -> Iterator[dict[str, str]]:
    """What is started inside runs on these CPUs only, with as many threads. Yields the environment to give to it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield {**os.environ, **dict.fromkeys(THREADS, str(len(cpus)))}
    finally:
        os.sched_setaffinity(0, before)
