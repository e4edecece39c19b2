"""Reads the head of a GGUF file: is it one, is it whole, and what identifies it. One in several parts is one model.

Reads no tensor. Knows the layout up to version 3 (versions 2 and 3 are the ones that llama.cpp loads).
"""

import hashlib
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from serving.model_files import NoSource, part_names

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ARRAY, STRING = 9, 8
SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
UNSIGNED = {2: "<H", 4: "<I"}
SMALLEST_HEADER = 24
LAST_BYTES = 1024**2

BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip
"""ggml's tensor types: (weights in a block, bytes of a block), from ggml.h. Unknown ones are not measured."""


class GgufError(Exception):
    """The file cannot be served. `message` says what is wrong with it, `remedy` what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}. {remedy}")
        self.message = message
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Head:
    """What the head of a whole GGUF file says."""

    version: int
    tensors: int
    head_bytes: int
    """Where the tensors' data begin."""
    digest: str
    """64 hex digits over the head, the size and the last MiB: the same on every machine, and quick to get."""
    parts: int = 1
    """Files that the model is made of."""


def read_head(path: Path) -> Head:
    """Check `path` and describe it; of a model in several parts, all of them, given the first.

    GgufError: missing, unreadable, no GGUF, shorter than its head promises, not the first part.
    """
    try:
        names = part_names(path.name)
    except NoSource as error:
        raise GgufError(f"{path}: {error.message}", error.remedy) from None
    first = _read_file(path)
    if len(names) != first.parts:
        raise GgufError(
            f"{path} is part of a model in {first.parts} parts"
            if first.parts > 1
            else f"{path} is a whole model",
            f"Call it NAME-00001-of-{first.parts:05d}.gguf, and the other parts likewise"
            if first.parts > 1
            else "Remove -00001-of-... from its name",
        )
    if first.parts == 1:
        return _with_weights(path, first)
    heads = [first]
    for number, name in enumerate(names[1:], 2):
        other = path.with_name(name)
        if not other.exists():
            raise GgufError(
                f"part {number} of {len(names)} is missing: {other}", f"Put it beside {path.name}"
            )
        heads.append(_read_file(other))
        if heads[-1].parts != len(names):
            raise GgufError(f"{other} is no part of {path.name}", "Get all parts of the same model")
    digest = hashlib.sha256("".join(head.digest for head in heads).encode()).hexdigest()
    weights = sum(head.tensors for head in heads)
    return _with_weights(path, Head(first.version, weights, first.head_bytes, digest, first.parts))


def _with_weights(path: Path, head: Head) -> Head:
    if head.tensors == 0:
        raise GgufError(f"{path} holds no weights (it may be a vocabulary)", "Give a complete model file")
    return head


def _read_file(path: Path) -> Head:
    again = "Download or copy the file again"
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            start = file.read(8)
            if start[:4] != MAGIC:
                raise GgufError(
                    f"{path} is not a GGUF file (it begins with {start[:4]!r})", "Give a file in GGUF format"
                )
            if size < SMALLEST_HEADER:
                raise GgufError(f"{path} ends after {size} bytes, inside its header", again)
            version = int.from_bytes(start[4:8], "little")
            if version not in VERSIONS:
                raise GgufError(
                    f"{path} has GGUF version {version}; versions 2 and 3 are read",
                    "Convert it with a current llama.cpp",
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _describe(data, version)
    except FileNotFoundError as missing:
        raise GgufError(f"{path} does not exist", "Correct the path") from missing
    except PermissionError as denied:
        raise GgufError(f"{path} may not be read by this user", "Give the user read permission") from denied
    except OSError as failure:
        raise GgufError(f"{path}: {failure.strerror}", "Give the path of a GGUF file") from failure
    except _ShortError as short:
        raise GgufError(f"{path} is truncated: {short}", again) from short


class _ShortError(Exception):
    """The data end before what they announce."""


@dataclass(slots=True)
class _Cursor:
    data: mmap.mmap
    at: int

    def skip(self, count: int) -> int:
        """Move on by `count` bytes; returns where they begin."""
        begin = self.at
        self.at += count
        if self.at > len(self.data):
            raise _ShortError(f"it ends at byte {len(self.data)}, inside its header")
        return begin

    def integer(self, layout: str) -> int:
        begin = self.skip(struct.calcsize(layout))
        return int(struct.unpack_from(layout, self.data, begin)[0])

    def text(self) -> bytes:
        length = self.integer("<Q")
        begin = self.skip(length)
        return self.data[begin : begin + length]

    def value(self, kind: int) -> int | None:
        """Move past one value; returns it when it is an unsigned number of 16 or 32 bits."""
        if kind == STRING:
            self.skip(self.integer("<Q"))
        elif kind == ARRAY:
            inner, count = self.integer("<I"), self.integer("<Q")
            if inner in SCALAR_BYTES:
                self.skip(SCALAR_BYTES[inner] * count)
            else:
                for _ in range(count):
                    self.value(inner)
        elif kind in UNSIGNED:
            return self.integer(UNSIGNED[kind])
        elif kind in SCALAR_BYTES:
            self.skip(SCALAR_BYTES[kind])
        else:
            raise _ShortError(f"its header has a value of unknown type {kind} before byte {self.at}")
        return None


def _describe(data: mmap.mmap, version: int) -> Head:
    cursor = _Cursor(data, 8)
    tensors, pairs = cursor.integer("<Q"), cursor.integer("<Q")
    alignment, parts = 32, 1
    for _ in range(pairs):
        key, kind = cursor.text(), cursor.integer("<I")
        value = cursor.value(kind)
        if key == b"general.alignment" and value:
            alignment = value
        if key == b"split.count" and value:
            parts = value
    needed = 0
    for _ in range(tensors):
        cursor.text()
        weights = 1
        for _ in range(cursor.integer("<I")):
            weights *= cursor.integer("<Q")
        per_block, block_bytes = BLOCKS.get(cursor.integer("<I"), (1, 0))
        needed = max(needed, cursor.integer("<Q") + weights // per_block * block_bytes)
    begin = -(-cursor.at // alignment) * alignment
    if begin + needed > len(data):
        raise _ShortError(f"its header promises {begin + needed} bytes, it has {len(data)}")
    digest = hashlib.sha256(data[:begin])
    digest.update(str(len(data)).encode())
    digest.update(data[max(begin, len(data) - LAST_BYTES) :])
    return Head(version, tensors, begin, digest.hexdigest(), parts)
