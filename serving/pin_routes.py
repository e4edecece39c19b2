"""A host's pins over HTTP, and what becomes of those that nobody uses.

Whose turn runs is not its matter: it asks turns.py what a session does, and has it dropped.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import parse_qs

import msgspec

from cluster.clocks import DayClock
from serving.asgi import Problem, Receive, Send, read_body, send_whole
from serving.desk import Desk, decode, journal_problems
from serving.journal import Entry, Facts
from serving.kept_routes import KeptRoutes
from serving.pins import Pin, is_session, pin_from_json
from serving.routing import MAX_CONTINUES
from serving.trouble import report

EXPIRE_EVERY_S = 3600.0
GUESSED_KEEP_S = 86400.0
"""Nobody can come back to a guessed session but by going on from its last words."""
SINGLE_KEEP_S = 3600.0
"""Most guessed sessions of one turn are no conversations."""
PAUSE_AFTER = 500
"""Pins that are looked at before others get their turn on the loop."""
MAX_HISTORIES = MAX_CONTINUES + 1
MAX_GENERATION = 2**31 - 1

T = TypeVar("T")
Before = Mapping[tuple[str, str], Entry | None]
"""What the journal had, by session and model."""


class PinRoutes:
    """One replica's. `keep_s` says how long a pin is kept that nobody uses."""

    def __init__(
        self,
        desk: Desk,
        kept: KeptRoutes,
        keep_s: Callable[[], float],
        earliest: Callable[[], float] | None = None,
        moves_in: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        """`earliest`: seconds since the epoch, by a clock that makes nothing old when it is set forward. `moves_in` is
        awaited before it is written down that a session's home is here; what is `kept` of one goes with its pin."""
        self._desk = desk
        self._kept = kept
        self._moves_in = moves_in
        self._keep_s = keep_s
        self._earliest = earliest or DayClock().earliest
        self._leaving: set[str] = set()
        """Sessions that have no home here any more, and whose contexts are still here."""
        self._ready = False
        self._expiring: asyncio.Task[None] | None = None
        self._dropping: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Turns may be had from now on: begin to let pins expire. Again is nothing."""
        self._ready = True
        if self._expiring is None:
            self._expiring = asyncio.get_running_loop().create_task(self._expire_always())
        self.settle()

    def stop(self) -> None:
        """No pin expires any more."""
        if self._expiring is not None:
            self._expiring.cancel()
        self._ready = False

    def settle(self) -> None:
        """To be called when a turn may have ended: what is left here of sessions that moved away goes once they are
        quiet."""
        if self._ready and self._dropping is None and any(map(self._is_quiet, self._leaving)):
            self._dropping = asyncio.get_running_loop().create_task(self._drop_quiet())

    async def answer(self, method: str, path: str, query: bytes, receive: Receive, send: Send) -> None:
        """`path` is /pins or below. Raises Problem."""
        match method, path:
            case "GET", "/pins":
                told = await self._all()
            case "POST", "/pins":
                told = await self._learn(_object(await read_body(receive), "pins"))
            case "POST", "/pins/find":
                told = self._find(_object(await read_body(receive), "histories"))
            case "GET", _ if path != "/pins/find":
                told = self._told(self._entry(path.removeprefix("/pins/"), self._model(query)))
            case "DELETE", _ if path not in ("/pins", "/pins/find"):
                told = await self._end(path.removeprefix("/pins/"), self._model(query))
            case _:
                raise Problem(405, f"{method} does not work on {path}", "method_not_allowed")
        await send_whole(send, 200, msgspec.json.encode(told))

    async def expire(self) -> int:
        """Forget the pins that nobody used for too long, and their contexts, but for residents and who has a turn.
        How many they were."""
        desk, now, keep_s = self._desk, self._earliest(), self._keep_s()
        unused = await asyncio.to_thread(
            desk.journal.unused,
            now - keep_s,
            now - min(keep_s, GUESSED_KEEP_S),
            now - min(keep_s, SINGLE_KEEP_S),
        )
        # By what is kept of a guessed session somebody can come back to it, as to one with a name.
        kept = await self._kept.having({session for session, _ in unused})
        keys = [key for key, used_s in unused.items() if key[0] not in kept or used_s < now - keep_s]
        count = 0
        for start in range(0, len(keys), PAUSE_AFTER):
            await asyncio.sleep(0)
            chosen = {key for key in keys[start : start + PAUSE_AFTER] if self._is_over(key[0])}
            if chosen:
                count += await self._remove(chosen, max(unused[key] for key in chosen))
        return count

    async def _expire_always(self) -> None:
        while True:
            try:
                await self.expire()
            except (sqlite3.Error, Problem) as error:
                report(error)
            self.settle()
            await asyncio.sleep(EXPIRE_EVERY_S)

    async def _remove(self, keys: set[tuple[str, str]], unused_since_s: float) -> int:
        """Forget pins, and the contexts of those that did not begin anew meanwhile. How many pins they were."""
        desk = self._desk
        desk.journal.leaving |= keys
        try:
            gone = await self._write(desk.journal.remove, keys, unused_since_s)
        finally:
            desk.journal.leaving -= keys
        await self._kept.forget([session for session, model in gone if model == desk.model.name])
        for session, model in gone:
            if model == desk.model.name and self._is_over(session):
                await desk.turns.drop(session)
        return len(gone)

    def _is_over(self, session: str) -> bool:
        turns = self._desk.turns
        return not turns.is_open(session) and turns.standing_of(session) not in (
            "running",
            "waiting",
            "resident",
        )

    def _is_quiet(self, session: str) -> bool:
        return not self._desk.turns.is_open(session)

    async def _all(self) -> dict[str, Any]:
        entries = await asyncio.to_thread(self._desk.journal.all)
        told = []
        for number, entry in enumerate(entries):
            if number % PAUSE_AFTER == PAUSE_AFTER - 1:
                await asyncio.sleep(0)
            told.append(self._told(entry))
        return {"pins": told}

    def _told(self, entry: Entry) -> dict[str, Any]:
        desk, session = self._desk, entry.pin.session
        does = desk.turns.standing_of(session) if entry.pin.model == desk.model.name else None
        return {
            **entry.to_json(),
            "history": entry.history,
            "used_s": entry.used_s,
            "turns": entry.turns,
            "tokens": desk.turns.tokens_of(session) if does is not None else 0,
            "state": does or "parked",
        }

    def _model(self, query: bytes) -> str:
        return parse_qs(query.decode("latin-1")).get("model", [self._desk.model.name])[0]

    def _entry(self, name: str, model: str) -> Entry:
        """`name`: a session's digest or its public id."""
        journal = self._desk.journal
        if is_session(name):
            found = journal.entry(name, model)
        else:
            found = next((entry for entry in journal.by_public(name) if entry.pin.model == model), None)
        if found is None:
            raise _not_found()
        return found

    def _find(self, asked: dict[str, Any]) -> dict[str, Any]:
        histories, model, scope = asked.get("histories"), asked.get("model"), asked.get("scope")
        digests = (
            isinstance(histories, list)
            and len(histories) <= MAX_HISTORIES
            and all(isinstance(h, str) and is_session(h) for h in histories)
        )
        if not digests or not isinstance(model, str) or not (scope is None or isinstance(scope, str)):
            raise _bad(
                f"histories are a list of 64 lower-case hex digits each, at most {MAX_HISTORIES}; "
                "model and scope are texts"
            )
        assert isinstance(histories, list)
        found = self._desk.journal.find(histories, model, scope, self._desk.replica)
        if found is None:
            raise _not_found()
        return self._told(found)

    async def _learn(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Pins that move in are written down; of those that live elsewhere only what is newer than what is known here.
        What is left here of sessions that moved away goes once they are quiet."""
        desk = self._desk
        told = _pins(asked)
        for pin, _ in told:
            if pin.replica == desk.replica and pin.model != desk.model.name:
                raise _bad(
                    f"{desk.replica} serves the model '{desk.model.name}'; a pin of another cannot move in"
                )
        before = {(p.session, p.model): desk.journal.entry(p.session, p.model) for p, _ in told}
        mine = [
            (pin, self._unless_open(pin, facts, before))
            for pin, facts in told
            if before[pin.session, pin.model] is not None or pin.replica == desk.replica
        ]
        await self._move_in(pin for pin, _ in mine)
        written = {(pin.session, pin.model): pin for pin in await self._write(desk.journal.learn, mine)}
        away = {
            pin.session
            for pin in written.values()
            if pin.replica != desk.replica and pin.model == desk.model.name
        }
        self._leaving = (self._leaving | away) - {
            p.session for p in written.values() if p.replica == desk.replica
        }
        for session in away:
            desk.departures.end(session)  # Turns that wait for it hear where it is.
        self.settle()
        winners = (written.get((pin.session, pin.model), pin) for pin, _ in told)
        return {"pins": [self._learned(pin, before) for pin in winners]}

    async def _move_in(self, pins: Iterable[Pin]) -> None:
        """What came of their contexts is there before any turn of them can be. A host that dies between the two has a
        file more, which gives way as others do."""
        desk = self._desk
        for pin in pins:
            known = desk.journal.get(pin.session, pin.model)
            comes = pin.replica == desk.replica and (known is None or known.generation < pin.generation)
            if self._moves_in is not None and comes and not desk.turns.is_open(pin.session):
                await self._moves_in(pin.session)

    def _unless_open(self, pin: Pin, facts: Facts, before: Before) -> Facts:
        """A turn that is open here knows better what was said last."""
        known = before[pin.session, pin.model] is not None and self._desk.turns.is_open(pin.session)
        return replace(facts, history=None) if known else facts

    def _learned(self, pin: Pin, before: Before) -> dict[str, Any]:
        """A pin that holds, and if it is not written down here, that; with what was said last here if it is elsewhere
        from now on: no turn says more here."""
        after = self._desk.journal.entry(pin.session, pin.model)
        said = [each.history for each in (after, before[pin.session, pin.model]) if each is not None]
        last = next(filter(None, said), None)
        told = pin.to_json() | ({} if after is not None else {"known": False})
        away = pin.replica != self._desk.replica and last is not None
        return {**told, "history": last} if away else told

    async def _drop_quiet(self) -> None:
        desk = self._desk
        try:
            for session in filter(self._is_quiet, tuple(self._leaving)):
                self._leaving.discard(session)
                pin = desk.journal.get(session, desk.model.name)
                if pin is None or pin.replica != desk.replica:
                    await self._kept.forget([session])
                    await desk.turns.drop(session)
        finally:
            self._dropping = None

    async def _end(self, name: str, model: str) -> dict[str, Any]:
        """End a session: its turn, its context, its pin. What is there no longer was ended by somebody else."""
        desk, session = self._desk, name
        if not is_session(name):
            try:
                session = self._entry(name, model).pin.session
            except Problem:
                return {"ended": False}
        key = (session, model)
        there = desk.journal.entry(*key) is not None
        there = there or (model == desk.model.name and desk.turns.is_open(session))
        desk.journal.leaving.add(key)
        desk.departures.end(session)
        # At once: what a turn writes down that comes meanwhile is written after it.
        removing = self._write(desk.journal.remove, [key])
        try:
            if model == desk.model.name:
                await self._kept.forget([session])
                await desk.turns.drop(session)
                if not self._ready:  # What lies on disk is not known yet.
                    self._leaving.add(session)
            await removing
        finally:
            desk.journal.leaving.discard(key)
        return {"ended": there}

    def _write(self, write: Callable[..., T], *args: Any) -> Awaitable[T]:
        """On the journal's thread, after all that it was given before. Raises Problem once it is awaited."""
        return self._written(asyncio.get_running_loop().run_in_executor(self._desk.writer, write, *args))

    @staticmethod
    async def _written(writing: Awaitable[T]) -> T:
        with journal_problems():
            return await writing


def _object(body: bytes, wanted: str) -> dict[str, Any]:
    told = decode(body, wanted)
    if not isinstance(told, dict):
        raise _bad(f"the body is an object with {wanted}")
    return told


def _pins(asked: dict[str, Any]) -> list[tuple[Pin, Facts]]:
    try:
        told = [(pin_from_json(each), facts_from_json(each)) for each in asked["pins"]]
        if any(pin.generation > MAX_GENERATION for pin, _ in told):
            raise ValueError(f"a generation is at most {MAX_GENERATION}")
        return told
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise _bad(f"no list of pins: {error}") from None


def facts_from_json(data: dict[str, Any]) -> Facts:
    """What comes with a pin, as Entry.to_json wrote it. Raises ValueError for anything else."""
    public, scope, family = data.get("public") or "", data.get("scope"), data.get("family")
    if not isinstance(public, str) or not isinstance(scope, str | None):
        raise ValueError("a pin's public id and scope are texts")
    if family is not None and not (isinstance(family, str) and is_session(family)):
        raise ValueError("a pin's family is 64 lower-case hex digits")
    history = data.get("history")
    if history is not None and not (isinstance(history, str) and is_session(history)):
        raise ValueError("a pin's history is 64 lower-case hex digits")
    machines = data.get("machines")
    if not isinstance(machines, str | None):
        raise ValueError("a pin's machines are a text")
    return Facts(public, scope, family, data.get("guessed") is True, history, machines)


def _not_found() -> Problem:
    return Problem(404, "this host has no pin of that session and model", "pin_not_found")


def _bad(message: str) -> Problem:
    return Problem(400, message, "invalid_value")
