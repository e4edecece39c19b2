"""`homeport desk`: the address that it prints, the program that it starts, what it says where it cannot."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from router import cli, desk_commands
from router.desk_browser import Nothing, Start
from tests.test_cli import FakeRouter, router

__all__ = ["router"]


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, ["desk", *words])
    return done.exit_code, done.output


@pytest.fixture
def den(router: FakeRouter) -> str:
    """The address of its desk."""
    machines: list[dict[str, Any]] = [
        {"name": name, "state": "ready", "replicas": []} for name in ("tower", "den pc")
    ]
    router.answers["/api/fleet"] = 200, {"machines": machines}
    return f"{router.url}/desk/den%20pc"


def test_the_address_alone(router: FakeRouter, den: str) -> None:
    assert run("den pc", "--print") == (0, f"{den}\n")
    assert router.asked == [("GET", "/api/fleet", "Bearer the-cluster-token", None)]


def test_an_unknown_machine_is_told_the_known_ones(den: str) -> None:
    code, told = run("attic", "--print")
    assert code == 2
    assert told == "There is no machine 'attic'; known: den pc, tower.\n"


def test_what_the_router_says_is_passed_on(router: FakeRouter) -> None:
    error = {"error": {"message": "The router is stopping.", "code": "router_stopping"}}
    router.answers["/api/fleet"] = 503, error
    assert run("den") == (1, "The router is stopping.\n")


def choosing(monkeypatch: pytest.MonkeyPatch, way: Start | Nothing) -> None:
    monkeypatch.setattr(desk_commands, "choose", lambda *_, **__: way)


def test_the_browser_is_started_with_the_address_and_stays(
    den: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown = tmp_path / "shown"
    code = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"
    choosing(monkeypatch, Start((sys.executable, "-c", code, str(shown), den)))
    assert run("den pc") == (0, f"The desk of den pc opens: {den}\n")
    assert shown.read_text() == den


def test_a_browser_that_fails_at_once_is_no_success(den: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = shutil.which("false") or "/bin/false"
    choosing(monkeypatch, Start((failing,)))
    assert run("den pc") == (
        1,
        f"{failing} ended with 1. The desk is at {den}; open it in another browser.\n",
    )
    choosing(monkeypatch, Start(("/nowhere/at/all",)))
    code, told = run("den pc")
    assert code == 1
    assert told == f"/nowhere/at/all cannot be started: No such file or directory. The desk is at {den}\n"


def test_where_nothing_can_be_opened_the_address_is_told(den: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choosing(monkeypatch, Nothing("there is no browser here. Install one"))
    code, told = run("den pc")
    assert code == 1
    assert told == f"The desk is at {den}\nIt is not opened: there is no browser here. Install one.\n"
