"""A host's pins over its routes: what is told, learned, ended and let go; turns are scripted."""

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving import pin_routes
from serving.asgi import Message, Problem
from serving.desk import Desk
from serving.journal import Facts, Journal, JournalFull
from serving.kept import KeptRecords
from serving.kept_routes import KeptRoutes
from serving.pin_routes import PinRoutes
from serving.pins import Pin
from tests.host_process import model_spec, session

ANN, BEN, CEM = session("ann"), session("ben"), session("cem")
MODEL = model_spec().name
SCOPE = session("key")
DAY = 86400.0
NOW = 1000 * DAY


class TellsTurns:
    """Says of each session what it was told, and remembers which were dropped."""

    def __init__(self) -> None:
        self.does: dict[str, str] = {}
        self.dropped: list[str] = []

    def is_open(self, name: str) -> bool:
        return self.does.get(name) in ("running", "waiting")

    def standing_of(self, name: str) -> str | None:
        return self.does.get(name)

    def tokens_of(self, name: str) -> int:
        return 42

    async def drop(self, name: str) -> None:
        await asyncio.sleep(0)
        self.dropped.append(name)
        self.does.pop(name, None)


class Routes:
    """den/0's."""

    def __init__(self, folder: Path) -> None:
        self.journal = Journal(folder / "journal.sqlite")
        self.writer = ThreadPoolExecutor(1)
        self.turns = TellsTurns()
        engine: Any = None
        turns: Any = self.turns
        desk = Desk("den", "den/0", model_spec(), engine, turns, self.journal, self.writer, awake=self._awake)
        self.kept = KeptRoutes(desk, KeptRecords(folder / "kept.sqlite"))
        self.pins = PinRoutes(
            desk, self.kept, keep_s=lambda: 30 * DAY, earliest=lambda: NOW, moves_in=self.kept.adopt
        )

    async def _awake(self) -> None:
        pass

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON, or the status and code of the refusal."""
        sent: list[Message] = []
        path, _, query = path.partition("?")

        async def receive() -> Message:
            return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        routes = self.kept if path.startswith("/kept/") else self.pins
        try:
            await routes.answer(method, path, query.encode(), receive, send)
        except Problem as problem:
            return problem.status, problem.code
        return json.loads(b"".join(message.get("body", b"") for message in sent))

    def close(self) -> None:
        self.pins.stop()
        self.kept.close()
        self.writer.shutdown()
        self.journal.close()

    async def settled(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0.005)


@pytest.fixture
async def routes(tmp_path: Path) -> AsyncIterator[Routes]:
    routes = Routes(tmp_path)
    routes.pins.begin()
    await routes.settled()
    yield routes
    routes.close()


def pin(name: str = ANN, replica: str = "den/0", generation: int = 1, created_s: float = NOW) -> Pin:
    return Pin(name, MODEL, replica, generation, created_s)


# what is told


async def test_a_pin_is_told_with_its_session_and_what_that_does(routes: Routes) -> None:
    facts = Facts("hp_ann", SCOPE, BEN, guessed=True, history=session("said"), machines="attic,den")
    routes.journal.insert(pin(), facts)
    routes.turns.does[ANN] = "waiting"
    told = await routes.ask("GET", f"/pins/{ANN}?model={MODEL}")
    assert told == {
        **pin().to_json(),
        "public": "hp_ann",
        "scope": SCOPE,
        "family": BEN,
        "guessed": True,
        "machines": "attic,den",
        "history": session("said"),
        "used_s": NOW,
        "turns": 0,
        "tokens": 42,
        "state": "waiting",
    }
    assert await routes.ask("GET", "/pins/hp_ann") == told
    assert await routes.ask("GET", "/pins") == {"pins": [told]}
    found = {"histories": [session("else"), session("said")], "model": MODEL, "scope": SCOPE}
    assert await routes.ask("POST", "/pins/find", found) == told


async def test_a_pin_of_which_nothing_is_here_is_parked_and_empty(routes: Routes) -> None:
    routes.journal.insert(pin())
    told = await routes.ask("GET", f"/pins/{ANN}")
    assert (told["state"], told["tokens"]) == ("parked", 0)


@pytest.mark.parametrize("name", [ANN, "hp_ann", "nonsense", ""])
async def test_what_is_not_there_is_404(routes: Routes, name: str) -> None:
    assert await routes.ask("GET", f"/pins/{name}") == (404, "pin_not_found")
    asked = {"histories": [ANN], "model": MODEL, "scope": None}
    assert await routes.ask("POST", "/pins/find", asked) == (404, "pin_not_found")


@pytest.mark.parametrize(
    ("method", "path"),
    [("DELETE", "/pins"), ("PUT", "/pins"), ("GET", "/pins/find"), ("POST", f"/pins/{ANN}")],
)
async def test_other_methods_are_refused(routes: Routes, method: str, path: str) -> None:
    assert await routes.ask(method, path, {}) == (405, "method_not_allowed")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/pins/find", {}),
        ("/pins/find", []),
        ("/pins/find", {"histories": ["short"], "model": MODEL}),
        ("/pins/find", {"histories": [ANN], "model": 7}),
        ("/pins/find", {"histories": [ANN] * 18, "model": MODEL}),
        ("/pins", {}),
        ("/pins", {"pins": 7}),
        ("/pins", {"pins": ["x"]}),
        ("/pins", {"pins": [{**pin().to_json(), "generation": 2**63}]}),
        ("/pins", {"pins": [{**pin().to_json(), "created_s": 10**400}]}),
        ("/pins", {"pins": [{**pin().to_json(), "family": "short"}]}),
        ("/pins", {"pins": [{**pin().to_json(), "model": "other"}]}),
    ],
)
async def test_bodies_that_make_no_sense_are_refused(routes: Routes, path: str, body: Any) -> None:
    assert await routes.ask("POST", path, body) == (400, "invalid_value")
    assert routes.journal.count() == 0


# what is learned


async def test_a_pin_moves_in_with_all_that_is_known_of_it(routes: Routes) -> None:
    moved = pin(generation=2)
    told = {**moved.to_json(), "public": "hp_ann", "scope": SCOPE, "family": BEN, "guessed": False}
    assert await routes.ask("POST", "/pins", {"pins": [told]}) == {"pins": [moved.to_json()]}
    entry = routes.journal.entry(ANN, MODEL)
    assert entry is not None
    assert (entry.pin, entry.facts) == (moved, Facts("hp_ann", SCOPE, BEN))


async def test_an_older_pin_is_answered_with_the_one_that_holds(routes: Routes) -> None:
    routes.journal.insert(pin(generation=3))
    answer = await routes.ask("POST", "/pins", {"pins": [pin(replica="attic/0", generation=2).to_json()]})
    assert answer == {"pins": [pin(generation=3).to_json()]}
    await routes.settled()
    assert routes.turns.dropped == []


async def test_pins_of_others_that_were_never_here_are_not_kept(routes: Routes) -> None:
    stranger = pin(BEN, "attic/0")
    assert await routes.ask("POST", "/pins", {"pins": [stranger.to_json()]}) == {
        "pins": [{**stranger.to_json(), "known": False}]
    }
    assert routes.journal.count() == 0


async def test_of_a_session_that_moved_away_nothing_is_left_but_where_it_went(routes: Routes) -> None:
    routes.journal.insert(pin())
    routes.turns.does[ANN] = "resident"
    away = pin(replica="attic/0", generation=2)
    assert await routes.ask("POST", "/pins", {"pins": [away.to_json()]}) == {"pins": [away.to_json()]}
    await routes.settled()
    assert routes.turns.dropped == [ANN]
    assert routes.journal.get(ANN, MODEL) == away


async def test_the_home_that_a_guessed_session_leaves_tells_what_was_said_last(routes: Routes) -> None:
    first, last = session("first"), session("last")
    routes.journal.insert(pin(), Facts(guessed=True, history=first))
    routes.journal.note(ANN, MODEL, last)  # a turn that has begun
    away = pin(replica="attic/0", generation=2)
    told = {**away.to_json(), "history": None}
    assert await routes.ask("POST", "/pins", {"pins": [told]}) == {"pins": [{**told, "history": last}]}
    routes.journal.noted(ANN, MODEL, last)
    assert routes.journal.all()[0].history is None


async def test_what_is_handed_over_does_not_count_once_a_turn_is_open(routes: Routes) -> None:
    first, other = session("first"), session("other")
    routes.journal.insert(pin(), Facts(guessed=True, history=first))
    routes.turns.does[ANN] = "running"
    told = {**pin().to_json(), "guessed": True, "history": other}
    await routes.ask("POST", "/pins", {"pins": [told]})
    assert routes.journal.all()[0].history == first
    routes.turns.does.clear()
    await routes.ask("POST", "/pins", {"pins": [told]})
    assert routes.journal.all()[0].history == other


async def test_a_turn_that_runs_while_its_session_moves_away_is_finished(routes: Routes) -> None:
    routes.journal.insert(pin())
    routes.turns.does[ANN] = "running"
    await routes.ask("POST", "/pins", {"pins": [pin(replica="attic/0", generation=2).to_json()]})
    await routes.settled()
    assert routes.turns.dropped == []
    routes.turns.does[ANN] = "resident"
    routes.pins.settle()
    await routes.settled()
    assert routes.turns.dropped == [ANN]


async def test_a_session_that_came_back_meanwhile_keeps_its_context(routes: Routes) -> None:
    routes.journal.insert(pin())
    routes.turns.does[ANN] = "running"
    await routes.ask("POST", "/pins", {"pins": [pin(replica="attic/0", generation=2).to_json()]})
    await routes.ask("POST", "/pins", {"pins": [pin(generation=3).to_json()]})
    routes.turns.does.clear()
    routes.pins.settle()
    await routes.settled()
    assert routes.turns.dropped == []


# what is ended


@pytest.mark.parametrize("name", [ANN, "hp_ann"])
async def test_an_ended_session_leaves_nothing(routes: Routes, name: str) -> None:
    routes.journal.insert(pin(), Facts("hp_ann"))
    assert await routes.ask("DELETE", f"/pins/{name}?model={MODEL}") == {"ended": True}
    assert routes.turns.dropped == [ANN]
    assert routes.journal.get(ANN, MODEL) is None
    assert (await routes.ask("DELETE", f"/pins/{name}"))["ended"] is False


async def test_what_is_written_while_a_session_is_ended_is_kept(routes: Routes) -> None:
    routes.journal.insert(pin())
    ending = asyncio.create_task(routes.ask("DELETE", f"/pins/{ANN}?model={MODEL}"))
    await asyncio.sleep(0)  # It drops the context now.
    again = pin(created_s=NOW + 1)
    writing = routes.writer.submit(routes.journal.insert, again)
    assert await ending == {"ended": True}
    assert writing.result() is again
    assert routes.journal.get(ANN, MODEL) == again


async def test_a_session_that_waits_for_its_first_pin_can_be_ended(routes: Routes) -> None:
    routes.turns.does[ANN] = "waiting"
    assert await routes.ask("DELETE", f"/pins/{ANN}") == {"ended": True}
    assert routes.turns.dropped == [ANN]


async def test_ending_a_session_of_another_model_drops_no_context(routes: Routes) -> None:
    routes.journal.insert(replace(pin(), model="other"))
    assert await routes.ask("DELETE", f"/pins/{ANN}?model=other") == {"ended": True}
    assert routes.turns.dropped == []


async def test_what_was_ended_while_the_host_loaded_is_dropped_once_it_has(tmp_path: Path) -> None:
    routes = Routes(tmp_path)
    routes.journal.insert(pin())
    await routes.ask("DELETE", f"/pins/{ANN}")
    routes.turns.dropped.clear()
    routes.pins.begin()
    await routes.settled()
    assert routes.turns.dropped == [ANN]
    routes.close()


# what is let go


def used(routes: Routes, name: str, days_ago: float, *, guessed: bool = False, turns: int = 1) -> None:
    at = NOW - days_ago * DAY
    routes.journal.insert(pin(name, created_s=at), Facts(guessed=guessed))
    for _ in range(turns):
        routes.journal.touch(name, MODEL, at)


def left(routes: Routes) -> set[str]:
    return {entry.pin.session for entry in routes.journal.all()}


async def test_pins_that_nobody_used_for_too_long_expire_with_their_contexts(routes: Routes) -> None:
    used(routes, ANN, 31)
    used(routes, BEN, 29)
    assert await routes.pins.expire() == 1
    assert left(routes) == {BEN}
    assert routes.turns.dropped == [ANN]


async def test_guessed_sessions_are_kept_for_a_day_and_those_of_one_turn_for_an_hour(routes: Routes) -> None:
    used(routes, ANN, 1.1, guessed=True, turns=2)
    used(routes, BEN, 0.9, guessed=True, turns=2)
    used(routes, CEM, 0.1, guessed=True)
    await routes.pins.expire()
    assert left(routes) == {BEN}


@pytest.mark.parametrize("does", ["running", "waiting", "resident"])
async def test_whoever_is_resident_or_has_a_turn_never_expires(routes: Routes, does: str) -> None:
    used(routes, ANN, 31)
    routes.turns.does[ANN] = does
    assert await routes.pins.expire() == 0
    assert left(routes) == {ANN}


async def test_a_disk_without_room_does_not_end_the_expiring(
    routes: Routes, monkeypatch: pytest.MonkeyPatch
) -> None:
    routes.pins.stop()
    used(routes, ANN, 31)
    remove = routes.journal.remove

    def once(*args: Any) -> Any:
        monkeypatch.setattr(routes.journal, "remove", remove)
        raise JournalFull("no room")

    monkeypatch.setattr(routes.journal, "remove", once)
    monkeypatch.setattr(pin_routes, "EXPIRE_EVERY_S", 0.01)
    expiring = asyncio.create_task(routes.pins._expire_always())
    await routes.settled()
    expiring.cancel()
    assert routes.journal.count() == 0


async def test_pins_expire_when_the_host_has_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pin_routes, "EXPIRE_EVERY_S", 0.02)
    routes = Routes(tmp_path)
    used(routes, ANN, 31)
    routes.pins.begin()
    await routes.settled()
    assert left(routes) == set()
    used(routes, BEN, 31)
    await routes.settled()
    assert left(routes) == set()
    routes.close()
