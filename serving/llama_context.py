"""One llama.cpp context: its parameters, decoding, and what its sequences hold.

The bindings come as an argument, because llama_engine.py alone imports them. What llama.cpp answers with an abort of
the process (more tokens than the batch, a bad sequence id, a part of a stream copied to another) is not asked here;
the loop sees to the numbers (decode_loop.py).
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.backend import Span
from serving.llama_options import EngineOptions

Array = NDArray[np.float32]

_fresh_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_fresh_bytes.argtypes = (ctypes.c_char_p, ctypes.c_ssize_t)
_fresh_bytes.restype = ctypes.py_object


class Abort:
    """A flag that ends the decode that runs, or the next one. Any thread may raise it.

    llama.cpp asks "abort?" at every node of the graph, a thousand times a token. A Python callback there costs a
    tenth of the speed; C's strlen on a string that is empty until `set` answers the same question.
    """

    def __init__(self, lib: Any) -> None:
        self._lib = lib
        self._text = ctypes.create_string_buffer(b"", 2)
        self._ask = ctypes.cast(ctypes.CDLL(None).strlen, lib.ggml_abort_callback)

    def __bool__(self) -> bool:
        return bool(self._text.value)

    def set(self) -> None:
        self._text.value = b"\x01"

    def clear(self) -> None:
        self._text.value = b""

    def watch(self, context: Any) -> None:
        """Let the context's decodes ask."""
        self._lib.llama_set_abort_callback(context, self._ask, ctypes.cast(self._text, ctypes.c_void_p))


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a context: each of `sequences` can hold `context` tokens; a decode takes at most `batch`."""

    context: int
    sequences: int
    threads: int
    batch: int

    @property
    def cells(self) -> int:
        """llama.cpp gives each sequence a multiple of 256."""
        return self.sequences * (-(-self.context // 256) * 256)


def context_params(lib: Any, sizes: Sizes, options: EngineOptions) -> Any:
    """For a context in which a decode has an output a sequence."""
    params = lib.llama_context_default_params()
    params.n_seq_max = sizes.sequences
    params.n_ctx = sizes.cells
    params.kv_unified = False  # each sequence has its own cells: nobody's tokens slow or touch another's
    params.swa_full = False  # a whole window's worth is kept; checkpoints do what cutting cannot
    params.n_batch = params.n_ubatch = sizes.batch
    params.n_outputs_max = sizes.sequences
    params.n_threads = params.n_threads_batch = sizes.threads
    kind = {"f16": lib.GGML_TYPE_F16, "q8_0": lib.GGML_TYPE_Q8_0, "q4_0": lib.GGML_TYPE_Q4_0}[options.kv_type]
    params.type_k = params.type_v = kind
    if not options.flash:
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return params


class Batch:
    """The arrays that llama_decode reads, made once."""

    def __init__(self, lib: Any, size: int) -> None:
        self.token = (lib.llama_token * size)()
        self.pos = (lib.llama_pos * size)()
        self.sequence = (lib.llama_seq_id * size)()
        self.output = (ctypes.c_int8 * size)()
        one_each = (ctypes.c_int32 * size)(*([1] * size))
        id_pointer = ctypes.POINTER(lib.llama_seq_id)
        width = ctypes.sizeof(lib.llama_seq_id)
        ids = (id_pointer * size)(
            *(ctypes.cast(ctypes.addressof(self.sequence) + width * row, id_pointer) for row in range(size))
        )
        self.struct = lib.llama_batch(
            n_tokens=0,
            token=ctypes.cast(self.token, ctypes.POINTER(lib.llama_token)),
            embd=None,
            pos=ctypes.cast(self.pos, ctypes.POINTER(lib.llama_pos)),
            n_seq_id=ctypes.cast(one_each, ctypes.POINTER(ctypes.c_int32)),
            seq_id=ctypes.cast(ids, ctypes.POINTER(id_pointer)),
            logits=ctypes.cast(self.output, ctypes.POINTER(ctypes.c_int8)),
        )
        self._alive = (one_each, ids)

    def fill(self, spans: Sequence[Span], every: bool = False) -> Any:
        """The struct for llama_decode; valid until the next fill. `every`: all tokens have outputs, not only the last
        of a span that wants them."""
        row = 0
        for span in spans:
            count = len(span.tokens)
            end = row + count
            self.token[row:end] = span.tokens
            self.pos[row:end] = range(span.start, span.start + count)
            self.sequence[row:end] = (span.sequence,) * count
            self.output[row:end] = [every] * count
            self.output[end - 1] = every or span.last
            row = end
        self.struct.n_tokens = row
        return self.struct


class Context:
    """A context of a loaded model. Only one thread may use it. `free` it before the model."""

    def __init__(self, lib: Any, pointer: Any, batch: int, cuttable: bool, window: int, rigid: bool) -> None:
        """`cuttable`: a sequence can be cut at any point. Otherwise `window` tokens before a point must be there to
        cut at it; or, `rigid`, no point but the end is one."""
        self._lib = lib
        self.pointer = pointer
        self._memory = lib.llama_get_memory(pointer)
        self._batch = Batch(lib, batch)
        self.cuttable = cuttable
        self._window = window
        self._rigid = rigid
        self._vocabulary: int = lib.llama_vocab_n_tokens(
            lib.llama_model_get_vocab(lib.llama_get_model(pointer))
        )

    def free(self) -> None:
        self._lib.llama_free(self.pointer)

    def decode(self, spans: Sequence[Span]) -> bool:
        """False: aborted. Raises RuntimeError."""
        result = self._lib.llama_decode(self.pointer, self._batch.fill(spans))
        if result in (0, 2):
            return bool(result == 0)
        raise RuntimeError(f"llama_decode returned {result}")

    def logits(self, row: int) -> Array:
        """Those after the batch's token number `row`, in place: whatever is written there is what is sampled."""
        pointer = self._lib.llama_get_logits_ith(self.pointer, row)
        if not pointer:
            raise RuntimeError(f"there are no logits for row {row}")
        return floats(pointer, self._vocabulary)

    # What sequences hold

    def present(self, sequence: int) -> int:
        last: int = self._lib.llama_memory_seq_pos_max(self._memory, sequence)
        return last + 1

    def keep(self, sequence: int, count: int) -> int:
        if count and self.can_keep(sequence, count) and self._cut(sequence, count):
            return count
        self.empty(sequence)
        return 0

    def can_keep(self, sequence: int, count: int) -> bool:
        """Whether everything that the token at `count` looks back on is there. llama_memory_seq_rm does not say so for
        a sliding window: it returns True and leaves a sequence that gives wrong logits."""
        if self._rigid:
            return count == self.present(sequence)
        first: int = self._lib.llama_memory_seq_pos_min(self._memory, sequence)
        return 0 <= first <= max(0, count - self._window) and count <= self.present(sequence)

    def empty(self, sequence: int) -> None:
        self._lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def clear(self) -> None:
        self._lib.llama_memory_clear(self._memory, False)

    def save(self, sequence: int) -> bytes | None:
        return self._get(sequence, self._lib.LLAMA_STATE_SEQ_FLAGS_NONE)

    def load(self, sequence: int, data: bytes) -> bool:
        return self._set(sequence, data, self._lib.LLAMA_STATE_SEQ_FLAGS_NONE)

    def checkpoint(self, sequence: int) -> bytes | None:
        return self._get(sequence, self._lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)

    def roll_back(self, sequence: int, count: int, data: bytes) -> bool:
        """The part that cannot be cut comes from `data`, the rest is cut."""
        if not self._set(sequence, data, self._lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY):
            return False
        if self.present(sequence) == count and self._cut(sequence, count):
            return True
        self.empty(sequence)
        return False

    def copy(self, source: int, destination: int, count: int) -> bool:
        """Out and in again: between sequences with cells of their own, llama_memory_seq_cp copies all cells, used or
        not, and aborts when asked for a part."""
        data = self.save(source)
        if data is None or not self.load(destination, data):
            self.empty(destination)
            return False
        return self.keep(destination, count) == count

    def _cut(self, sequence: int, count: int) -> bool:
        return bool(self._lib.llama_memory_seq_rm(self._memory, sequence, count, -1))

    def _get(self, sequence: int, flags: int) -> bytes | None:
        size = self._lib.llama_state_seq_get_size_ext(self.pointer, sequence, flags)
        if not size or not self.present(sequence):
            return None
        data: bytes = _fresh_bytes(None, size)  # written before anybody sees it: saves a copy of it all
        written = self._lib.llama_state_seq_get_data_ext(self.pointer, _octets(data), size, sequence, flags)
        return data if written == size else None

    def _set(self, sequence: int, data: bytes, flags: int) -> bool:
        set_data = self._lib.llama_state_seq_set_data_ext
        if data and set_data(self.pointer, _octets(data), len(data), sequence, flags) == len(data):
            return True
        self.empty(sequence)
        return False


def floats(pointer: Any, count: int) -> Array:
    """What a C pointer points to, in place."""
    memory: Any = (ctypes.c_float * count).from_address(ctypes.addressof(pointer.contents))
    array: Array = np.frombuffer(memory, dtype=np.float32)
    return array


def _octets(data: bytes) -> Any:
    return ctypes.cast(ctypes.c_char_p(data), ctypes.POINTER(ctypes.c_uint8))
