"""A parked session's file on its way between hosts: given out in pieces, and taken in under another name until it is
proven to be the file of that session and that engine.

Speaks no HTTP and decides not who may have it. Everything here may block: for a thread.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from serving import parked_file
from serving.engine import SavedState
from serving.parked_file import DIGEST_BYTES, DamagedFile

PIECE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A context as its file's bytes."""

    size: int
    tokens: int
    pieces: Iterator[bytes]
    """Of at most PIECE_BYTES. May raise OSError; to be closed where it is not read to its end."""


def of_state(session: str, fingerprint: str, state: SavedState) -> Outgoing:
    """What `parked_file.write` would write."""
    return Outgoing(
        parked_file.size_of(state),
        len(state.tokens),
        _of_state(list(parked_file.parts(session, fingerprint, state))),
    )


def of_file(folder: Path, session: str, fingerprint: str) -> Outgoing:
    """A file as it lies there; no more than its head is proved. Raises ParkedFileError and OSError."""
    file = parked_file.path_of(folder, session).open("rb", buffering=0)
    try:
        tokens = parked_file.check_head(file, session, fingerprint)
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
    except BaseException:
        file.close()
        raise

    def pieces() -> Iterator[bytes]:
        with file:
            while piece := file.read(PIECE_BYTES):
                yield piece

    return Outgoing(size, tokens, pieces())


def _of_state(parts: list[bytes]) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for part in parts:
        view = memoryview(part)
        for start in range(0, len(view), PIECE_BYTES):
            piece = bytes(view[start : start + PIECE_BYTES])
            digest.update(piece)
            yield piece
    yield digest.digest()


class Incoming:
    """A file of `size` bytes that comes in pieces, under a name that a host which starts anew removes. Raises
    OSError."""

    def __init__(self, folder: Path, session: str, fingerprint: str, size: int) -> None:
        self.session = session
        self.size = size
        self.tokens = 0
        """How many it says it holds, once it is whole."""
        self._folder = folder
        self._fingerprint = fingerprint
        self._path = parked_file.new_temporary(folder, session)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._digest = hashlib.sha256()
        self._come = 0
        self._end = b""

    def write(self, piece: bytes) -> None:
        """Raises DamagedFile for more than `size` bytes."""
        proved = max(0, min(len(piece), self.size - DIGEST_BYTES - self._come))
        self._come += len(piece)
        if self._come > self.size:
            raise DamagedFile(f"more than its {self.size} bytes came")
        self._digest.update(piece[:proved])
        self._end += piece[proved:]
        view = memoryview(piece)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def finish(self) -> None:
        """It is whole, durable, and what `size`, the session and the fingerprint say. Raises ParkedFileError."""
        if self._come != self.size:
            raise DamagedFile(f"only {self._come} of its {self.size} bytes came")
        if self._end != self._digest.digest():
            raise DamagedFile("its checksum is wrong")
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        with os.fdopen(os.dup(self._descriptor), "rb", buffering=0) as file:
            self.tokens = parked_file.check_head(file, self.session, self._fingerprint)
        os.fsync(self._descriptor)
        self._close()

    def place(self) -> None:
        """It is the session's file from now on, in the place of an older one. After `finish`."""
        self._path.replace(parked_file.path_of(self._folder, self.session))
        parked_file.sync_folder(self._folder)

    def drop(self) -> None:
        """Away with it, however far it came."""
        self._close()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
