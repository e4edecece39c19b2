"""Reads the head of a GGUF file: is it one, is it whole, and what identifies it. One in several parts is one model.

Reads no tensor. What the head's bytes mean says serving/gguf_layout.py.
"""

import hashlib
import mmap
from dataclasses import dataclass
from pathlib import Path

from serving.gguf_layout import MAGIC, SMALLEST_HEADER, VERSIONS, Broken, Short, read_layout
from serving.model_files import NoSource, part_names

LAST_BYTES = 1024**2


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
                return _describe(data)
    except FileNotFoundError as missing:
        raise GgufError(f"{path} does not exist", "Correct the path") from missing
    except PermissionError as denied:
        raise GgufError(f"{path} may not be read by this user", "Give the user read permission") from denied
    except OSError as failure:
        raise GgufError(f"{path}: {failure.strerror}", "Give the path of a GGUF file") from failure
    except Short as short:
        raise GgufError(f"{path} is truncated: {short}", again) from short
    except Broken as broken:
        raise GgufError(f"{path} is damaged: {broken}", again) from broken


def _describe(data: mmap.mmap) -> Head:
    layout = read_layout(data)
    needed = layout.data_at + layout.data_bytes
    if needed > len(data):
        raise Short(f"its header promises {needed} bytes, it has {len(data)}")
    digest = hashlib.sha256(data[: layout.data_at])
    digest.update(str(len(data)).encode())
    digest.update(data[max(layout.data_at, len(data) - LAST_BYTES) :])
    return Head(layout.version, len(layout.tensors), layout.data_at, digest.hexdigest(), layout.parts)
