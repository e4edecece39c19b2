"""The yardstick: a bare llama_decode and sampler loop, with nothing around it.

    python benchmarks/bare_loop.py MODEL.gguf [--threads N] [--tokens N] [--prompt N]

Prints one JSON line. It makes no text, knows no turns, stops at no end token: what any server adds shows against it.
Run it on the cores that the server had (taskset), with as many threads.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_cpp import llama_cpp as _bindings

lib: Any = _bindings  # ctypes bindings: their annotations do not say what they take


@dataclass(frozen=True, slots=True)
class Figures:
    """Tokens a second over the whole run, and the median time of one decode and one sample, in seconds."""

    prompt_tokens: int
    prefill_per_s: float
    generated: int
    decode_per_s: float
    step_s: float


class BareLoop:
    """A model with one context of one sequence, with llama.cpp's defaults for what a server chooses otherwise."""

    def __init__(self, path: Path, context: int, threads: int, batch: int = 256) -> None:
        self._silence = lib.llama_log_callback(lambda *_: None)
        lib.llama_log_set(self._silence, None)
        lib.llama_backend_init()
        self._model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        params = lib.llama_context_default_params()
        params.n_ctx = context
        params.n_batch = params.n_ubatch = batch
        params.n_threads = params.n_threads_batch = threads
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self._batch = batch

    def run(
        self,
        prompt: Sequence[int],
        tokens: int,
        temperature: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Figures:
        """Evaluate the prompt anew, then sample `tokens` tokens, whatever they are."""
        lib.llama_memory_clear(lib.llama_get_memory(self._context), False)
        chain = self._chain(temperature)
        begun = clock()
        for start in range(0, len(prompt), self._batch):
            self._decode(prompt[start : start + self._batch])
        prefilled = clock()
        token = (lib.llama_token * 1)()
        one = lib.llama_batch_get_one(token, 1)
        context, decode, sample = self._context, lib.llama_decode, lib.llama_sampler_sample
        times = [clock()]
        token[0] = sample(chain, context, -1)
        for _ in range(tokens):
            decode(context, one)
            token[0] = sample(chain, context, -1)
            times.append(clock())
        lib.llama_sampler_free(chain)
        steps = [later - earlier for earlier, later in itertools.pairwise(times)]
        return Figures(
            prompt_tokens=len(prompt),
            prefill_per_s=len(prompt) / (prefilled - begun),
            generated=tokens,
            decode_per_s=tokens / (times[-1] - times[0]),
            step_s=statistics.median(steps),
        )

    def close(self) -> None:
        lib.llama_free(self._context)
        lib.llama_model_free(self._model)

    def _decode(self, tokens: Sequence[int]) -> None:
        array = (lib.llama_token * len(tokens))(*tokens)
        if lib.llama_decode(self._context, lib.llama_batch_get_one(array, len(tokens))):
            raise SystemExit("llama_decode failed")

    def _chain(self, temperature: float) -> Any:
        """Greedy, or the samplers of a default request (see Sampling in serving/engine.py)."""
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if temperature <= 0:
            samplers = [lib.llama_sampler_init_greedy()]
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
    chosen = parser.parse_args()
    loop = BareLoop(chosen.model, chosen.context, chosen.threads)
    loop.run(stand_in_prompt(8), 4)
    print(json.dumps(asdict(loop.run(stand_in_prompt(chosen.prompt), chosen.tokens, chosen.temperature))))
    loop.close()


if __name__ == "__main__":
    main()
