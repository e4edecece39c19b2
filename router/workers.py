"""The processes of the router, as the parent keeps them: one, or several that share its address. Each is started again
when it ends, without the others.

Among several the kernel spreads connections; what they share lies in a folder that is new with each start. Ends none.
"""

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cluster.locks import LockTaken, take_lock
from cluster.paths import Paths, read_json
from cluster.processes import clean_environment, mark
from cluster.restarting import HEALTHY_S, Step, backoff_s


@dataclass(frozen=True, slots=True)
class Worker:
    """Which of a router's workers this process is: from 1 to `count`. `folder` is theirs alone, mode 0700."""

    number: int
    count: int
    folder: Path

    @property
    def counts(self) -> Path:
        """Where each keeps what it counts."""
        return self.folder / "counts"

    @property
    def paces(self) -> Path:
        """Where they keep together how fast keys ask."""
        return self.folder / "paces"

    @property
    def others(self) -> list[int]:
        return [number for number in range(1, self.count + 1) if number != self.number]


class Tell(Protocol):
    """Lets who looks on see how a step stands."""

    def __call__(self, name: str, state: Step, detail: str = "", *, pids: list[int]) -> None: ...


def standing(count: int, running: Mapping[int, int], ended: Mapping[int, str]) -> tuple[Step, str]:
    """How the router stands, of whose `count` workers these run (their pids) and these have ended (why)."""
    why = "; ".join(ended[number] for number in sorted(ended))
    if len(running) == count:
        return "ready", "" if count == 1 else f"{count} workers"
    if not ended:
        return "starting", ""
    return ("ready", f"{len(running)} of {count} workers: {why}") if running else ("failed", why)


class Workers:
    """Started with `router.json` as it is when `keep` begins."""

    def __init__(self, paths: Paths, tell: Tell) -> None:
        self._paths = paths
        self._tell = tell
        self._log = paths.logs / "router.log"
        self._count = 1
        self._running: dict[int, int] = {}
        self._ended: dict[int, str] = {}

    async def keep(self) -> None:
        """For ever. Who is cancelled leaves them running."""
        lock = await self._begun()
        try:
            await asyncio.gather(*(self._keep(number) for number in range(1, self._count + 1)))
        finally:
            if lock is not None:
                os.close(lock)

    async def _begun(self) -> int | None:
        """As `_begin`, once it can."""
        failures = 0
        while True:
            try:
                lock = self._begin()
            except (LockTaken, OSError, KeyError) as error:
                failures += 1
                self._ended = {1: self._why_not(error)}
                self._say()
                await asyncio.sleep(backoff_s(failures))
            else:
                self._ended = {}
                return lock

    def _begin(self) -> int | None:
        """Several: make what they share, and return the right to share their port, as a descriptor: the kernel would
        let in any process of this user that asks. Raises LockTaken, OSError, and KeyError for settings without one."""
        settings = read_json(self._paths.router_settings) or {}
        self._count = settings.get("workers", 1)
        shutil.rmtree(self._paths.workers, ignore_errors=True)
        if self._count == 1:
            return None
        port = settings["port"]
        file = self._paths.locks / f"router-{port}.lock"
        lock = take_lock(file, f"port {port}", str(self._paths.home), 0o666)
        try:
            _make(Worker(1, self._count, self._paths.workers))
        except OSError:
            os.close(lock)
            raise
        return lock

    def _why_not(self, error: LockTaken | OSError | KeyError) -> str:
        match error:
            case LockTaken():
                return f"{error}; set router.listen to a free port"
            case OSError():
                return f"its workers cannot be started: {error}"
            case KeyError():
                return f"{self._paths.router_settings} does not say its {error.args[0]}"

    async def _keep(self, number: int) -> None:
        failures = 0
        who = "it" if self._count == 1 else f"worker {number}"
        while True:
            began = time.monotonic()
            try:
                code = await self._run(number)
                why = f"ended with code {code}; see {self._log}"
            except OSError as error:
                why = f"cannot be started: {error}"
            failures = 0 if time.monotonic() - began > HEALTHY_S else failures + 1
            self._running.pop(number, None)
            self._ended[number] = f"{who} {why}"
            self._say()
            await asyncio.sleep(backoff_s(failures))

    async def _run(self, number: int) -> int:
        """Until it ends; its exit code. Raises OSError."""
        command = [sys.executable, "-m", "router.app", "--config-json", str(self._paths.router_settings)]
        if self._count > 1:
            command += ["--worker", str(number)]
        with self._log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                *command,
                env={**clean_environment(os.environ), **mark(self._paths, "router")},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._running[number] = process.pid
        self._ended.pop(number, None)
        self._say()
        return await process.wait()

    def _say(self) -> None:
        state, detail = standing(self._count, self._running, self._ended)
        self._tell("router", state, detail, pids=sorted(self._running.values()))


def _make(worker: Worker) -> None:
    """The folders that they share, for this user only."""
    for folder in (worker.folder, worker.counts, worker.paces):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
