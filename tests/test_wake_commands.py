"""`homeport wake`: what it asks a running homeport, what it prints, how it ends."""

import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from router import cli, lifecycle, wake_commands
from tests.test_cli import FakeRouter, router

__all__ = ["router"]
WOKEN = {"machine": "tower", "awake": False, "how": "packet", "by": ["den-pc", "attic"]}


def fleet(state: str) -> dict[str, Any]:
    return {"machines": [{"name": "tower", "state": state, "replicas": []}]}


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, ["wake", *words])
    return done.exit_code, done.output


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wake_commands, "LOOK_S", 0.02)
    monkeypatch.setattr(wake_commands, "COMES_S", 0.5)


def test_it_says_who_sends_and_follows_until_the_machine_is_heard(
    router: FakeRouter, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    router.answers["/api/machines/tower/wake"] = 200, WOKEN
    router.answers["/api/fleet"] = 200, fleet("asleep")
    seen: list[str] = []

    def look(_: float) -> None:
        seen.append("asleep")
        router.answers["/api/fleet"] = 200, fleet("cordoned" if len(seen) > 2 else "asleep")

    monkeypatch.setattr(time, "sleep", look)
    code, told = run("tower")
    assert code == 0
    assert told.splitlines() == [
        "tower: its magic packet is out, sent by den-pc, attic.",
        "tower is awake, after 0 s.",
    ]
    assert router.asked[0] == ("POST", "/api/machines/tower/wake", "Bearer the-cluster-token", None)
    assert len(seen) == 3


def test_without_waiting_it_returns_once_the_packets_are_out(router: FakeRouter) -> None:
    router.answers["/api/machines/tower/wake"] = 200, {**WOKEN, "how": "command", "by": []}
    assert run("tower", "--no-wait") == (0, "tower: its command has run.\n")
    assert len(router.asked) == 1


def test_a_machine_that_is_awake_is_no_failure(router: FakeRouter) -> None:
    router.answers["/api/machines/tower/wake"] = 200, {**WOKEN, "awake": True}
    assert run("tower") == (0, "tower is awake.\n")


def test_a_machine_that_does_not_come_is_one_and_says_what_to_look_at(
    router: FakeRouter, quick: None
) -> None:
    router.answers["/api/machines/tower/wake"] = 200, WOKEN
    router.answers["/api/fleet"] = 200, fleet("lost")
    code, told = run("tower")
    assert code == 1
    assert "Wake-on: g" in told
    assert "homeport service install" in told


def test_what_the_router_refuses_is_told_in_its_words(router: FakeRouter) -> None:
    router.answers["/api/machines/a%2Fb/wake"] = 404, {"error": {"message": "There is no machine a/b."}}
    assert run("a/b") == (1, "There is no machine a/b.\n")


def test_where_nothing_runs_it_says_so(
    router: FakeRouter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lifecycle, "running", lambda _: None)
    code, told = run("tower")
    assert code == 3
    assert "homeport does not run here" in told
