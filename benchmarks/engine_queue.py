"""An engine without a host: what comes out of its queue, and how fast. A worker (worker.py).

    python -m benchmarks.engine_queue MODEL.gguf --context N --sequences N --threads N

A line {"sequences": N, "prompt": N, "tokens": N} begins as many turns at once. Their sequences hold the prompt from
the last time, so that all decode at once; with "tokens": 0 they are emptied first, to see what the prompt takes.
"""

import argparse
import itertools
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bare_loop import END_TOKENS, stand_in_prompt
from benchmarks.pace import Stream, pace
from serving.engine import Broke, Ended, Event, Sampling, Text, Turn
from serving.llama_engine import LlamaEngine

SAMPLING = Sampling(temperature=0.0, logit_bias=tuple((token, -100.0) for token in END_TOKENS))


SETTLE = 4
"""Turns of no more tokens than this are not timed: they only bring the prompts into the sequences."""


class Queue:
    """The engine's events with the time of each."""

    def __init__(self, engine: LlamaEngine) -> None:
        self._engine = engine
        self._ids = itertools.count(1)
        self._over = threading.Event()
        self._events: list[tuple[float, Event]] = []
        self._left = 0
        engine.start(self._emit)

    def _emit(self, events: Sequence[Event]) -> None:
        now = time.perf_counter()
        self._events += [(now, event) for event in events]
        self._left -= sum(isinstance(event, Ended | Broke) for event in events)
        if self._left <= 0:
            self._over.set()

    def run(self, sequences: int, prompt: int, tokens: int) -> dict[str, float]:
        """`first_s` to the first token of the first turn; `decode_per_s` of all together while all decode."""
        for sequence in range(sequences if tokens == 0 else 0):
            self._engine.erase(sequence)
        self._events.clear()
        self._over.clear()
        self._left = sequences
        turns = [
            Turn(next(self._ids), sequence, tuple(stand_in_prompt(prompt)), max(1, tokens), SAMPLING)
            for sequence in range(sequences)
        ]
        begun = time.perf_counter()
        for turn in turns:
            self._engine.begin(turn)
        self._over.wait()
        broken = [event.message for _, event in self._events if isinstance(event, Broke)]
        if broken:
            raise SystemExit(broken[0])
        streams = [self._stream(turn.id) for turn in turns]
        return {
            "first_s": streams[0].times[0] - begun,
            "decode_per_s": pace(streams) if tokens > SETTLE else 0.0,
            "generated": sum(stream.tokens for stream in streams),
        }

    def _stream(self, turn: int) -> Stream:
        mine = [(at, event) for at, event in self._events if event.turn == turn]
        times = tuple(at for at, event in mine if isinstance(event, Text))
        ended = next(event for _, event in mine if isinstance(event, Ended))
        return Stream(times or (mine[-1][0],), ended.usage.generated)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    engine = LlamaEngine(chosen.model, chosen.context, chosen.sequences, chosen.threads)
    facts = engine.load(lambda share: None)
    queue = Queue(engine)
    print(json.dumps({"prompt_chunk": facts.prompt_chunk}), flush=True)
    for line in sys.stdin:
        print(json.dumps(queue.run(**json.loads(line))), flush=True)
    engine.close()


if __name__ == "__main__":
    main()
