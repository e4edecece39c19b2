"""What a machine was measured to do, and how that follows from the times of a bench. Pure.

Measures nothing (serving/machine_bench.py), and foretells nothing (serving/speed.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

KIND_WIDTH, KIND_FORWARD, KIND_VOCABULARY = 1024, 4096, 4096
KIND_HEADS, KIND_KV_HEADS = 16, 4


@dataclass(frozen=True, slots=True)
class KindRate:
    """Of weights of one kind: bytes a second that decoding one token gets through, operations a second of a prompt."""

    bytes_s: float
    flops: float


@dataclass(frozen=True, slots=True)
class AttentionRate:
    """Seconds for one position that a token looks back on: for each head, and for each number of its key and value;
    and for such a number in a prompt, where many tokens look back at once. `line_s`: for each 64 bytes of keys and
    values, where those of one head lie so far apart that the CPU does not fetch them ahead (see `far`)."""

    head_s: float
    number_s: float
    prompt_number_s: float
    line_s: float = 0.0


LINE_BYTES = 64
NEAR_BYTES, FAR_BYTES = 512, 1024


def far(row_bytes: float) -> float:
    """How much of `line_s` counts where one position's keys (of all heads) take so many bytes: none up to 512, all from
    1,024 on."""
    return min(1.0, max(0.0, (row_bytes - NEAR_BYTES) / (FAR_BYTES - NEAR_BYTES)))


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """Of llama.cpp on so many cores."""

    cores: int
    kinds: Mapping[str, KindRate]
    attention: Mapping[str, AttentionRate]
    """By kv_type."""
    turn_s: float
    """A step's time beside everything that grows with the model, in seconds."""
    layer_s: float
    vocabulary_s: float
    """For every token of the vocabulary: the next one is sampled among them."""


@dataclass(frozen=True, slots=True)
class GpuFigures:
    """Of a GPU, as its driver says; nothing of it was measured."""

    uuid: str
    name: str
    memory_bytes: int
    bytes_s: float | None
    """Bus width times clock; None where the driver does not say."""


