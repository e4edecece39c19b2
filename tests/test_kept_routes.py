"""What sessions said, over a host's routes, and that it goes when their pins do; turns are scripted."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from serving import kept_routes
from serving.journal import Facts
from serving.kept import KeptRecords, conversation_digest
from tests.test_kept import record
from tests.test_pin_routes import ANN, BEN, CEM, DAY, MODEL, NOW, Routes, pin

TRIP = conversation_digest("conv_trip")


def told(name: str, previous: str | None = None, conversation: str | None = None, size: int = 0) -> Any:
    return json.loads(record(name, previous, conversation, size))


@pytest.fixture
async def routes(tmp_path: Path) -> AsyncIterator[Routes]:
    routes = Routes(tmp_path)
    for name in (ANN, BEN):
        routes.journal.insert(pin(name), Facts("hp_" + name[-24:]))
    routes.pins.begin()
    yield routes
    routes.close()


async def kept(routes: Routes, session: str = ANN) -> list[str]:
    """Of a session whose home is here, or was: ids, past the routes."""
    found = await routes.kept._run(routes.kept._kept.all, session)
    return [json.loads(each)["id"] for each in found]


async def test_records_are_kept_found_and_removed(routes: Routes) -> None:
    first, second = told("resp_1"), told("resp_2", "resp_1")
    for each in (first, second):
        assert await routes.ask("PUT", f"/kept/{ANN}/{each['id']}", each) == {}
    assert await routes.ask("GET", f"/kept/{ANN}/resp_1") == first
    public = "hp_" + ANN[-24:]
    chain = {"records": [first, second], "whole": True}
    assert await routes.ask("GET", f"/kept/{public}/resp_2?chain") == chain
    assert await routes.ask("GET", f"/kept/{ANN}") == chain
    assert await routes.ask("GET", f"/kept/{BEN}/resp_1") == (404, "record_not_found")
    assert await routes.ask("GET", f"/kept/{ANN}/none?chain") == (404, "record_not_found")
    assert await routes.ask("DELETE", f"/kept/{ANN}/resp_1") == {"deleted": True}
    assert await routes.ask("DELETE", f"/kept/{ANN}/resp_1") == {"deleted": False}
    assert (await routes.ask("GET", f"/kept/{ANN}/resp_2?chain"))["records"] == [second]


async def test_a_conversation_is_asked_for_by_its_digest(routes: Routes) -> None:
    await routes.ask("PUT", f"/kept/{ANN}/r1", told("r1", conversation="conv_trip"))
    await routes.ask("PUT", f"/kept/{ANN}/r2", told("r2"))
    found = await routes.ask("GET", f"/kept/{ANN}?conversation={TRIP}")
    assert ([each["id"] for each in found["records"]], found["whole"]) == (["r1"], True)
    assert await routes.ask("DELETE", f"/kept/{ANN}?conversation={TRIP}") == {"deleted": 1}
    assert await kept(routes) == ["r2"]


@pytest.mark.parametrize(
    ("method", "path", "body", "refused"),
    [
        ("PUT", f"/kept/{ANN}/r1", {"id": "r2"}, (400, "invalid_value")),
        ("PUT", f"/kept/{ANN}/r1", ["no record"], (400, "invalid_value")),
        ("PUT", f"/kept/{CEM}/r1", {"id": "r1"}, (404, "pin_not_found")),
        ("PUT", "/kept/ann", {"records": []}, (400, "invalid_value")),
        ("PUT", f"/kept/{ANN}", {"records": [{"no": "id"}]}, (400, "invalid_value")),
        ("PUT", f"/kept/{ANN}", {"records": 1}, (400, "invalid_value")),
        ("GET", "/kept/hp_nobody/r1", None, (404, "pin_not_found")),
        ("GET", f"/kept/{ANN}?conversation=trip", None, (400, "invalid_value")),
        ("DELETE", f"/kept/{ANN}", None, (405, "method_not_allowed")),
        ("POST", f"/kept/{ANN}/r1", None, (405, "method_not_allowed")),
    ],
)
async def test_what_makes_no_sense_is_refused(
    routes: Routes, method: str, path: str, body: Any, refused: tuple[int, str]
) -> None:
    assert await routes.ask(method, path, body) == refused


async def test_a_record_that_is_too_large_is_refused(routes: Routes) -> None:
    routes.kept._kept.session_bytes = 1000
    refused = await routes.ask("PUT", f"/kept/{ANN}/r1", told("r1", size=1000))
    assert refused == (413, "record_too_large")
    assert await kept(routes) == []


async def test_a_damaged_file_costs_what_was_kept_and_no_request(routes: Routes, tmp_path: Path) -> None:
    (tmp_path / "kept.sqlite").write_bytes(b"this is no database" * 300)
    assert await routes.ask("PUT", f"/kept/{ANN}/r1", told("r1")) == {}
    assert await kept(routes) == ["r1"]
    assert (tmp_path / "kept.sqlite.broken").exists()


# with its pin


async def put_both(routes: Routes) -> None:
    for name in (ANN, BEN):
        await routes.ask("PUT", f"/kept/{name}/r1", told("r1"))


async def test_what_an_ended_session_said_is_gone(routes: Routes) -> None:
    await put_both(routes)
    await routes.ask("DELETE", f"/pins/{ANN}")
    assert await kept(routes) == []
    assert await kept(routes, BEN) == ["r1"]
    assert await routes.ask("PUT", f"/kept/{ANN}/r2", told("r2")) == (404, "pin_not_found")


async def test_nothing_is_kept_of_a_session_that_is_being_ended(routes: Routes) -> None:
    ending = asyncio.create_task(routes.ask("DELETE", f"/pins/{ANN}"))
    await asyncio.sleep(0)
    assert await routes.ask("PUT", f"/kept/{ANN}/r1", told("r1")) == (404, "pin_not_found")
    await ending
    assert await kept(routes) == []


async def test_what_an_expired_session_said_is_gone(routes: Routes) -> None:
    await put_both(routes)
    routes.journal.touch(ANN, MODEL, NOW)
    routes.journal.insert(pin(CEM, created_s=NOW - 31 * DAY))
    await routes.ask("PUT", f"/kept/{CEM}/r1", told("r1"))
    assert await routes.pins.expire() == 1
    assert await kept(routes, CEM) == []
    assert await kept(routes) == ["r1"]


async def test_a_guessed_session_of_which_something_is_kept_lasts_as_one_with_a_name(routes: Routes) -> None:
    routes.journal.remove([(BEN, MODEL)])
    for name, days_ago in ((CEM, 29), (BEN, 31)):
        routes.journal.insert(pin(name, created_s=NOW - days_ago * DAY), Facts(guessed=True))
        await routes.ask("PUT", f"/kept/{name}/r1", told("r1"))
    assert await routes.pins.expire() == 1
    assert await kept(routes, CEM) == ["r1"]
    assert await kept(routes, BEN) == []


async def test_of_a_session_that_moved_away_nothing_that_it_said_is_left(routes: Routes) -> None:
    await put_both(routes)
    away = pin(replica="attic/0", generation=2)
    await routes.ask("POST", "/pins", {"pins": [away.to_json()]})
    assert await routes.ask("GET", f"/kept/{ANN}/r1") == (404, "pin_not_found")
    await routes.settled()
    assert await kept(routes) == []
    assert await kept(routes, BEN) == ["r1"]


async def test_what_was_left_of_sessions_without_a_home_here_goes_at_the_start(
    routes: Routes, tmp_path: Path
) -> None:
    await put_both(routes)
    routes.journal.insert(pin(replica="attic/0", generation=2))  # and then its host was killed
    again = kept_routes.KeptRoutes(routes.kept._desk, KeptRecords(tmp_path / "kept.sqlite"))
    again.begin()
    again.close()
    assert await kept(routes) == []
    assert await kept(routes, BEN) == ["r1"]


# when it moves


async def test_records_that_came_are_its_own_once_the_session_comes(routes: Routes) -> None:
    come = {"records": [told("r1"), told("r2", "r1")]}
    assert await routes.ask("PUT", f"/kept/{CEM}", come) == {}
    assert await kept(routes, CEM) == []
    await routes.ask("POST", "/pins", {"pins": [pin(CEM, generation=2).to_json()]})
    assert (await routes.ask("GET", f"/kept/{CEM}/r2?chain"))["records"] == come["records"]


async def test_records_whose_session_does_not_come_are_dropped(
    routes: Routes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_routes, "KEPT_S", 0.0)
    await routes.ask("PUT", f"/kept/{CEM}", {"records": [told("r1")]})
    await routes.settled()
    await routes.ask("POST", "/pins", {"pins": [pin(CEM, generation=2).to_json()]})
    assert await kept(routes, CEM) == []


async def test_whoever_moves_a_session_is_heard_of_when_it_asks_for_what_was_said(routes: Routes) -> None:
    departures = routes.kept._desk.departures
    departures.begin(ANN, 0.3)
    await routes.ask("GET", f"/kept/{ANN}")
    await asyncio.sleep(0.4)
    assert ANN in departures
    departures.end(ANN)
