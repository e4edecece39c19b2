"""Ending and moving sessions, cordoning machines, waking them and giving them up: what people ask for through the API.

A key acts on its own sessions only, an admin's on all. Each change is written where the session's home is, then told
to the controller, then to whoever else may still know of it.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from router.choose import ranked
from router.decision import Ask, machine_of
from router.errors import (
    ApiError,
    Rejected,
    bad_request,
    cannot_say,
    no_controller,
    session_busy,
    session_not_found,
)
from router.finding import CannotSay, Finder, owns
from router.fleet import Fleet
from router.identity import digest, public_id
from router.keys import Key, refuse_machine, refuse_model, refuse_zone
from router.peers import KnownPin, NotYet, Peers, Unreachable
from router.relay import Relay
from router.siblings import OpenTurn, Siblings, open_turns
from serving.drain_plan import LONGEST_DRAIN_S
from serving.moving import FACTS, Busy, Context, Ended, Mover, NotMoved
from serving.pins import Pin, is_public_id
from serving.yielding import wanted_yield


@dataclass(frozen=True, slots=True)
class Found:
    """A session's pin for one model, as it holds; and the replicas that may still know of it."""

    known: KnownPin
    at: Mapping[str, KnownPin]

    @property
    def pin(self) -> Pin:
        return self.known.pin


DRAIN_WITHIN_S = 600.0


class Moved(NamedTuple):
    pin: Pin
    context: Context | None
    """None: its home was there already."""

    def to_json(self) -> dict[str, Any]:
        told: dict[str, Any] = {"context": "kept"} if self.context is None else self.context.to_json()
        return {"model": self.pin.model, "replica": self.pin.replica, **told}


