"""A model's folder as Hugging Face has it: is it whole, and what identifies its content. Reads no weights."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from serving.model_files import NEEDED

LAST_BYTES = 1024**2


def weight_bytes(folder: Path) -> int:
    """Of all safetensors in the folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def lacking(folder: Path) -> str | None:
    """What a folder lacks to be served; None: nothing."""
    if not folder.is_dir():
        return "it is no folder" if folder.exists() else "it does not exist"
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        return f"it has no {missing[0]}"
    if not any(folder.glob("*.safetensors")):
        return "it has no weights (*.safetensors)"
    return None


def digest(folder: Path) -> str:
    """64 hex digits for the content of a model's folder, the same on every machine that has the same one: all of the
    small files, and of each safetensors its size, its head's first and its last MiB. Raises OSError."""
    made = hashlib.sha256()
    for file in sorted(_files(folder)):
        size = file.stat().st_size
        made.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as opened:
            made.update(opened.read(LAST_BYTES))
            opened.seek(max(LAST_BYTES, size - LAST_BYTES))
            made.update(opened.read())
    return made.hexdigest()


def _files(folder: Path) -> Iterable[Path]:
    for pattern in ("*.json", "*.jinja", "*.safetensors"):
        yield from folder.glob(pattern)
