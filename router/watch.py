"""`/api/fleet?watch`: the picture and what changes in it, as server-sent events, for as many boards as there are.

One task looks once a second for all of them, while there are any; what one key may see is worked out once. Reads the
picture that the router has anyway, and asks a host for its pins only when its journal has changed. Decides nothing:
what a change is says router/watching.py.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from router.admin import AtHost, Heard, at_host, fleet_json, merged_sessions
from router.errors import ApiError, Rejected
from router.fleet import Fleet
from router.keys import Entry, Key
from router.peers import HostState, InLine, Peers, Unreachable
from router.sessions import Sessions
from router.siblings import OpenTurn
from router.watching import NOTHING, Picture, Speed, change, picture, steady, whole
from serving.trouble import trace_of

LOOK_S = 1.0
COMMENT_S = 10.0
COMMENT = b": still here\n\n"
PATIENCE_S = 0.5
"""How long a look waits for what it asks; what comes later is for the next one."""
INDEX_S = 10.0
"""The controller is not asked again before so long for pins of a host that does not answer."""
PACE = 20
"""A host is not asked again for its pins before so many times as long as its answer took."""
BOARDS_MAX = 20
"""How many one key may have open at once, at each router."""

log = logging.getLogger("homeport.watch")


Said = tuple[list[tuple[str, bool, int]], list[tuple[str | None, InLine]]]
"""What a host's state says of its sessions: who is resident, and who waits."""


@dataclass(slots=True)
class View:
    """What one key sees, and who looks at it."""

    boards: int = 0
    seen: Picture = NOTHING
    version: int = 0
    """Of `seen`; 0: there is none yet."""
    changed: bytes = b""
    """The event that leads to this version from the one before."""
    waiters: set[asyncio.Future[None]] = field(default_factory=set)

    def wake(self) -> None:
        waiters, self.waiters = self.waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def news(self, timeout_s: float) -> None:
        """Until `wake`, or for so long."""
        waiter = asyncio.get_running_loop().create_future()
        self.waiters.add(waiter)
        try:
            await asyncio.wait({waiter}, timeout=timeout_s)
        finally:
            self.waiters.discard(waiter)


@dataclass(slots=True)
class Pins:
    """Of one host, as it told them last, without what its state tells anew all the time."""

    mark: str
    """Of its journal then; "" where the controller told them, since it does not answer."""
    pins: list[dict[str, Any]]
    again_s: float
    """Not asked before."""
    told: dict[str, AtHost] = field(default_factory=dict)
    """What they came to, by the session's name: the same objects for as long as the same is said of them."""
    says: Said | None = None
    is_new: bool = True

    def hear(self, name: str, host: HostState | None, digest_key: bytes, wall_s: float) -> None:
        """Its state now; None: it does not answer."""
        said, before = _said(host), self.says
        if said == before and not self.is_new:
            return
        pins = self.pins
        if said is not None and before is not None:  # Of the others nothing is said.
            touched = {session for session, *_ in (*said[0], *before[0], *said[1], *before[1])}
            pins = [pin for pin in pins if pin.get("session") in touched]
        if said is not None:
            _note_tokens(pins, said)
        for each in at_host(Heard(name, pins, host), digest_key, wall_s):
            was = self.told.get(each.name)
            told = steady(each.told, {} if was is None else was.told, wall_s)
            self.told[each.name] = each._replace(told=told)
        self.says, self.is_new = said, False


def _said(host: HostState | None) -> Said | None:
    if host is None:
        return None
    residents = [(each.session, each.busy, each.tokens) for each in host.residents]
    return residents, [(each.session, each) for each in host.line]


@dataclass(frozen=True, slots=True, eq=False)
class Seat:
    """What one open board is to its router."""

    name: str
    """Its key's."""
    task: asyncio.Task[Any] | None
    is_stuck: Callable[[], bool]
    """Whether its client does not read."""


