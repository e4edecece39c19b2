"""The file that a host's errors are appended to: kept short, and read from its end. Makes none (see `confine`)."""

import os
from pathlib import Path


def cap_file(path: Path, max_bytes: int) -> bool:
    """Cut `path` to its last `max_bytes // 2` bytes, from a line's start, if it is longer than `max_bytes`.

    In place, for a file that other processes append to (O_APPEND): their next line lands behind what is kept.
    A line written during the cut itself can be lost. Returns whether it cut; a missing file is fine.
    """
    try:
        with path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size <= max_bytes:
                return False
            file.seek(size - max_bytes // 2)
            kept = file.read()
            kept = kept[kept.find(b"\n") + 1 :]
            file.seek(0)
            file.write(kept)
            file.truncate()
            return True
    except FileNotFoundError:
        return False


def tail(path: Path, lines: int) -> tuple[str, ...]:
    """The last `lines` lines of `path`, out of its last 64 KiB; () for a missing file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ()
    return tuple(text.splitlines()[-lines:]) if lines > 0 else ()
