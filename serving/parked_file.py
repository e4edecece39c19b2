"""One parked session's context as a file.

Decides neither what is written nor what is dropped (parking_disk.py does), and asks no engine whether it takes the
bytes: it proves only that they are the very bytes which one of the same fingerprint gave for this session.

    magic 8 | sizes (see _SIZES) | fingerprint 32 | session 32 | (tokens, bytes) of each checkpoint |
    token ids, 4 bytes each | data | the checkpoints' data | SHA-256 over all of it, 32

Numbers are little-endian. A file is whole or not there: it is written under another name, fsynced and renamed.
"""

import hashlib
import os
import secrets
import struct
import sys
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from serving.engine import SavedState
from serving.pins import is_session

SUFFIX = ".kv"
_TEMPORARY = ".tmp"
_MAGIC = b"hmprtkv\x01"
_SIZES = struct.Struct("<IIQQ")
"""Checkpoints, token ids, bytes of data, bytes of the file."""
_CHECKPOINT = struct.Struct("<IQ")
_DIGEST = hashlib.sha256
DIGEST_BYTES = 32
"""Of the checksum at the end."""
_HEAD_BYTES = len(_MAGIC) + _SIZES.size + 2 * DIGEST_BYTES
_WORD = 4
_IOV = 16
"""Parts that one writev takes at most; every system allows 16."""


class ParkedFileError(Exception):
    """The file must not be loaded. The message says what is wrong with it."""


class DamagedFile(ParkedFileError):
    """It is short, changed, or no such file at all."""


class ForeignFile(ParkedFileError):
    """It is another session's, or another engine's or model's."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A file that lies there; no more than its head was read."""

    session: str
    size: int
    used_s: float
    """When it was written or loaded last, in seconds since the epoch."""
    tokens: int = 0
    """How many it says it holds."""


def path_of(folder: Path, session: str) -> Path:
    """Where a session's file lies. `session` is 64 hex digits."""
    if not is_session(session):
        raise ValueError("a parked file belongs to a session")
    return folder / (session + SUFFIX)


def open_folder(folder: Path) -> list[Kept]:
    """What lies in the folder, which is made (0700) if missing. Files that a dead process left unfinished are
    removed. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    found = []
    for path in folder.iterdir():
        if path.name.endswith(_TEMPORARY):
            path.unlink(missing_ok=True)
        elif path.suffix == SUFFIX and is_session(path.stem):
            stat = path.stat()
            found.append(Kept(path.stem, stat.st_size, stat.st_mtime, _count(path)))
    return found


def size_of(state: SavedState) -> int:
    """Bytes that the state takes as a file."""
    return (
        _HEAD_BYTES
        + _CHECKPOINT.size * len(state.checkpoints)
        + _WORD * len(state.tokens)
        + state.size
        + DIGEST_BYTES
    )


def write(folder: Path, session: str, fingerprint: str, state: SavedState) -> int:
    """Put the state on disk, mode 0600, in the place of an older one. Durable when it returns the file's bytes.

    `fingerprint` is 64 hex digits. Raises OSError, and then the older one is still there.
    """
    path = path_of(folder, session)
    temporary = new_temporary(folder, session)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            written = _write_all(descriptor, list(parts(session, fingerprint, state)))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(folder)
    return written


def read(folder: Path, session: str, fingerprint: str) -> SavedState:
    """What `write` was given. Raises ForeignFile or DamagedFile, and OSError (FileNotFoundError where there is
    none)."""
    with path_of(folder, session).open("rb", buffering=0) as file:
        return _Reader(file).state(session, fingerprint)


def read_tokens(folder: Path, session: str, fingerprint: str) -> tuple[int, ...]:
    """The token ids of what `write` was given, without reading the rest: nothing proves them, so they are good for
    a guess only. Empty where `read` would fail at the head. Raises OSError."""
    with path_of(folder, session).open("rb") as file:
        try:
            return tuple(_Reader(file).tokens(session, fingerprint))
        except ParkedFileError:
            return ()


def check_head(file: BinaryIO, session: str, fingerprint: str) -> int:
    """How many tokens an unread file says it holds, if it is of that session and fingerprint and its sizes add up; the
    rest is not read. Raises ParkedFileError and OSError."""
    reader = _Reader(file)
    head = reader.head()
    if head.owner != session:
        raise ForeignFile("it belongs to another session")
    if head.made_by != fingerprint:
        raise ForeignFile("another engine, model or layout wrote it")
    return head.tokens


def new_temporary(folder: Path, session: str) -> Path:
    """A name that nothing has, for a file of the session that is not whole yet."""
    return folder / f".{session[:16]}.{secrets.token_hex(4)}{_TEMPORARY}"


def touch(folder: Path, session: str) -> None:
    """Note that the file was of use now. One that is gone stays gone."""
    with suppress(OSError):
        os.utime(path_of(folder, session))


def remove(folder: Path, session: str) -> None:
    """Remove a session's file, if there is one. Raises OSError."""
    path_of(folder, session).unlink(missing_ok=True)


