"""How fast a machine will answer with a model, from what the machine was measured to do. Pure.

For llama.cpp on cores: the time of a token is that of going through the weights it needs, at the rate measured for
weights of this kind (on CPUs the arithmetic of a kind counts as much as its bytes), of looking back on the context, and
a fixed time for each layer, each token of the vocabulary and each step. docs/choosing.md has the formulas and how far
they were off.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from serving.machine_figures import LINE_BYTES, AttentionRate, EngineFigures, KindRate, far
from serving.model_memory import KV_BYTES
from serving.model_shape import Group, ModelShape

BITS = {
    "F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.5625, "Q5_0": 5.5, "Q5_1": 6.0, "Q5_K": 5.5,
    "Q4_0": 4.5, "Q4_1": 5.0, "Q4_K": 4.5, "IQ4_XS": 4.25, "IQ4_NL": 4.5, "MXFP4": 4.25, "Q3_K": 3.4375, "Q2_K": 2.625,
}  # fmt: skip
"""Bits a weight, from ggml's blocks: by them the nearest measured kind is found."""


class NotMeasured(Exception):
    """The machine has no figures for this."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one session that has the replica to itself."""

    decode_s: float
    """A token at the depth asked for."""
    prompt_s: float
    """All of a prompt of that depth, evaluated anew."""
    depth: int
    weights_s: float
    looking_s: float
    fixed_s: float
    """`decode_s` in its three parts."""
    stand_ins: tuple[tuple[str, str], ...] = ()
    """Kinds that were not measured, and whose rate was taken for them."""

    @property
    def decode_per_s(self) -> float:
        return 1 / self.decode_s

    @property
    def prefill_per_s(self) -> float:
        return self.depth / self.prompt_s


def speed(shape: ModelShape, figures: EngineFigures, kv_type: str, depth: int) -> Speed:
    """Once `depth` tokens are held. Raises NotMeasured."""
    if not figures.kinds or not figures.attention:
        raise NotMeasured("its bench has no figures of the engine")
    stand_ins: dict[str, str] = {}
    weights_s = prompt_weights_s = 0.0
    for group in shape.groups:
        if not group.matrix or not (share := used_share(shape, group)):
            continue
        measured = nearest(group.kind, figures.kinds)
        if measured != group.kind:
            stand_ins[group.kind] = measured
        rate = figures.kinds[measured]
        weights_s += share * group.size / rate.bytes_s
        if not _is_output(shape, group):  # of a prompt only the last token has an output
            prompt_weights_s += share * group.weights * 2.0 / rate.flops
    attention = figures.attention.get(kv_type) or figures.attention["f16"]
    numbers = shape.key_size + (shape.value_size or shape.key_size)
    seen = [min(depth, shape.window) if windowed else depth for windowed in shape.windowed]
    looks = sum(positions for positions, kept in zip(seen, attending(shape), strict=True) if kept)
    looking_s = shape.heads * looks * (attention.head_s + numbers * attention.number_s)
    looking_s += looks * _far_s(shape, attention, kv_type)
    pairs = sum(
        _pairs(depth, positions) for positions, kept in zip(seen, attending(shape), strict=True) if kept
    )
    fixed_s = figures.turn_s + shape.layers * figures.layer_s + shape.vocabulary * figures.vocabulary_s
    prompt_looking_s = shape.heads * numbers * pairs * attention.prompt_number_s
    return Speed(
        decode_s=weights_s + looking_s + fixed_s,
        prompt_s=depth * prompt_weights_s + prompt_looking_s + fixed_s,
        depth=depth,
        weights_s=weights_s,
        looking_s=looking_s,
        fixed_s=fixed_s,
        stand_ins=tuple(stand_ins.items()),
    )


def _far_s(shape: ModelShape, attention: AttentionRate, kv_type: str) -> float:
    """Of one position in one layer: what it takes longer because its keys lie far from the next one's."""
    heads = max(shape.kv_heads, default=0)
    row_bytes = heads * shape.key_size * KV_BYTES[kv_type]
    lines = heads * (shape.key_size + shape.value_size) * KV_BYTES[kv_type] / LINE_BYTES
    return far(row_bytes) * lines * attention.line_s


def used_share(shape: ModelShape, group: Group) -> float:
    """Of these weights, the part that one token goes through: of experts those that are used, of embeddings none,
    unless they are the output."""
    if group.expert and shape.experts:
        return shape.experts_used / shape.experts
    if group.part == "embedding":
        return 1.0 if shape.tied else 0.0
    return 1.0


def active_bytes(shape: ModelShape) -> float:
    """Bytes of weights that one token goes through."""
    return sum(used_share(shape, group) * group.size for group in shape.groups)


def active_weights(shape: ModelShape) -> float:
    """Parameters that one token goes through."""
    return sum(used_share(shape, group) * group.weights for group in shape.groups)


def attending(shape: ModelShape) -> tuple[bool, ...]:
    """By layer: whether it looks back at all. A layer without keys of its own may look at those of another one."""
    if shape.state_bytes:
        return tuple(bool(heads) for heads in shape.kv_heads)
    return (True,) * shape.layers


def nearest(kind: str, kinds: Mapping[str, KindRate]) -> str:
    """The measured kind that is this one, or has the number of bits that is nearest to its."""
    if kind in kinds:
        return kind
    bits = BITS.get(kind, 4.5)
    return min(kinds, key=lambda other: (abs(BITS.get(other, 99.0) - bits), other))


def _is_output(shape: ModelShape, group: Group) -> bool:
    return group.part == "output" or (group.part == "embedding" and shape.tied)


def _pairs(depth: int, window: int) -> float:
    """Of a prompt's tokens and those that each looks back on."""
    whole = min(depth, window)
    return whole * (whole + 1) / 2 + (depth - whole) * window
