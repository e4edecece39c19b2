"""The chain of C samplers for one turn.

The bindings come as an argument, because llama_engine.py alone imports them. Nothing is sampled here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from serving.constraint import Followed
from serving.engine import Sampling

COLDEST = 1e-6
"""At a lower temperature logits become infinite, and nonsense is drawn; the likeliest token is what it asks for."""
REPEAT_WINDOW = 64  # tokens that repeat_penalty looks back on: llama.cpp's own default


@dataclass(frozen=True, slots=True)
class Sampler:
    """What chooses one answer's tokens."""

    chain: Any
    followed: Followed | None
    """The constraint that the answer must match, as far as it has come."""


def sampler_chain(lib: Any, sampling: Sampling, prompt: Sequence[int], vocabulary: int, context: int) -> Any:
    """A chain in llama.cpp's usual order; the caller frees it with llama_sampler_free.

    repeat_penalty looks back into the prompt; presence and frequency penalties see the answer only, as OpenAI
    defines them. A seed means its remainder by 2^32 - 1, which llama.cpp reads as "draw one".
    """
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    for sampler in _samplers(lib, sampling, prompt, vocabulary, context):
        lib.llama_sampler_chain_add(chain, sampler)
    return chain


def _samplers(
    lib: Any, sampling: Sampling, prompt: Sequence[int], vocabulary: int, context: int
) -> Iterator[Any]:
    if sampling.repeat_penalty != 1:
        repeat = lib.llama_sampler_init_penalties(
            vocabulary, REPEAT_WINDOW, sampling.repeat_penalty, 0.0, 0.0
        )
        for token in prompt[-REPEAT_WINDOW:]:
            lib.llama_sampler_accept(repeat, token)
        yield repeat
    if sampling.frequency_penalty or sampling.presence_penalty:
        penalties = (1.0, sampling.frequency_penalty, sampling.presence_penalty)
        yield lib.llama_sampler_init_penalties(vocabulary, context, *penalties)
    if sampling.logit_bias:
        biases = (lib.llama_logit_bias * len(sampling.logit_bias))(*sampling.logit_bias)
        yield lib.llama_sampler_init_logit_bias(vocabulary, len(biases), biases)
    if sampling.temperature < COLDEST:
        yield lib.llama_sampler_init_greedy()
        return
    if sampling.top_k > 0:
        yield lib.llama_sampler_init_top_k(sampling.top_k)
    if sampling.typical_p < 1:
        yield lib.llama_sampler_init_typical(sampling.typical_p, 1)
    if sampling.top_p < 1:
        yield lib.llama_sampler_init_top_p(sampling.top_p, 1)
    if sampling.min_p > 0:
        yield lib.llama_sampler_init_min_p(sampling.min_p, 1)
    yield lib.llama_sampler_init_temp(sampling.temperature)
    draw_one = lib.LLAMA_DEFAULT_SEED
    yield lib.llama_sampler_init_dist(draw_one if sampling.seed is None else sampling.seed % draw_one)
