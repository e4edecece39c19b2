"""Several processes of one router on one port: each answers as the others do, and each may die."""

import asyncio
import hashlib
import os
import signal
import socket
import time
from pathlib import Path

import aiohttp
import pytest

from cluster.paths import Paths, write_private
from cluster.processes import end, ours, port_is_free
from router.identity import digest, public_id
from router.workers import standing
from tests.ports import free_port
from tests.router_workers import Through, counted, kept, two_workers
from tests.standins import MODEL, Answer, AnswersHost, Controller, EndlessHost, model_spec, running

PUBLIC = public_id(b"ab" * 32, digest("local", "", "tea"))


@pytest.mark.parametrize(
    ("count", "pids", "ended", "state", "detail"),
    [
        (1, {1: 7}, {}, "ready", ""),
        (1, {}, {1: "it ended with code 2"}, "failed", "it ended with code 2"),
        (2, {}, {}, "starting", ""),
        (2, {1: 7}, {}, "starting", ""),
        (2, {1: 7, 2: 8}, {}, "ready", "2 workers"),
        (2, {2: 8}, {1: "worker 1 ended"}, "ready", "1 of 2 workers: worker 1 ended"),
        (2, {}, {2: "b", 1: "a"}, "failed", "a; b"),
    ],
)
def test_how_the_router_stands(
    count: int, pids: dict[int, int], ended: dict[int, str], state: str, detail: str
) -> None:
    assert standing(count, pids, ended) == (state, detail)


