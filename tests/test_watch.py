"""`/api/fleet?watch` over real sockets, before stand-ins for hosts and the controller."""

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from router import watch
from router.admin import fleet_json
from router.keys import ALL
from router.watching import NOTHING, Picture
from serving.router_limits import RouterLimits
from tests.router_workers import two_workers
from tests.standins import MODEL, AnswersHost, EndlessHost, Router, routed
from tests.watched import lay

KEYS = ("anna", "bert")


@dataclass
class Board:
    """Reads a stream of events, and lays changes over what it has."""

    response: aiohttp.ClientResponse
    picture: Picture = NOTHING

    @property
    def fleet(self) -> Mapping[str, Any]:
        return self.picture.rest

    @property
    def machines(self) -> Mapping[str, Any]:
        return self.picture.machines

    @property
    def sessions(self) -> Mapping[str, Any]:
        return self.picture.sessions

    @property
    def states(self) -> dict[str, str]:
        return {name: each["state"] for name, each in self.sessions.items()}

    async def event(self) -> tuple[str, dict[str, Any]]:
        """The next one; a comment has no data. Raises EOFError at the end."""
        lines = []
        while (line := (await self.response.content.readline()).decode()) != "\n":
            if not line:
                raise EOFError
            lines.append(line.rstrip("\n"))
        told = {name: rest for name, _, rest in (line.partition(": ") for line in lines)}
        return told.get("event", ""), json.loads(told.get("data", "{}"))

    async def take(self) -> str:
        """The next event, taken in; its name."""
        name, told = await self.event()
        self.picture = lay(self.picture, name, told)
        return name

    async def until(self, holds: Any) -> None:
        async with asyncio.timeout(15):
            while not holds():
                await self.take()


@asynccontextmanager
async def watching(url: str, client: aiohttp.ClientSession, key: str | None = None) -> AsyncIterator[Board]:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    async with client.get(f"{url}/api/fleet?watch", headers=headers) as response:
        assert response.status == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Board(response)


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys.yaml"
    file.write_text(json.dumps([entry(name) for name in KEYS] + [entry("boss", role="admin")]))
    file.chmod(0o600)
    return file


def entry(name: str, secret: str = "", **more: str) -> dict[str, str]:
    """A key whose secret is its name, or this."""
    return {"name": name, "sha256": sha256((secret or name).encode()).hexdigest(), **more}


async def test_a_board_is_told_all_and_then_what_changes(tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0"), EndlessHost("m1/0")]
    async with routed(tmp_path, *hosts) as router, watching(router.url, router.client) as board:
        assert await board.take() == "fleet"
        assert (board.fleet["role"], sorted(board.machines), board.sessions) == ("admin", ["m0", "m1"], {})
        assert board.fleet["models"][0]["when_lost"] == "wait"
        (public,) = [await begin(router, "tea", hosts[0])]
        name = f"{public} {MODEL}"
        await board.until(lambda: name in board.sessions)
        assert board.states[name] == "parked"
        hosts[0].residents = [{"session": digest_of(hosts[0]), "quiet_s": 0.0, "busy": True, "tokens": 9}]
        hosts[0].running = 1
        await board.until(lambda: board.states[name] == "running")
        assert board.sessions[name]["context_tokens"] == 9
        hosts[0].residents, hosts[0].running = [], 0
        await board.until(lambda: board.states[name] == "parked")
        assert board.sessions[name]["context_tokens"] == 9
        await router.ask("DELETE", f"/api/sessions/{public}")
        await board.until(lambda: board.sessions == {})


def digest_of(host: AnswersHost) -> str:
    ((digest, _),) = host.pins
    return digest


async def begin(router: Router, session: str, host: AnswersHost, **more: Any) -> str:
    """A session that lives at this host; its public id."""
    machine = host.replica.rpartition("/")[0]
    answer = await router.post(
        f"/m/{machine}/v1/chat/completions",
        session=session,
        messages=[{"role": "user", "content": "Hi"}],
        **more,
    )
    assert answer.status == 200
    return answer.headers["x-homeport-session"]


async def test_nothing_is_told_while_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "COMMENT_S", 2.2)
    host = AnswersHost("m0/0")
    async with routed(tmp_path, host) as router:
        await begin(router, "tea", host)
        quiet = {"session": digest_of(host), "quiet_s": 1.0, "busy": False, "tokens": 9}
        host.residents = [quiet]
        async with watching(router.url, router.client) as board:
            await board.until(lambda: "resident" in board.states.values())
            await board.until(lambda: board.machines["m0"]["replicas"][0]["tokens_per_s"] == 0.0)
            host.residents = [{**quiet, "quiet_s": 3.0}]
            asked = host.pins_asked
            assert await board.event() == ("", {})
            assert await board.event() == ("", {})
            assert host.pins_asked == asked


