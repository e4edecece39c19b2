"""Times turns of a real engine: how long a prompt's tokens take, and how long the next token takes at some depth.

What is timed is what a turn gets, from the engine's door: the loop, the sampler and the text are in it; HTTP is not.
With one thread its CPU time counts, so that what else runs does not; with several the time that passes.
"""

import queue
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from serving.engine import Broke, Ended, Event, Sampling, Turn
from serving.llama_engine import LlamaEngine
from serving.llama_options import EngineOptions

PATIENCE_S = 300.0
BEST = 0.1
"""Of the times of single tokens this share is shorter than what is told: no mean, as who else runs lengthens some."""


class TimedEngine:
    """A loaded engine with one sequence. `close` it."""

    def __init__(self, path: Path, context: int, threads: int, options: EngineOptions) -> None:
        self.engine = LlamaEngine(path, context, 1, threads, options=options)
        self.facts = self.engine.load(lambda _: None)
        ends = (0, 2, 4, self.facts.vocabulary - 1)
        self._sampling = Sampling(seed=1, logit_bias=tuple((token, -100.0) for token in ends))
        self._ended: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._turn = 0
        alone = threads == 1
        self._passed = time.process_time if alone else time.perf_counter
        self._stepped = time.thread_time if alone else time.perf_counter  # on the thread that decodes
        self._stamps: list[float] = []
        self.engine.start(self._hear)

    def close(self) -> None:
        self.engine.close()

    def prompt_s(self, tokens: int) -> float:
        """Seconds until a prompt of so many tokens is evaluated anew and its first token is there."""
        self.engine.erase(0)
        begun = self._passed()
        self._ask(tokens, 1)
        return self._passed() - begun

    def step_s(self, depth: int, tokens: int) -> float:
        """Seconds a token, of the next `tokens` ones after a prompt of `depth`."""
        self._stamps.clear()
        self._ask(depth, 1 + tokens)
        gaps = sorted(later - earlier for earlier, later in pairwise(self._stamps))
        if not gaps:
            raise RuntimeError("a turn of the bench told of no tokens")
        return gaps[int(BEST * len(gaps))]

    def _ask(self, prompt: int, generated: int) -> None:
        self._turn += 1
        ids = tuple(20 + index % 200 for index in range(prompt))
        self.engine.begin(Turn(self._turn, 0, ids, generated, self._sampling))
        event = self._ended.get(timeout=PATIENCE_S)
        if not isinstance(event, Ended) or event.usage.generated != generated:
            raise RuntimeError(f"a turn of the bench went wrong: {event}")

    def _hear(self, events: Sequence[Event]) -> None:
        self._stamps.append(self._stepped())
        for event in events:
            if isinstance(event, Ended | Broke):
                self._ended.put(event)