class Sessions:
    """All methods raise Rejected where it cannot be done; the error names the remedy."""

    def __init__(
        self,
        fleet: Fleet,
        peers: Peers,
        finder: Finder,
        relay: Relay,
        mover: Mover,
        wall: Callable[[], float],
        siblings: Siblings | None = None,
    ) -> None:
        """`siblings`: the router's other workers; None: there are none."""
        self.relay = relay
        self._siblings = siblings or Siblings()
        self._mover = mover
        self._fleet = fleet
        self._peers = peers
        self._finder = finder
        self._wall = wall

    def public(self, told: str, key: Key) -> str:
        """A public id, or the name of a session of this key, as a public id."""
        if is_public_id(told):
            return told
        return public_id(self.relay.addressing.digest_key, digest(key.name, "", told))

    async def open_turns(self) -> list[OpenTurn]:
        """Those of sessions, at all workers that answer."""
        return [*await self._siblings.turns(), *open_turns(self.relay.turns)]

    async def cancel(self, response: str, key: Key) -> Mapping[str, Any] | None:
        """End the turn of this key that makes that response, at whichever worker: how it stands then. None: none is
        being made."""
        here = self.relay.cancel(response, key.name)
        return await self._siblings.cancel(response, key.name) if here is None else here

    async def end(self, told: str, key: Key) -> dict[str, Any]:
        """End its turns and forget it, for every model and wherever it is known."""
        public = self.public(told, key)
        keys = await self._open(public, key)
        found = await self._all(public, key, known=bool(keys))
        keys |= {(each.pin.session, each.pin.model) for each in found}
        away: set[str] = set()
        for session, model in sorted(keys):
            of_it = [each for each in found if (each.pin.session, each.pin.model) == (session, model)]
            away |= await self._end(
                session, model, {name for each in of_it for name in (each.pin.replica, *each.at)}
            )
        if away:
            raise Rejected(_not_ended(sorted(away)))
        return {"id": public, "ended": True, "models": sorted(model for _, model in keys)}

    async def move(self, told: str, machine: str, key: Key) -> dict[str, Any]:
        """Give it a home on another machine of its zone, with its context where that can go along. Its pin is written
        there when this returns. By model what became of it; `context` is `carried` only if it is for all."""
        public = self.public(told, key)
        found = await self._all(public, key)
        if not self._fleet.controller_reachable:
            raise Rejected(no_controller())
        turns = {(turn.session, turn.model) for turn in await self.open_turns()}
        for each in found:
            self._may_move(each, machine, key, (each.pin.session, each.pin.model) in turns)
        moved = [(await self._move(each, machine, key)).to_json() for each in found]
        worst = next((each for each in moved if "why" in each), moved[0])
        outcome: dict[str, Any] = {name: worst[name] for name in ("context", "why") if name in worst}
        replicas = [each["replica"] for each in moved]
        return {"id": public, "machine": machine, "replicas": replicas, **outcome, "moved": moved}

    async def forget(self, machine: str) -> dict[str, Any]:
        """The machine is gone for good: its sessions get new homes."""
        await self._manage(machine, "forget")
        return {"machine": machine, "forgotten": True}

    async def cordon(self, machine: str, is_cordoned: bool) -> dict[str, Any]:
        """Let the machine take no new pins, or take them again; its sessions are served all the same."""
        await self._manage(machine, "cordon" if is_cordoned else "uncordon")
        return {"machine": machine, "cordoned": is_cordoned}

    async def yield_machine(self, machine: str, body: Any) -> dict[str, Any]:
        """The machine's person wants it for themselves, or no longer does. On return its hosts are being ended, or
        started; `yielded` says how it stands."""
        try:
            wanted_yield(body)
        except ValueError as error:
            raise Rejected(bad_request(str(error), "invalid_body")) from None
        await self._manage(machine, "yield", body)
        told = next((each.yielded for each in self._fleet.listed.machines if each.name == machine), None)
        yielded = None if told is None else {"by": told.by, "until": told.until}
        return {"machine": machine, "yielded": yielded}

    async def wake(self, machine: str) -> dict[str, Any]:
        """Have the machine woken: the packets are out, or the command has ended. `awake`: it was already."""
        try:
            status, told = await self._peers.wake(machine)
        except Unreachable as error:
            raise Rejected(no_controller()) from error
        if status == 200:
            return {key: told.get(key) for key in ("machine", "awake", "how", "by")}
        message = str(told.get("error", {}).get("message") or f"The controller answered {status}.")
        if status == 404:
            raise Rejected(ApiError(404, "machine_not_found", message, "machine"))
        code = "machine_cannot_wake" if status == 409 else "machine_not_woken"
        raise Rejected(ApiError(status, code, message, final=status == 409))

    async def drain(self, machine: str, within_s: float) -> dict[str, Any]:
        """Have the machine be empty in so many seconds: the controller moves its sessions within its zone."""
        await self._manage(machine, "drain", {"within_s": within_s})
        return {"machine": machine, "draining": True, "within_s": within_s}

    async def _manage(self, machine: str, act: str, told: Any = None) -> None:
        """Have the controller do this with a machine; on return the picture shows it."""
        try:
            status, message = await self._peers.manage(machine, act, told)
        except Unreachable as error:
            raise Rejected(no_controller()) from error
        if status == 404:
            raise Rejected(self._no_machine(machine))
        if status == 409:
            raise Rejected(ApiError(409, "machine_is_there", message or "That machine is there.", final=True))
        if status == 503 and message:
            raise Rejected(ApiError(503, "machine_unavailable", message, retry_after_s=5))
        if status != 200:
            raise Rejected(ApiError(502, "controller_error", message or f"The controller answered {status}."))
        await self._fleet.refresh_controller()

    async def _all(self, public: str, key: Key, known: bool = False) -> list[Found]:
        """By model, sorted. Raises Rejected where there is none of this key, unless one is `known`."""
        found, silent = [], set[str]()
        for model in sorted(self._fleet.snapshot().models):
            try:
                pin = await self._finder.by_public(public, model)
            except CannotSay as error:
                silent |= set(error.replicas)
                continue
            except NotYet as error:
                raise Rejected(cannot_say(())) from error
            at, _ = await self._finder.at_hosts(public, model)
            pin = pin or next(iter(at.values()), None)
            if pin is not None and (key.role == "admin" or owns(key, pin)):
                found.append(Found(at.get(pin.pin.replica, pin), at))
        if not found and not known:
            raise Rejected(cannot_say(sorted(silent)) if silent else session_not_found())
        return found

    async def _open(self, public: str, key: Key) -> set[tuple[str, str]]:
        """Sessions of that id that have an open turn, perhaps their first."""
        digest_key = self.relay.addressing.digest_key
        return {
            (turn.session, turn.model)
            for turn in await self.open_turns()
            if _is_of(turn.key, key) and public_id(digest_key, turn.session) == public
        }

    async def _end(self, session: str, model: str, at: set[str]) -> set[str]:
        """End it at every host, then in the index. Which of those that have it, or may, are away: they keep it, and the
        index goes on knowing them."""
        began = self._fleet.now()
        of_model = {each.name for each in self._fleet.snapshot().of_model(model)}
        here = of_model & set(self._fleet.reachable())
        bases = {name: base for name in sorted(here) if (base := self._fleet.base(name))}
        done = await asyncio.gather(*(self._end_at(base, session, model) for base in bases.values()))
        self.relay.ended(session, model)
        await self._siblings.ended(session, model)
        away = (at or of_model) - {name for name, ended in zip(bases, done, strict=True) if ended}
        if not away:
            with suppress(Unreachable):
                await self._peers.ended(session, model, self._fleet.now() - began)
        return away

    async def _end_at(self, base: str, session: str, model: str) -> bool:
        try:
            await self._peers.end(base, session, model)
        except Unreachable:
            return False
        return True

    def _may_move(self, found: Found, machine: str, key: Key, is_open: bool) -> None:
        pin, snapshot = found.pin, self._fleet.snapshot()
        if machine not in snapshot.machines:
            raise Rejected(self._no_machine(machine))
        before, after = snapshot.zone_of(machine_of(pin)), snapshot.zone_of(machine)
        barred = refuse_model(key, pin.model) or refuse_machine(key, machine) or refuse_zone(key, after or "")
        if barred is not None and key.role != "admin":
            raise Rejected(barred)
        if before != after:
            where = "to a zone that is not known at present" if before is None else f"to the zone {before}"
            message = (
                f"This session belongs {where}, and {machine} is in {after}: what was said in it "
                "stays in its zone. Begin another one there."
            )
            raise Rejected(ApiError(409, "zone_conflict", message, final=True))
        is_open = is_open or found.known.state in ("running", "waiting")
        if is_open and machine_of(pin) != machine:
            raise Rejected(session_busy(pin.replica))

    async def _move(self, found: Found, machine: str, key: Key) -> Moved:
        """Have it moved, then tell whoever else knows of it. Raises Rejected where it stays."""
        pin = found.pin
        if machine_of(pin) == machine:
            return Moved(pin, None)
        ask = Ask(pin.model, pin.session, pin.session, machine, key=replace(key, zones=None, machines=None))
        order = ranked(ask, self._fleet.snapshot(), self._fleet.now())
        base = self._fleet.base(order[0].replica) if order else None
        if base is None:
            message = f"No replica of {pin.model} on {machine} can take it now; see `homeport status`."
            raise Rejected(ApiError(503, "model_unavailable", message, retry_after_s=5))
        made = Pin(pin.session, pin.model, order[0].replica, pin.generation + 1, self._wall())
        here = {*found.at, pin.replica} & set(self._fleet.reachable())
        others = {name: self._fleet.base(name) for name in sorted(here)}
        former = others.pop(pin.replica, None)
        try:
            context = await self._mover.move(former, base, made, found.known.facts)
        except Busy as busy:
            message = f"This session cannot be moved at this moment: {busy}. See `homeport sessions`."
            raise Rejected(ApiError(409, "session_busy", message, retry_after_s=2)) from busy
        except Ended as error:
            raise Rejected(session_not_found()) from error
        except NotMoved as error:
            message = f"The session stays at {pin.replica}: {error}."
            raise Rejected(ApiError(503, "machine_unavailable", message, retry_after_s=5)) from error
        self.relay.homes.told(made)
        told = {**{name: found.known.facts.get(name) for name in FACTS}, **made.to_json(), "history": None}
        for other in (None, *filter(None, others.values())):
            with suppress(Unreachable):
                await self._peers.learn(other, [told])
        return Moved(made, context)

    def _no_machine(self, machine: str) -> ApiError:
        known = ", ".join(sorted(self._fleet.snapshot().machines)) or "none"
        return ApiError(
            404, "machine_not_found", f"There is no machine {machine!r}; known: {known}.", "machine"
        )


