"""The yardstick: a bare llama_decode and sampler loop, with nothing around it.

    python benchmarks/bare_loop.py MODEL.gguf [--threads N] [--tokens N] [--prompt N] [--sequences N]

Prints one JSON line; with --commands one for each line on stdin: {"sequences": N, "prompt": N, "tokens": N}.
It makes no text, knows no turns, stops at no end token: what any server adds shows against it. Run it on the cores
that the server had (taskset), with as many threads.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_cpp import llama_cpp as _bindings

lib: Any = _bindings  # ctypes bindings: their annotations do not say what they take


END_TOKENS = (0, 2, 4)
"""SmolLM2's: a measured request forbids them by a bias, and so does this loop."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Tokens a second over the whole run, of all sequences together, and the median time of one step, in seconds."""

    prompt_tokens: int
    first_s: float
    """From the beginning to the first sequence's first token."""
    prefill_per_s: float
    generated: int
    decode_per_s: float
    step_s: float


class BareLoop:
    """A model with one context of some sequences, with llama.cpp's defaults for what a server chooses otherwise."""

    def __init__(self, path: Path, context: int, threads: int, batch: int = 256, sequences: int = 1) -> None:
        self._silence = lib.llama_log_callback(lambda *_: None)
        lib.llama_log_set(self._silence, None)
        lib.llama_backend_init()
        self._model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        self._vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        params = lib.llama_context_default_params()
        params.n_ctx = context * sequences
        params.n_seq_max = sequences
        params.kv_unified = False
        params.n_batch = params.n_ubatch = max(batch, sequences)
        params.n_threads = params.n_threads_batch = threads
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self._size = batch
        self._batch = lib.llama_batch_init(max(batch, sequences), 0, 1)

    def run(
        self,
        prompt: Sequence[int],
        tokens: int,
        temperature: float = 0.0,
        sequences: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Figures:
        """Evaluate the prompt anew in each sequence, then sample `tokens` tokens in each, whatever they are."""
        lib.llama_memory_clear(lib.llama_get_memory(self._context), False)
        chains = [self._chain(temperature) for _ in range(sequences)]
        batch, context = self._batch, self._context
        decode, sample = lib.llama_decode, lib.llama_sampler_sample
        begun, firsts, sampled = clock(), [], []
        for sequence, chain in enumerate(chains):
            for start in range(0, len(prompt), self._size):
                self._evaluate(sequence, start, prompt[start : start + self._size])
            sampled.append(sample(chain, context, -1))
            firsts.append(clock())
        for sequence, token in enumerate(sampled):
            self._put(sequence, sequence, token, len(prompt))
        batch.n_tokens = sequences
        times = [clock()]
        rows = list(enumerate(chains))
        for _ in range(tokens):
            if decode(context, batch):
                raise SystemExit("llama_decode failed")
            for row, chain in rows:
                batch.token[row] = sample(chain, context, row)
                batch.pos[row] += 1
            times.append(clock())
        for chain in chains:
            lib.llama_sampler_free(chain)
        steps = [later - earlier for earlier, later in itertools.pairwise(times)]
        return Figures(
            prompt_tokens=len(prompt),
            first_s=firsts[0] - begun,
            prefill_per_s=len(prompt) / (firsts[0] - begun),
            generated=tokens * sequences,
            decode_per_s=tokens * sequences / (times[-1] - times[0]) if tokens else 0.0,
            step_s=statistics.median(steps) if steps else 0.0,
        )

    def close(self) -> None:
        lib.llama_batch_free(self._batch)
        lib.llama_free(self._context)
        lib.llama_model_free(self._model)

    def _evaluate(self, sequence: int, start: int, tokens: Sequence[int]) -> None:
        for row, token in enumerate(tokens):
            self._put(row, sequence, token, start + row, logits=row == len(tokens) - 1)
        self._batch.n_tokens = len(tokens)
        if lib.llama_decode(self._context, self._batch):
            raise SystemExit("llama_decode failed")

    def _put(self, row: int, sequence: int, token: int, position: int, logits: bool = True) -> None:
        batch = self._batch
        batch.token[row], batch.pos[row] = token, position
        batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
        batch.logits[row] = logits

    def _chain(self, temperature: float) -> Any:
        """Greedy, or the samplers of a default request (see Sampling in serving/engine.py)."""
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if temperature <= 0:
            biases = (lib.llama_logit_bias * len(END_TOKENS))(*((token, -100.0) for token in END_TOKENS))
            samplers = [
                lib.llama_sampler_init_logit_bias(self._vocabulary, len(END_TOKENS), biases),
                lib.llama_sampler_init_greedy(),
            ]
        else:
            samplers = [
                lib.llama_sampler_init_top_k(40),
                lib.llama_sampler_init_top_p(0.95, 1),
                lib.llama_sampler_init_min_p(0.05, 1),
                lib.llama_sampler_init_temp(temperature),
                lib.llama_sampler_init_dist(1),
            ]
        for sampler in samplers:
            lib.llama_sampler_chain_add(chain, sampler)
        return chain


def stand_in_prompt(tokens: int) -> list[int]:
    """Any token ids that every vocabulary has; what a prompt says does not change how long it takes."""
    return [100 + index % 1000 for index in range(tokens)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--commands", action="store_true")
    chosen = parser.parse_args()
    loop = BareLoop(chosen.model, chosen.context, chosen.threads, sequences=chosen.sequences)
    loop.run(stand_in_prompt(8), 4)
    if chosen.commands:
        print("{}", flush=True)
        for line in sys.stdin:
            told = json.loads(line)
            found = loop.run(stand_in_prompt(told["prompt"]), told["tokens"], sequences=told["sequences"])
            print(json.dumps(asdict(found)), flush=True)
    else:
        found = loop.run(stand_in_prompt(chosen.prompt), chosen.tokens, chosen.temperature, chosen.sequences)
        print(json.dumps(asdict(found)))
    loop.close()


if __name__ == "__main__":
    main()