def parts(session: str, fingerprint: str, state: SavedState) -> Iterator[bytes]:
    """What stands before the checksum."""
    words = array("I", state.tokens)
    if sys.byteorder == "big":
        words.byteswap()
    sizes = _SIZES.pack(len(state.checkpoints), len(state.tokens), len(state.data), size_of(state))
    yield b"".join(
        (
            _MAGIC,
            sizes,
            bytes.fromhex(fingerprint),
            bytes.fromhex(session),
            *(_CHECKPOINT.pack(count, len(data)) for count, data in state.checkpoints),
            words.tobytes(),
        )
    )
    yield state.data
    for _, data in state.checkpoints:
        yield data


def _write_all(descriptor: int, parts: list[bytes]) -> int:
    digest = _DIGEST()
    for part in parts:
        digest.update(part)
    views = [memoryview(part) for part in (*parts, digest.digest()) if part]
    total = sum(map(len, views))
    while views:
        written = os.writev(descriptor, views[:_IOV])
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if written:
            views[0] = views[0][written:]
    return total


def _count(path: Path) -> int:
    """How many tokens a file says it holds; 0 where it is none of this version."""
    with suppress(OSError), path.open("rb", buffering=0) as file:
        start = file.read(len(_MAGIC) + _SIZES.size)
        if start.startswith(_MAGIC) and len(start) == len(_MAGIC) + _SIZES.size:
            return int(_SIZES.unpack(start[len(_MAGIC) :])[1])
    return 0


def sync_folder(folder: Path) -> None:
    """What was renamed in it is durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class _Head:
    made_by: str
    owner: str
    table: list[tuple[int, int]]
    """(tokens, bytes) of each checkpoint."""
    tokens: int
    data_bytes: int


class _Reader:
    """Reads a file from its beginning; no size in it is believed before it agrees with the file's own."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = _DIGEST()
        self._size = os.fstat(file.fileno()).st_size

    def tokens(self, session: str, fingerprint: str) -> "array[int]":
        """Only these; the file was not read before."""
        head = self.head()
        if (head.owner, head.made_by) != (session, fingerprint):
            raise ForeignFile("it is another's")
        return self._words(head)

    def state(self, session: str, fingerprint: str) -> SavedState:
        head = self.head()
        words = self._words(head)
        data = self._take(head.data_bytes)
        points = tuple((count, self._take(length)) for count, length in head.table)
        expected = self._digest.digest()
        if self._take(DIGEST_BYTES) != expected:
            raise DamagedFile("its checksum is wrong")
        if head.owner != session:
            raise ForeignFile("it belongs to another session")
        if head.made_by != fingerprint:
            raise ForeignFile("another engine, model or layout wrote it")
        if not words:
            raise DamagedFile("it holds nothing")
        return SavedState(tuple(words), data, points)

    def _words(self, head: "_Head") -> "array[int]":
        words = array("I", self._take(head.tokens * _WORD))
        if sys.byteorder == "big":
            words.byteswap()
        return words

    def head(self) -> "_Head":
        """All that stands before the token ids."""
        if self._size < _HEAD_BYTES + DIGEST_BYTES:
            raise DamagedFile(f"it has only {self._size} bytes")
        if self._take(len(_MAGIC)) != _MAGIC:
            raise ForeignFile("it is no parked session of this version")
        checkpoints, tokens, data_bytes, size = _SIZES.unpack(self._take(_SIZES.size))
        made_by, owner = self._take(DIGEST_BYTES).hex(), self._take(DIGEST_BYTES).hex()
        if size != self._size:
            raise DamagedFile(f"it has {self._size} bytes of {size}")
        rest = (
            size - _HEAD_BYTES - DIGEST_BYTES - checkpoints * _CHECKPOINT.size - tokens * _WORD - data_bytes
        )
        if rest < 0:
            raise DamagedFile("its sizes do not add up")
        table = list(_CHECKPOINT.iter_unpack(self._take(checkpoints * _CHECKPOINT.size)))
        if sum(length for _, length in table) != rest:
            raise DamagedFile("its sizes do not add up")
        return _Head(made_by, owner, table, tokens, data_bytes)

    def _take(self, count: int) -> bytes:
        pieces = []
        while count > 0:
            piece = self._file.read(count)
            if not piece:
                raise DamagedFile("it ends too early")
            pieces.append(piece)
            self._digest.update(piece)
            count -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
