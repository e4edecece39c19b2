"""Splits a GGUF as llama.cpp's own tool does: every part says which one it is, the first has the metadata."""

import struct
from pathlib import Path

import gguf

ALIGNMENT = 32


def split(path: Path, folder: Path, name: str, count: int) -> Path:
    """Write the parts of `path` into `folder`; returns the first one, which has the metadata and no weights."""
    data, reader = path.read_bytes(), gguf.GGUFReader(path)
    tensors = reader.tensors
    starts = [tensor.field.offset for tensor in tensors]
    ends = [*starts[1:], starts[-1] + sum(part.nbytes for part in tensors[-1].field.parts)]
    metadata, keys = data[24 : starts[0]], struct.unpack("<Q", data[16:24])[0]
    each = -(-len(tensors) // (count - 1))
    for number in range(count):
        here = range(max(0, number - 1) * each, min(len(tensors), number * each)) if number else range(0)
        pairs = _pair("split.no", 2, struct.pack("<H", number)) + _pair(
            "split.count", 2, struct.pack("<H", count)
        )
        pairs += _pair("split.tensors.count", 5, struct.pack("<i", len(tensors)))
        infos, weights = b"", b""
        for at in here:
            infos += data[starts[at] : ends[at] - 8] + struct.pack("<Q", len(weights))
            raw = bytes(tensors[at].data.tobytes())
            weights += raw + bytes(-len(raw) % ALIGNMENT)
        head = data[:8] + struct.pack("<QQ", len(here), 3 + (0 if number else keys))
        head += pairs + (b"" if number else metadata) + infos
        head += bytes(-len(head) % ALIGNMENT)
        (folder / f"{name}-{number + 1:05d}-of-{count:05d}.gguf").write_bytes(head + weights)
    return folder / f"{name}-{1:05d}-of-{count:05d}.gguf"


def _pair(key: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value
