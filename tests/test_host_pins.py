"""Pins of a real host over its HTTP: ended in mid-turn, moved away, found again."""

import http.client
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import Behaviour
from tests.host_process import TOKEN, HostProcess, model_spec, session

MakeHost = Callable[..., HostProcess]
GUESS = {"x-homeport-rank": "guessed", "x-homeport-scope": session("key")}


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[MakeHost]:
    made: list[HostProcess] = []

    def make(behaviour: Behaviour = Behaviour(), **model: Any) -> HostProcess:  # noqa: B008
        host = HostProcess(tmp_path / str(len(made)), model_spec(**model), "nowhere.gguf", behaviour)
        made.append(host)
        host.start()
        return host

    yield make
    for host in made:
        host.kill()


def delete(host: HostProcess, path: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", host.port, timeout=20)
    try:
        connection.request("DELETE", path, headers={"authorization": f"Bearer {TOKEN}"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_a_session_that_is_ended_in_mid_turn_leaves_nothing(make_host: MakeHost) -> None:
    host = make_host(Behaviour(endless=True, step_s=0.01))
    stream = host.stream("hello", who="ann")
    stream.first_text()
    path = f"/pins/{session('ann')}?model={host.model.name}"
    assert delete(host, path) == (200, {"ended": True})
    events = list(stream.events())
    assert events[-1]["error"]["code"] == "session_ended"
    assert not stream.done
    host.wait_until(lambda state: (state["running"], state["pins"], state["residents"]) == (0, 0, []))
    assert host.get(path).status == 404
    assert delete(host, path) == (200, {"ended": False})


def test_a_session_that_moved_away_is_told_where_and_its_context_goes(make_host: MakeHost) -> None:
    host = make_host()
    host.chat("hello", who="ann")
    path, deadline = f"/pins/{session('ann')}", time.monotonic() + 10.0
    while (pin := host.get(path).body)["turns"] == 0:  # Nobody waits for its writing.
        assert time.monotonic() < deadline
    assert (pin["state"], pin["tokens"] > 0, pin["turns"]) == ("resident", True, 1)
    away = {**pin, "replica": "attic/0", "generation": 2}
    (learned,) = host.post("/pins", {"pins": [away]}).body["pins"]
    assert (learned["replica"], learned["generation"]) == ("attic/0", 2)
    host.wait_state(residents=[])
    answer = host.chat("hello", {"x-homeport-pin": "kept"}, who="ann")
    assert (answer.status, answer.body["homeport"]["pin"]["replica"]) == (421, "attic/0")


def test_a_session_that_moves_in_says_that_it_moved(make_host: MakeHost) -> None:
    host = make_host()
    moved = {"x-homeport-pin": "moved", "x-homeport-generation": "2"}
    answer = host.chat("hello", moved, who="ann")
    assert (answer.headers["x-homeport-pin"], answer.body["homeport"]["cause"]) == ("moved", "moved")
    answer = host.chat("hello", moved, who="ann")
    assert answer.headers["x-homeport-pin"] == "kept"


def test_a_guess_is_found_by_what_was_said_and_by_its_public_id(make_host: MakeHost) -> None:
    host = make_host()
    said = {**GUESS, "x-homeport-history": session("hello"), "x-homeport-public": "hp_ann"}
    host.chat("hello", said, who="ann")
    asked = {"histories": [session("hello")], "scope": session("key")}
    assert host.post("/pins/find", asked).body["session"] == session("ann")
    assert host.post("/pins/find", {**asked, "scope": session("other key")}).status == 404
    assert host.get(f"/pins/hp_ann?model={host.model.name}").body["guessed"] is True


def test_the_line_is_in_the_state(make_host: MakeHost) -> None:
    host = make_host(Behaviour(endless=True, step_s=0.01))
    host.stream("hello", who="ann").first_text()
    waiting = host.post_and_wait("hello", "ben")
    state = host.wait_state(waiting=1)
    (waits,) = state["line"]
    assert (waits["session"], waits["position"]) == (session("ben"), 1)
    waiting.close()
