"""Hears that this machine is about to sleep and puts it off until what has to be done before is done; then that it is
awake again. A thread of the keeper.

What is to be done, it is told. A machine without logind sleeps as it ever did: that is no error, `detail` says it.
"""

import logging
import os
import threading
from collections.abc import Callable

from cluster.logind import Bus, NoLogind

AGAIN_S = 60.0
"""When logind is looked for again after it could not be asked. A wait without any work."""
WHY = "Sessions are being written to disk"

log = logging.getLogger(__name__)


class SleepWatch:
    """`before` and `after` are called on its own thread. The machine sleeps once `before` returns, or once logind's own
    patience is over (`InhibitDelayMaxSec`, 5 s by default)."""

    def __init__(
        self, before: Callable[[], None], after: Callable[[], None], changed: Callable[[], None]
    ) -> None:
        """`changed` is called when `detail` is another."""
        self.detail = "it has not been asked yet"
        """Why sleep is not noticed; empty: it is."""
        self._before = before
        self._after = after
        self._changed = changed
        self._stopped = threading.Event()
        self._bus: Bus | None = None
        self._thread = threading.Thread(target=self._run, name="sleep", daemon=True)

    @property
    def is_started(self) -> bool:
        return self._thread.ident is not None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and give logind its lock back."""
        self._stopped.set()  # before it looks: a bus that comes now is not listened to
        if self._bus is not None:
            self._bus.interrupt()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._watch()
            except NoLogind as error:
                self._say(str(error))
            self._stopped.wait(AGAIN_S)

    def _watch(self) -> None:
        bus = self._bus = Bus()
        lock, is_told = None, False
        try:
            bus.listen()
            lock = bus.inhibit("sleep", WHY, "delay")
            self._say("")
            while not self._stopped.is_set():
                if bus.sleeps():
                    is_told = True
                    try:
                        self._call(self._before)
                    finally:
                        if lock is not None:
                            os.close(lock)
                        lock = None
                else:
                    is_told = False
                    self._call(self._after)
                    lock = bus.inhibit("sleep", WHY, "delay") if lock is None else lock
        finally:
            if lock is not None:
                os.close(lock)
            bus.close()
            if is_told:  # nobody says any more that it is awake, and it is: this runs
                self._call(self._after)

    def _call(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:
            log.exception("what belongs to sleep was not done")

    def _say(self, detail: str) -> None:
        if detail != self.detail:
            self.detail = detail
            self._changed()
