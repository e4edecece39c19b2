"""What a wish needs of a machine, and what a machine is good for. Pure.

Every number's formula and source stands in docs/choosing.md. Of memory that is bought the maker's bandwidth counts, of
which llama.cpp was seen to use `USED_SHARE`; of a machine that is here what was measured.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving.hardware_classes import CLASSES, HardwareClass
from serving.machine_figures import KindRate, MachineFigures
from serving.machine_fit import HOST_BYTES, MachineView
from serving.speed import BITS as KIND_BITS
from serving.speed import nearest
from serving.wish import BITS, Wish

GIB = 2**30
USED_SHARE = 0.55
SYSTEM_BYTES = 4 * GIB
"""What a machine's own system takes of memory that is shared with it, and what homeport reserves."""
STEP_BYTES = 256 * 2**20
"""Buffers of a step: 100 MiB for 32B with 16k of context, more with longer ones."""
EMBEDDING_TOKENS = 2048
KV_PER_TOKEN = (
    (0.6e9, 28 * 8 * 128 * 4), (4e9, 36 * 8 * 128 * 4), (8e9, 36 * 8 * 128 * 4), (14e9, 40 * 8 * 128 * 4),
    (32e9, 64 * 8 * 128 * 4), (70e9, 80 * 8 * 128 * 4), (405e9, 126 * 8 * 128 * 4),
)  # fmt: skip
"""Parameters, and bytes of f16 KV a token: layers x KV heads x head x 2 x 2 of Qwen 3 (0.6B to 32B) and Llama 3 (70B,
405B), from their config.json. Between them in proportion."""
PROMPT = 2048
"""Tokens of the prompt for which a time to the first token is told."""
PLEASANT_PER_S = 10.0
"""About as fast as one reads: 600 words a minute are skimmed, and a word is 1.3 tokens."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a machine must have for a wish. Bytes, bytes a second, operations a second."""

    weights: int
    kv: int
    buffers: int
    bytes_s: float
    """That must really be read."""
    decode_flops: float
    prefill_flops: float | None

    @property
    def memory(self) -> int:
        return self.weights + self.kv + self.buffers

    @property
    def named_bytes_s(self) -> float:
        """Of the memory's bandwidth as a maker names it."""
        return self.bytes_s / USED_SHARE


def need(wish: Wish) -> Need:
    """Weights: parameters x bits / 8. KV: bytes a token x context x sessions. A step reads the weights that a token
    goes through once for all sessions, and each session's KV, and gives each session a token. Arithmetic: 2 operations
    for each of those weights and each token."""
    token = kv_per_token(wish.parameters)
    kv = token * wish.context * wish.sessions
    read = wish.active * wish.bits / 8 + kv
    return Need(
        weights=round(wish.parameters * wish.bits / 8),
        kv=kv,
        buffers=STEP_BYTES + EMBEDDING_TOKENS * token + HOST_BYTES,
        bytes_s=read * wish.decode_per_s,
        decode_flops=2 * wish.active * wish.sessions * wish.decode_per_s,
        prefill_flops=None if wish.prefill_per_s is None else 2 * wish.active * wish.prefill_per_s,
    )


def kv_per_token(parameters: float) -> int:
    """Bytes at f16, as in models of about this size."""
    sizes = [size for size, _ in KV_PER_TOKEN]
    at = bisect_left(sizes, parameters)
    if at == 0:
        return KV_PER_TOKEN[0][1]
    if at == len(sizes):
        return KV_PER_TOKEN[-1][1]
    (low, few), (high, many) = KV_PER_TOKEN[at - 1], KV_PER_TOKEN[at]
    return round(few + (many - few) * (parameters - low) / (high - low))


def would_do(needed: Need, classes: Sequence[HardwareClass] = CLASSES) -> tuple[HardwareClass, ...]:
    """Those with memory and bandwidth enough, the slowest first. Of arithmetic makers count in too many ways."""
    return tuple(
        sorted(
            (
                each
                for each in classes
                if each.memory_gib * GIB - (SYSTEM_BYTES if each.shared else 0) >= needed.memory
                and each.bytes_s >= needed.named_bytes_s
            ),
            key=lambda each: (each.bytes_s, each.memory_gib),
        )
    )


