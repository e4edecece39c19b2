"""What a keeper does when its machine is about to sleep: the controller hears of it, and its hosts write to disk what
that lacks of their sessions. All of it within what logind waits.

That it is about to, cluster/sleeping.py hears.
"""

import asyncio
import logging
from collections.abc import Callable, Collection

from cluster.sleeping import SleepWatch
from serving.host_watch import HostWatch

PARK_S = 3.5
"""How long hosts write: logind waits for 5 s, and the answers come after."""
TOLD_S = 2.0
"""How long the controller may take to write it down."""
SLACK_S = 0.5

log = logging.getLogger(__name__)


class BeforeSleep:
    """`going`: the machine said that it is about to sleep, and has not been awake since."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        hosts: Callable[[], Collection[HostWatch]],
        publish: Callable[[], int],
        wait_told: Callable[[int, float], bool],
    ) -> None:
        """`publish` makes a report and returns its version; `wait_told` blocks until the controller has taken that one,
        or for so many seconds, and says whether it has."""
        self.going = False
        self._loop = loop
        self._hosts = hosts
        self._publish = publish
        self._wait_told = wait_told
        self._watch = SleepWatch(self._before, self._after, self._changed)

    def start(self) -> None:
        """Hear of sleep from now on."""
        self._watch.start()

    def stop(self) -> None:
        """Hear of it no more."""
        self._watch.stop()

    def detail(self) -> str:
        """What of power is not done on this machine, and why; empty: nothing."""
        if self._watch.detail:
            return f"before sleep nothing is written to disk, for it is not noticed ({self._watch.detail})"
        told = (watch.state.get("awake") or {} for watch in self._hosts())
        return next((str(each["detail"]) for each in told if each.get("detail")), "")

    def _before(self) -> None:
        done = asyncio.run_coroutine_threadsafe(self._fall_asleep(), self._loop)
        try:
            done.result(PARK_S + SLACK_S)
        except TimeoutError:
            log.warning("the machine sleeps before all was done")
            done.cancel()

    def _after(self) -> None:
        asyncio.run_coroutine_threadsafe(self._wake_up(), self._loop).result(SLACK_S)

    async def _fall_asleep(self) -> None:
        log.info("the machine is about to sleep")
        self.going = True
        version = self._publish()
        ready = [watch for watch in self._hosts() if watch.ready]
        told, *left = await asyncio.gather(
            asyncio.to_thread(self._wait_told, version, TOLD_S), *(watch.park(PARK_S) for watch in ready)
        )
        if not told:
            log.warning("the controller was not told in time that the machine sleeps")
        log.info("not on disk before sleep: %s contexts", sum(map(int, left)))

    async def _wake_up(self) -> None:
        log.info("the machine is awake")
        self.going = False
        self._publish()

    def _changed(self) -> None:
        self._loop.call_soon_threadsafe(self._publish)
