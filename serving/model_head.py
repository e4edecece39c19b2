"""Gets the head of a model, wherever it lies, and no more of it: `bundled`, a path, `hf:…` or `https://…`.

What the head says is serving/model_shape.py's matter.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from serving import safetensors_layout
from serving.gguf_layout import Broken, Layout, Short, read_layout
from serving.model_files import BUNDLED, CONFIG, INDEX, HubSource, NoSource, hub_source, part_names
from serving.model_shape import ModelShape, NoShape, shape_of_gguf
from serving.model_trouble import Trouble
from serving.source import SourceError, bundled_model

FIRST_BYTES = 512 * 1024
MOST_BYTES = 256 * 1024**2
"""No model's head comes near it."""
FORMS = "Give `bundled`, a path, hf:OWNER/REPO:FILE, hf:OWNER/REPO (safetensors), or https://…"

Head = TypeVar("Head")


class NoHead(Exception):
    """The model cannot be looked at. `message` says why, `remedy` what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}. {remedy}")
        self.message = message
        self.remedy = remedy


class Files(Protocol):
    """The files beside each other that a model is made of."""

    def read(self, name: str, begin: int, end: int) -> tuple[bytes, int]:
        """These bytes of a file, fewer at its end, and its size. Raises NoHead or Trouble."""


def read_shape(source: str, cache: Path | None = None) -> ModelShape:
    """Of this source; `cache` is the state folder. Blocks. Raises NoHead."""
    try:
        files, name = _files(source, cache)
        return _gguf(files, name) if name is not None else _folder(files)
    except (NoShape, NoSource, SourceError, Trouble) as error:
        raise NoHead(f"{source}: {error.message}", error.remedy) from None


def _files(source: str, cache: Path | None) -> tuple[Files, str | None]:
    """Where it lies, and the first file's name; None: a folder of safetensors."""
    if source == BUNDLED:
        path = bundled_model(cache)
        return _Local(path.parent), path.name
    if (hub := hub_source(source)) is not None:
        return _Hub(hub), hub.file
    if source.startswith(("https://", "http://")):
        folder, _, name = urlsplit(source).path.rpartition("/")
        if not name.endswith(".gguf"):
            raise NoHead(f"{source} names no GGUF file", "Give the address of a file that ends in .gguf")
        return _Web(urlsplit(source)._replace(path="").geturl() + folder), name
    path = Path(source).expanduser()
    if path.is_dir():
        return _Local(path), None
    if not path.exists():
        raise NoHead(f"{source} does not exist", FORMS)
    return _Local(path.parent), path.name


def _gguf(files: Files, first: str) -> ModelShape:
    layouts, size = [], 0
    for name in part_names(first):
        layout, file_bytes = _grown(files, name, _layout)
        if layout.data_at + layout.data_bytes > file_bytes:
            raise NoHead(f"{name} has fewer bytes than its head promises", "Get the file again")
        layouts.append(layout)
        size += file_bytes
    if layouts[0].parts != len(layouts):
        count = layouts[0].parts
        raise NoHead(
            f"{first} is part of a model in {count} parts", f"Name it NAME-00001-of-{count:05d}.gguf"
        )
    return shape_of_gguf(layouts, size)


def _layout(data: bytes) -> Layout:
    try:
        return read_layout(data)
    except Broken as broken:
        raise NoShape(
            f"This is no GGUF file that can be read: {broken}", "Give a file in GGUF format"
        ) from None


def _folder(files: Files) -> ModelShape:
    config = _json(files, CONFIG, "Give a folder with config.json and *.safetensors in it")
    try:
        index = _json(files, INDEX, "")
        names = sorted(set(index["weight_map"].values()))
    except (NoHead, Trouble):
        names = ["model.safetensors"]
    except (KeyError, AttributeError, TypeError):
        raise NoHead(f"{INDEX} names no files", "Get the folder again") from None
    headers: list[dict[str, Any]] = []
    size = 0
    for name in names:
        header, file_bytes = _grown(files, name, safetensors_layout.header)
        headers.append(header)
        size += file_bytes
    return safetensors_layout.shape_of_folder(config, headers, size)


def _json(files: Files, name: str, remedy: str) -> dict[str, Any]:
    data, size = files.read(name, 0, MOST_BYTES // 16)
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise NoHead(f"{name} ({size} bytes) is no JSON", remedy or "Get the folder again")
    return found


def _grown(files: Files, name: str, parse: Callable[[bytes], Head]) -> tuple[Head, int]:
    """What `parse` makes of the file's first bytes, of which twice as many are got until they are enough; and the
    file's size."""
    data, size = files.read(name, 0, FIRST_BYTES)
    while True:
        try:
            return parse(data), size
        except Short as short:
            if len(data) >= min(size, MOST_BYTES):
                raise NoHead(f"{name} is truncated: {short}", "Get the file again") from None
        more, size = files.read(name, len(data), min(2 * len(data), size))
        if not more:
            raise NoHead(f"{name} broke off at byte {len(data)}", "Try again")
        data += more


class _Local:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str, begin: int, end: int) -> tuple[bytes, int]:
        path = self._folder / name
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(begin)
                return file.read(end - begin), size
        except FileNotFoundError:
            raise NoHead(f"{path} is missing", "Put it there, or give another model") from None
        except OSError as error:
            raise NoHead(f"{path}: {error.strerror}", "Give a file that this user can read") from None


class _Hub:
    def __init__(self, hub: HubSource) -> None:
        self._hub = hub

    def read(self, name: str, begin: int, end: int) -> tuple[bytes, int]:
        from serving.hub_fetch import read_part

        return read_part(self._hub, name, begin, end)


class _Web:
    def __init__(self, folder: str) -> None:
        self._folder = folder

    def read(self, name: str, begin: int, end: int) -> tuple[bytes, int]:
        from serving.hub_fetch import read_web_part

        address = urlsplit(self._folder)
        return read_web_part(address._replace(path=f"{address.path}/{name}").geturl(), begin, end)
