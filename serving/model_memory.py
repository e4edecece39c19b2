"""What a model will take in memory, worked out from its head alone. Pure.

For llama.cpp as serving/llama_context.py makes its contexts: formulas are those of llama.cpp's source (b-numbers of
llama-cpp-python 0.3.36), or were fitted to what it said it took (benchmarks/fit_memory.py has both side by side). A
model that is open tells its needs itself (serving/llama_memory.py).
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from serving.embed_room import USUAL_TOKENS, output_bytes, rows_of
from serving.engine import MemoryUse
from serving.llama_options import EngineOptions
from serving.model_shape import Group, ModelShape
from serving.vllm_options import VllmOptions

CELLS = 256
"""llama.cpp gives a sequence a multiple of so many tokens of context."""
KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32, "bf16": 2.0, "fp8": 1.0}
"""Of one number, by the type of the KV."""
VLLM_BLOCK = VllmOptions().block_size
FLOAT = 4

USUAL = EngineOptions()

CpuFlags = Collection[str]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is to be run."""

    context: int
    """Tokens of one session."""
    sessions: int = 1
    options: EngineOptions = USUAL

    @property
    def cells(self) -> int:
        """Of one sequence. llama.cpp: GGML_PAD(n_ctx_seq, 256)."""
        return -(-self.context // CELLS) * CELLS

    @property
    def batch(self) -> int:
        """Tokens of one decode: a token for each sequence at least, and no more than there are cells."""
        return min(max(self.options.batch, self.sessions), self.cells * self.sessions)


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """Bytes, of a model that runs by a plan."""

    weights: int
    """The file, mapped."""
    copies: int
    """Weights that are kept once more, interleaved for this CPU; the mapped ones are then not read again, and the
    kernel drops them where memory is short."""
    kv: int
    compute: int
    embedding: int
    """For embeddings, made when the first is asked for; a host keeps room for it."""

    @property
    def needed(self) -> int:
        """What must be in memory at once: every weight counts once."""
        return self.weights + self.kv + self.compute + self.embedding

    @property
    def told(self) -> MemoryUse:
        """As llama.cpp counts it, which counts both copies of a weight."""
        return MemoryUse(self.weights + self.copies, self.kv, self.compute)


def llama_memory(shape: ModelShape, plan: Plan, flags: CpuFlags = ()) -> ModelMemory:
    """On CPUs that have these `flags` (as /proc/cpuinfo spells them)."""
    return ModelMemory(
        shape.weight_bytes,
        copies_bytes(shape, flags),
        kv_bytes(shape, plan),
        compute_bytes(shape, plan),
        embedding_bytes(shape, plan),
    )


def interleaved_kinds(flags: CpuFlags) -> frozenset[str]:
    """The kinds of which llama.cpp keeps an interleaved copy: ggml_repack_get_optimal_repack_type (repack.cpp). AMX's
    (amx/common.h) are not among them, since cluster/llama_build.py builds without its tiles."""
    kinds: set[str] = set()
    if "avx2" in flags:
        kinds |= {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"}
    if "avx512f" in flags:
        kinds |= {"Q2_K"}
    if "asimddp" in flags or "neon" in flags:
        kinds |= {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4", "Q8_0"}
    return frozenset(kinds)


def copies_bytes(shape: ModelShape, flags: CpuFlags) -> int:
    """Matrices that are multiplied, of these kinds: all of the layers' and the output. Embeddings that are the output
    too are copied, embeddings that are only looked up are not."""
    kinds = interleaved_kinds(flags)

    def is_copied(group: Group) -> bool:
        is_multiplied = group.part in ("layer", "output") or (group.part == "embedding" and shape.tied)
        return is_multiplied and group.matrix and group.eights and group.kind in kinds

    return sum(group.size for group in shape.groups if is_copied(group))


def kv_bytes(shape: ModelShape, plan: Plan) -> int:
    """Keys and values of all sessions, and the state of layers that keep one.

    A layer keeps kv_heads x (key + value) numbers a cell (llama_kv_cache). One with a sliding window has
    GGML_PAD(min(cells, window + batch), 256) cells (llama_kv_cache_iswa).
    """
    return plan.sessions * (
        sum(
            layer_kv_bytes(shape, layer, plan.options.kv_type) * kept_cells(shape, layer, plan)
            for layer in range(shape.layers)
        )
        + shape.state_bytes
    )


def layer_kv_bytes(shape: ModelShape, layer: int, kv_type: str) -> int:
    """Of one token in one layer."""
    return int(shape.kv_heads[layer] * (shape.key_size + shape.value_size) * KV_BYTES[kv_type])


def kept_cells(shape: ModelShape, layer: int, plan: Plan) -> int:
    """Of one sequence in one layer."""
    if not shape.windowed[layer]:
        return plan.cells
    return -(-min(plan.cells, shape.window + plan.batch) // CELLS) * CELLS


def embedding_bytes(shape: ModelShape, plan: Plan) -> int:
    """The context in which texts up to the usual length are embedded (serving/llama_embed.py): its KV, the buffers of
    a decode that has an output for every token, and the outputs."""
    rows = rows_of(plan.options.batch, shape.vocabulary)
    options = replace(plan.options, batch=rows)
    small = Plan(min(plan.context, USUAL_TOKENS), 1, options)
    logits = FLOAT * rows * (shape.vocabulary + 2 * shape.width)
    decode = max(compute_bytes(shape, small), logits)
    return kv_bytes(shape, small) + decode + output_bytes(rows, shape.vocabulary, shape.width)


def compute_bytes(shape: ModelShape, plan: Plan) -> int:
    """The buffers of one decode, and of its outputs.

    What is alive at once where most is: of every token of the batch in the feed-forward part the gate, the other half
    and their product (of every expert that is used), and four times the width; in attention three times the width,
    twice the queries and the keys and values, and without flash attention a weight for every head and cell. To that
    the mask (two bytes a token and cell with flash attention, four without), one for all layers and one for those
    with a window, and four bytes for every output and token of the vocabulary. The counts were fitted to what
    llama.cpp 0.3.36 says for 42 contexts of 7 models, and are exact for llama, Qwen 3 and mixtures of experts.
    """
    options, rows = plan.options, plan.batch
    cells = [kept_cells(shape, layer, plan) for layer in range(shape.layers) if shape.kv_heads[layer]]
    mask_bytes = 2 if options.flash else 4
    masks = sum(sorted(set(cells))) * rows * mask_bytes
    if any(shape.windowed) and len(set(cells)) == 1:
        masks *= 2
    forward = 3 * shape.forward * max(1, shape.experts_used) + 4 * shape.width
    queries = shape.heads * shape.key_size
    keys = max(shape.kv_heads, default=0) * (shape.key_size + shape.value_size)
    attention = 3 * shape.width + 2 * queries + keys
    if not options.flash:
        attention += shape.heads * max(cells, default=0)
    outputs = plan.sessions * shape.vocabulary * FLOAT
    return rows * FLOAT * max(forward, attention) + masks + outputs


def vllm_kv_bytes(
    shape: ModelShape, context: int, sessions: int, kv_type: str = "bf16", block: int = VLLM_BLOCK
) -> int:
    """What vLLM's cache must hold so that so many sessions of so many tokens are in it at once: whole blocks of
    2 x block x kv_heads x head numbers a layer (vllm/v1/kv_cache_interface.py, FullAttentionSpec); layers with a
    sliding window keep window - 1 more tokens than a block, rounded up to blocks (SlidingWindowSpec)."""
    total = 0
    for layer in range(shape.layers):
        tokens = min(context, shape.window - 1 + block) if shape.windowed[layer] else context
        blocks = -(-tokens // block) + (1 if shape.windowed[layer] else 0)
        total += blocks * block * layer_kv_bytes(shape, layer, kv_type)
    return sessions * total


def largest_context(
    shape: ModelShape, plan: Plan, memory_bytes: int, engine: Literal["llama.cpp", "vllm"] = "llama.cpp"
) -> int:
    """Tokens of context for each of the plan's sessions, in steps of 256, that fit into so many bytes beside weights
    and compute; 0: not even the weights do. Not more than the model was trained for, where it says that."""
    most = shape.trained_context or 2**20
    low, high = 0, max(1, most // CELLS)

    def needed(steps: int) -> int:
        if engine == "vllm":
            return shape.weight_bytes + vllm_kv_bytes(shape, steps * CELLS, plan.sessions)
        wider = Plan(steps * CELLS, plan.sessions, plan.options)
        return llama_memory(shape, wider).needed

    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(middle) <= memory_bytes else (low, middle - 1)
    return low * CELLS


def layers_that_fit(shape: ModelShape, plan: Plan, memory_bytes: int) -> int:
    """`gpu_layers` that fit into a GPU of so many bytes, of layers + 1: the last layers first, the output counted as
    one more, as llama.cpp does it; each layer with its KV, and the buffers of a decode once."""
    left = memory_bytes - compute_bytes(shape, plan)
    sizes = [shape.outside_bytes]
    layer_bytes = shape.layer_bytes
    for layer in reversed(range(shape.layers)):
        kv = layer_kv_bytes(shape, layer, plan.options.kv_type) * kept_cells(shape, layer, plan)
        sizes.append(layer_bytes[layer] + plan.sessions * kv)
    count = 0
    for size in sizes:
        left -= size
        if left < 0:
            break
        count += 1
    return count