async def test_connections_are_spread_and_a_session_has_one_home_through_both(tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with two_workers(tmp_path, *hosts) as rig:
        ways = await rig.both("/ready")
        assert rig.steps[-1] == {"state": "ready", "detail": "2 workers", "pids": sorted(rig.pids)}
        for number in range(6):
            answers = [await way.chat(f"s{number}") for way in ways]
            assert [a.headers["x-homeport-pin"] for a in answers] == ["new", "kept"]
            assert len({a.headers["x-homeport-replica"] for a in answers}) == 1
        told = [await way.get("/metrics") for way in ways]
        assert [counted(each, status="ok") for each in told] == [12, 12]
        assert [counted(each, "homeport_pin_outcomes_total", pin="kept") for each in told] == [6, 6]
        assert [counted(each, "homeport_build_info") for each in told] == [1, 1]
        assert all(b"homeport_sessions" in each.body and b"pid=" not in each.body for each in told)


async def test_a_worker_that_is_killed_under_load_comes_back_and_the_other_goes_on(tmp_path: Path) -> None:
    async with two_workers(tmp_path, AnswersHost("m0/0")) as rig:
        victim, other = await rig.both("/ready")
        for _ in range(5):
            assert (await victim.chat()).status == 200
        done, cut = 5, 0

        async def load(way: Through, until: float) -> None:
            nonlocal done, cut
            client = await way.connected()
            body = {"model": MODEL, "messages": []}
            while time.monotonic() < until:
                try:
                    async with client.post(f"{rig.url}/v1/chat/completions", json=body) as response:
                        assert response.status == 200
                        await response.read()
                        done += 1
                except (OSError, aiohttp.ClientError):
                    assert way is victim, "the other worker was touched"
                    cut += 1
                    return

        until = time.monotonic() + 3.0
        loads = [asyncio.create_task(load(way, until)) for way in (victim, other) for _ in range(3)]
        await asyncio.sleep(1.0)
        os.kill(victim.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        await asyncio.gather(*loads)
        assert cut >= 1
        assert other.pid in rig.pids
        (back,) = [way for way in await rig.both("/ready") if way.pid != other.pid]
        assert back.pid != victim.pid
        assert time.monotonic() - killed_at < 10
        assert any(step["detail"].startswith("1 of 2 workers: worker ") for step in rig.steps)
        told = [counted(await way.get("/metrics"), status="ok") for way in (back, other)]
        assert told[0] == told[1]
        assert done <= told[0] <= done + cut, "a count was lost or doubled"
        for name, more in (
            ("homeport_request_duration_seconds_count", {"model": MODEL}),
            ("homeport_pin_outcomes_total", {}),
        ):
            counts = [counted(await way.get("/metrics?role=router"), name, **more) for way in (back, other)]
            assert counts == told, name
        assert (await back.chat()).status == 200
        assert counted(await other.get("/metrics"), status="ok") == told[0] + 1


async def test_a_keys_pace_holds_over_both_and_outlives_a_worker(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    secret = hashlib.sha256(b"slow").hexdigest()
    keys.write_text(f"- {{name: slow, sha256: '{secret}', requests_per_minute: 4}}\n")
    keys.chmod(0o600)
    async with two_workers(tmp_path, AnswersHost("m0/0"), keys_file=str(keys)) as rig:
        ways = await rig.both("/ready")
        statuses = [(await ways[n % 2].chat(key="slow")).status for n in range(6)]
        assert statuses == [200] * 4 + [429] * 2
        os.kill(ways[0].pid, signal.SIGKILL)
        await rig.until(lambda: ways[0].pid not in rig.pids)
        for way in await rig.both("/ready"):
            answer = await way.chat(key="slow")
            assert (answer.status, answer.code) == (429, "rate_limit_exceeded")
            assert 1 <= int(answer.headers["retry-after"]) <= 60


async def waits(way: Through, *, seen_by: Through) -> "asyncio.Task[Answer]":
    """A turn of the session `tea` that waits at one worker; on return it is listed by another."""
    turn = asyncio.create_task(way.chat("tea"))
    async with asyncio.timeout(10):
        while not (await seen_by.get("/api/sessions")).json()["sessions"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return turn


async def test_a_session_that_waits_at_one_is_listed_and_ended_through_the_other(tmp_path: Path) -> None:
    async with two_workers(tmp_path, AnswersHost("den/0", state="loading")) as rig:
        one, other = await rig.both()
        turn = await waits(one, seen_by=other)
        for way in (one, other):
            (session,) = (await way.get("/api/sessions")).json()["sessions"]
            told = {name: session[name] for name in ("id", "state", "replica", "source", "parent")}
            assert told == {
                "id": PUBLIC,
                "state": "waiting",
                "replica": "",
                "source": "header",
                "parent": None,
            }
        ended = await other.ask("DELETE", "/api/sessions/tea")
        assert (ended.status, ended.json()["models"]) == (200, [MODEL])
        assert (await turn).code == "session_ended"
        assert (await one.get("/api/sessions")).json()["sessions"] == []


async def test_a_session_with_an_open_turn_at_one_is_not_moved_through_the_other(tmp_path: Path) -> None:
    home = AnswersHost("m0/0")
    elsewhere = AnswersHost("m1/0", state="loading")
    async with two_workers(tmp_path, home, elsewhere) as rig:
        one, other = await rig.both("/ready")
        await one.chat("tea")
        elsewhere.state = "ready"
        home.state = "loading"
        await one.until_seen("m0/0", "loading")
        await other.until_seen("m1/0", "ready")
        turn = asyncio.create_task(one.chat("tea"))
        async with asyncio.timeout(10):
            while (await other.get("/api/sessions")).json()["sessions"][0]["state"] != "waiting":  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        moved = await other.ask("POST", "/api/sessions/tea/move", json={"machine": "m1"})
        assert (moved.status, moved.code) == (409, "session_busy")
        turn.cancel()


async def test_a_worker_that_stands_still_is_left_out(tmp_path: Path) -> None:
    async with two_workers(tmp_path, AnswersHost("den/0")) as rig:
        one, other = await rig.both("/ready")
        await other.chat("tea")
        client = await other.connected()
        os.kill(one.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            async with client.delete(f"{rig.url}/api/sessions/tea") as response:
                assert response.status == 200
            assert 0.9 < time.monotonic() - began < 4.0
            assert "is left out" in rig.log()
        finally:
            os.kill(one.pid, signal.SIGCONT)


async def test_sigterm_ends_the_streams_of_all_and_leaves_no_socket(tmp_path: Path) -> None:
    async with two_workers(tmp_path, EndlessHost("den/0")) as rig:
        ways = await rig.both("/ready")
        assert len(list(rig.paths.workers.glob("*.sock"))) == 2
        assert rig.paths.workers.stat().st_mode & 0o777 == 0o700
        streams = [asyncio.create_task(way.chat(f"s{way.pid}", stream=True)) for way in ways]
        async with asyncio.timeout(10):
            while len((await ways[0].get("/api/sessions")).json()["sessions"]) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await rig.leave()
        began = time.monotonic()
        assert await asyncio.to_thread(end, ours(rig.paths, "router"), 5.0) == []
        assert time.monotonic() - began < 4.5, "they were killed"
        for stream in streams:
            assert b"router_stopping" in (await stream).body
        assert list(rig.paths.workers.glob("*.sock")) == []


async def test_a_worker_that_was_killed_is_asked_again_once_it_is_back(tmp_path: Path) -> None:
    async with two_workers(tmp_path, AnswersHost("den/0", state="loading")) as rig:
        victim, other = await rig.both()
        os.kill(victim.pid, signal.SIGKILL)
        await rig.until(lambda: victim.pid not in rig.pids)
        assert len(list(rig.paths.workers.glob("*.sock"))) == 2, "it had no time to remove its own"
        (back,) = [way for way in await rig.both() if way.pid != other.pid]
        turn = await waits(back, seen_by=other)
        turn.cancel()


async def test_what_was_said_without_a_name_stays_in_its_zone_through_both(tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0", zone="home"), AnswersHost("m1/0", zone="work")]
    models = [model_spec(queue_s=2.0).to_json()]
    async with two_workers(tmp_path, *hosts, models=models) as rig:
        one, other = await rig.both("/ready")
        await one.until_seen("m0/0", "ready")
        await one.until_seen("m1/0", "ready")
        said = [{"role": "user", "content": "Hi"}]
        home = (await one.chat(messages=said)).headers["x-homeport-replica"]
        (gone,), (left,) = ([h for h in hosts if (h.replica == home) is same] for same in (True, False))
        await gone.stop()
        said += [{"role": "assistant", "content": "Hello there"}, {"role": "user", "content": "More"}]
        answer = await other.chat(messages=said)
        assert answer.status == 503, answer.body
        assert left.bodies == []


async def test_a_port_that_somebody_has_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with two_workers(tmp_path, port=port) as rig:
            await rig.until(lambda: any(step["state"] == "failed" for step in rig.steps))
            failed = next(step["detail"] for step in rig.steps if step["state"] == "failed")
            assert "worker 1 ended with code 2; see " in failed
            assert f"worker 1: cannot listen on 127.0.0.1:{port}" in rig.log()
            assert "router.listen" in rig.log()


async def test_no_other_homeport_shares_its_port(tmp_path: Path) -> None:
    port = free_port()
    async with two_workers(tmp_path, port=port) as rig:
        await rig.both()
        assert not port_is_free("127.0.0.1", port), "as `homeport up` looks at it"
        paths = Paths(tmp_path / "second", tmp_path / "locks")
        controller = Controller([])
        async with running(controller), kept(paths, controller, port=port) as second:
            await rig.until(lambda: second.steps)
            assert second.steps[-1]["state"] == "failed"
            assert f"port {port} is held by {rig.paths.home}" in second.steps[-1]["detail"]
            assert ours(paths) == []


async def test_one_process_is_started_as_before_and_shares_nothing(tmp_path: Path) -> None:
    async with two_workers(tmp_path, AnswersHost("den/0"), workers=1) as rig:
        await rig.until(lambda: rig.steps and rig.listens(rig.pids[0]))
        assert rig.steps[-1] == {"state": "ready", "detail": "", "pids": rig.pids}
        assert not rig.paths.workers.exists()
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="in use"):
                probe.bind(("127.0.0.1", int(rig.url.rpartition(":")[2])))


async def test_a_long_path_of_the_state_folder_keeps_nobody_from_being_asked(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    async with two_workers(folder, AnswersHost("den/0", state="loading")) as rig:
        one, other = await rig.both()
        turn = await waits(one, seen_by=other)
        assert (await other.ask("DELETE", "/api/sessions/tea")).status == 200
        assert (await turn).code == "session_ended"


async def test_what_keeps_all_from_starting_is_told_and_tried_again(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "home", tmp_path / "locks")
    paths.make()
    paths.workers.parent.mkdir(parents=True, exist_ok=True)
    paths.workers.write_text("a file where their folder belongs")
    controller = Controller([])
    async with running(controller), kept(paths, controller) as rig:
        await rig.until(lambda: len(rig.steps) > 1)
        assert rig.steps[-1]["state"] == "failed"
        assert f"cannot be started: [Errno 17] File exists: '{paths.workers}'" in rig.steps[-1]["detail"]
        told = paths.router_settings.read_text()
        write_private(paths.router_settings, '{"workers": 2}')
        await rig.until(lambda: rig.steps[-1]["detail"] == f"{paths.router_settings} does not say its port")
        write_private(paths.router_settings, told)
        paths.workers.unlink()
        await rig.both()


async def test_a_folder_of_locks_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "home", tmp_path / "locks")
    paths.make()
    port = free_port()
    (paths.locks / f"router-{port}.lock").symlink_to(tmp_path / "elsewhere")
    controller = Controller([])
    async with running(controller), kept(paths, controller, port=port) as rig:
        await rig.until(lambda: rig.steps)
        assert rig.steps[-1]["state"] == "failed"
        assert f"router-{port}.lock" in rig.steps[-1]["detail"]
        (paths.locks / f"router-{port}.lock").unlink()
        await rig.both()
