"""Has residents' contexts written to disk: while they stay in the engine, so that a host that dies loses little, and
all of them when it stops.

When one is due is parking_plan.py's matter, what a file looks like parked_file.py's.
"""

import asyncio
from collections.abc import Callable

from serving.engine import Engine
from serving.parking import Parking
from serving.parking_plan import Quiet, behind
from serving.places import Admission, Place, place_of


class WriteBehind:
    """One replica's. `state` tells who is resident; `done` is called whenever a round of writing is over."""

    def __init__(
        self,
        engine: Engine,
        parking: Parking,
        state: Callable[[], Admission],
        now: Callable[[], float],
        done: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._parking = parking
        self._state = state
        self._now = now
        self._done = done
        self._written_s: dict[str, float] = {}
        """When residents were written last."""
        self.round: asyncio.Task[None] | None = None
        """The one that goes on."""

    def due_at(self) -> float | None:
        """When `begin` is to be called next; None: there is nothing to write, or it is being written."""
        due, next_s = self._due()
        return self._now() if due and self.round is None else next_s

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Write what is due, unless that goes on already."""
        if self.round is None and self._due()[0]:
            self.round = loop.create_task(self._write())

    async def _write(self) -> None:
        """One after another: each is memory until it is on disk."""
        residents = {place.session for place in self._state().places}
        self._written_s = {name: at for name, at in self._written_s.items() if name in residents}
        try:
            while due := self._due()[0]:
                place = place_of(self._state(), due[0])
                assert place is not None
                self._written_s[due[0]] = self._now()
                self._parking.write_behind(due[0], self._engine.save(place.number))
                await self._parking.room()
        finally:
            self.round = None
            self._done()

    async def write_all(self, until_s: float) -> int:
        """All that the disk lacks, the smallest first. Returns at `until_s` on the loop's clock at the latest: how many
        contexts are not on disk then."""
        loop = asyncio.get_running_loop()
        quiet = [place for place in self._state().places if place.state == "quiet" and self._lacking(place)]
        for place in sorted(quiet, key=lambda place: self._engine.held(place.number)):
            assert place.session is not None
            await self._parking.room(until_s)
            # An unload may go on beside.
            if loop.time() < until_s and self._state().places[place.number] == place:
                self._parking.write_behind(place.session, self._engine.save(place.number))
        unsaved = await self._parking.finish(until_s)
        lacking = {place.session for place in self._state().places if self._lacking(place)}
        lost = unsaved | {session for session in lacking if session is not None}
        self._parking.drop(lost)
        return len(lost)

    def _lacking(self, place: Place) -> bool:
        """Whether the disk could have this place's context and has not."""
        if place.session is None or self._parking.disk_budget == 0:
            return False
        return place.state == "running" or self._parking.is_changed(place.session)

    def _due(self) -> tuple[tuple[str, ...], float | None]:
        """Which residents are to be written now, and when the next one is."""
        state = self._state()
        if state.closed:
            return (), None
        quiet = [
            Quiet(place.session, place.since_s, self._written_s.get(place.session))
            for place in state.places
            if place.state == "quiet" and place.session and self._parking.is_changed(place.session)
        ]
        return behind(quiet, state.hold_s, self._now())
