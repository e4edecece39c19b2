"""keys.yaml while the router runs: read, watched for change, handed to the ring.

A new file that cannot be used changes nothing. Decides nothing about requests (see `keys`), logs no key.
"""

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from router.keys import Entry, Key, KeyRing, Pace
from serving.config_keys import KeySection, parse_keys, read_text
from serving.config_problems import ConfigError

LOOK_S = 1.0
SETTLED_S = 2.0
"""A file that was written so lately may be written again without its time or size changing."""

Stamp = tuple[int, ...]

log = logging.getLogger("homeport.keys")


def key_ring(
    keys_file: Path | None, token: str, new_pace: Callable[[str, int], Pace] | None = None
) -> tuple[KeyRing, "KeyFile | None"]:
    """The ring of a router, and what must be run beside it. Without a keys file everybody is let in.

    A file that is broken already lets nobody in until it is mended, but for who has `token`, the cluster's: the
    owner's programs on this machine. `new_pace`: what counts a key's requests, where that is not this process alone.
    """
    if keys_file is None:
        return KeyRing(required=False), None
    own = hashlib.sha256(token.encode()).digest()
    ring = KeyRing(own=own) if new_pace is None else KeyRing(own=own, new_pace=new_pace)
    file = KeyFile(keys_file, ring)
    file.look()
    return ring, file


class KeyFile:
    """Hands the ring what stands in the file."""

    def __init__(self, path: Path, ring: KeyRing, wall_s: Callable[[], float] = time.time) -> None:
        self._path = path
        self._ring = ring
        self._wall_s = wall_s
        self._stamp: Stamp | None = None
        self._text: str | None = None
        self._told: str | None = None
        self._open_to_others = False

    async def run(self) -> None:
        """Look at it once a second, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            seen = await asyncio.to_thread(self._changed)
            if seen is not None:
                self._take(seen)

    def look(self) -> None:
        """Look at it now."""
        if (seen := self._changed()) is not None:
            self._take(seen)

    def _changed(self) -> str | ConfigError | None:
        """Its text if it may be a new one, what is wrong with it, or None: nothing has changed."""
        try:
            stat = self._path.stat()
        except OSError:
            stamp = None
        else:
            self._warn_of_mode(stat.st_mode)
            stamp = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev, stat.st_size, stat.st_mode)
            if stamp == self._stamp:
                return None
            if self._wall_s() - stat.st_mtime < SETTLED_S:
                stamp = None
        self._stamp = stamp
        try:
            text = read_text(self._path)
        except ConfigError as error:
            self._text = None
            return error
        return None if text == self._text else text

    def _take(self, seen: str | ConfigError) -> None:
        if isinstance(seen, ConfigError):
            self._warn(seen)
            return
        self._text = seen
        try:
            keys = parse_keys(self._path, seen)
        except ConfigError as error:
            self._warn(error)
            return
        self._told = None
        self._ring.replace(entry_of(key) for key in keys)
        log.info("%s: %d keys", self._path, len(keys))
        if not keys:
            log.warning("%s has no keys: nobody can come in; `homeport key new NAME` makes one", self._path)

    def _warn(self, error: ConfigError) -> None:
        """Once for each thing that is wrong."""
        if str(error) != self._told:
            self._told = str(error)
            kept = len(self._ring.keys)
            state = f"the keys of before stay ({kept})" if kept else "nobody can come in until it is mended"
            log.warning("the keys file cannot be used, %s: %s", state, error)

    def _warn_of_mode(self, mode: int) -> None:
        is_open = bool(mode & 0o077)
        if is_open and not self._open_to_others:
            log.warning(
                "%s can be read or written by other users: run chmod 600 %s",
                self._path,
                os.fspath(self._path),
            )
        self._open_to_others = is_open


def entry_of(key: KeySection) -> Entry:
    """A key of the file as the ring has it."""

    def limit(names: tuple[str, ...] | None) -> frozenset[str] | None:
        return None if names is None else frozenset(names)

    may = Key(
        key.name,
        key.role,
        limit(key.models),
        limit(key.zones),
        limit(key.machines),
        key.places,
        key.requests_per_minute,
        key.weight,
    )
    return may, bytes.fromhex(key.sha256)
