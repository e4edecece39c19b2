"""What a model is made of, as its head says: layers, heads, and the bytes of its weights. Pure.

Fetches no head (serving/model_head.py), and works out neither memory (serving/model_memory.py) nor speed.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from serving.gguf_layout import Layout, TensorHead

Part = Literal["embedding", "output", "layer", "other"]

WINDOW_EVERY = {
    "afmoe": 4, "cohere2": 4, "exaone-moe": 4, "exaone4": 4, "gemma-embedding": 6, "gemma2": 2, "gemma3": 6,
    "gemma3n": 5, "gemma4": 6, "gpt-oss": 2, "llama4": 4, "mellum": 4, "muse-glimmer": 4, "olmo2": 4, "plamo3": 8,
    "cohere2moe": -4, "laguna": -4, "smallthinker": -4,
}  # fmt: skip
"""Of architectures with a sliding window: every so manieth layer sees all, the last of each group (negative: the
first). From llama.cpp's `load_swa_pattern` calls; a pattern in the file goes before it. Architectures that are not
here keep every token in every layer, whatever window their file names."""
LLAMA4_CHUNK = 8192
SHARES_AFTER = {"gemma3n": 20}
"""Layers from this one on use the KV of earlier ones (llama.cpp's n_layer_kv_from_start)."""
STATE_ONLY = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
LAYER = re.compile(r"blk\.(\d+)\.")
EXPERTS = re.compile(r"_exps\.")
READ_BY_ROW = re.compile(r"(token_embd|position_embd|token_types|per_layer_token_embd)\.")


class NoShape(Exception):
    """The head does not say what is needed. `message` says what is missing, `remedy` what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}. {remedy}")
        self.message = message
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Group:
    """Weights of one place and one kind. `matrix`: multiplied with every token; else norms and the like."""

    part: Part
    layer: int | None
    kind: str
    matrix: bool
    expert: bool
    eights: bool
    """Whether its rows are a multiple of eight: only then llama.cpp keeps an interleaved copy."""
    weights: int
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """One model, of a GGUF or of safetensors."""

    format: Literal["gguf", "safetensors"]
    architecture: str
    layers: int
    width: int
    """Numbers of a token between layers: the embedding length."""
    heads: int
    kv_heads: tuple[int, ...]
    """By layer; 0 where a layer keeps no keys and values of its own."""
    key_size: int
    value_size: int
    """Numbers of a head's key and value. 0 values: they are within the keys (multi-head latent attention)."""
    forward: int
    """Of one expert, where there are experts."""
    vocabulary: int
    trained_context: int
    """Tokens; 0: it does not say."""
    window: int
    """Tokens of the sliding window; 0 without."""
    windowed: tuple[bool, ...]
    """By layer: whether it keeps the window only."""
    experts: int
    experts_used: int
    state_bytes: int
    """Of a sequence, of layers that keep a state instead of keys and values."""
    rope_base: float
    groups: tuple[Group, ...]
    file_bytes: int
    """Of all its files."""
    parts: int = 1

    @property
    def parameters(self) -> int:
        return sum(group.weights for group in self.groups)

    @property
    def weight_bytes(self) -> int:
        return sum(group.size for group in self.groups)

    @property
    def tied(self) -> bool:
        """Whether the embeddings are the output matrix too."""
        return not any(group.part == "output" for group in self.groups)

    @property
    def layer_bytes(self) -> tuple[int, ...]:
        """Bytes of each layer's weights."""
        sizes = [0] * self.layers
        for group in self.groups:
            if group.layer is not None and group.layer < self.layers:
                sizes[group.layer] += group.size
        return tuple(sizes)

    @property
    def outside_bytes(self) -> int:
        """Bytes of the output, which llama.cpp counts as one layer more when it puts layers on GPUs."""
        parts = ("embedding",) if self.tied else ("output",)
        return sum(group.size for group in self.groups if group.part in parts)

    @property
    def bits(self) -> float:
        """Bits a parameter."""
        return 8 * self.weight_bytes / self.parameters if self.parameters else 0.0

    @property
    def kind(self) -> str:
        """The kind that holds most of its bytes: `Q4_K`."""
        sizes: dict[str, int] = {}
        for group in self.groups:
            sizes[group.kind] = sizes.get(group.kind, 0) + group.size
        return max(sizes, key=lambda kind: sizes[kind], default="")


def shape_of_gguf(layouts: Sequence[Layout], file_bytes: int) -> ModelShape:
    """From the heads of all its files, the first one first. Raises NoShape."""
    first = layouts[0]
    read = _Metadata(first.metadata)
    tensors = [tensor for layout in layouts for tensor in layout.tensors]
    if not tensors:
        raise NoShape("It holds no weights (it may be a vocabulary)", "Give a complete model file")
    if unknown := sorted({tensor.kind for tensor in tensors if not tensor.size}):
        raise NoShape(
            f"It has weights of a kind that is not known here ({', '.join(unknown)})", "Use another file"
        )
    layers = read.number("block_count") - read.number("nextn_predict_layers", 0)
    heads = read.most("attention.head_count", 1)
    width = read.number("embedding_length")
    usual = width // max(1, heads)
    shared = read.number("attention.shared_kv_layers", 0)
    own = SHARES_AFTER.get(read.architecture, layers - shared)
    mla = read.number("attention.key_length_mla", 0)
    listed = read.list("attention.head_count_kv", layers, heads)
    key = read.number("attention.key_length", usual)
    window = read.number("attention.sliding_window", LLAMA4_CHUNK if read.architecture == "llama4" else 0)
    kv = _kv_heads(read, listed, own, layers)
    return ModelShape(
        format="gguf",
        architecture=read.architecture,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv,
        key_size=key,
        value_size=0 if mla else read.number("attention.value_length", usual),
        forward=read.number("expert_feed_forward_length", 0) or read.most("feed_forward_length", 0),
        vocabulary=_vocabulary(read, tensors),
        trained_context=read.number("context_length", 0),
        window=window,
        windowed=_windowed(read, window, layers),
        experts=read.number("expert_count", 0),
        experts_used=read.number("expert_used_count", 0),
        state_bytes=_state_bytes(read) * sum(not heads_ for heads_ in kv[:own]),
        rope_base=float(read.get("rope.freq_base") or 10000.0),
        groups=grouped(_group(tensor) for tensor in tensors),
        file_bytes=file_bytes,
        parts=len(layouts),
    )


def grouped(groups: Iterable[Group]) -> tuple[Group, ...]:
    """One for each place and kind, in order."""
    sums: dict[tuple[Any, ...], list[int]] = {}
    for group in groups:
        key = (group.part, group.layer, group.kind, group.matrix, group.expert, group.eights)
        both = sums.setdefault(key, [0, 0])
        both[0] += group.weights
        both[1] += group.size
    return tuple(Group(*key, *both) for key, both in sums.items())


def _group(tensor: TensorHead) -> Group:
    layer = LAYER.match(tensor.name)
    part: Part = "other"
    if layer:
        part = "layer"
    elif READ_BY_ROW.match(tensor.name):
        part = "embedding"
    elif tensor.name == "output.weight":
        part = "output"
    matrix = len(tensor.dimensions) > 1 and tensor.kind != "F32"
    expert = EXPERTS.search(tensor.name) is not None
    eights = matrix and tensor.dimensions[1] % 8 == 0
    number = int(layer[1]) if layer else None
    return Group(part, number, tensor.kind, matrix, expert, eights, tensor.weights, tensor.size)


def _kv_heads(read: "_Metadata", listed: Sequence[int], own: int, layers: int) -> tuple[int, ...]:
    """A layer that is not among the first `own` ones uses an earlier one's; one of every few of a hybrid keeps any."""
    if read.architecture in STATE_ONLY:
        return (0,) * layers
    every = read.number("full_attention_interval", 0)
    attends = [not every or (layer + 1) % every == 0 for layer in range(layers)]
    if read.get("attention.key_length_mla"):
        listed = [1] * layers
    return tuple(
        heads if layer < own and attends[layer] else 0 for layer, heads in enumerate(listed[:layers])
    )


def _windowed(read: "_Metadata", window: int, layers: int) -> tuple[bool, ...]:
    """llama.cpp's set_swa_pattern: the last layer of each group is dense, or the first of it."""
    every = WINDOW_EVERY.get(read.architecture)
    if not window or every is None:
        return (False,) * layers
    told = read.get("attention.sliding_window_pattern")
    if isinstance(told, tuple):
        return tuple(bool(each) for each in told[:layers])
    if isinstance(told, int) and not isinstance(told, bool):
        every = told if every > 0 else -told
    if every < 0:
        return tuple(layer % -every != 0 for layer in range(layers))
    return tuple(every == 0 or layer % every < every - 1 for layer in range(layers))


def _state_bytes(read: "_Metadata") -> int:
    """Of one layer, in F32: llama.cpp's n_embd_r + n_embd_s, for state-space layers, RWKV and short convolutions."""
    if head := read.number("wkv.head_size", 0):
        return 4 * read.number("embedding_length") * (read.number("token_shift_count", 2) + head)
    if kernel := read.number("shortconv.l_cache", 0):
        return 4 * read.number("embedding_length") * (kernel - 1)
    inner, state = read.number("ssm.inner_size", 0), read.number("ssm.state_size", 0)
    wide = inner + 2 * read.number("ssm.group_count", 0) * state
    return 4 * (max(0, read.number("ssm.conv_kernel", 0) - 1) * wide + state * inner)


def _vocabulary(read: "_Metadata", tensors: Sequence[TensorHead]) -> int:
    told = read.number("vocab_size", 0) or read.all.get("tokenizer.ggml.tokens")
    if isinstance(told, int) and told:
        return told
    rows = [tensor.dimensions[-1] for tensor in tensors if tensor.name == "token_embd.weight"]
    return rows[0] if rows else 0


@dataclass(frozen=True, slots=True)
class _Metadata:
    all: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        found = self.all.get("general.architecture")
        if not isinstance(found, str) or not found:
            raise NoShape("It does not name its architecture", "Give a GGUF of a language model")
        return found

    def get(self, key: str) -> Any:
        return self.all.get(f"{self.architecture}.{key}")

    def number(self, key: str, default: int | None = None) -> int:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or value < 0:
            raise NoShape(f"It does not say {self.architecture}.{key}", "Give a GGUF of a language model")
        return int(value)

    def list(self, key: str, count: int, default: int) -> list[int]:
        """A value that is given once, or for each layer."""
        value = self.get(key)
        if isinstance(value, tuple):
            return [int(each) for each in value]
        return [default if value is None else int(value)] * count

    def most(self, key: str, default: int) -> int:
        return max(self.list(key, 1, default), default=default)
