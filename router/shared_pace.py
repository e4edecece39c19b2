"""When a key's last requests were, in a file that several processes write: its limit holds for all of them together.

The file has the times of requests that were let in, eight bytes each, the newest last. Decides nothing: `keys` does.
"""

import fcntl
import hashlib
import logging
import os
import struct
from pathlib import Path

from router.keys import Pace, room_in

TIME = struct.Struct("<d")
SLACK = 512
"""So many times more than twice those that count may stand in a file before it is cut."""

log = logging.getLogger("homeport.keys")


class SharedPace(Pace):
    """One process's way to the file of one key. `now` has to be of a clock that these processes share.

    Blocks for as long as another process counts a request, which the kernel ends where that one dies. A file that
    cannot be used is not: then each process counts its own.
    """

    def __init__(self, folder: Path, name: str, per_minute: int) -> None:
        super().__init__(per_minute)
        self._path = folder / hashlib.sha256(name.encode()).hexdigest()[:32]
        self._is_told = False

    def take(self, now: float) -> float | None:
        try:
            return self._take(now)
        except OSError as error:
            if not self._is_told:
                self._is_told = True
                log.warning("requests of a key are not counted over all workers: %s", error)
            return super().take(now)

    def _take(self, now: float) -> float | None:
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = os.fstat(file).st_size // TIME.size * TIME.size
            counts = self.per_minute * TIME.size
            earlier = TIME.unpack(os.pread(file, TIME.size, size - counts))[0] if size >= counts else None
            wait_s = room_in(earlier, now)
            if wait_s is None:
                if size > 2 * counts + SLACK * TIME.size:
                    size = _cut(file, size, counts)
                os.pwrite(file, TIME.pack(now), size)
            return wait_s
        finally:
            os.close(file)


def _cut(file: int, size: int, counts: int) -> int:
    """Keep the last `counts` of `size` bytes. Who is killed between the two steps leaves these at the end too."""
    os.pwrite(file, os.pread(file, counts, size - counts), 0)
    os.ftruncate(file, counts)
    return counts