class Watch:
    """`stop` ends all of its streams."""

    def __init__(
        self,
        fleet: Fleet,
        peers: Peers,
        sessions: Sessions,
        wall: Callable[[], float],
        holds: Callable[[Entry], bool],
    ) -> None:
        """`holds`: whether there is still a key like that, with that secret."""
        self._fleet = fleet
        self._peers = peers
        self._sessions = sessions
        self._wall = wall
        self._holds = holds
        self._views: dict[Entry, View] = {}
        self._seats: set[Seat] = set()
        self._pins: dict[str, Pins] = {}
        self._speeds: dict[str, Speed] = {}
        self._turns: list[OpenTurn] = []
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._new = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._stopped = False
        self._logged_once = set[str]()

    @contextlib.contextmanager
    def seat(self, key: Key, is_stuck: Callable[[], bool]) -> Iterator[None]:
        """For as long as the current task serves a board of this key. Raises Rejected where it has too many."""
        if sum(each.name == key.name for each in self._seats) >= BOARDS_MAX:
            raise Rejected(too_many_boards())
        seat = Seat(key.name, asyncio.current_task(), is_stuck)
        self._seats.add(seat)
        try:
            yield
        finally:
            self._seats.discard(seat)

    async def events(self, key: Entry) -> AsyncGenerator[bytes, None]:
        """The events for one board, until the router stops or the key is no more, or has another secret."""
        view = self._views.setdefault(key, View())
        view.boards += 1
        self._begin()
        told = 0
        try:
            while not self._ended(key):
                if told == view.version:
                    await view.news(COMMENT_S)
                if self._ended(key):
                    return
                if told == view.version:
                    yield COMMENT
                    continue
                is_next, told = told and told == view.version - 1, view.version
                yield view.changed if is_next else _event("fleet", whole(view.seen), self._wall())
        finally:
            view.boards -= 1
            if view.boards == 0:
                self._views.pop(key, None)

    def stop(self) -> None:
        """At once also those whose clients do not read, which would not come to their end."""
        self._stopped = True
        for seat in self._seats:
            if seat.task is not None and seat.is_stuck():
                seat.task.cancel()
        for view in self._views.values():
            view.wake()
        for task in self._asking.values():
            task.cancel()
        self._new.set()

    def _ended(self, key: Entry) -> bool:
        return self._stopped or not self._holds(key)

    def _begin(self) -> None:
        self._new.set()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look_always())

    async def _look_always(self) -> None:
        """While somebody watches. Who comes new is shown a picture at once, everybody else once a second."""
        loop = asyncio.get_running_loop()
        while self._views and not self._stopped:
            next_s = loop.time() + LOOK_S
            self._new.clear()
            with self._logged():
                await self._ask()
                self._look(list(self._views.items()))
            while (left_s := next_s - loop.time()) > 0 and not self._stopped:
                try:
                    async with asyncio.timeout(left_s):
                        await self._new.wait()
                except TimeoutError:
                    break
                self._new.clear()
                with self._logged():
                    self._look([(key, view) for key, view in self._views.items() if view.version == 0])

    @contextlib.contextmanager
    def _logged(self) -> Iterator[None]:
        """An error in here is written down, each once, and is no reason to look no more."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - streams that nobody feeds look like ones in which nothing happens
            self._log("boards are not told what changed, which is tried again", error)

    def _log(self, what: str, error: Exception) -> None:
        if (text := f"{what}:\n{trace_of(error)}") not in self._logged_once:
            self._logged_once.add(text)
            log.error("%s", text)

    def _look(self, views: list[tuple[Entry, View]]) -> None:
        """Show these what there is now."""
        fleet, wall_s = self._fleet, self._wall()
        now, digest_key = fleet.now(), self._sessions.relay.addressing.digest_key
        speeds = self._measure(now) if views else {}
        known = self._known(now, wall_s) if views else []
        for key, view in views:
            if not self._holds(key):
                view.wake()
                continue
            told = fleet_json(fleet, digest_key, now, wall_s, key[0])
            sessions = merged_sessions(known, self._turns, digest_key, key[0])
            new = picture(told, sessions, speeds, wall_s, view.seen)
            differs = change(view.seen, new)
            if differs is not None or view.version == 0:
                view.changed = _event("change", differs or {}, wall_s)
                view.seen = new
                view.version += 1
                view.wake()

    def _measure(self, now: float) -> dict[str, float]:
        found = {}
        self._speeds = {name: each for name, each in self._speeds.items() if name in self._fleet.known}
        for name, known in self._fleet.known.items():
            if known.state is None or known.heard_at is None:
                continue
            speed = self._speeds.setdefault(name, Speed())
            speed.heard(known.state.incarnation, known.heard_at, known.state.tokens_generated)
            if (per_s := speed.per_s(now)) is not None:
                found[name] = per_s
        return found

    def _known(self, now: float, wall_s: float) -> list[AtHost]:
        """The sessions of hosts: first of those that do not answer, so that who moved away from there is where it is
        now."""
        silent, there = list[AtHost](), list[AtHost]()
        digest_key = self._sessions.relay.addressing.digest_key
        for name, kept in self._pins.items():
            known = self._fleet.known.get(name)
            if known is None:
                continue
            host = None if known.replica().reach(now) == "out" else known.state
            try:
                kept.hear(name, host, digest_key, wall_s)
            except Exception as error:  # noqa: BLE001 - what a host wrote there
                self._log(f"pins of {name} are not shown until they change", error)
                kept.pins, kept.told, kept.is_new = [], {}, False
            (silent if host is None else there).extend(kept.told.values())
        return silent + there

    async def _ask(self) -> None:
        """What the picture lacks: pins of hosts whose journals have changed, turns at the other workers."""
        fleet, now = self._fleet, self._fleet.now()
        self._pins = {name: kept for name, kept in self._pins.items() if name in fleet.known}
        for name, known in fleet.known.items():
            kept, reach = self._pins.get(name), known.replica().reach(now)
            if reach == "out" and kept is not None and kept.mark:
                kept.mark, kept.again_s = "", now + INDEX_S  # Who is ended meanwhile, the controller knows.
            is_back = kept is not None and not kept.mark and reach != "out"
            if name in self._asking or (kept is not None and now < kept.again_s and not is_back):
                continue
            if reach == "out" and (kept is None or not kept.mark):
                self._start(name, self._keep_pins(name, "", self._peers.indexed_pins(name)))
            elif known.state is None or reach in ("out", "unknown"):
                continue
            elif kept is None or kept.mark != known.state.journal:
                self._start(
                    name, self._keep_pins(name, known.state.journal, self._peers.host_pins(known.base))
                )
        if "" not in self._asking:
            self._start("", self._ask_turns())
        await asyncio.wait(set(self._asking.values()), timeout=PATIENCE_S)

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = self._asking[name] = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(lambda _: self._asking.pop(name, None))

    async def _keep_pins(
        self, name: str, mark: str, asked: Coroutine[Any, Any, list[dict[str, Any]]]
    ) -> None:
        began = time.perf_counter()
        try:
            pins = await asked
        except Unreachable:
            return
        if not mark and (kept := self._pins.get(name)) is not None:  # The controller knows less of each.
            more = {(pin.get("session"), pin.get("model")): pin for pin in kept.pins}
            pins = [{**more.get((pin.get("session"), pin.get("model")), {}), **pin} for pin in pins]
        for pin in pins:
            pin.pop("state", None)  # Its state of this second says it.
        pause_s = PACE * (time.perf_counter() - began) if mark else INDEX_S
        self._pins[name] = Pins(mark, pins, self._fleet.now() + pause_s)

    async def _ask_turns(self) -> None:
        with self._logged():
            self._turns = await self._sessions.open_turns()


def too_many_boards() -> ApiError:
    message = (
        f"{BOARDS_MAX} boards of this key (without keys: of everybody) are open at this router, which is the most. "
        "Close one of them, or give each person a key with `homeport key new NAME`."
    )
    return ApiError(429, "too_many_boards", message, retry_after_s=COMMENT_S)


def _note_tokens(pins: list[dict[str, Any]], said: Said) -> None:
    """So that they are known of one that is parked then."""
    if held := {session: tokens for session, _, tokens in said[0]}:
        for pin in pins:
            if (tokens := held.get(str(pin.get("session")))) is not None:
                pin["tokens"] = tokens


def _event(name: str, told: dict[str, Any], wall_s: float) -> bytes:
    """`now_s`: so that a browser whose clock is wrong shows the right ages."""
    return b"event: %b\ndata: %b\n\n" % (
        name.encode(),
        msgspec.json.encode(told | {"now_s": round(wall_s, 1)}),
    )
