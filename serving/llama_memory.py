"""What a model takes in memory, read from what llama.cpp logs when it makes it. Pure.

llama.cpp tells its buffers' sizes nowhere else in C. A model that is loaded with `no_alloc` takes no memory, and a
context of it still says how large its parts would be.
"""

import re
from collections.abc import Iterable, Sequence

from serving.engine import MemoryUse

MIB = 2**20

_FORESEEN_KV = re.compile(r"(?<!buffer )\bsize = +([\d.]+) MiB")
_BUFFER = re.compile(
    r"(\S+) +(?:DSV4 \S+ )?(model|KV|RS|state|compute|output|LoRA) buffer size = +([\d.]+) MiB"
)
_PART = {
    "model": "weights",
    "LoRA": "weights",
    "KV": "kv",
    "RS": "kv",
    "state": "kv",
    "compute": "compute",
    "output": "compute",
}


def foreseen(lines: Iterable[str]) -> MemoryUse:
    """Of the lines with which a context of a `no_alloc` model was made. Weights are 0: they are not among them."""
    kv = compute = 0
    for line in lines:
        if (buffer := _BUFFER.search(line)) is not None:
            if _PART[buffer[2]] == "compute":
                compute += _bytes(buffer[3])
        elif (size := _FORESEEN_KV.search(line)) is not None:
            kv += _bytes(size[1])
    return MemoryUse(0, kv, compute)


def measured(lines: Iterable[str]) -> MemoryUse:
    """Of the lines with which a model and its contexts were really made, on whatever device the buffers are."""
    parts = {"weights": 0, "kv": 0, "compute": 0}
    for line in lines:
        if (buffer := _BUFFER.search(line)) is not None:
            parts[_PART[buffer[2]]] += _bytes(buffer[3])
    return MemoryUse(**parts)


def too_much(name: str, parts: Sequence[tuple[str, int]], free: int) -> str | None:
    """Why `parts`, as (what it is, bytes), do not go into `free` bytes together; None if they do."""
    sum_ = sum(size for _, size in parts)
    if sum_ <= free:
        return None
    spelled = ", ".join(f"{mib(size)} for {what}" for what, size in parts)
    return (
        f"{name} does not fit: it takes {mib(sum_)} ({spelled}), but {mib(free)} are free for it. Give it more memory "
        f"(needs.memory: {-(-sum_ // MIB)}MiB), less context, fewer sessions, a smaller kv_type or a smaller "
        f"quantization."
    )


def mib(size: int) -> str:
    return f"{size / MIB:,.0f} MiB"


def _bytes(mebibytes: str) -> int:
    return round(float(mebibytes) * MIB)
