"""Writes GGUF models of any shape with random weights: what they say means nothing, what they take is real.

Weights repeat a block of random numbers, so that a gigabyte is written in seconds. Tokens are made up.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

Kind = gguf.GGMLQuantizationType
PATTERN = 256 * 1024
"""Numbers after which weights repeat; a multiple of every block."""
F16_SCALE = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
SCALES_AT = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Bytes of a block at which its 16-bit factors are, in the kinds that the package reads and does not write."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A llama-like model. `kind`: of the matrices, by ggml's name; norms are F32."""

    name: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    forward: int
    vocabulary: int
    kind: str
    output: str | None = None
    """Kind of an output matrix of its own; None: the embeddings are the output."""
    embedding: str | None = None
    """Kind of the embeddings, if another."""
    architecture: str = "llama"
    """`llama`, `qwen3` (norms on heads) or `gemma3` (five of six layers have a sliding window)."""
    head: int | None = None
    """Numbers of a head; None: the width shared out."""
    window: int = 0
    experts: int = 0
    experts_used: int = 0
    context: int = 32768

    @property
    def head_size(self) -> int:
        return self.head or self.width // self.heads


def write(path: Path, shape: Shape) -> Path:
    """Write it; about its size on disk is written, a fraction of it held in memory."""
    writer = gguf.GGUFWriter(path, shape.architecture)
    _metadata(writer, shape)
    tensors = list(_tensors(shape))
    for name, dimensions, kind in tensors:
        quant = Kind[kind]
        block, size = gguf.GGML_QUANT_SIZES[quant]
        nbytes = int(np.prod(dimensions)) // block * size
        writer.add_tensor_info(name, dimensions, np.dtype(np.float32), nbytes, raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    patterns = {kind: _pattern(kind) for kind in sorted({kind for _, _, kind in tensors})}
    for _, dimensions, kind in tensors:
        block, size = gguf.GGML_QUANT_SIZES[Kind[kind]]
        left = int(np.prod(dimensions)) // block * size
        out = writer.fout[0]
        writer.write_padding(out, out.tell())
        while left > 0:
            piece = patterns[kind][: min(left, len(patterns[kind]))]
            out.write(piece)
            left -= len(piece)
        writer.write_padding(out, out.tell())
    writer.close()
    return path


def _metadata(writer: gguf.GGUFWriter, shape: Shape) -> None:
    arch = shape.architecture
    for key, value in {
        "context_length": shape.context,
        "embedding_length": shape.width,
        "feed_forward_length": shape.forward,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_size,
        "attention.value_length": shape.head_size,
        "rope.dimension_count": shape.head_size,
        "block_count": shape.layers,
        "vocab_size": shape.vocabulary,
    }.items():
        writer.add_uint32(f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)
    if shape.window:
        writer.add_uint32(f"{arch}.attention.sliding_window", shape.window)
    if shape.experts:
        writer.add_uint32(f"{arch}.expert_count", shape.experts)
        writer.add_uint32(f"{arch}.expert_used_count", shape.experts_used)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    letters = [chr(byte) if 33 <= byte < 127 else chr(256 + byte) for byte in range(256)]
    made_up = [f"w{number}" for number in range(shape.vocabulary - len(letters) - 1)]
    writer.add_token_list([*letters, *made_up, "<end>"])
    kinds = [gguf.TokenType.NORMAL] * (shape.vocabulary - 1)
    writer.add_token_types([*kinds, gguf.TokenType.CONTROL])
    writer.add_token_merges(["w 1"])
    writer.add_eos_token_id(shape.vocabulary - 1)


def _tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, dimensions (rows first, as numpy has it) and kind."""
    width, head = shape.width, shape.head_size
    query, keys = shape.heads * head, shape.kv_heads * head
    yield "token_embd.weight", (shape.vocabulary, width), shape.embedding or shape.kind
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        for norm in _NORMS[shape.architecture]:
            size = head if norm in ("attn_q_norm", "attn_k_norm") else width
            yield f"{block}.{norm}.weight", (size,), "F32"
        yield f"{block}.attn_q.weight", (query, width), shape.kind
        yield f"{block}.attn_k.weight", (keys, width), shape.kind
        yield f"{block}.attn_v.weight", (keys, width), shape.kind
        yield f"{block}.attn_output.weight", (width, query), shape.kind
        if shape.experts:
            yield f"{block}.ffn_gate_inp.weight", (shape.experts, width), "F32"
        many, each = ((shape.experts,), "_exps") if shape.experts else ((), "")
        yield f"{block}.ffn_gate{each}.weight", (*many, shape.forward, width), shape.kind
        yield f"{block}.ffn_up{each}.weight", (*many, shape.forward, width), shape.kind
        yield f"{block}.ffn_down{each}.weight", (*many, width, shape.forward), shape.kind
    yield "output_norm.weight", (width,), "F32"
    if shape.output is not None:
        yield "output.weight", (shape.vocabulary, width), shape.output


_NORMS = {
    "llama": ("attn_norm", "ffn_norm"),
    "qwen3": ("attn_norm", "attn_q_norm", "attn_k_norm", "ffn_norm"),
    "gemma3": (
        "attn_norm",
        "attn_q_norm",
        "attn_k_norm",
        "post_attention_norm",
        "ffn_norm",
        "post_ffw_norm",
    ),
}


def _pattern(kind: str) -> bytes:
    random = np.random.default_rng(7)
    quant = Kind[kind]
    if kind in SCALES_AT:
        block, size = gguf.GGML_QUANT_SIZES[quant]
        blocks: NDArray[np.uint8] = random.integers(0, 256, (PATTERN // block, size), dtype=np.uint8)
        for at in SCALES_AT[kind]:
            blocks[:, at : at + 2] = F16_SCALE
        return blocks.tobytes()
    numbers = (random.standard_normal((PATTERN // 256, 256)) * 0.02).astype(np.float32)
    if kind == "F32":
        return np.ones(PATTERN, np.float32).tobytes()
    return bytes(gguf.quants.quantize(numbers, quant).tobytes())
