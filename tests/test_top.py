"""`homeport top` on a made-up screen of 80 x 24, with a router that answers what it is given."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Static
from typer.testing import CliRunner

from cluster.paths import Paths
from router import cli, lifecycle
from router.command_line import NOT_RUNNING, WRONG
from router.top import Confirm, Rows, Top, asking
from tests.test_cli import FakeRouter
from tests.test_top_rows import ID, machine, replica, session

PATIENCE_S = 30.0


@pytest.fixture
def router() -> Iterator[FakeRouter]:
    fake = FakeRouter()
    fake.answers["/api/fleet"] = (
        200,
        {
            "machines": [
                machine("den", [replica("den/0", [0], running=1), replica("den/1", [1])]),
                machine("attic", [replica("attic/0", [0])], state="lost", away_s=120.0, heard_s=None),
            ],
            "controller": {"reachable": True},
        },
    )
    fake.answers["/api/sessions"] = (200, {"sessions": [session("running")]})
    thread = threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield fake
    fake.shutdown()
    thread.join()
    fake.server_close()


@asynccontextmanager
async def running(fake: FakeRouter) -> AsyncIterator[tuple[Top, Pilot[None]]]:
    app = Top(fake.url, asking(fake.url, "the-cluster-token"), look_s=0.1)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.query_one("#machines", Rows).row_count > 0)
        yield app, pilot


async def until(pilot: Pilot[None], wanted: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not wanted():
            await pilot.pause(0.01)


def screen(app: Top) -> str:
    """What stands there, line by line, without colours."""
    return "\n".join(
        "".join(segment.text for segment in line) for line in app.screen._compositor.render_strips()
    )


def line(app: Top, name: str) -> str:
    return str(app.query_one(f"#{name}", Static).render())


def acts(fake: FakeRouter) -> list[tuple[str, str, str | None, Any]]:
    return [asked for asked in fake.asked if asked[0] != "GET"]


async def test_all_of_it_stands_on_80_by_24(router: FakeRouter) -> None:
    async with running(router) as (app, pilot):
        await until(pilot, lambda: ID in screen(app) and "Quit" in screen(app))
        shown = screen(app)
    for words in (
        "2 machines, 1 lost",
        "Ab·-",
        "✗ lost",
        "running",
        ID,
        "den/0",
        "q Quit",
        "d Drain",
        "m Move it",
    ):
        assert words in shown, shown
    assert "lost, last heard 2 min ago" not in shown  # of the chosen one only
    assert "A B it answers" in shown


async def test_arrows_choose_and_the_chosen_one_is_told_more_of(router: FakeRouter) -> None:
    async with running(router) as (app, pilot):
        assert "den: ready; zone home" in line(app, "about")
        await pilot.press("down")
        await until(pilot, lambda: "attic: lost, last heard 2 min ago" in line(app, "about"))
        await pilot.press("tab")
        await until(pilot, lambda: f"{ID}: home den/0" in line(app, "about"))
        await pilot.press("left")
        await until(pilot, lambda: "attic: lost" in line(app, "about"))


async def test_a_drain_is_asked_once_more_and_then_done(router: FakeRouter) -> None:
    router.answers["/api/machines/den/drain"] = (200, {"machine": "den", "draining": True})
    async with running(router) as (app, pilot):
        await pilot.press("d")
        assert "Drain den? Its sessions move within its zone" in screen(app)
        await pilot.press("n")
        await pilot.press("d")
        await pilot.press("enter")  # alone is no
        assert acts(router) == []
        await pilot.press("d")
        await pilot.press("y")
        await until(pilot, lambda: "den is being drained." in line(app, "legend"))
    assert acts(router) == [
        ("POST", "/api/machines/den/drain", "Bearer the-cluster-token", {"within_s": 600.0})
    ]


async def test_what_the_router_refuses_is_told_with_its_reason(router: FakeRouter) -> None:
    why = {"error": {"message": "The controller does not know den."}}
    router.answers["/api/machines/den/uncordon"] = (404, why)
    async with running(router) as (app, pilot):
        await pilot.press("u")
        await pilot.press("y")
        await until(pilot, lambda: line(app, "legend") == "Refused: The controller does not know den.")


async def test_a_session_is_ended_after_a_yes(router: FakeRouter) -> None:
    router.answers[f"/api/sessions/{ID}"] = (200, {"id": ID, "ended": True, "models": ["smollm2"]})
    async with running(router) as (app, pilot):
        await pilot.press("e")
        assert isinstance(app.screen, Confirm)
        await pilot.press("y")
        await until(pilot, lambda: f"{ID} is ended." in line(app, "legend"))
    assert acts(router)[0][:2] == ("DELETE", f"/api/sessions/{ID}")


async def test_a_session_moves_to_the_machine_that_is_chosen(router: FakeRouter) -> None:
    moved = {"model": "smollm2", "replica": "attic/0", "context": "kept"}
    router.answers[f"/api/sessions/{ID}/move"] = (200, {"id": ID, "moved": [moved]})
    async with running(router) as (app, pilot):
        await pilot.press("m")
        assert f"{ID} has its home at den" in screen(app)
        await pilot.press("escape")
        await pilot.press("m")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await until(pilot, lambda: "from den to attic?" in screen(app))
        await pilot.press("y")
        await until(pilot, lambda: f"{ID} has its home at attic/0 now." in line(app, "legend"))
    assert acts(router)[0][3] == {"machine": "attic"}


async def test_without_sessions_there_is_nothing_to_end_or_move(router: FakeRouter) -> None:
    router.answers["/api/sessions"] = (200, {"sessions": []})
    async with running(router) as (app, pilot):
        await pilot.press("e", "m")
        assert line(app, "legend") == "There is no session to choose."
        assert len(app.screen_stack) == 1


async def test_the_chosen_row_stays_chosen_when_others_come(router: FakeRouter) -> None:
    async with running(router) as (app, pilot):
        await pilot.press("down")
        fleet = router.answers["/api/fleet"][1]
        fleet["machines"].insert(0, machine("barn", [replica("barn/0", [0])]))
        rows = app.query_one("#machines", Rows)
        await until(pilot, lambda: rows.row_count == 3)
        assert rows.chosen == "attic"


async def test_a_router_that_goes_away_is_said_to_be_and_heard_again(router: FakeRouter) -> None:
    async with running(router) as (app, pilot):
        router.answers["/api/fleet"] = (503, {"error": {"message": "starting"}})
        await until(pilot, lambda: "! The router does not answer" in line(app, "trouble"))
        assert "s ago" in line(app, "trouble")
        assert app.query_one("#machines", Rows).row_count == 2
        router.answers["/api/fleet"] = (200, {"machines": [], "controller": {"reachable": False}})
        await until(pilot, lambda: "controller does not answer" in line(app, "trouble"))


async def test_a_router_that_never_answered_is_named() -> None:
    app = Top("http://127.0.0.1:9", asking("http://127.0.0.1:9", ""), look_s=0.02)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "http://127.0.0.1:9); nothing is known yet" in line(app, "trouble"))
        await pilot.press("d")
        assert line(app, "legend") == "There is no machine to choose."


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
async def test_it_ends_at_once(router: FakeRouter, key: str) -> None:
    async with running(router) as (app, pilot):
        await pilot.press(key)
        await until(pilot, lambda: not app.is_running)
    assert app.return_code == 0


async def test_ctrl_c_ends_it_from_a_question_too(router: FakeRouter) -> None:
    async with running(router) as (app, pilot):
        await pilot.press("d")
        await pilot.press("ctrl+c")
        await until(pilot, lambda: not app.is_running)


@pytest.mark.parametrize("how", ["ctrl-c", "SIGTERM", "SIGINT"])
def test_a_real_terminal_is_left_as_it_was(router: FakeRouter, how: str) -> None:
    script = f"from router.top import Top, asking; Top({router.url!r}, asking({router.url!r}, '')).run()"
    ours, theirs = os.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=env,
        start_new_session=True,
    )
    os.close(theirs)
    told = b""
    try:
        while b"attic" not in told:
            told += os.read(ours, 65536)
        if how == "ctrl-c":
            os.write(ours, b"\x03")
        else:
            process.send_signal(signal.Signals[how])
        with contextlib.suppress(OSError):  # its last end was closed
            while more := os.read(ours, 65536):
                told += more
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert b"\x1b[?1049h" in told
    assert b"\x1b[?1049l" in told.rpartition(b"\x1b[?1049h")[2]
    assert b"Traceback" not in told


def test_without_a_terminal_it_says_what_else_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "running", lambda _: {"url": "http://127.0.0.1:9"})
    done = CliRunner().invoke(cli.app, ["top"])
    assert (done.exit_code, "needs a terminal" in done.output) == (WRONG, True)


def test_where_homeport_does_not_run_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("HOMEPORT_HOME", str(Paths(tmp_path, tmp_path).home))
    done = CliRunner().invoke(cli.app, ["top"])
    assert (done.exit_code, "homeport up" in done.output) == (NOT_RUNNING, True)