@dataclass(frozen=True, slots=True)
class MachineFigures:
    """Of one machine, as kept on its disk and told in what its keeper reports."""

    taken_at: str
    """ISO date and time, UTC."""
    version: str
    """homeport's."""
    cpu: str
    memory_bytes_s: Mapping[int, float]
    """Bytes a second that so many cores read together."""
    disk_bytes_s: float | None
    engine: tuple[EngineFigures, ...]
    """For one core and for all, ascending."""
    gpus: tuple[GpuFigures, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "memory_bytes_s": {str(n): rate for n, rate in self.memory_bytes_s.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse. Raises KeyError, TypeError or ValueError for data of another shape."""
        return cls(
            str(data["taken_at"]),
            str(data["version"]),
            str(data["cpu"]),
            {int(n): float(rate) for n, rate in data["memory_bytes_s"].items()},
            None if data["disk_bytes_s"] is None else float(data["disk_bytes_s"]),
            tuple(_engine_from_json(each) for each in data["engine"]),
            tuple(GpuFigures(**gpu) for gpu in data.get("gpus", ())),
        )

    def on(self, cores: int) -> EngineFigures:
        """Of so many cores. Between two that were measured a time is a + b / cores through both (Amdahl's law); beyond
        the most that were, it is theirs."""
        least, most = self.engine[0], self.engine[-1]
        if cores >= most.cores or least.cores == most.cores:
            return most
        if cores <= least.cores:
            return least
        share = (1 / cores - 1 / most.cores) / (1 / least.cores - 1 / most.cores)

        def time(few: float, many: float) -> float:
            return many + share * (few - many)

        def rate(few: float, many: float) -> float:
            return 1 / time(1 / few, 1 / many)

        return EngineFigures(
            cores,
            {
                kind: KindRate(
                    rate(least.kinds[kind].bytes_s, each.bytes_s), rate(least.kinds[kind].flops, each.flops)
                )
                for kind, each in most.kinds.items()
                if kind in least.kinds
            },
            {
                kind: AttentionRate(
                    time(least.attention[kind].head_s, each.head_s),
                    time(least.attention[kind].number_s, each.number_s),
                    time(least.attention[kind].prompt_number_s, each.prompt_number_s),
                    time(least.attention[kind].line_s, each.line_s),
                )
                for kind, each in most.attention.items()
                if kind in least.attention
            },
            time(least.turn_s, most.turn_s),
            time(least.layer_s, most.layer_s),
            time(least.vocabulary_s, most.vocabulary_s),
        )


def _engine_from_json(data: Mapping[str, Any]) -> EngineFigures:
    return EngineFigures(
        int(data["cores"]),
        {kind: KindRate(**each) for kind, each in data["kinds"].items()},
        {kind: AttentionRate(**each) for kind, each in data["attention"].items()},
        float(data["turn_s"]),
        float(data["layer_s"]),
        float(data["vocabulary_s"]),
    )


@dataclass(frozen=True, slots=True)
class Timing:
    """One model of the bench, timed. Seconds."""

    name: str
    """Its kind of weights; or `few`, `many`, `words`, or a kv_type with the size of a head: `f16/64`."""
    layers: int
    weight_bytes: int
    """Of the matrices, without the embeddings."""
    weights: int
    heads: int
    head: int
    vocabulary: int
    step_s: float
    """A token at `depth`."""
    depth: int
    prompt_s: float
    prompt: int
    """Tokens of the prompt that took `prompt_s`."""
    deep_step_s: float = 0.0
    """A token at `deep`, where that was timed."""
    deep: int = 0
    deep_prompt_s: float = 0.0
    """A prompt of `deep` tokens."""


@dataclass(frozen=True, slots=True)
class Timings:
    """All of one bench on so many cores."""

    cores: int
    all: Sequence[Timing] = field(default_factory=tuple)

    def named(self, name: str) -> Timing | None:
        return next((timing for timing in self.all if timing.name == name), None)


def engine_figures(timings: Timings) -> EngineFigures:
    """From the times. What does not grow with the weights is taken off first: models of few and of many narrow layers
    give the time a layer and a step, one of a large vocabulary that of sampling. Raises ValueError where one is
    missing."""
    few, many, words = (timings.named(name) for name in ("few", "many", "words"))
    if few is None or many is None or words is None:
        raise ValueError("the bench lacks its small models")
    layer_s = max(0.0, (many.step_s - few.step_s) / (many.layers - few.layers))
    attention = _attention(timings)
    kinds: dict[str, KindRate] = {}
    sampled_s = max(0.0, words.step_s - few.step_s)
    fastest = max((t.weight_bytes / t.step_s for t in timings.all if t.name[0] in "FQI"), default=1e9)
    vocabulary_s = max(0.0, sampled_s - words.weight_bytes / fastest) / words.vocabulary
    turn_s = max(0.0, few.step_s - few.layers * layer_s - few.vocabulary * vocabulary_s)
    for timing in timings.all:
        if timing.name[0] not in "FQI":
            continue
        beside_s = turn_s + timing.layers * layer_s + timing.vocabulary * vocabulary_s
        looked_s = attended_s(attention.get("f16"), timing, timing.depth)
        read_s = max(0.1 * timing.step_s, timing.step_s - beside_s - looked_s)
        pairs = timing.prompt * (timing.prompt + 1) / 2
        prompt_looked_s = _prompt_looked_s(attention.get("f16"), timing, pairs)
        prompt_s = max(0.1 * timing.prompt_s, timing.prompt_s - beside_s - prompt_looked_s)
        kinds[timing.name] = KindRate(
            timing.weight_bytes / read_s, 2.0 * timing.weights * timing.prompt / prompt_s
        )
    return EngineFigures(timings.cores, kinds, attention, turn_s, layer_s, vocabulary_s)


def attended_s(rate: AttentionRate | None, timing: Timing, depth: int) -> float:
    """What looking back on so many positions takes in all of a bench model's layers."""
    if rate is None:
        return 0.0
    return timing.layers * timing.heads * depth * (rate.head_s + 2 * timing.head * rate.number_s)


def _prompt_looked_s(rate: AttentionRate | None, timing: Timing, pairs: float) -> float:
    if rate is None:
        return 0.0
    return timing.layers * timing.heads * 2 * timing.head * pairs * rate.prompt_number_s


def _attention(timings: Timings) -> dict[str, AttentionRate]:
    """A head's time at a position is a + b x its numbers, through two sizes of heads at f16. Of other types one size
    was timed; they are taken to share it in f16's way."""
    found: dict[str, AttentionRate] = {}
    small, large = timings.named("f16/64"), timings.named("f16/128")
    if small is None or large is None:
        return found
    one, other = _position_s(small), _position_s(large)
    number_s = max(0.0, (other - one) / (2 * (large.head - small.head)))
    head_s = max(0.0, one - 2 * small.head * number_s)
    found["f16"] = AttentionRate(head_s, number_s, _pair_s(small), _line_s(timings, one))
    for kv_type in ("q8_0", "q4_0"):
        if (timing := timings.named(f"{kv_type}/64")) is not None and one > 0:
            more = _position_s(timing) / one
            found[kv_type] = AttentionRate(
                head_s * more, number_s * more, _pair_s(timing), found["f16"].line_s
            )
    return found


def _line_s(timings: Timings, near_s: float) -> float:
    """By how much a head's position takes longer where keys lie far apart, for each 64 bytes that are fetched for it:
    the heads that share them fetch them once."""
    wide = timings.named("f16/far")
    if wide is None:
        return 0.0
    lines = 2 * wide.head * 2 / LINE_BYTES
    return max(0.0, _position_s(wide) - near_s) * KIND_HEADS / KIND_KV_HEADS / lines


def _position_s(timing: Timing) -> float:
    """Of one head, for each position."""
    return max(0.0, timing.deep_step_s - timing.step_s) / (
        (timing.deep - timing.depth) * timing.layers * timing.heads
    )


def _pair_s(timing: Timing) -> float:
    """Of one number of a head, for each pair of a prompt's token and one before it."""
    chunks = timing.deep / timing.prompt
    pairs = timing.deep * (timing.deep + 1) / 2 - chunks * timing.prompt * (timing.prompt + 1) / 2
    looked_s = max(0.0, timing.deep_prompt_s - chunks * timing.prompt_s)
    return looked_s / (pairs * timing.layers * timing.heads * 2 * timing.head)
