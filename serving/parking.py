"""The contexts of parked sessions: on their way from the engine, in memory, and behind that on disk.

A state that is parked is kept in memory at once and handed to parking_disk.py to be written, so that memory can give
it up without losing it. Memory has a byte budget of its own, in which the longest unused gives way. What is asked of
the engine, and when, is turns.py's matter.
"""

import asyncio
import math
import sys
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.clocks import DayClock
from serving import dropped
from serving.counts import Counts
from serving.engine import SavedState
from serving.model import ParkingSpec
from serving.parked_transfer import Incoming, Outgoing, of_state
from serving.parking_disk import ParkingDisk
from serving.parking_plan import Missing, gives_way
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
        earliest: Callable[[], float] | None = None,
        counts: Counts | None = None,
    ) -> None:
        """`clock`: seconds since the epoch, as files have them; `earliest`: as it would be, had nobody set the clock
        forward."""
        earliest = earliest or DayClock(clock).earliest
        self._warn = warn
        self.counts = counts or Counts()
        self._dropped = folder.with_name("dropped.json")
        """Where a host that ends says whom it had no time to save."""
        self._thread = ThreadPoolExecutor(1, "parking")
        self.memory_budget = 0
        self.saves = 0
        self.resumes = 0
        self._failures = 0
        self._arriving: dict[str, asyncio.Task[None]] = {}
        """Saves that the engine has not carried out yet, of sessions that gave way or are written behind."""
        self._leaving: dict[str, tuple[int, ...]] = {}
        """The tokens of those that gave way."""
        self._memory: dict[str, SavedState] = {}
        """Longest unused first."""
        self._evicted = Remembered()
        self._disk = ParkingDisk(
            folder, spec, self._thread, self._memory, self._evicted, warn, clock, earliest
        )

    def open(self, fingerprint: str, memory_bytes: int) -> None:
        """Look at what lies on disk. May be called on another thread, before anything else.

        A session that the host before had no time to save counts as evicted.

        `fingerprint`: 64 hex digits for all that a state is bound to. `memory_bytes`: the budget in memory.
        """
        self.memory_budget = memory_bytes
        self._disk.open(fingerprint)
        for session in dropped.take(self._dropped):
            self._evicted.add(session)

    def adjust(self, spec: ParkingSpec, memory_bytes: int) -> None:
        """The config has other budgets now. What is beyond them gives way at once."""
        self.memory_budget = memory_bytes
        self._disk.adjust(spec)
        self._trim()

    @property
    def disk_budget(self) -> int:
        return self._disk.budget

    @property
    def on(self) -> bool:
        """Whether there is any room for states."""
        return self.memory_budget > 0 or self.disk_budget > 0

    @property
    def failures(self) -> int:
        """States that could not be saved, written, read or loaded."""
        return self._failures + self._disk.failures

    def changed(self, session: str) -> None:
        """A resident's context is another than before."""
        self._disk.changed(session)

    def is_changed(self, session: str) -> bool:
        """Whether the disk lacks what a resident's context is now, and could have it."""
        return self._disk.is_changed(session)

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
        if (read := await self._disk.read(session)) is not None:
            return read
        return "evicted" if session in self._evicted else "never_parked"

    async def tokens(self, session: str) -> tuple[int, ...]:
        """What `take` would give, as token ids; of a file only its head is read, and not proved. Empty: nothing."""
        if session in self._arriving:
            if leaving := self._leaving.get(session):
                return leaving
            await asyncio.wait({self._arriving[session]})
        if (state := self._loaded(session)) is not None:
            return state.tokens
        return await self._disk.read_tokens(session)

    async def outgoing(self, session: str, resident: SavedState | None = None) -> Outgoing | None:
        """The newest context of a session, for another host; it stays here too. `resident`: what the engine has saved
        of it just now. None: there is none."""
        if resident is None and session in self._arriving:
            await asyncio.wait({self._arriving[session]})
        state = resident or self._loaded(session)
        if state is not None:
            return of_state(session, self._disk.fingerprint, state)
        return await self._disk.outgoing(session)

    def expect(self, session: str, size: int) -> Incoming | None:
        """As ParkingDisk.expect."""
        return self._disk.expect(session, size)

    def unexpect(self, incoming: Incoming) -> None:
        """What came, or did not come whole, goes."""
        self._disk.unexpect(incoming.session)
        self._thread.submit(incoming.drop)

    async def adopt(self, incoming: Incoming) -> None:
        """What came whole from another host is the session's context. Never raises: then it has none."""
        self.forget(incoming.session)
        try:
            await self._disk.adopt(incoming)
        except OSError as error:
            self._warn(f"a context that was moved here was not kept: {error.strerror}")
            self.unexpect(incoming)

    @property
    def fingerprint(self) -> str:
        """64 hex digits for all that the states here are bound to; empty before `open`."""
        return self._disk.fingerprint

    def count(self, session: str) -> int | None:
        """How many tokens are kept of a session that have come from the engine; None: nothing is kept."""
        if (state := self._loaded(session)) is not None:
            return len(state.tokens)
        if (on_disk := self._disk.count(session)) is not None:
            return on_disk
        return len(self._leaving.get(session, ())) if session in self._arriving else None

    def _loaded(self, session: str) -> SavedState | None:
        return self._memory.get(session) or self._disk.unwritten(session)

    def resumed(self, session: str) -> None:
        """The engine has loaded what `take` gave: memory need not keep it. The file stays, for a host that dies."""
        self.resumes += 1
        self._memory.pop(session, None)
        self._disk.used(session)

    def refused(self, session: str) -> None:
        """The engine could not load what `take` gave: it is of no use."""
        self._failures += 1
        self._warn("a parked context is dropped: the engine could not load it")
        self.forget(session)

    def forget(self, session: str) -> None:
        """Drop all that is kept of a session, on disk too."""
        self._arriving.pop(session, None)
        self._leaving.pop(session, None)
        self._memory.pop(session, None)
        self._evicted.discard(session)
        self._disk.forget(session)

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
        await self._disk.removed()

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
                await self._disk.room()

    async def finish(self, until_s: float) -> set[str]:
        """Until all is on disk, or the loop's clock is at `until_s`. The sessions whose newest states are not."""
        loop = asyncio.get_running_loop()
        while (left_s := until_s - loop.time()) > 0:
            writer = self._disk.writer
            busy = {*self._arriving.values(), *((writer,) if writer is not None else ())}
            if not busy:
                break
            await asyncio.wait(busy, timeout=left_s)
        return {*self._arriving, *self._disk.to_write()}

    def drop(self, sessions: Collection[str]) -> None:
        """There was no time to save these: the next host is to know."""
        try:
            dropped.leave(self._dropped, sessions)
        except OSError as error:
            self._warn(f"which contexts were dropped is not written down: {error.strerror}")

    def close(self) -> None:
        """Wait for nothing: what is not written yet will not be."""
        self._disk.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def report(self, residents: Iterable[str]) -> dict[str, Any]:
        """For /state. `sessions`: those with a saved state that are not `residents`."""
        return {
            "sessions": len({*self._memory, *self._disk.sessions()} - set(residents)),
            "memory_bytes": sum(state.size for state in self._memory.values()),
            "memory_limit_bytes": self.memory_budget,
            "disk_bytes": self._disk.size(),
            "disk_limit_bytes": self.disk_budget,
            "unwritten": len(self._disk.to_write()),
            "saves": self.saves,
            "resumes": self.resumes,
            "failures": self.failures,
            "fingerprint": self.fingerprint,
        }

    def _arrives(self, session: str, saving: "Future[SavedState | None]", parked: bool) -> None:
        # A save that is overtaken by this one will be ignored.
        changed = self._disk.saving(session) or session in self._arriving
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
        began_s = time.monotonic()
        # Not to be cancelled with the task: the engine gives it a result.
        state = await asyncio.shield(asyncio.wrap_future(saving))
        if self._arriving.get(session) is not asyncio.current_task():
            return
        if state is None:
            self._failures += 1
            if parked:
                self._evicted.add(session)
            return
        self.saves += 1
        if parked:
            self.counts.parks.note(time.monotonic() - began_s, state.size)
        self._keep(session, state, parked, changed)

    def _keep(self, session: str, state: SavedState, parked: bool, changed: bool) -> None:
        self._evicted.discard(session)
        if parked:
            self._memory.pop(session, None)
            self._memory[session] = state
        if changed and self.disk_budget > 0:
            self._disk.put(session, state)
        self._trim()

    def _trim(self) -> None:
        """Keep memory to its budget."""
        sizes = {session: state.size for session, state in self._memory.items()}
        for session in gives_way(sizes, self.memory_budget):
            del self._memory[session]
            if session not in self._disk:
                self._evicted.add(session)
        self._disk.trim()
