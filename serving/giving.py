"""Gives machines the revision in their turn: the shell around rollout.py, for the controller. Keeps nothing on disk: a
controller that starts anew sees from the reports how far each machine is."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from serving.rollout import Progress, Turn, failed, next_turn, unready

LOOK_S = 2.0
"""How often it looks whose turn it is where nobody says that something has changed."""

log = logging.getLogger(__name__)


class Giving:
    """`reports`: the machines' last reports, by id; `here`: ids of those that were heard of late; `revision`: the
    number that is wanted; `give` gives it to one machine, and raises nothing; `head`: the head's id, which goes first,
    since `homeport up` waits there."""

    def __init__(
        self,
        reports: Callable[[], Mapping[str, dict[str, Any]]],
        here: Callable[[], Collection[str]],
        revision: Callable[[], int],
        give: Callable[[str], Awaitable[None]],
        head: Callable[[], str] = lambda: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reports = reports
        self._here = here
        self._revision = revision
        self._give = give
        self._head = head
        self._clock = clock
        self._given: dict[str, tuple[int, float]] = {}
        """By id: the revision that it was given last, and when."""
        self._excused: dict[str, frozenset[tuple[str, str]]] = {}
        """By id: what had failed there before it was given its revision."""
        self._changed = asyncio.Event()
        self._told = Turn()

    def heard(self) -> None:
        """A report came, or a revision."""
        self._changed.set()

    def told(self) -> dict[str, Any]:
        """How far it is, for who looks on."""
        return self._told.to_json()

    async def run(self) -> None:
        """For ever."""
        while True:
            self._changed.clear()
            try:
                await self.step()
            except Exception:
                log.exception("a revision could not be given; the controller goes on")
            try:
                await asyncio.wait_for(self._changed.wait(), LOOK_S)
            except TimeoutError:
                continue

    async def step(self) -> None:
        """Give the revision to those whose turn it is now."""
        wanted, now = self._revision(), self._clock()
        turn = next_turn(wanted, self._progress(wanted, now), now)
        for name, reason in turn.passed.items():
            if name not in self._told.passed and turn.waiting:
                log.warning("revision %d goes on without waiting for %s: %s", wanted, name, reason)
        self._told = turn
        for machine in turn.give:
            self._excused[machine] = failed(self._reports()[machine])
            self._given[machine] = (wanted, now)
        await asyncio.gather(*(self._give(machine) for machine in turn.give))

    def _progress(self, wanted: int, now: float) -> list[Progress]:
        here, found = set(self._here()), []
        head = self._head()
        for machine, report in sorted(
            self._reports().items(), key=lambda each: (each[0] != head, each[1]["name"])
        ):
            revision = report["revision"]
            if revision >= wanted and self._given.get(machine, (0, now))[0] < wanted:
                self._given[machine] = (wanted, now)  # It was given by a controller before this one.
            found.append(
                Progress(
                    machine,
                    report["name"],
                    revision,
                    machine in here,
                    all(replica.get("pid") is None for replica in report["replicas"]),
                    unready(report, self._excused.get(machine, frozenset())),
                    self._given.get(machine, (0, now))[1],
                )
            )
        return found
