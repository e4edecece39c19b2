"""Writes the models that `homeport bench machine` runs: random weights of one kind, in llama's shape.

They say nothing; how long they take depends on their sizes and kind alone.
"""

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from serving.gguf_layout import KINDS

NUMBERS = {name: (number, block, size) for number, (name, block, size) in KINDS.items()}
FACTORS: dict[str, tuple[int, float, float]] = {
    "Q4_0": (0, 4.3e-3, 0.0),
    "Q4_1": (0, 4.3e-3, -7.5),
    "Q5_0": (0, 2.2e-3, 0.0),
    "Q5_1": (0, 2.2e-3, -15.5),
    "Q8_0": (0, 2.7e-4, 0.0),
    "Q4_K": (0, 1.4e-4, 7.5),
    "Q5_K": (0, 7.0e-5, 15.5),
    "Q6_K": (208, 7.0e-5, 0.0),
}
"""Where in a block its 16-bit factor is, about what it is, and by what the next one is larger (0: there is none). With
them weights spread by about 0.02 around zero, as in real models. Both matter for time: with larger ones attention gets
so sharp that sums fall below what 16 bits hold, which CPUs are slow at; and ggml looks factors up in a table of
256 KiB, so that ones that are all the same make a kind a third faster than it is."""
SPREAD = 0.35
Q6_K_SCALES = (192, 208)
"""Bytes of a block: small whole numbers."""
PATTERN_BLOCKS = 4096
ALIGNMENT = 32
VERSION = 3
UINT32, FLOAT32, TEXT, LIST = 4, 6, 8, 9
NORMAL, CONTROL = 1, 3


@dataclass(frozen=True, slots=True)
class BenchShape:
    """`kind`: of all matrices but the embeddings, of which a row is read a token; one that FACTORS knows, or F16."""

    kind: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    forward: int
    vocabulary: int
    context: int = 8192


def write_model(path: Path, shape: BenchShape) -> Path:
    """Write it. Raises OSError."""
    tensors = list(_tensors(shape))
    infos, at = b"", 0
    for name, dimensions, kind in tensors:
        infos += (
            _text(name)
            + struct.pack("<I", len(dimensions))
            + struct.pack(f"<{len(dimensions)}Q", *dimensions)
        )
        infos += struct.pack("<IQ", NUMBERS[kind][0], at)
        at += -(-_size(dimensions, kind) // ALIGNMENT) * ALIGNMENT
    pairs = list(_pairs(shape))
    head = b"GGUF" + struct.pack("<IQQ", VERSION, len(tensors), len(pairs)) + b"".join(pairs) + infos
    patterns = {kind: _pattern(kind) for kind in sorted({kind for _, _, kind in tensors})}
    with path.open("wb") as file:
        file.write(head + bytes(-len(head) % ALIGNMENT))
        for _, dimensions, kind in tensors:
            size = _size(dimensions, kind)
            _fill(file, patterns[kind], size)
            file.write(bytes(-size % ALIGNMENT))
    return path


def bench_sizes(shape: BenchShape) -> tuple[int, int]:
    """Parameters and bytes of its matrices, without the embeddings."""
    weights = size = 0
    for name, dimensions, kind in _tensors(shape):
        if kind != "F32" and not name.startswith("token_embd"):
            rows, columns = dimensions
            weights += rows * columns
            size += _size(dimensions, kind)
    return weights, size


def _fill(file: BinaryIO, pattern: bytes, size: int) -> None:
    whole, rest = divmod(size, len(pattern))
    file.writelines(pattern for _ in range(whole))
    file.write(pattern[:rest])


def _tensors(shape: BenchShape) -> Iterator[tuple[str, tuple[int, ...], str]]:
    width, keys = shape.width, shape.width // shape.heads * shape.kv_heads
    yield "token_embd.weight", (width, shape.vocabulary), "F16"
    for layer in range(shape.layers):
        for name, rows, columns in (
            ("attn_q", width, width),
            ("attn_k", width, keys),
            ("attn_v", width, keys),
            ("attn_output", width, width),
            ("ffn_gate", width, shape.forward),
            ("ffn_up", width, shape.forward),
            ("ffn_down", shape.forward, width),
        ):
            yield f"blk.{layer}.{name}.weight", (rows, columns), shape.kind
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{name}.weight", (width,), "F32"
    yield "output_norm.weight", (width,), "F32"
    yield "output.weight", (width, shape.vocabulary), shape.kind


def _pairs(shape: BenchShape) -> Iterator[bytes]:
    yield _text("general.architecture") + struct.pack("<I", TEXT) + _text("llama")
    for key, value in {
        "context_length": shape.context,
        "embedding_length": shape.width,
        "block_count": shape.layers,
        "feed_forward_length": shape.forward,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "rope.dimension_count": shape.width // shape.heads,
    }.items():
        yield _text(f"llama.{key}") + struct.pack("<II", UINT32, value)
    epsilon = "llama.attention.layer_norm_rms_epsilon"
    yield _text(epsilon) + struct.pack("<If", FLOAT32, 1e-5)
    for key, word in (("model", "gpt2"), ("pre", "gpt-2")):
        yield _text(f"tokenizer.ggml.{key}") + struct.pack("<I", TEXT) + _text(word)
    letters = [chr(byte) if 33 <= byte < 127 else chr(256 + byte) for byte in range(256)]
    tokens = [*letters, *(f"w{number}" for number in range(shape.vocabulary - 257)), "<end>"]
    yield _list("tokens", TEXT, [_text(token) for token in tokens])
    kinds = [NORMAL] * (len(tokens) - 1) + [CONTROL]
    yield _list("token_type", UINT32 + 1, [struct.pack("<i", kind) for kind in kinds])
    yield _list("merges", TEXT, [_text("w 1")])
    yield _text("tokenizer.ggml.eos_token_id") + struct.pack("<II", UINT32, len(tokens) - 1)


def _list(key: str, kind: int, values: list[bytes]) -> bytes:
    name = _text(f"tokenizer.ggml.{key}")
    return name + struct.pack("<IIQ", LIST, kind, len(values)) + b"".join(values)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _size(dimensions: tuple[int, ...], kind: str) -> int:
    _, block, size = NUMBERS[kind]
    count = 1
    for dimension in dimensions:
        count *= dimension
    return count // block * size


def _pattern(kind: str) -> bytes:
    """Blocks to be repeated: random, but for their factors."""
    made = random.Random(7)  # noqa: S311 - weights, no secret
    _, block, size = NUMBERS[kind]
    if kind == "F32":
        return struct.pack("<f", 1.0) * PATTERN_BLOCKS
    if block == 1:
        return struct.pack(f"<{PATTERN_BLOCKS}e", *(made.gauss(0.0, 0.02) for _ in range(PATTERN_BLOCKS)))
    blocks = bytearray(made.randbytes(PATTERN_BLOCKS * size))
    at, usual, more = FACTORS[kind]
    for start in range(0, len(blocks), size):
        factor = usual * made.lognormvariate(0.0, SPREAD)
        blocks[start + at : start + at + 2] = struct.pack("<e", factor)
        if more:
            blocks[start + at + 2 : start + at + 4] = struct.pack("<e", factor * more)
        if kind == "Q6_K":
            first, end = Q6_K_SCALES
            blocks[start + first : start + end] = bytes(made.randrange(8, 24) for _ in range(end - first))
    return bytes(blocks)
