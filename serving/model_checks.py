"""What is wrong about a model's values that are each right. Pure.

Knows what the engine could never do with them. What needs the model's file (does it fit into `needs.memory`?) is
the engine's matter.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from serving.llama_options import EngineOptions
from serving.model import ModelSpec

TOKENS_MAX = 2**31 - 1
"""What llama.cpp can number in one replica, over all its sessions."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`key`: the way from the model to the value that is to be changed."""

    key: tuple[str, ...]
    message: str
    remedy: str


def contradictions(model: ModelSpec) -> Iterator[Finding]:
    """In no particular order; nothing for a model whose values go together."""
    options = EngineOptions.from_options(dict(model.options))
    yield from _places(model, options)
    yield from _steps(model, options)
    yield from _gpus(model, options)


def _places(model: ModelSpec, options: EngineOptions) -> Iterator[Finding]:
    if model.take == "rest" and model.replicas != 1:
        message = f"{model.replicas} replicas cannot each take the rest of a machine"
        yield Finding(("replicas",), message, "Use replicas: 1, or take: needs")
    if model.sessions * model.context > TOKENS_MAX:
        yield Finding(
            ("sessions",),
            f"{model.sessions} sessions of {model.context} tokens are more than an engine can number",
            f"Use at most {TOKENS_MAX // model.context}, or a smaller context",
        )
    if options.exact and dict(model.options).get("share_prefix") == "key":
        yield Finding(
            ("options", "share_prefix"),
            "key is not possible with exact: true, where each session's prompt is evaluated in its own way",
            "Remove it, or use off",
        )


def _steps(model: ModelSpec, options: EngineOptions) -> Iterator[Finding]:
    if model.sessions > options.batch:
        yield Finding(
            ("options", "batch"),
            f"{options.batch} is less than sessions ({model.sessions}), each of which needs a token in every step",
            f"Use {model.sessions} or more",
        )
    if options.prompt_chunk is not None and options.prompt_chunk > options.batch:
        message = f"{options.prompt_chunk} is more than batch ({options.batch}), the tokens of a whole step"
        remedy = f"Use {options.batch} or less, or a larger batch"
        yield Finding(("options", "prompt_chunk"), message, remedy)
    if options.kv_type != "f16" and not options.flash_attention:
        yield Finding(
            ("options", "kv_type"),
            f"{options.kv_type} works with flash attention only, and flash_attention is false",
            "Use f16, or remove flash_attention",
        )


def _gpus(model: ModelSpec, options: EngineOptions) -> Iterator[Finding]:
    gpus = model.need.gpus
    if options.gpu_layers and not gpus:
        message = f"{options.gpu_layers} layers have no GPU: needs.gpus is 0"
        yield Finding(("options", "gpu_layers"), message, "Set needs.gpus, or remove it")
    if options.tensor_split and len(options.tensor_split) != gpus:
        message = f"{len(options.tensor_split)} shares for {gpus} GPUs (needs.gpus)"
        yield Finding(("options", "tensor_split"), message, "Write one share for each GPU")
