"""Saved contexts on disk: what lies there, what is still to be written, and the writer.

What is in memory or on its way from the engine is parking.py's matter; what a file looks like is parked_file.py's.
"""

import asyncio
from collections.abc import Callable, Container
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path

from serving import parked_file
from serving.engine import SavedState
from serving.model import ParkingSpec
from serving.parked_file import ForeignFile, Kept, ParkedFileError
from serving.parked_transfer import Incoming, Outgoing, of_file
from serving.parking_plan import MARGIN_BYTES, Missing, gives_way
from serving.remembered import Remembered


class ParkingDisk:
    """One replica's folder. `open` it before anything else; everything after that is called on one loop."""

    def __init__(
        self,
        folder: Path,
        spec: ParkingSpec,
        thread: Executor,
        memory: Container[str],
        evicted: Remembered,
        warn: Callable[[str], None],
        clock: Callable[[], float],
        earliest: Callable[[], float],
    ) -> None:
        """`thread`: has one worker, so that files are written and removed in order. `memory`: whose states memory has
        too. `evicted`: gets those of whom nothing is left because they made room. `clock`: seconds since the epoch.
        `earliest`: as it would be, had nobody set the clock forward."""
        self._folder = folder
        self._spec = spec
        self._thread = thread
        self._memory = memory
        self._evicted = evicted
        self._warn = warn
        self._clock = clock
        self._earliest = earliest
        self._fingerprint = ""
        self._coming: dict[str, int] = {}
        """Bytes of files that come from other hosts and are no session's yet."""
        self.budget = 0
        self._opened = False
        """Whether the folder was ever used."""
        self.failures = 0
        self._files: dict[str, Kept] = {}
        """Longest unused first, as `_unwritten`."""
        self._unwritten: dict[str, SavedState] = {}
        """On the way to disk, the one that is being written included."""
        self._changed: set[str] = set()
        """Residents whose context is not what was saved last."""
        self.writer: asyncio.Task[None] | None = None
        """While anything is unwritten."""
        self._writing: str | None = None
        """Whose state is being written."""
        self._recalled = False
        """It was forgotten meanwhile."""
        self._moved = asyncio.Event()
        """Set whenever a writing begins or is over."""
        self._fails = False

    def open(self, fingerprint: str) -> None:
        """Look at what lies there. May be called on another thread, before anything else."""
        self._fingerprint = fingerprint
        self._open()

    @property
    def fingerprint(self) -> str:
        """Of the files that can be used here; empty before `open`."""
        return self._fingerprint

    def adjust(self, spec: ParkingSpec) -> None:
        """The config has another budget now. What is beyond it gives way at once."""
        self._spec = spec
        if self._opened:
            self.budget = spec.disk_bytes
            self._make_room(0)
        else:
            self._open()

    def _open(self) -> None:
        if self._spec.disk_bytes <= 0:
            return
        try:
            kept = parked_file.open_folder(self._folder)
        except OSError as error:
            self._warn(f"no context is parked on disk: {self._folder} cannot be used ({error.strerror})")
            return
        self._opened, self.budget = True, self._spec.disk_bytes
        self._files = {one.session: one for one in sorted(kept, key=lambda one: one.used_s)}
        self._make_room(0)

    def __contains__(self, session: str) -> bool:
        """Whether a state of it is there, or on the way."""
        return session in self._unwritten or session in self._files

    def changed(self, session: str) -> None:
        """A resident's context is another than before."""
        self._changed.add(session)

    def is_changed(self, session: str) -> bool:
        """Whether the disk lacks what a resident's context is now, and could have it."""
        return self.budget > 0 and session in self._changed

    def saving(self, session: str) -> bool:
        """The engine saves what a resident's context is now. Whether that is to be written."""
        lacking = session in self._changed or session not in self
        self._changed.discard(session)
        return lacking

    def unwritten(self, session: str) -> SavedState | None:
        """Its state that is on the way, from memory."""
        return self._unwritten.get(session)

    def count(self, session: str) -> int | None:
        """How many tokens its file has; None: it has none."""
        return self._files[session].tokens if session in self._files else None

    async def read(self, session: str) -> SavedState | Missing | None:
        """The state in its file; None: it has none. Never raises: a file that is not as it must be is dropped with a
        warning."""
        if session not in self._files:
            return None
        try:
            return await asyncio.to_thread(parked_file.read, self._folder, session, self._fingerprint)
        except FileNotFoundError:
            self._files.pop(session, None)
            return "evicted"
        except ForeignFile as error:
            missing: Missing = "engine_changed"
            reason = str(error)
        except (ParkedFileError, OSError, MemoryError) as error:
            missing = "restore_failed"
            reason = str(error) or type(error).__name__
            self.failures += 1
        self._warn(f"a parked context is dropped, its file cannot be used: {reason}")
        self._drop_file(session)
        return missing

    async def read_tokens(self, session: str) -> tuple[int, ...]:
        """Token ids from its file's head, not proved. Empty: it has none that can be used."""
        if session not in self._files:
            return ()
        try:
            return await asyncio.to_thread(parked_file.read_tokens, self._folder, session, self._fingerprint)
        except OSError:
            return ()

    async def outgoing(self, session: str) -> Outgoing | None:
        """Its file, for another host; None: it has none that could be used."""
        if session not in self._files:
            return None
        try:
            return await asyncio.to_thread(of_file, self._folder, session, self._fingerprint)
        except (ParkedFileError, OSError):
            return None

    def expect(self, session: str, size: int) -> Incoming | None:
        """A file of so many bytes comes from another host: what takes it in. None: there is no room. Raises
        OSError."""
        coming = size + sum(self._coming.values())
        if not self._opened or coming > self.budget:
            return None
        self._make_room(size)
        incoming = Incoming(self._folder, session, self._fingerprint, size)
        self._coming[session] = size
        return incoming

    def unexpect(self, session: str) -> None:
        """What came is not kept."""
        self._coming.pop(session, None)

    async def adopt(self, incoming: Incoming) -> None:
        """What came whole is the session's file from now on. Raises OSError."""
        session = incoming.session
        self.forget(session)
        await asyncio.get_running_loop().run_in_executor(self._thread, incoming.place)
        self._coming.pop(session, None)
        self._files[session] = Kept(session, incoming.size, self._clock(), incoming.tokens)
        self._make_room(0)

    def used(self, session: str) -> None:
        """The engine has loaded what `read` gave. The file stays, for a host that dies."""
        kept = self._files.pop(session, None)
        if kept is not None:
            self._files[session] = replace(kept, used_s=self._clock())
            self._thread.submit(parked_file.touch, self._folder, session)

    def forget(self, session: str) -> None:
        """Drop all that is kept of a session."""
        self._unwritten.pop(session, None)
        self._changed.discard(session)
        self._drop_file(session)
        if session == self._writing:
            self._recalled = True

    async def removed(self) -> None:
        """Until what was forgotten is off the disk."""
        await asyncio.get_running_loop().run_in_executor(self._thread, lambda: None)

    def put(self, session: str, state: SavedState) -> None:
        """Write it, in the background."""
        self._unwritten.pop(session, None)
        self._unwritten[session] = state
        if self.writer is None:
            self.writer = asyncio.get_running_loop().create_task(self._write())

    def trim(self) -> None:
        """Keep what only waits for the disk to its margin beside memory's budget."""
        for session in gives_way(self._waiting(), MARGIN_BYTES, least=1):
            del self._unwritten[session]
            self._changed.add(session)
            self._evicted.add(session)

    async def room(self) -> None:
        """Until nothing is kept in memory only because the disk has not come to it."""
        while self._waiting() and self.writer is not None:
            self._moved.clear()
            await self._moved.wait()

    def close(self) -> None:
        """Wait for nothing: what is not written yet will not be."""
        self._unwritten.clear()

    def to_write(self) -> set[str]:
        """Whose newest states are not there yet."""
        return set(self._unwritten)

    def sessions(self) -> set[str]:
        """Of whom a state is there, or on the way."""
        return {*self._unwritten, *self._files}

    def size(self) -> int:
        """Bytes of all files."""
        return sum(one.size for one in self._files.values())

    def _waiting(self) -> dict[str, int]:
        """Sizes of what is kept for the disk only, but for what is being written."""
        return {
            session: state.size
            for session, state in self._unwritten.items()
            if session not in self._memory and session != self._writing
        }

    async def _write(self) -> None:
        """Write until nothing is unwritten."""
        loop = asyncio.get_running_loop()
        try:
            while self._unwritten:
                session, state = next(iter(self._unwritten.items()))
                size = parked_file.size_of(state)
                self._writing, self._recalled = session, False
                self._moved.set()
                if size > self.budget:
                    self._not_written(session, state, "it is larger than `parking.disk`")
                    continue
                self._make_room(size, session)
                put = partial(parked_file.write, self._folder, session, self._fingerprint, state)
                try:
                    await loop.run_in_executor(self._thread, put)
                except (OSError, MemoryError) as error:
                    reason = (isinstance(error, OSError) and error.strerror) or type(error).__name__
                    self._not_written(session, state, f"{reason}; make room in the state folder")
                else:
                    self._written(session, state, size)
        finally:
            self._writing = self.writer = None

    def _written(self, session: str, state: SavedState, size: int) -> None:
        self._fails = False
        self._moved.set()
        if self._unwritten.get(session) is state:
            del self._unwritten[session]
        if self._recalled:
            self._drop_file(session)
            return
        self._files.pop(session, None)
        self._files[session] = Kept(session, size, self._clock(), len(state.tokens))
        self._make_room(0)  # The budget may have shrunk meanwhile.

    def _not_written(self, session: str, state: SavedState, reason: str) -> None:
        self.failures += 1
        self._moved.set()
        if not self._fails:
            self._warn(f"a context was not parked on disk: {reason}")
        self._fails = True
        if self._unwritten.get(session) is state:
            del self._unwritten[session]
        if not self._recalled:
            self._changed.add(session)
            if session not in self._memory and session not in self._files:
                self._evicted.add(session)

    def _make_room(self, coming: int, for_session: str = "") -> None:
        """Drop files that nobody used for too long, then the longest unused, until one of `coming` bytes fits."""
        oldest_s = self._earliest() - self._spec.keep_s
        for session in [one.session for one in self._files.values() if one.used_s < oldest_s]:
            self._drop_file(session)
            self._evicted.add(session)
        sizes = {one.session: one.size for one in self._files.values() if one.session != for_session}
        for session in gives_way(sizes, self.budget, coming + sum(self._coming.values())):
            self._drop_file(session)
            if session not in self._memory:
                self._evicted.add(session)

    def _drop_file(self, session: str) -> None:
        """In order with writing: on its thread."""
        self._files.pop(session, None)
        if self._opened:
            self._thread.submit(self._remove, session)

    def _remove(self, session: str) -> None:
        try:
            parked_file.remove(self._folder, session)
        except OSError as error:
            self._warn(f"a parked context could not be removed from disk: {error.strerror}")
