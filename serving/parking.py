"""The contexts of parked sessions: in memory, and behind that on disk.

A state that is parked is kept in memory at once and written to disk in the background, so that memory can give it up
without losing it. Each has a byte budget of its own, in which the longest unused gives way. What is asked of the
engine, and when, is turns.py's matter; what a file looks like is parked_file.py's.
"""

import asyncio
import math
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from serving import parked_file
from serving.engine import SavedState
from serving.model import ParkingSpec
from serving.parked_file import ForeignFile, Kept, ParkedFileError
from serving.parking_plan import MARGIN_BYTES, Missing, gives_way
from serving.remembered import Remembered


def _say(text: str) -> None:
    print(f"homeport: {text}", file=sys.stderr, flush=True)


class Parking:
    """One replica's saved contexts. `open` it before anything else; everything after that is called on one loop.

    A session's newest state is looked for where it is quickest had: on its way from the engine, in memory, on its
    way to disk, on disk.
    """

    def __init__(
        self,
        folder: Path,
        spec: ParkingSpec,
        warn: Callable[[str], None] = _say,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock`: seconds since the epoch, as files have them."""
        self._folder = folder
        self._spec = spec
        self._warn = warn
        self._clock = clock
        self._fingerprint = ""
        self._thread = ThreadPoolExecutor(1, "parking")
        self.memory_budget = 0
        self.disk_budget = 0
        self._opened = False
        """Whether the folder was ever used."""
        self.saves = 0
        self.resumes = 0
        self.failures = 0
        self._arriving: dict[str, asyncio.Task[None]] = {}
        """Saves that the engine has not carried out yet, of sessions that gave way or are written behind."""
        self._leaving: dict[str, tuple[int, ...]] = {}
        """The tokens of those that gave way."""
        self._memory: dict[str, SavedState] = {}
        """Longest unused first, as all of these."""
        self._unwritten: dict[str, SavedState] = {}
        """On the way to disk, the one that is being written included."""
        self._disk: dict[str, Kept] = {}
        self._changed: set[str] = set()
        """Residents whose context is not what was saved last."""
        self._evicted = Remembered()
        self._writer: asyncio.Task[None] | None = None
        self._writing: str | None = None
        """Whose state is being written."""
        self._recalled = False
        """It was forgotten meanwhile."""
        self._moved = asyncio.Event()
        """Set whenever a writing begins or is over."""
        self._disk_fails = False

    def open(self, fingerprint: str, memory_bytes: int) -> None:
        """Look at what lies on disk. May be called on another thread, before anything else.

        `fingerprint`: 64 hex digits for all that a state is bound to. `memory_bytes`: the budget in memory.
        """
        self._fingerprint, self.memory_budget = fingerprint, memory_bytes
        self._open_disk()

    def adjust(self, spec: ParkingSpec, memory_bytes: int) -> None:
        """The config has other budgets now. What is beyond them gives way at once."""
        self._spec, self.memory_budget = spec, memory_bytes
        if self._opened:
            self.disk_budget = spec.disk_bytes
            self._make_room(0)
        else:
            self._open_disk()
        self._trim()

    def _open_disk(self) -> None:
        if self._spec.disk_bytes <= 0:
            return
        try:
            kept = parked_file.open_folder(self._folder)
        except OSError as error:
            self._warn(f"no context is parked on disk: {self._folder} cannot be used ({error.strerror})")
            return
        self._opened, self.disk_budget = True, self._spec.disk_bytes
        self._disk = {one.session: one for one in sorted(kept, key=lambda one: one.used_s)}
        self._make_room(0)

    @property
    def on(self) -> bool:
        """Whether there is any room for states."""
        return self.memory_budget > 0 or self.disk_budget > 0

    def changed(self, session: str) -> None:
        """A resident's context is another than before."""
        self._changed.add(session)

    def is_changed(self, session: str) -> bool:
        """Whether the disk lacks what a resident's context is now, and could have it."""
        return self.disk_budget > 0 and session in self._changed

    def park(self, session: str, saving: "Future[SavedState | None]", tokens: tuple[int, ...] = ()) -> None:
        """The session gives way; the engine is saving it. From now on `take` gives it. `tokens`: what is saved."""
        self._leaving[session] = tokens
        self._arrives(session, saving, parked=True)

    def write_behind(self, session: str, saving: "Future[SavedState | None]") -> None:
        """A resident that stays is being saved by the engine: its state goes to disk only."""
        self._arrives(session, saving, parked=False)

    async def take(self, session: str) -> SavedState | Missing:
        """The newest state of a session; it stays here until `resumed`. Waits for a save that is on its way, and
        for the disk. Never raises: a file that is not as it must be is dropped with a warning."""
        if session in self._arriving:
            await asyncio.wait({self._arriving[session]})
        if (state := self._loaded(session)) is not None:
            return state
        if session not in self._disk:
            return "evicted" if session in self._evicted else "never_parked"
        try:
            return await asyncio.to_thread(parked_file.read, self._folder, session, self._fingerprint)
        except FileNotFoundError:
            self._disk.pop(session, None)
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

    async def tokens(self, session: str) -> tuple[int, ...]:
        """What `take` would give, as token ids; of a file only its head is read, and not proved. Empty: nothing."""
        if session in self._arriving:
            if leaving := self._leaving.get(session):
                return leaving
            await asyncio.wait({self._arriving[session]})
        if (state := self._loaded(session)) is not None:
            return state.tokens
        if session not in self._disk:
            return ()
        try:
            return await asyncio.to_thread(parked_file.read_tokens, self._folder, session, self._fingerprint)
        except OSError:
            return ()

    def count(self, session: str) -> int | None:
        """How many tokens are kept of a session that have come from the engine; None: nothing is kept."""
        if (state := self._loaded(session)) is not None:
            return len(state.tokens)
        if session in self._disk:
            return self._disk[session].tokens
        return len(self._leaving.get(session, ())) if session in self._arriving else None

    def _loaded(self, session: str) -> SavedState | None:
        return self._memory.get(session) or self._unwritten.get(session)

    def resumed(self, session: str) -> None:
        """The engine has loaded what `take` gave: memory need not keep it. The file stays, for a host that dies."""
        self.resumes += 1
        self._memory.pop(session, None)
        kept = self._disk.pop(session, None)
        if kept is not None:
            self._disk[session] = replace(kept, used_s=self._clock())
            self._thread.submit(parked_file.touch, self._folder, session)

    def refused(self, session: str) -> None:
        """The engine could not load what `take` gave: it is of no use."""
        self.failures += 1
        self._warn("a parked context is dropped: the engine could not load it")
        self.forget(session)

    def forget(self, session: str) -> None:
        """Drop all that is kept of a session, on disk too."""
        self._arriving.pop(session, None)
        self._leaving.pop(session, None)
        self._memory.pop(session, None)
        self._unwritten.pop(session, None)
        self._changed.discard(session)
        self._evicted.discard(session)
        self._drop_file(session)
        if session == self._writing:
            self._recalled = True

    def rename(self, session: str, name: str, state: SavedState | None) -> None:
        """What is kept of a session is another's from now on, whose own is dropped. `state`: what `take` gave just
        now; None: it is resident, and nothing that was saved of it before is kept."""
        self.forget(session)
        self.forget(name)
        if state is not None:
            self._keep(name, state, parked=True, changed=True)
        else:
            self.changed(name)

    async def removed(self) -> None:
        """Until what was forgotten is off the disk."""
        await asyncio.get_running_loop().run_in_executor(self._thread, lambda: None)

    async def settle(self) -> None:
        """Until every save that was begun has come from the engine."""
        while self._arriving:
            await asyncio.wait(set(self._arriving.values()))

    async def room(self, until_s: float = math.inf) -> None:
        """Until every save has come from the engine, and none is kept only because the disk has not come to it; or the
        loop's clock is at `until_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(None if until_s == math.inf else until_s):
                await self.settle()
                while self._waiting() and self._writer is not None:
                    self._moved.clear()
                    await self._moved.wait()

    async def finish(self, until_s: float) -> set[str]:
        """Until all is on disk, or the loop's clock is at `until_s`. The sessions whose newest states are not."""
        loop = asyncio.get_running_loop()
        while (left_s := until_s - loop.time()) > 0:
            busy = {*self._arriving.values(), *((self._writer,) if self._writer is not None else ())}
            if not busy:
                break
            await asyncio.wait(busy, timeout=left_s)
        return {*self._arriving, *self._unwritten}

    def close(self) -> None:
        """Wait for nothing: what is not written yet will not be."""
        self._unwritten.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def report(self, residents: Iterable[str]) -> dict[str, Any]:
        """For /state. `sessions`: those with a saved state that are not `residents`."""
        return {
            "sessions": len({*self._memory, *self._unwritten, *self._disk} - set(residents)),
            "memory_bytes": sum(state.size for state in self._memory.values()),
            "memory_limit_bytes": self.memory_budget,
            "disk_bytes": sum(one.size for one in self._disk.values()),
            "disk_limit_bytes": self.disk_budget,
            "unwritten": len(self._unwritten),
            "saves": self.saves,
            "resumes": self.resumes,
            "failures": self.failures,
        }

    def _arrives(self, session: str, saving: "Future[SavedState | None]", parked: bool) -> None:
        # A save that is overtaken by this one will be ignored.
        saved = session in self._disk or session in self._unwritten
        changed = session in self._changed or session in self._arriving or not saved
        self._changed.discard(session)
        task = asyncio.get_running_loop().create_task(self._arrive(session, saving, parked, changed))
        self._arriving[session] = task
        task.add_done_callback(lambda done: self._arrived(session, done))

    def _arrived(self, session: str, task: "asyncio.Task[None]") -> None:
        if self._arriving.get(session) is task:
            del self._arriving[session]
            self._leaving.pop(session, None)

    async def _arrive(
        self, session: str, saving: "Future[SavedState | None]", parked: bool, changed: bool
    ) -> None:
        # Not to be cancelled with the task: the engine gives it a result.
        state = await asyncio.shield(asyncio.wrap_future(saving))
        if self._arriving.get(session) is not asyncio.current_task():
            return
        if state is None:
            self.failures += 1
            if parked:
                self._evicted.add(session)
            return
        self.saves += 1
        self._keep(session, state, parked, changed)

    def _keep(self, session: str, state: SavedState, parked: bool, changed: bool) -> None:
        self._evicted.discard(session)
        if parked:
            self._memory.pop(session, None)
            self._memory[session] = state
        if changed and self.disk_budget > 0:
            self._unwritten.pop(session, None)
            self._unwritten[session] = state
            if self._writer is None:
                self._writer = asyncio.get_running_loop().create_task(self._write())
        self._trim()

    def _trim(self) -> None:
        """Keep memory to its budget, and what only waits for the disk to the margin beside it."""
        sizes = {session: state.size for session, state in self._memory.items()}
        for session in gives_way(sizes, self.memory_budget):
            del self._memory[session]
            if session not in self._unwritten and session not in self._disk:
                self._evicted.add(session)
        for session in gives_way(self._waiting(), MARGIN_BYTES, least=1):
            del self._unwritten[session]
            self._changed.add(session)
            self._evicted.add(session)

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
                if size > self.disk_budget:
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
            self._writing = self._writer = None

    def _written(self, session: str, state: SavedState, size: int) -> None:
        self._disk_fails = False
        self._moved.set()
        if self._unwritten.get(session) is state:
            del self._unwritten[session]
        if self._recalled:
            self._drop_file(session)
            return
        self._disk.pop(session, None)
        self._disk[session] = Kept(session, size, self._clock(), len(state.tokens))
        self._make_room(0)  # The budget may have shrunk meanwhile.

    def _not_written(self, session: str, state: SavedState, reason: str) -> None:
        self.failures += 1
        self._moved.set()
        if not self._disk_fails:
            self._warn(f"a context was not parked on disk: {reason}")
        self._disk_fails = True
        if self._unwritten.get(session) is state:
            del self._unwritten[session]
        if not self._recalled:
            self._changed.add(session)
            if session not in self._memory and session not in self._disk:
                self._evicted.add(session)

    def _make_room(self, coming: int, for_session: str = "") -> None:
        """Drop files that nobody used for too long, then the longest unused, until one of `coming` bytes fits."""
        oldest_s = self._clock() - self._spec.keep_s
        for session in [one.session for one in self._disk.values() if one.used_s < oldest_s]:
            self._drop_file(session)
            self._evicted.add(session)
        sizes = {one.session: one.size for one in self._disk.values() if one.session != for_session}
        for session in gives_way(sizes, self.disk_budget, coming):
            self._drop_file(session)
            if session not in self._memory:
                self._evicted.add(session)

    def _drop_file(self, session: str) -> None:
        """In order with writing: on its thread."""
        self._disk.pop(session, None)
        if self._opened:
            self._thread.submit(_remove, self._folder, session)


def _remove(folder: Path, session: str) -> None:
    try:
        parked_file.remove(folder, session)
    except OSError as error:
        _say(f"a parked context could not be removed from disk: {error.strerror}")