async def test_a_machine_is_lost_with_its_sessions_and_comes_back(tmp_path: Path) -> None:
    host = AnswersHost("m0/0")
    async with routed(tmp_path, host, AnswersHost("m1/0")) as router:
        public = await begin(router, "tea", host)
        async with watching(router.url, router.client) as board:
            await board.until(lambda: board.sessions)
            await host.stop()
            router.controller.away["m0"] = 1234.5
            await board.until(lambda: board.machines["m0"]["state"] == "lost")
            assert abs(board.machines["m0"]["heard_s"] - 1234.5) < 1.0
            await board.until(lambda: board.states == {f"{public} {MODEL}": "away"})
            await host.start()
            router.controller.away.clear()
            await board.until(lambda: board.machines["m0"]["state"] == "ready")
            await board.until(lambda: board.states == {f"{public} {MODEL}": "parked"})


async def test_who_lived_on_a_machine_that_was_lost_before_anybody_looked_is_known_to_the_controller(
    tmp_path: Path,
) -> None:
    host = AnswersHost("m0/0")
    async with routed(tmp_path, host, AnswersHost("m1/0")) as router:
        public = await begin(router, "tea", host)
        await host.stop()
        router.controller.away["m0"] = 1234.5
        await router.until(lambda: router.parts.fleet.snapshot().machines["m0"].state == "lost")
        await router.until(lambda: router.parts.fleet.known["m0/0"].refused)
        async with watching(router.url, router.client) as board:
            await board.until(lambda: board.states == {f"{public} {MODEL}": "away"})


async def test_who_is_ended_while_its_machine_is_away_goes_from_the_board(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "INDEX_S", 0.5)
    host = AnswersHost("m0/0")
    async with routed(tmp_path, host, AnswersHost("m1/0")) as router:
        kept = await begin(router, "kept", host)
        ended = digest_of(host)
        name = f"{kept} {MODEL}"
        tea = await begin(router, "tea", host)
        quiet = {"session": ended, "quiet_s": 1.0, "busy": False, "tokens": 9}
        host.residents = [quiet]
        async with watching(router.url, router.client) as board:
            await board.until(lambda: len(board.sessions) == 2)
            seen = router.parts.watch
            await router.until(lambda: any(pin.get("tokens") for pin in seen._pins["m0/0"].pins))
            await host.stop()
            router.controller.away["m0"] = 1234.5
            await board.until(lambda: set(board.states.values()) == {"away"})
            del host.pins[next(key for key in host.pins if key[0] != ended)]
            await board.until(lambda: f"{tea} {MODEL}" not in board.sessions)
            assert board.states == {name: "away"}
            assert board.sessions[name]["context_tokens"] == 9


async def test_a_key_is_told_of_its_own_and_no_longer_than_it_holds(tmp_path: Path, keys_file: Path) -> None:
    host = AnswersHost("m0/0")
    async with routed(tmp_path, host, keys_file=keys_file) as router:
        for name in KEYS:
            await begin_as(router, name)
        client, url = router.client, router.url
        async with watching(url, client, "anna") as anna, watching(url, client, "boss") as boss:
            await boss.until(lambda: len(boss.sessions) == 2)
            await anna.until(lambda: len(anna.sessions) == 1)
            assert (anna.fleet["role"], boss.fleet["role"]) == ("use", "admin")
            assert router.parts.keys is not None
            await asyncio.to_thread(keys_file.write_text, json.dumps([entry("boss", role="admin")]))
            router.parts.keys.look()
            with pytest.raises(EOFError):
                await anna.until(lambda: False)
            assert (
                await router.get("/api/fleet?watch", headers={"authorization": "Bearer anna"})
            ).status == 401
            await begin_as(router, "boss")
            await boss.until(lambda: len(boss.sessions) == 3)


async def test_a_board_ends_once_its_key_has_another_secret(tmp_path: Path, keys_file: Path) -> None:
    async with routed(tmp_path, AnswersHost("m0/0"), keys_file=keys_file) as router:
        client, url = router.client, router.url
        async with watching(url, client, "anna") as old, watching(url, client, "bert") as bert:
            await old.take()
            await bert.take()
            changed = json.dumps([entry("anna", "new"), entry("bert")])
            await asyncio.to_thread(keys_file.write_text, changed)
            assert router.parts.keys is not None
            router.parts.keys.look()
            async with watching(url, client, "new") as new:
                assert await new.take() == "fleet"
                with pytest.raises(EOFError):
                    await old.until(lambda: False)
            await begin_as(router, "bert")
            await bert.until(lambda: bert.sessions)


async def test_a_host_whose_pins_are_odd_is_left_out_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd, host = AnswersHost("m0/0"), AnswersHost("m1/0")
    async with routed(tmp_path, odd, host) as router:
        await begin(router, "odd", odd)
        (pin,) = odd.pins.values()
        pin["created_s"] = None
        tea = await begin(router, "tea", host)
        async with watching(router.url, router.client) as board:
            await board.until(lambda: set(board.states) == {f"{tea} {MODEL}"})
            cup = await begin(router, "cup", host)
            await board.until(lambda: set(board.states) == {f"{tea} {MODEL}", f"{cup} {MODEL}"})
            pin["created_s"] = 1.0
            await begin(router, "even", odd)
            await board.until(lambda: len(board.states) == 4)
    assert caplog.text.count("pins of m0/0 are not shown") == 1


