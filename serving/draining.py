"""Empties machines that a person drains: the shell around drain_plan.py, for the controller. It goes on when a router
dies, and a controller that starts anew goes on with what the book says; how many have moved it counts from then on.

Moves one session after another, as moving.py does. A machine that is away, or whose hosts do not serve, is waited for.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from cluster.clocks import DayClock
from serving.bearers import Bearers
from serving.carrying import Fits, fits_of, why_not
from serving.drain_plan import Go, Resting, Target, plan
from serving.machine_book import MachineBook
from serving.moving import ANSWER, Anew, Away, Busy, Mover, NotMoved
from serving.pin_index import PinIndex
from serving.pins import Pin, pin_from_json
from serving.side import scratch_of

LOOK_S = 2.0
"""How often it looks again while something is left."""
DONE_LOOK_S = 10.0
"""And while nothing is: a child may still begin where its parent lived."""
AGAIN_S = 30.0
"""After that it is tried again before the deadline to move one whose context did not go along."""
PINS = aiohttp.ClientTimeout(total=30.0)
"""100,000 pins take a second."""

log = logging.getLogger(__name__)
Report = Mapping[str, Any]


@dataclass(slots=True)
class _Progress:
    """Of one machine."""

    moved: int = 0
    anew: Counter[str] = field(default_factory=Counter)
    """By reason: those of `moved` whose context did not go along."""
    left: int | None = None
    """None: it has not looked yet."""
    is_over: bool = False
    """Whether it has looked since the deadline."""
    stay: Mapping[str, int] = field(default_factory=dict)
    """By reason: those of `left` that nobody takes."""
    silent: Mapping[str, int] = field(default_factory=dict)
    """By reason: those of `left` whose hosts do not serve at present."""
    waits: str = ""
    """What the whole machine waits for."""
    again_s: dict[tuple[str, str], float] = field(default_factory=dict)
    """By session and model: before then it is not tried again. On the book's clock."""

    def to_json(self) -> dict[str, Any]:
        return {
            "moved": self.moved,
            "anew": dict(self.anew),
            "left": self.left,
            "is_over": self.is_over,
            "stay": dict(self.stay),
            "silent": dict(self.silent),
            "waits": self.waits,
        }


@dataclass(frozen=True, slots=True)
class _Home:
    """What a host of the machine says."""

    base: str
    fits: Fits
    pins: list[dict[str, Any]]
    """Those that are at home there."""
    quiet_s: Mapping[str, float]
    """Of its residents."""


