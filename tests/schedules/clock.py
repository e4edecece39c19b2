"""A loop whose time is simulated, and processes that can be killed on it.

Time stands still while anything is ready, and then jumps to the next timer. What a killed process has left on the
loop is never run: it gets no `finally` and no cancellation, as with SIGKILL.
"""

import asyncio
import heapq
import itertools
import random
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any
from unittest import mock

EPOCH_S = 1_800_000_000.0
PROCESS: ContextVar["Process | None"] = ContextVar("process", default=None)
NOBODY: Context = copy_context()
"""What the network does belongs to no process: it goes on when the sender is killed."""


class Process:
    """One process of the simulated world. Everything that runs in its `context` ends with it."""

    def __init__(self, name: str, machine: str, skew_s: float = 0.0) -> None:
        self.name = name
        self.machine = machine
        self.skew_s = skew_s
        """How far its wall clock is off."""
        self.alive = True
        self.open: dict[Any, None] = {}
        """Its ends of exchanges, in order; each has `died(process)`."""
        self.context = NOBODY.copy()
        self.context.run(PROCESS.set, self)

    def kill(self) -> None:
        self.alive = False
        for end in list(self.open):
            end.died(self)
        self.open.clear()


class Stuck(Exception):
    """Nobody will ever do anything again."""


_numbers = itertools.count()


class _Future(asyncio.Future[Any]):
    """Sets of them are in the order that they were made in, whatever their addresses."""

    def __init__(self, **more: Any) -> None:
        self._number = next(_numbers)
        super().__init__(**more)

    def __hash__(self) -> int:
        return self._number


class _Task(asyncio.Task[Any]):
    def __init__(self, coro: Coroutine[Any, Any, Any], **more: Any) -> None:
        self._number = next(_numbers)
        super().__init__(coro, **more)

    def __hash__(self) -> int:
        return self._number


class Inline(Executor):
    """A pool of one thread whose work takes no time when it is submitted, and a little when a loop waits for it."""

    def __init__(self, *_args: Any, **_more: Any) -> None:
        self.free_at = 0.0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 as a thread's work
            future.set_exception(error)
        return future


class SimLoop(asyncio.BaseEventLoop):
    """`problems` are errors that nobody caught."""

    _ready: Any
    _scheduled: Any
    _stopping: bool

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.rng = rng
        self.now = 1000.0
        self.steps = 0
        self.problems: list[str] = []
        self.tasks: dict[_Task, None] = {}
        self._over = False
        self._never_run: list[Any] = []
        self.set_exception_handler(self._note)

    def time(self) -> float:
        return self.now

    def create_future(self) -> "asyncio.Future[Any]":
        return _Future(loop=self)

    def create_task(self, coro: Any, *, name: object = None, context: Context | None = None) -> Any:
        task = _Task(coro, loop=self, name=name, context=context)
        self.tasks[task] = None
        task.add_done_callback(self._forget)
        return task

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> Any:
        """Run it after a moment of simulated time, one after another where the pool has one thread."""
        future = self.create_future()

        def work() -> None:
            if future.cancelled():
                return
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001 as a thread's work
                future.set_exception(error)
            else:
                future.set_result(result)

        at = self.now + self.rng.uniform(0.0001, 0.004)
        if isinstance(executor, Inline):
            at = executor.free_at = max(at, executor.free_at + 1e-6)
        self.call_at(at, work)
        return future

    def finish(self) -> None:
        """End everything that is left, the killed processes' too, and close."""
        self._over = True
        self._ready.extend(self._never_run)
        self._never_run.clear()
        for _ in range(50):
            if not self.tasks:
                break
            for task in list(self.tasks):
                task.cancel()
            for _ in range(20):
                self._run_ready()
        self._scheduled.clear()
        self._ready.clear()
        self.problems.extend(f"a task does not end: {task}" for task in self.tasks)
        self.close()

    def _forget(self, task: _Task) -> None:
        self.tasks.pop(task, None)

    def _note(self, _loop: object, context: dict[str, Any]) -> None:
        if not self._over:
            error = context.get("exception")
            self.problems.append(f"{context.get('message')}: {type(error).__name__} {error}")

    def _run_once(self) -> None:
        scheduled = self._scheduled
        if not self._ready and not self._stopping:
            while scheduled and scheduled[0]._cancelled:
                heapq.heappop(scheduled)._scheduled = False
            if not scheduled:
                raise Stuck
            self.now = max(self.now, scheduled[0]._when)
        while scheduled and scheduled[0]._when <= self.now:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            self._ready.append(handle)
        self._run_ready()

    def _run_ready(self) -> None:
        ready = self._ready
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(PROCESS)
            if process is None or process.alive or self._over:
                self.steps += 1
                handle._run()
            else:
                self._never_run.append(handle)

    def _write_to_self(self) -> None:
        """Called by `call_soon_threadsafe`: there is no other thread."""

    def _process_events(self, event_list: object) -> None:
        raise AssertionError


@contextmanager
def simulated(seed: int) -> Iterator[SimLoop]:
    """A loop, and the clocks of the standard library on its time."""
    global _numbers  # noqa: PLW0603 each schedule counts from nought
    _numbers = itertools.count()
    rng = random.Random(seed)
    loop = SimLoop(rng)

    def wall() -> float:
        process = PROCESS.get()
        return EPOCH_S + loop.now + (0.0 if process is None else process.skew_s)

    def uptime(_clock: int) -> float:
        return loop.time()

    def drawn() -> uuid.UUID:
        return uuid.UUID(int=rng.getrandbits(128))

    with (
        mock.patch.object(time, "time", wall),
        mock.patch.object(time, "monotonic", loop.time),
        mock.patch.object(time, "clock_gettime", uptime),
        mock.patch.object(uuid, "uuid4", drawn),
        mock.patch.object(random, "getrandbits", rng.getrandbits),
    ):
        asyncio.set_event_loop(loop)
        try:
            yield loop
        finally:
            loop.finish()
            asyncio.set_event_loop(None)