def _is_of(owner: str, key: Key) -> bool:
    return key.role == "admin" or owner == key.name


def _not_ended(replicas: list[str]) -> ApiError:
    where = ", ".join(replicas)
    message = (
        f"Its home {where} cannot be reached, so that it is there again when that is back. "
        "End it then, or give the machine up with `homeport forget`."
    )
    return ApiError(503, "machine_unavailable", message, retry_after_s=10)


def wanted_time(body: Any) -> float:
    """What `{"within_s": …}` says, in seconds; ten minutes where it says nothing. Raises Rejected."""
    within_s = body.get("within_s", DRAIN_WITHIN_S) if isinstance(body, dict) else None
    if (
        isinstance(within_s, bool)
        or not isinstance(within_s, int | float)
        or not 0 <= within_s <= LONGEST_DRAIN_S
    ):
        message = f'Say by when, in seconds: {{"within_s": 600}}; at most {LONGEST_DRAIN_S:g}.'
        raise Rejected(bad_request(message, "invalid_value", "within_s"))
    return float(within_s)


def wanted_machine(body: Any) -> str:
    """What `{"machine": …}` names. Raises Rejected."""
    machine = body.get("machine") if isinstance(body, dict) else None
    if not isinstance(machine, str) or not machine:
        raise Rejected(
            bad_request('Say where to: {"machine": NAME}.', "missing_required_parameter", "machine")
        )
    return machine