class Draining:
    """`reports`: the machines' last reports, by id; `here`: ids of those that were heard of late; `takes_new`:
    whether sessions may get a home at a replica. `client` makes the HTTP client when the first machine is drained."""

    def __init__(
        self,
        book: MachineBook,
        index: PinIndex,
        bearers: Bearers,
        reports: Callable[[], Mapping[str, Report]],
        here: Callable[[], Collection[str]],
        takes_new: Callable[[str], bool],
        clock: DayClock,
        client: Callable[[], aiohttp.ClientSession] = aiohttp.ClientSession,
    ) -> None:
        self._book = book
        self._index = index
        self._bearers = bearers
        self._reports = reports
        self._here = here
        self._takes_new = takes_new
        self._clock = clock
        self._make_client = client
        self._client: aiohttp.ClientSession | None = None
        self._progress: dict[str, _Progress] = {}
        self._changed = asyncio.Event()
        self._under_way: set[str] = set()
        self._coming: list[str] = []
        """Where sessions move to at present, by replica."""

    def changed(self) -> None:
        """The book says something else."""
        self._changed.set()
        self._changed = asyncio.Event()

    def told(self) -> dict[str, dict[str, Any]]:
        """By id of a machine that is drained: how far it is."""
        return {
            machine: self._progress.get(machine, _Progress()).to_json() for machine in self._book.draining
        }

    async def run(self) -> None:
        """For ever. Each machine by itself: a slow transfer of one does not hold up the others."""
        try:
            async with asyncio.TaskGroup() as machines:
                while True:
                    changed = self._changed
                    self._progress = {
                        i: each for i, each in self._progress.items() if i in self._book.draining
                    }
                    for machine in self._book.draining.keys() - self._under_way:
                        self._under_way.add(machine)
                        machines.create_task(self._empty(machine))
                    await changed.wait()
        finally:
            if self._client is not None:
                await self._client.close()

    async def _empty(self, machine: str) -> None:
        """Until it is no longer to be drained."""
        while machine in self._book.draining:
            changed = self._changed
            try:
                await self.step(machine)
            except Exception:
                log.exception("machine %s is not drained; the controller goes on", machine)
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), self._next_s(machine))
        self._under_way.discard(machine)

    def _next_s(self, machine: str) -> float:
        progress = self._progress.get(machine)
        left_s = self._book.draining.get(machine, 0.0) - self._clock.steady()
        look_s = DONE_LOOK_S if progress is not None and progress.left == 0 else LOOK_S
        return min(look_s, left_s) if left_s > 0 else look_s

    async def step(self, machine: str) -> None:
        """Move those of its sessions that are to move now."""
        progress = self._progress.setdefault(machine, _Progress())
        report = self._reports().get(machine)
        if report is None or machine not in self._here():
            progress.waits = "it is away"
            return
        progress.waits = ""
        coming = sum(replica.rpartition("/")[0] == report["name"] for replica in self._coming)
        homes, silent = await self._homes(report)
        targets = await self._targets(machine, report["zone"], homes)
        resting = [each for name, home in homes.items() for each in _resting(name, home)]
        left_s = self._book.draining.get(machine, 0.0) - self._clock.steady()
        decided = plan(resting, targets, report["zone"], left_s)
        progress.stay, progress.silent = decided.stays, silent
        progress.left, progress.is_over = len(resting) + coming + sum(silent.values()), left_s <= 0
        for go in decided.go:
            if machine not in self._book.draining:
                return
            key = (go.session.session, go.session.model)
            if not self._takes_new(go.target.replica):
                continue  # It is drained too, since.
            if not go.ends_turns and progress.again_s.get(key, 0.0) > self._clock.steady():
                continue
            if await self._go(go, homes[go.session.replica], self._base_of(go), progress):
                progress.left -= 1

    async def _go(self, go: Go, home: _Home, base: str | None, progress: _Progress) -> bool:
        """Whether it has moved."""
        session = go.session
        if base is None:
            return False
        made = Pin(
            session.session, session.model, go.target.replica, session.generation + 1, self._clock.latest()
        )
        facts = next(
            pin for pin in home.pins if pin["session"] == session.session and pin["model"] == session.model
        )
        self._coming.append(made.replica)
        try:
            mover = Mover(self._http(), self._bearers.of)
            context = await mover.move(
                home.base, base, made, facts, ends_turns=go.ends_turns, needs_context=not go.ends_turns
            )
        except Busy:
            return False  # It is looked at again.
        except NotMoved as error:
            log.warning("a session stays at %s: %s", session.replica, error)
            progress.again_s[session.session, session.model] = self._clock.steady() + AGAIN_S
            return False
        finally:
            self._coming.remove(made.replica)
        self._index.confirm([made], made.replica, now=self._clock.steady())
        self._index.describe(made.session, str(facts.get("public") or ""), facts.get("scope"))
        progress.moved += 1
        if isinstance(context, Anew):
            progress.anew[context.why] += 1
        return True

    async def _homes(self, report: Report) -> tuple[dict[str, _Home], dict[str, int]]:
        """By replica of the machine; and how many sessions live at those that do not answer, by reason."""
        found: dict[str, _Home] = {}
        silent: Counter[str] = Counter()
        for replica in report["replicas"]:
            name = replica["name"]
            try:
                if replica["state"] != "ready":
                    raise OSError(replica["state"])
                base = self._base(report, replica)
                state = await self._ask(base, "/state")
                pins = (await self._ask(base, "/pins", PINS))["pins"]
                quiet = {r["session"]: float(r["quiet_s"]) for r in state.get("residents", ())}
                mine = [pin for pin in pins if pin["replica"] == name and self._lives_there(pin)]
                found[name] = _Home(base, fits_of(state), mine, quiet)
            except (*Away, ValueError, KeyError, TypeError):
                there = sum(pin.replica == name for pin in self._index.journals.get(name, {}).values())
                if there:
                    silent[f"{name} does not serve"] += there
        return found, dict(silent)

    def _lives_there(self, told: Mapping[str, Any]) -> bool:
        """Whether nobody knows of a newer home, of which the host has not heard yet."""
        known = self._index.get(told["session"], told["model"])
        return known is None or known.generation <= told["generation"]

    async def _targets(self, machine: str, zone: str, homes: Mapping[str, _Home]) -> list[Target]:
        reports = self._reports()
        wanted = [
            (reports[id_], replica)
            for id_ in sorted(self._here())
            if id_ != machine and id_ in reports and reports[id_]["zone"] == zone
            for replica in reports[id_]["replicas"]
            if replica["state"] == "ready" and self._takes_new(replica["name"])
        ]
        found = []
        for report, replica in wanted:
            try:
                state = await self._ask(self._base(report, replica), "/state")
                if state["state"] != "ready":
                    continue
                fits = fits_of(state)
                carries = {name: why_not(home.fits, fits) is None for name, home in homes.items()}
                load = int(state["running"]) + int(state["waiting"])
                found.append(
                    Target(
                        replica["name"], report["name"], replica["model"], int(state["free"]), load, carries
                    )
                )
            except (*Away, ValueError, KeyError, TypeError):
                continue
        return found

    async def _ask(self, base: str, path: str, limits: aiohttp.ClientTimeout = ANSWER) -> dict[str, Any]:
        """Raises one of Away, or ValueError."""
        headers = {"authorization": self._bearers.of(base)}
        async with self._http().get(base + path, headers=headers, timeout=limits) as answer:
            body = await answer.read()
            if answer.status != 200:
                raise ValueError(f"it answered {answer.status}")
        return msgspec.json.decode(body, type=dict[str, Any])

    def _base_of(self, go: Go) -> str | None:
        """Where its new home's host listens, by the machine's last report."""
        for report in self._reports().values():
            for replica in report["replicas"]:
                if replica["name"] == go.target.replica:
                    return self._base(report, replica)
        return None

    def _base(self, report: Report, replica: Mapping[str, Any]) -> str:
        base = self._bearers.base(replica.get("address") or report["address"], replica["port"])
        self._bearers.belongs(base, report["id"])
        return base

    def _http(self) -> aiohttp.ClientSession:
        if self._client is None:
            self._client = self._make_client()
        return self._client


def _resting(name: str, home: _Home) -> list[Resting]:
    found = []
    for told in home.pins:
        pin = pin_from_json(told)
        busy = told.get("state") in ("running", "waiting")
        # It, or what it has aside: a title made aside leaves the session itself parked.
        quiet_s = [
            home.quiet_s[each] for each in (pin.session, scratch_of(pin.session)) if each in home.quiet_s
        ]
        resident = told.get("state") == "resident"
        machines = told.get("machines")
        found.append(
            Resting(
                pin.session,
                pin.model,
                name,
                pin.generation,
                busy,
                min(quiet_s, default=0.0) if busy or resident else None,
                told.get("family"),
                None if not machines else frozenset(str(machines).split(",")),
            )
        )
    return found