async def test_a_look_that_failed_is_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, fails, words = fleet_json, [True, True], "somebody's text"

    def seen(*asked: Any) -> dict[str, Any]:
        if fails:
            fails.pop()
            raise ValueError(words)
        return real(*asked)

    monkeypatch.setattr(watch, "fleet_json", seen)
    with caplog.at_level(logging.ERROR, "homeport.watch"):
        async with (
            routed(tmp_path, AnswersHost("m0/0")) as router,
            watching(router.url, router.client) as board,
        ):
            await board.until(lambda: board.machines)
    (record,) = (each for each in caplog.records if each.name == "homeport.watch")
    assert record.getMessage().endswith("ValueError")
    assert "somebody" not in caplog.text


async def test_a_key_has_so_many_boards_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "BOARDS_MAX", 2)
    async with routed(tmp_path, AnswersHost("m0/0")) as router:
        async with (
            watching(router.url, router.client) as one,
            watching(router.url, router.client) as other,
        ):
            await one.take()
            await other.take()
            answer = await router.get("/api/fleet?watch")
            assert (answer.status, answer.code) == (429, "too_many_boards")
            assert "homeport key new" in answer.json()["error"]["message"]
        await router.until(lambda: not router.parts.watch._seats)
        async with watching(router.url, router.client) as again:
            assert await again.take() == "fleet"


async def test_boards_of_one_key_do_not_keep_those_of_another_out(
    tmp_path: Path, keys_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "BOARDS_MAX", 1)
    async with routed(tmp_path, AnswersHost("m0/0"), keys_file=keys_file) as router:
        client, url = router.client, router.url
        async with watching(url, client, "anna") as anna, watching(url, client, "bert") as bert:
            await anna.take()
            await bert.take()
            headers = {"authorization": "Bearer anna"}
            assert (await router.get("/api/fleet?watch", headers=headers)).status == 429


async def begin_as(router: Router, key: str) -> None:
    answer = await router.chat(session="tea", headers={"authorization": f"Bearer {key}"})
    assert answer.status == 200


async def test_boards_of_one_key_are_one_view_and_leave_nothing(tmp_path: Path) -> None:
    host = AnswersHost("m0/0")
    async with routed(tmp_path, host) as router:
        seen = router.parts.watch
        async with (
            watching(router.url, router.client) as one,
            watching(router.url, router.client) as other,
        ):
            await one.take()
            await other.take()
            assert [view.boards for view in seen._views.values()] == [2]
            await begin(router, "tea", host)
            await one.until(lambda: one.sessions)
            await other.until(lambda: other.sessions)
            assert one.sessions == other.sessions
        async with asyncio.timeout(5):
            assert seen._looking is not None
            await seen._looking
        assert seen._views == {}


async def test_a_board_that_read_too_slowly_is_told_all_anew(tmp_path: Path) -> None:
    host = AnswersHost("m0/0")
    async with routed(tmp_path, host) as router:
        events = router.parts.watch.events(ALL)
        first = await anext(events)
        assert first.startswith(b"event: fleet")
        view = router.parts.watch._views[ALL]
        for name in ("a", "b"):
            await begin(router, name, host)
            before = view.version
            async with asyncio.timeout(10):
                while view.version == before:
                    await view.news(1.0)
        assert (await anext(events)).startswith(b"event: fleet")
        await begin(router, "c", host)
        assert (await anext(events)).startswith(b"event: change")
        await events.aclose()


async def test_open_boards_do_not_hold_up_the_routers_end(tmp_path: Path) -> None:
    limits = RouterLimits(drain_s=60.0)
    async with (
        routed(tmp_path, AnswersHost("m0/0"), limits=limits) as router,
        watching(router.url, router.client) as board,
    ):
        await board.take()
        router.server.stop()
        async with asyncio.timeout(10):
            with pytest.raises(EOFError):
                await board.until(lambda: False)


async def test_a_board_that_does_not_read_does_not_hold_up_the_routers_end_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = {"large": "x" * (16 << 20)}
    monkeypatch.setattr(watch, "whole", lambda _: large)
    async with routed(tmp_path, AnswersHost("m0/0"), limits=RouterLimits(drain_s=60.0)) as router:
        with contextlib.closing(socket.socket()) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            at = urlsplit(router.url)
            deaf.connect((at.hostname, at.port))
            deaf.sendall(b"GET /api/fleet?watch HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            seats = router.parts.watch._seats
            await router.until(lambda: any(seat.is_stuck() for seat in seats))
            router.server.stop()
            await router.until(lambda: not router.server.connections)


async def test_each_worker_shows_what_waits_at_the_other(tmp_path: Path) -> None:
    async with two_workers(tmp_path, AnswersHost("m0/0", state="loading")) as rig:
        one, other = await rig.both()
        turn = asyncio.create_task(one.chat("tea"))
        client = await other.connected()
        async with watching(rig.url, client) as board:
            await board.until(lambda: list(board.states.values()) == ["waiting"])
        turn.cancel()
