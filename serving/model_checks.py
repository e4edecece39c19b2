"""What is wrong about a model's values that are each right. Pure.

Knows what the engine could never do with them. What needs the model's file (does it fit into `needs.memory`?) is
the engine's matter.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from serving.llama_options import EngineOptions
from serving.model import ModelSpec
from serving.model_files import BUNDLED, hub_source
from serving.vllm_options import VllmOptions

SAMPLING = frozenset({"temperature", "top_p", "top_k", "min_p", "repeat_penalty"})
"""What all engines know: how tokens are chosen where a request does not say."""
TOKENS_MAX = 2**31 - 1
"""What llama.cpp can number in one replica, over all its sessions."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`key`: the way from the model to the value that is to be changed."""

    key: tuple[str, ...]
    message: str
    remedy: str


def contradictions(model: ModelSpec, allow_script: bool) -> Iterator[Finding]:
    """In no particular order; nothing for a model whose values go together. Without `allow_script` a script is refused:
    nobody is to take its answers for a model's."""
    if foreign := tuple(_foreign(model)):
        yield from foreign
        return
    if model.engine == "vllm":
        yield from _vllm(model)
        return
    if model.engine == "script":
        yield from _script(model, allow_script)
        return
    options = EngineOptions.from_options(dict(model.options))
    hub = hub_source(model.source)
    if hub is not None and hub.file is None:
        yield Finding(
            ("source",),
            f"{model.source} is a whole repository, and llama.cpp reads one GGUF file",
            f"Name it: {model.source}:FILE, or write engine: vllm",
        )
    yield from _places(model, options)
    yield from _steps(model, options)
    yield from _gpus(model, options)


def _foreign(model: ModelSpec) -> Iterator[Finding]:
    """Options of another engine."""
    own = {"llama.cpp": EngineOptions, "vllm": VllmOptions}
    known = {name: {field.name for field in fields(options)} for name, options in own.items()}
    known["llama.cpp"].add("typical_p")
    known["script"] = set()
    everybody = SAMPLING | known[model.engine]
    for key, _ in model.options:
        if key not in everybody:
            others = ", ".join(name for name, keys in known.items() if key in keys)
            yield Finding(
                ("options", key), f"{model.engine} has no such option (it is {others}'s)", "Remove it"
            )


def _vllm(model: ModelSpec) -> Iterator[Finding]:
    options = VllmOptions.from_options(dict(model.options))
    yield from _take(model)
    hub = hub_source(model.source)
    if hub is not None and hub.file is not None:
        yield Finding(
            ("source",),
            f"{hub.file} is a GGUF file, which vLLM does not read",
            "Name a repository with *.safetensors as a whole: hf:OWNER/REPO",
        )
    if options.batch is not None and options.batch < model.sessions:
        yield _small_batch(options.batch, model.sessions)
    if options.kv_memory is not None and options.kv_memory >= model.need.memory_bytes and not model.need.gpus:
        yield Finding(
            ("options", "kv_memory"),
            "it is not less than needs.memory, which holds the weights too",
            "Make needs.memory larger, or remove it",
        )


def _script(model: ModelSpec, allow_script: bool) -> Iterator[Finding]:
    yield from _take(model)
    if not allow_script:
        message = "script is a test engine: it has no model, and answers only what its script says"
        yield Finding(
            ("engine",), message, "`homeport up --allow-script` serves it; else use llama.cpp or vllm"
        )
    if model.source == BUNDLED or hub_source(model.source) is not None:
        yield Finding(("source",), f"{model.source} is no script", "Write the path of one")


def _take(model: ModelSpec) -> Iterator[Finding]:
    if model.take == "rest" and model.replicas != 1:
        message = f"{model.replicas} replicas cannot each take the rest of a machine"
        yield Finding(("replicas",), message, "Use replicas: 1, or take: needs")


def _small_batch(batch: int, sessions: int) -> Finding:
    return Finding(
        ("options", "batch"),
        f"{batch} is less than sessions ({sessions}), each of which needs a token in every step",
        f"Use {sessions} or more",
    )


def _places(model: ModelSpec, options: EngineOptions) -> Iterator[Finding]:
    yield from _take(model)
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
        yield _small_batch(options.batch, model.sessions)
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
    gpus = model.need.gpu_count
    if not gpus:
        for key, what in (
            ("gpu_layers", f"{options.gpu_layers} layers have no GPU" if options.gpu_layers else ""),
            ("main_gpu", "" if options.main_gpu is None else "there is no GPU to be the main one"),
            ("tensor_split", "there is no GPU to get a share" if options.tensor_split else ""),
        ):
            if what:
                yield Finding(("options", key), f"{what}: needs.gpus is 0", "Set needs.gpus, or remove it")
        return
    of_them = f"{gpus} GPU{'s' * (gpus > 1)} (needs.gpus)"
    if options.tensor_split and len(options.tensor_split) != gpus:
        message = f"{len(options.tensor_split)} shares for {of_them}"
        yield Finding(("options", "tensor_split"), message, "Write one share for each GPU")
    if options.main_gpu is not None and options.main_gpu >= gpus:
        message = f"there is no GPU {options.main_gpu} among {of_them}: the first is 0"
        yield Finding(("options", "main_gpu"), message, f"Use {gpus - 1} or less")
    if options.main_gpu is not None and options.tensor_split:
        message = "the model is either whole on one GPU or split over all of them (tensor_split)"
        yield Finding(("options", "main_gpu"), message, "Remove one of the two")