@dataclass(frozen=True, slots=True)
class Use:
    """What a machine is good for, at Q4 and alone."""

    machine: str
    fits: float
    """Parameters of the largest model that fits with 8k of context."""
    pleasant: float | None
    """Parameters of the largest that decodes at a pleasant speed; None: not measured."""
    first_token_s: float | None
    """Seconds to the first token of a prompt, with the larger of these that does both."""
    load_s: float | None
    """Seconds to read that model from disk."""
    limits: tuple[str, ...]
    """What stands in the way of more, the narrowest first."""

    @property
    def good_for(self) -> float:
        return self.fits if self.pleasant is None else min(self.fits, self.pleasant)


def use_of(view: MachineView) -> Use:
    """Of one machine on its cores, by its memory, the rate at which it goes through Q4_K weights, and arithmetic."""
    bits, figures = BITS["Q4"], view.figures
    free = max([view.free_bytes, *(gpu.memory_bytes for gpu in view.hardware.gpus if gpu.usable)])
    fits = _largest(bits, free)
    if figures is None or view.cores < 1 or not figures.engine[0].kinds:
        return Use(view.name, fits, None, None, None, ("not measured: run `homeport bench machine` there",))
    rate = figures.on(view.cores).kinds
    kind = rate[nearest("Q4_K", rate)]
    pleasant = kind.bytes_s / PLEASANT_PER_S / (bits / 8)
    good = min(fits, pleasant)
    first_token_s = 2 * good * PROMPT / kind.flops
    load_s = None if not figures.disk_bytes_s else good * bits / 8 / figures.disk_bytes_s
    return Use(
        view.name,
        fits,
        pleasant,
        first_token_s,
        load_s,
        _limits(fits, pleasant, first_token_s, load_s, figures),
    )


def _largest(bits: float, free: int) -> float:
    """Parameters whose weights, 8k tokens of context and buffers are in so many bytes, by halving."""
    low, high = 0.0, 8 * free / bits
    for _ in range(40):
        middle = (low + high) / 2
        asked = Wish(middle, middle, bits)
        low, high = (middle, high) if need(asked).memory <= free else (low, middle)
    return low


def _limits(
    fits: float, pleasant: float, first_token_s: float, load_s: float | None, figures: MachineFigures
) -> tuple[str, ...]:
    narrow = "bandwidth" if _reads_at_full_speed(figures) else "arithmetic of its cores"
    found = [f"decoding: {narrow}" if pleasant < fits else "memory: larger ones do not fit"]
    if first_token_s > 10:
        found.append(f"arithmetic: {PROMPT:,} tokens of prompt take {first_token_s:.0f} s")
    if load_s is not None and load_s > 30:
        found.append(f"disk: {load_s:.0f} s to load it")
    return tuple(found)


def _reads_at_full_speed(figures: MachineFigures) -> bool:
    """Whether all cores go through Q4_K weights nearly as fast as they read memory: then memory is the limit."""
    engine = figures.engine[-1]
    read = figures.memory_bytes_s.get(engine.cores) or max(figures.memory_bytes_s.values())
    return engine.kinds[nearest("Q4_K", engine.kinds)].bytes_s > 0.8 * read


def falls_short(view: MachineView, wish: Wish) -> tuple[str, ...]:
    """Why this machine's cores cannot do it; empty: they can. On cores a step of several sessions takes about as long
    as one step for each (benchmarks/README.md, "The engine"), as their arithmetic is used up."""
    needed, reasons = need(wish), []
    if needed.memory > view.free_bytes:
        reasons.append(
            f"memory: {needed.memory / GIB:.1f} GiB needed, {view.free_bytes / GIB:.1f} GiB free for models"
        )
    if view.figures is None or view.cores < 1 or not view.figures.engine[0].kinds:
        return (*reasons, "not measured: run `homeport bench machine` there")
    kinds = view.figures.on(view.cores).kinds
    kind = kinds[_kind_of(wish.bits, kinds)]
    memory = max(view.figures.memory_bytes_s.values())
    step_s = wish.sessions * wish.active * wish.bits / 8 / kind.bytes_s + needed.kv / memory
    if 1 / step_s < wish.decode_per_s:
        reasons.append(f"decoding: {1 / step_s:.2g} tokens/s for each session")
    if wish.prefill_per_s is not None and kind.flops / (2 * wish.active) < wish.prefill_per_s:
        reasons.append(f"arithmetic: {kind.flops / (2 * wish.active):.2g} tokens/s of prompt")
    return tuple(reasons)


def _kind_of(bits: float, kinds: Mapping[str, KindRate]) -> str:
    """The measured kind whose bits are nearest; of those alike the K quantization."""
    return min(kinds, key=lambda kind: (abs(KIND_BITS.get(kind, 99.0) - bits), not kind.endswith("_K"), kind))
