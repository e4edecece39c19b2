"""A model's shape from a Hugging Face folder: config.json, and the headers of its *.safetensors. Pure.

Fetches nothing (serving/model_head.py). Of configs only what transformers itself calls these things is known.
"""

import json
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from serving.gguf_layout import Short
from serving.model_shape import Group, ModelShape, NoShape, Part, grouped

LENGTH_BYTES = 8
HEADER_MAX = 100 * 10**6
"""As the format's own reader allows."""
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
EXPERTS = re.compile(r"\.experts\.")
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "U16": 16,
    "U32": 32, "U64": 64, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
}  # fmt: skip
FULL = ("full_attention", "global")


def header(data: bytes) -> dict[str, Any]:
    """What a *.safetensors file begins with: by tensor `dtype`, `shape`, `data_offsets`. Raises Short where more of the
    file is needed, NoShape where it is none."""
    if len(data) < LENGTH_BYTES:
        raise Short("it ends inside its header")
    length = struct.unpack("<Q", data[:LENGTH_BYTES])[0]
    if not 2 <= length <= HEADER_MAX or (
        len(data) > LENGTH_BYTES and data[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{"
    ):
        raise NoShape("This is no safetensors file", "Give a folder with *.safetensors in it")
    if len(data) < LENGTH_BYTES + length:
        raise Short("it ends inside its header")
    try:
        found = json.loads(data[LENGTH_BYTES : LENGTH_BYTES + length])
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise NoShape("The header of its safetensors is no JSON", "Get the file again")
    found.pop("__metadata__", None)
    return found


def shape_of_folder(
    config: Mapping[str, Any], headers: Sequence[Mapping[str, Any]], file_bytes: int
) -> ModelShape:
    """From config.json and the headers of all its files. Raises NoShape."""
    text = config.get("text_config")
    told = {**config, **text} if isinstance(text, Mapping) else dict(config)
    read = _Config(told)
    layers, width, heads = (
        read.number(key) for key in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    )
    kv_heads = read.number("num_key_value_heads", heads)
    head = read.number("head_dim", width // max(1, heads))
    latent = read.number("kv_lora_rank", 0)
    key, value = (latent + read.number("qk_rope_head_dim", 0), 0) if latent else (head, head)
    window = read.number("sliding_window", 0) if told.get("use_sliding_window", True) else 0
    kinds = told.get("layer_types")
    attends = [not isinstance(kinds, list) or "attention" in str(kind) for kind in kinds or [""] * layers]
    groups = grouped(
        _group(name, tensor, read)
        for each in headers
        for name, tensor in each.items()
        if isinstance(tensor, Mapping)
    )
    if not groups:
        raise NoShape("Its files hold no weights", "Give a complete model")
    return ModelShape(
        format="safetensors",
        architecture=str(told.get("model_type") or "unknown"),
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=tuple((1 if latent else kv_heads) if does else 0 for does in attends[:layers]),
        key_size=key,
        value_size=value,
        forward=read.number("moe_intermediate_size", 0) or read.number("intermediate_size", 0),
        vocabulary=read.number("vocab_size"),
        trained_context=read.number("max_position_embeddings", 0),
        window=window,
        windowed=_windowed(told, window, layers),
        experts=read.first(("num_local_experts", "num_experts", "n_routed_experts")),
        experts_used=read.first(("num_experts_per_tok", "experts_per_token")),
        state_bytes=0,
        rope_base=float(told.get("rope_theta") or 10000.0),
        groups=groups,
        file_bytes=file_bytes,
        parts=len(headers),
    )


def _windowed(told: Mapping[str, Any], window: int, layers: int) -> tuple[bool, ...]:
    """`layer_types` names each layer; without it a window is every layer's, and `sliding_window_pattern` counts."""
    kinds, every = told.get("layer_types"), told.get("sliding_window_pattern")
    if not window:
        return (False,) * layers
    if isinstance(kinds, list):
        return tuple(str(kind).startswith("sliding") for kind in kinds[:layers])
    if isinstance(every, int) and every > 0:
        return tuple((layer + 1) % every != 0 for layer in range(layers))
    return (True,) * layers


def _group(name: str, tensor: Mapping[str, Any], read: "_Config") -> Group:
    dtype, dimensions = str(tensor.get("dtype")), [int(each) for each in tensor.get("shape") or ()]
    numbers = 1
    for dimension in dimensions:
        numbers *= dimension
    bits = BITS.get(dtype)
    if bits is None:
        raise NoShape(f"It has weights of a kind that is not known here ({dtype})", "Use another model")
    packed = read.packed_bits if dtype in ("I32", "U32") else None
    layer = LAYER.search(name)
    part: Part = "other"
    if layer:
        part = "layer"
    elif "lm_head" in name:
        part = "output"
    elif "embed" in name or name.endswith("wte.weight"):
        part = "embedding"
    return Group(
        part,
        int(layer[1]) if layer else None,
        dtype,
        len(dimensions) > 1,
        EXPERTS.search(name) is not None,
        False,
        numbers * bits // packed if packed else numbers,
        numbers * bits // 8,
    )


class _Config:
    def __init__(self, told: Mapping[str, Any]) -> None:
        self._told = told

    @property
    def packed_bits(self) -> int | None:
        """Of weights that are packed into whole numbers (GPTQ, AWQ)."""
        quantization = self._told.get("quantization_config")
        bits = quantization.get("bits") if isinstance(quantization, Mapping) else None
        return int(bits) if isinstance(bits, int) and bits > 0 else None

    def number(self, key: str, default: int | None = None) -> int:
        value = self._told.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int):
            raise NoShape(f"Its config.json does not say {key}", "Give a folder of a language model")
        return value

    def first(self, keys: Sequence[str]) -> int:
        return next((self.number(key) for key in keys if self._told.get(key)), 0)
