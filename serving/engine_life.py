"""The engine's coming and going: loaded with the host, freed when nobody needed it for long, loaded again for the next.

Decides nothing about turns, and ends no process: whoever made it is told of a load that failed. The driver of a GPU
keeps its context for as long as the process lives, and many cards then stay above their idle power.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Literal

from serving.engine import Engine, LoadError

State = Literal["loading", "loaded", "unloading", "unloaded", "failed"]

MOVES: dict[State, frozenset[State]] = {
    "loading": frozenset({"loaded", "failed"}),
    "loaded": frozenset({"unloading"}),
    "unloading": frozenset({"unloaded", "failed"}),
    "unloaded": frozenset({"loading"}),
    "failed": frozenset(),
}


class NotLoaded(Exception):
    """The engine is not there and will not be. The message says why."""


class EngineLife:
    """One engine's life on one loop. `begin` it once.

    `prepare` is called on the loading thread once the engine is loaded. `loaded` and `failed` are called on the loop;
    `failed` gets the reason and whether it is permanent.
    """

    def __init__(
        self,
        engine: Engine,
        prepare: Callable[[], None],
        loaded: Callable[[], None],
        failed: Callable[[str, bool], None],
    ) -> None:
        self._engine = engine
        self._prepare = prepare
        self._on_loaded = loaded
        self._on_failed = failed
        self.state: State = "loading"
        self.progress = 0.0
        """The share that is loaded, 0 to 1."""
        self.reason = ""
        """Why it failed."""
        self._ended = False
        self._changed: asyncio.Event | None = None

    @property
    def loaded(self) -> bool:
        return self.state == "loaded"

    @property
    def there(self) -> bool:
        """Whether it takes memory: loaded, or not quite freed yet."""
        return self.state in ("loaded", "unloading")

    def begin(self) -> None:
        """Load for the first time."""
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._start()

    def end(self) -> None:
        """Nobody waits for it any more. What loads goes on, for nobody."""
        self._ended = True
        self._wake()

    async def awake(self) -> None:
        """Until the engine is loaded; begins to load it if it was freed. Raises NotLoaded."""
        while self.state != "loaded":
            if self.state == "failed":
                raise NotLoaded(self.reason)
            if self._ended:
                raise NotLoaded("it is stopping")
            if self.state == "unloaded":
                self._move("loading")
                self.progress = 0.0
                self._start()
            assert self._changed is not None
            await self._changed.wait()

    def unload(self, park: Callable[[], Awaitable[None]]) -> Coroutine[Any, Any, None]:
        """Free the engine, `park` done before, in what is returned. Whoever wants the engine from this call on waits,
        and then has it loaded again."""
        self._move("unloading")
        return self._free(park)

    async def _free(self, park: Callable[[], Awaitable[None]]) -> None:
        try:
            await park()
            await asyncio.to_thread(self._engine.close)
        except Exception as error:  # noqa: BLE001 whatever it is, the process says so and ends
            self._failed(f"it could not be freed: {type(error).__name__}", permanent=False)
        else:
            self._move("unloaded")

    def _start(self) -> None:
        # No pool's thread: the process must be able to end while it still loads.
        threading.Thread(target=self._load, name="load", daemon=True).start()

    def _load(self) -> None:
        """On a thread of its own."""
        permanent, reason = True, ""
        try:
            self._engine.load(lambda share: self._call(self._note, share))
            self._prepare()
        except LoadError as error:
            reason = " ".join(str(error).split())
        except Exception as error:  # noqa: BLE001 whatever it is, the process says so and ends
            permanent, reason = False, f"{type(error).__name__}: {' '.join(str(error).split())}"
        if reason:
            self._call(self._failed, reason, permanent)
        else:
            self._call(self._loaded)

    def _note(self, share: float) -> None:
        self.progress = share

    def _loaded(self) -> None:
        if not self._ended:
            # Who waits runs later than this: turns find the engine started.
            self.progress = 1.0
            self._move("loaded")
            self._on_loaded()

    def _failed(self, reason: str, permanent: bool) -> None:
        if not self._ended:
            self.reason = reason
            self._move("failed")
            self._on_failed(reason, permanent)

    def _move(self, state: State) -> None:
        if state not in MOVES[self.state]:
            raise ValueError(f"an engine that is {self.state} cannot become {state}")
        self.state = state
        self._wake()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = asyncio.Event()

    def _call(self, function: Callable[..., None], *args: object) -> None:
        with suppress(RuntimeError):  # The loop is closed: the host has ended meanwhile.
            self._loop.call_soon_threadsafe(function, *args)
