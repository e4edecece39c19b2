"""The folder of models that came from Hugging Face, here or through another machine: which of them are whole.

A model is whole when its stamp says so and its files are as the stamp says; what is half there lies in `partial`.
Fetches nothing. Who writes is serving/bring_model.py; the keeper and its file server read.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cluster.paths import read_json, write_private
from serving.model_files import Content, hub_source, is_of_folder, part_names, source_key
from serving.model_room import Disk, Kept, NoRoom, what_goes
from serving.model_trouble import FREE, Trouble
from serving.source import fetched_path

STALE_S = 7 * 86400.0
"""What is half there and was not touched for so long goes when room is needed."""
STRAY_S = 86400.0
"""Likewise a file of a model that is not whole."""
SPARE_BYTES = 64 * 1024**2
"""Of the disk, these are left free."""
READ_BYTES = 4 * 1024**2


@dataclass(frozen=True, slots=True)
class Held:
    """A model that is whole here."""

    source: str
    content: Content
    used_s: float
    """Since the epoch."""


class ModelFolder:
    """`folder` is made when something is written there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def held(self) -> dict[str, Held]:
        """All that is whole, by source. Files of another size or time than their stamp says are not."""
        found = {}
        for stamp in sorted(self._stamps.glob("*.json")):
            kept = read_json(stamp)
            try:
                source, times, content = str(kept["source"]), kept["mtime_ns"], Content.from_json(kept)
                hub = hub_source(source)
                names = tuple(part.name for part in content.parts)
                if hub is None or not hub.is_made_of(names) or len(times) != len(names):
                    continue
                for part, mtime in zip(content.parts, times, strict=True):
                    stat = fetched_path(self.folder, hub, part.name).stat()
                    if (stat.st_size, stat.st_mtime_ns) != (part.size, mtime):
                        raise OSError
                found[source] = Held(source, content, stamp.stat().st_mtime)
            except (OSError, KeyError, TypeError, ValueError):
                continue
        return found

    def find(self, sha256: str) -> Path | None:
        """The file of a whole model that has this digest."""
        for held in self.held().values():
            for part in held.content.parts:
                if part.sha256 == sha256 and (hub := hub_source(held.source)) is not None:
                    return fetched_path(self.folder, hub, part.name)
        return None

    def used(self, source: str) -> None:
        """A host is started on it now."""
        with suppress(OSError):
            os.utime(self._stamp(source))

    def path(self, source: str, name: str) -> Path:
        hub = hub_source(source)
        assert hub is not None
        return fetched_path(self.folder, hub, name)

    @contextmanager
    def open_partial(self, source: str, name: str, digest: str) -> Iterator[tuple[BinaryIO, Path]]:
        """The file in which the bytes of this content are gathered, at its end; for one process at a time.

        Raises Trouble where another one has it, and OSError.
        """
        path = self._partial / source_key(f"{source}\0{name}\0{digest}")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Trouble(
                    "busy", f"{name} is being fetched here by another process", "It is waited for"
                ) from None
            os.utime(path)  # it is not stale while somebody goes on with it
            file.seek(0, os.SEEK_END)
            yield file, path

    def place(self, partial: Path, source: str, name: str) -> None:
        """Put a checked file where hosts find it, whole or not at all."""
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        target = self.path(source, name)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial.replace(target)

    def stamp(self, source: str, content: Content) -> None:
        """Its files are all there and were checked: from now on it is whole.

        What else lies there and could be a part of it, as of another commit, goes before: an engine that is given the
        folder reads all of it.
        """
        parts = {self.path(source, part.name) for part in content.parts}
        for path in self._of(source):
            if path not in parts:
                path.unlink()
        times = [self.path(source, part.name).stat().st_mtime_ns for part in content.parts]
        self._stamps.mkdir(mode=0o700, parents=True, exist_ok=True)
        told = {"source": source, **content.to_json(), "mtime_ns": times}
        write_private(self._stamp(source), json.dumps(told, indent=1))

    def remove(self, source: str, names: Collection[str]) -> None:
        """The stamp first: what is half removed counts as not there. A host that runs on it keeps its file."""
        self._stamp(source).unlink(missing_ok=True)
        for name in names:
            path = self.path(source, name)
            path.unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self.folder:
                    break
                with suppress(OSError):
                    folder.rmdir()

    def make_room(self, needed: int, budget: int | None, named: Collection[str]) -> tuple[str, ...]:
        """See that `needed` more bytes fit: removes what no config names, as serving/model_room.py says. Returns what
        went. Raises Trouble."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = self.held()
        now = time.time()
        for path in self._partial.glob("*"):
            with suppress(OSError):
                if path.stat().st_mtime < now - STALE_S:
                    path.unlink()
        free = max(0, shutil.disk_usage(self.folder).free - SPARE_BYTES)
        kept = [Kept(each.source, each.content.size, each.used_s) for each in held.values()]
        try:
            try:
                going = what_goes(kept, named, Disk(self.taken(), free, budget), needed)
            except NoRoom:
                if budget is None or not (freed := self._remove_strays(held, named)):
                    raise
                going = what_goes(kept, named, Disk(self.taken(), free + freed, budget), needed)
        except NoRoom as error:
            remedy = "Make it larger" if "models_disk" in str(error) else FREE
            raise Trouble("disk", f"no room in {self.folder}: {error}", remedy) from None
        for source in going:
            self.remove(source, [part.name for part in held[source].content.parts])
        return going

    def _remove_strays(self, held: Mapping[str, Held], named: Collection[str]) -> int:
        """Remove files of which no stamp knows: the first parts of a model that was given up. Returns their bytes.

        What a named source may still want stays, and so does what came of late: its other parts may be on their way.
        """
        stay = {path for source in {*named, *held} for path in self._of(source)}
        freed, before = 0, time.time() - STRAY_S
        for path in list(self.folder.rglob("*")):
            within = path.relative_to(self.folder).parts[0]
            with suppress(OSError):
                stat = path.lstat()
                if within.startswith(".") or path in stay or not path.is_file() or stat.st_mtime > before:
                    continue
                path.unlink()
                freed += stat.st_size
        return freed

    def _of(self, source: str) -> list[Path]:
        """All files here that may be some of this source's."""
        hub = hub_source(source)
        if hub is None:
            return []
        if hub.file is not None:
            paths = [fetched_path(self.folder, hub, name) for name in part_names(hub.file)]
            return [path for path in paths if path.exists()]
        there = fetched_path(self.folder, hub, "").glob("*")
        return [path for path in there if is_of_folder(path.name) and path.is_file()]

    def taken(self) -> int:
        """Bytes of all files below the folder."""
        sizes = 0
        for path in self.folder.rglob("*"):
            with suppress(OSError):
                sizes += path.stat().st_size if path.is_file() else 0
        return sizes

    @property
    def _stamps(self) -> Path:
        return self.folder / ".whole"

    @property
    def _partial(self) -> Path:
        return self.folder / ".partial"

    def _stamp(self, source: str) -> Path:
        return self._stamps / f"{source_key(source)}.json"


def digest_of(path: Path, algorithm: str = "sha256", before: bytes = b"") -> str:
    """The digest of a file's content, after `before`, as hex digits."""
    digest = hashlib.new(algorithm, before, usedforsecurity=False)
    with path.open("rb") as file:
        while data := file.read(READ_BYTES):
            digest.update(data)
    return digest.hexdigest()
