"""`homeport yield`: on the machine itself, without anybody, and of another machine through the router."""

import json
import time
from pathlib import Path

import pytest

from cluster.paths import Paths, write_private
from router import yield_commands
from serving.owner import read_order
from tests.test_cli import FakeRouter, router, run

__all__ = ["router"]
YIELD = "/api/machines/attic/yield"


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """Of a machine called den, on which nothing runs."""
    monkeypatch.setenv("HOMEPORT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOMEPORT_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr(yield_commands, "LOOK_S", 0.01)
    made = Paths(tmp_path / "home", tmp_path / "locks")
    made.make()
    write_private(made.machine, json.dumps({"name": "den"}))
    return made


@pytest.fixture
def head(paths: Paths, router: FakeRouter, monkeypatch: pytest.MonkeyPatch) -> FakeRouter:
    """The router of a head on that machine."""
    monkeypatch.setenv("HOMEPORT_HOME", str(paths.home))
    paths.cluster_token.write_text("the-cluster-token\n")
    monkeypatch.setattr(yield_commands, "running", lambda _: {"url": router.url})
    return router


def fleet(*pids: int | None) -> dict[str, object]:
    return {"machines": [{"name": "attic", "replicas": [{"pid": pid} for pid in pids]}]}


@pytest.mark.parametrize("words", [(), ("den",)])
def test_the_machine_itself_needs_nobody(paths: Paths, words: tuple[str, ...]) -> None:
    code, said = run("yield", *words)
    assert (code, said) == (
        0,
        "den is yielded until `homeport yield --end`: no replica ran. Its sessions stay there and wait.",
    )
    order = read_order(paths)
    assert order is not None
    assert order.until_s is None
    assert abs(order.given_s - time.time()) < 60
    code, said = run("yield", *words, "--end")
    assert (code, said.startswith("den is no longer yielded: it serves once homeport runs here")) == (0, True)
    assert read_order(paths) is None
    assert run("yield", "--end")[0] == 0, "again is nothing"


@pytest.mark.parametrize(("text", "seconds"), [("45m", 2700), ("2h", 7200), ("1.5 h", 5400), ("1d", 86400)])
def test_for_how_long_is_said_with_a_unit(paths: Paths, text: str, seconds: float) -> None:
    assert run("yield", "--for", text)[0] == 0
    order = read_order(paths)
    assert order is not None
    assert order.until_s is not None
    assert order.until_s - order.given_s == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["2", "h", "0h", "-1h", "2 weeks", "99999d"])
def test_a_time_that_is_none_is_refused(paths: Paths, text: str) -> None:
    code, said = run("yield", "--for", text)
    assert (code, "is no time" in said) == (2, True)
    assert not paths.yielded.exists()


def test_an_end_has_no_length(paths: Paths) -> None:
    assert run("yield", "--for", "2h", "--end")[0] == 2


def test_where_there_never_was_a_homeport_there_is_nothing_to_yield(paths: Paths) -> None:
    paths.machine.unlink()
    assert run("yield")[0] == 3


def test_a_state_folder_that_cannot_be_written_is_said(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(paths.yielded))

    monkeypatch.setattr("serving.owner.write_private", full)
    code, said = run("yield")
    assert (code, "No space left on device. Nothing was changed." in said) == (1, True)


def test_of_another_machine_it_is_asked_and_waited_for(head: FakeRouter) -> None:
    head.answers[YIELD] = (200, {"machine": "attic", "yielded": {"by": "person", "until": None}})
    head.answers["/api/fleet"] = (200, fleet(None, None))
    code, said = run("yield", "attic", "--for", "2h")
    assert code == 0
    assert said.startswith("attic is yielded until `homeport yield --end`: no replica ran.")
    assert head.asked[0] == ("POST", YIELD, "Bearer the-cluster-token", {"for_s": 7200.0})


def test_replicas_that_do_not_end_are_said(head: FakeRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yield_commands, "FREE_S", 0.1)
    head.answers[YIELD] = (200, {"machine": "attic", "yielded": {"by": "person", "until": None}})
    head.answers["/api/fleet"] = (200, fleet(7, None))
    code, said = run("yield", "attic")
    assert (code, "1 of its replicas have not ended yet" in said) == (1, True)


def test_an_end_says_whether_a_program_goes_on(head: FakeRouter) -> None:
    head.answers[YIELD] = (200, {"machine": "attic", "yielded": None})
    assert run("yield", "attic", "--end") == (
        0,
        "attic is no longer yielded: its replicas start now.",
    )
    assert head.asked[-1][3] == {"end": True}
    head.answers[YIELD] = (200, {"machine": "attic", "yielded": {"by": "steam", "until": None}})
    code, said = run("yield", "attic", "--end")
    assert (code, said) == (0, "attic is still yielded to steam, until that program has ended.")


def test_what_the_router_refuses_is_told(head: FakeRouter) -> None:
    head.answers[YIELD] = (503, {"error": {"message": "attic is away and cannot be asked."}})
    assert run("yield", "attic") == (1, "attic is away and cannot be asked.")


def test_another_machine_is_not_asked_from_one_that_joined(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("yield", "attic")[0] == 3, "nothing runs here"
    monkeypatch.setattr(yield_commands, "running", lambda _: {"role": "worker", "steps": {}})
    code, said = run("yield", "attic")
    assert (code, "For attic, say it there or on the head" in said) == (1, True)
    assert run("yield")[0] == 0, "its own person needs no head"
