"""What the head of a GGUF file says, from its first bytes. Pure.

Knows the layout up to version 3 (versions 2 and 3 are the ones that llama.cpp loads), and no file: serving/gguf.py
checks one on disk, serving/model_head.py gets heads from elsewhere.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SMALLEST_HEADER = 24
ARRAY, STRING, BOOL = 9, 8, 7
SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
KEPT_NUMBERS = 4096
"""A longer list is a vocabulary's scores, and of no interest here."""
DIMENSIONS_MAX = 4

KINDS = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
"""ggml's tensor types: (name, weights in a block, bytes of a block), from ggml.h. Unknown ones are not measured."""


class Short(Exception):
    """The data end before what they announce."""


class Broken(Exception):
    """This is no head of a GGUF file. The message says what it is instead."""


class Bytes(Protocol):
    """Bytes in memory, or mapped into it."""

    def __len__(self) -> int: ...
    def __getitem__(self, key: slice, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class TensorHead:
    """One tensor. `dimensions`: the row's length first, as ggml has it."""

    name: str
    dimensions: tuple[int, ...]
    kind: str
    """ggml's name; `type N` for one that is not known here."""
    size: int
    """Bytes; 0 where the kind is not known."""
    offset: int
    """Bytes from where the tensors' data begin."""

    @property
    def weights(self) -> int:
        count = 1
        for dimension in self.dimensions:
            count *= dimension
        return count


@dataclass(frozen=True, slots=True)
class Layout:
    """A whole head."""

    version: int
    metadata: Mapping[str, Any]
    """By key: text, number, bool; of a list of numbers a tuple; of other lists how many there are."""
    tensors: tuple[TensorHead, ...]
    data_at: int
    """Where the tensors' data begin."""

    @property
    def data_bytes(self) -> int:
        """What the tensors take in the file, as far as their kinds are known."""
        return max((tensor.offset + tensor.size for tensor in self.tensors), default=0)

    @property
    def parts(self) -> int:
        """Files that the model is made of."""
        return int(self.metadata.get("split.count") or 1)


def read_layout(data: Bytes) -> Layout:
    """The head that `data` begin with. Raises Short where more of it is needed, Broken where there is none."""
    if (magic := bytes(data[:4])) != MAGIC[: len(magic)]:
        raise Broken(f"it begins with {magic!r}")
    cursor = _Cursor(data, 4)
    version = cursor.number("<I")
    if version not in VERSIONS:
        raise Broken(f"it has GGUF version {version}; versions 2 and 3 are read")
    tensors, pairs = cursor.number("<Q"), cursor.number("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.number("<I"))
    heads = tuple(_tensor(cursor) for _ in range(tensors))
    alignment = metadata.get("general.alignment")
    if not isinstance(alignment, int) or alignment < 1:
        alignment = 32
    return Layout(version, metadata, heads, -(-cursor.at // alignment) * alignment)


def _tensor(cursor: "_Cursor") -> TensorHead:
    name, count = cursor.text(), cursor.number("<I")
    if count > DIMENSIONS_MAX:
        raise Broken(f"its tensor {name!r} has {count} dimensions")
    dimensions = tuple(cursor.number("<Q") for _ in range(count))
    number = cursor.number("<I")
    kind, per_block, block_bytes = KINDS.get(number, (f"type {number}", 1, 0))
    made = TensorHead(name, dimensions, kind, 0, cursor.number("<Q"))
    return TensorHead(name, dimensions, kind, made.weights // per_block * block_bytes, made.offset)


@dataclass(slots=True)
class _Cursor:
    data: Bytes
    at: int

    def skip(self, count: int) -> int:
        """Move on by `count` bytes; returns where they begin."""
        begin = self.at
        self.at += count
        if self.at > len(self.data):
            raise Short(f"it ends at byte {len(self.data)}, inside its header")
        return begin

    def number(self, layout: str) -> Any:
        begin = self.skip(struct.calcsize(layout))
        return struct.unpack(layout, self.data[begin : self.at])[0]

    def text(self) -> str:
        length = self.number("<Q")
        begin = self.skip(length)
        return bytes(self.data[begin : self.at]).decode(errors="replace")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self._list(self.number("<I"), self.number("<Q"))
        if kind not in SCALARS:
            raise Broken(f"its header has a value of unknown type {kind} before byte {self.at}")
        return self.number(SCALARS[kind])

    def _list(self, inner: int, count: int) -> Any:
        if inner not in SCALARS:
            if inner not in (STRING, ARRAY):
                raise Broken(f"its header has a value of unknown type {inner} before byte {self.at}")
            for _ in range(count):
                if inner == STRING:
                    self.skip(self.number("<Q"))
                else:
                    self.value(inner)
            return count
        begin = self.skip(struct.calcsize(SCALARS[inner]) * count)
        if count > KEPT_NUMBERS:
            return count
        return struct.unpack(f"<{count}{SCALARS[inner][1]}", self.data[begin : self.at])
