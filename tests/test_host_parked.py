"""A session's context given out and taken in by real hosts over HTTP."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from serving.model import ParkingSpec
from tests.fakes import Behaviour
from tests.host_process import TOKEN, HostProcess, model_spec, session

MakeHost = Callable[..., HostProcess]
ANN = session("ann")
HELLO = "hello " * 40


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[MakeHost]:
    made: list[HostProcess] = []

    def make(behaviour: Behaviour = Behaviour(), name: str = "den/0", **model: Any) -> HostProcess:  # noqa: B008
        host = HostProcess(tmp_path / str(len(made)), model_spec(**model), "nowhere.gguf", behaviour)
        spec = json.loads((host.folder / "spec.json").read_text())
        spec |= {"replica": name, "machine": name.partition("/")[0]}
        (host.folder / "spec.json").write_text(json.dumps(spec))
        made.append(host)
        host.start()
        return host

    yield make
    for host in made:
        host.kill()


class Given:
    """An answer of /parked, read and closed unless it is to be `left` unread."""

    def __init__(
        self,
        host: HostProcess,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        left: bool = False,
    ) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", host.port, timeout=30)
        connection.request(method, path, body, {"authorization": f"Bearer {TOKEN}", **(headers or {})})
        response = connection.getresponse()
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.data = b"" if left else response.read()
        response.close()
        connection.close()

    @property
    def code(self) -> str:
        return str(json.loads(self.data)["error"]["code"])


def give(host: HostProcess, query: str = "", who: str = ANN, left: bool = False) -> Given:
    return Given(host, "GET", f"/parked/{who}{query}", left=left)


def take(host: HostProcess, data: bytes, fingerprint: str, who: str = ANN) -> Given:
    return Given(host, "PUT", f"/parked/{who}", data, {"x-homeport-fingerprint": fingerprint})


def fingerprint(host: HostProcess) -> str:
    return str(host.state()["parking"]["fingerprint"])


def learn(host: HostProcess, replica: str, generation: int) -> None:
    pin = {
        "session": ANN,
        "model": host.model.name,
        "replica": replica,
        "generation": generation,
        "created_s": 2.0,
    }
    assert host.post("/pins", {"pins": [pin]}).status == 200


def files(host: HostProcess) -> set[str]:
    return {path.name for path in (host.folder / "parked").iterdir()}


def talked(host: HostProcess) -> list[dict[str, str]]:
    """Ann's conversation after one turn."""
    messages = [{"role": "user", "content": HELLO}]
    answer = host.chat({"messages": messages}, who="ann")
    assert answer.status == 200
    return [*messages, answer.body["choices"][0]["message"], {"role": "user", "content": "and now?"}]


def goes_on(host: HostProcess, messages: list[dict[str, str]], generation: int) -> dict[str, Any]:
    headers = {"x-homeport-pin": "kept", "x-homeport-generation": str(generation)}
    answer = host.chat({"messages": messages}, headers, who="ann")
    assert answer.status == 200, answer.body
    return {**answer.body["homeport"], "word": answer.headers["x-homeport-pin"]}


@pytest.mark.parametrize("lies", ["in the engine", "in memory", "on disk"])
def test_a_context_goes_from_host_to_host_wherever_it_lies(make_host: MakeHost, lies: str) -> None:
    old, new = make_host(hold_s=0.0), make_host(name="attic/0")
    messages = talked(old)
    if lies != "in the engine":
        old.chat("who else?", who="ben")
        old.wait_until(lambda state: state["parking"]["saves"] >= 1 and not state["parking"]["unwritten"])
    if lies == "on disk":
        old.kill()
        old.start()
    given = give(old)
    assert (given.status, given.headers["x-homeport-fingerprint"]) == (200, fingerprint(old))
    data = given.data
    taken = take(new, data, fingerprint(new))
    assert taken.status == 200, taken.data
    assert json.loads(taken.data) == {"tokens": int(given.headers["x-homeport-tokens"]), "bytes": len(data)}
    assert all(name.endswith(".tmp") for name in files(new)), "nobody's yet"
    learn(new, "attic/0", 2)
    learn(old, "attic/0", 2)
    assert f"{ANN}.kv" in files(new)
    old.wait_until(lambda state: ANN not in [each["session"] for each in state["residents"]])
    told = goes_on(new, messages, 2)
    assert (told["word"], told["context"], told["cause"]) == ("moved", "resumed", None)
    assert told["reused_tokens"] == int(given.headers["x-homeport-tokens"])
    deadline = time.monotonic() + 10
    while f"{ANN}.kv" in files(old):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (old.faults(), new.faults()) == ("", "")


def test_a_turn_that_comes_meanwhile_waits_and_is_told_where_its_session_is(make_host: MakeHost) -> None:
    host = make_host(Behaviour(sequences=2), sessions=2)
    messages = talked(host)
    give(host)
    answers: list[Any] = []
    headers = {"x-homeport-pin": "kept"}
    turn = threading.Thread(
        target=lambda: answers.append(host.chat({"messages": messages}, headers, who="ann"))
    )
    turn.start()
    host.chat("others go on", who="ben")
    assert not answers
    learn(host, "attic/0", 2)
    turn.join(10)
    (answer,) = answers
    assert (answer.status, answer.body["homeport"]["pin"]["replica"]) == (421, "attic/0")
    assert give(host).code == "pin_not_found"


def test_a_stream_that_waits_for_a_move_sends_no_head_before_it_is_over(make_host: MakeHost) -> None:
    """Its head would be out after a second of any other wait, and then it could not be sent after its session."""
    host = make_host(Behaviour(context=1_000_000, head_s=1.0), context=1_000_000)
    long = {"messages": [{"role": "user", "content": "hello " * 120_000}], "max_tokens": 4}
    assert host.chat(long, who="ann").status == 200
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", host.port))
    slow.sendall(f"GET /parked/{ANN} HTTP/1.1\r\nhost: den\r\nauthorization: Bearer {TOKEN}\r\n\r\n".encode())
    assert b" 200 " in slow.recv(1000)  # The rest is not read: it is still given.
    answers: list[Any] = []

    def ask() -> None:
        stream = host.stream("and now?", {"x-homeport-pin": "kept"}, who="ann")
        answers.append((stream.status, stream.headers.get("x-homeport-pin")))
        stream.close()

    turn = threading.Thread(target=ask)
    began = time.monotonic()
    turn.start()
    turn.join(2.5)
    waits = not answers
    assert time.monotonic() - began > 2
    learn(host, "attic/0", 2)
    turn.join(10)
    slow.close()
    assert (waits, [status for status, _ in answers]) == (True, [421])


@pytest.mark.parametrize("breaks", ["after the last byte", "before it"])
def test_a_session_whose_mover_dies_goes_on_where_it_was(make_host: MakeHost, breaks: str) -> None:
    host = make_host(Behaviour(context=200_000), context=200_000)
    messages = [{"role": "user", "content": "hello " * (30 if breaks == "after the last byte" else 25_000)}]
    answer = host.chat({"messages": messages, "max_tokens": 4}, who="ann")
    messages += [answer.body["choices"][0]["message"], {"role": "user", "content": "and now?"}]
    assert give(host, left=breaks == "before it").status == 200
    began = time.monotonic()
    told = goes_on(host, messages, 1)
    assert (told["context"], told["cause"]) == ("resident", None)
    assert time.monotonic() - began < 8


def test_a_session_that_runs_or_is_about_to_move_is_busy(make_host: MakeHost) -> None:
    host = make_host(Behaviour(endless=True, step_s=0.01))
    stream = host.stream("hello", who="ann")
    stream.first_text()
    assert give(host).code == "session_busy"
    stream.close()
    host.wait_state(running=0)
    assert give(host).status == 200
    assert give(host).code == "session_busy"
    assert give(host, who=session("nobody")).code == "pin_not_found"


def test_turns_are_ended_where_the_mover_says_so_and_what_they_made_goes_along(make_host: MakeHost) -> None:
    host = make_host(Behaviour(endless=True, step_s=0.01), sessions=1)
    running = host.stream("hello", who="ann")
    running.first_text()
    waiting = host.post_and_wait("hello again", "ann")
    host.wait_state(waiting=1)
    given = give(host, "?turns=end")
    assert given.status == 200
    events = list(running.events())
    assert events[-1]["error"]["code"] == "host_stopping"
    assert not running.done
    assert b" 503 " in waiting.recv(1000)
    waiting.close()
    assert int(given.headers["x-homeport-tokens"]) > len("user:hello\nassistant:")
    assert host.wait_state(running=0)["waiting"] == 0


@pytest.mark.parametrize(
    ("harm", "status", "code"),
    [
        ("a flipped bit", 422, "context_damaged"),
        ("another session's", 422, "context_damaged"),
        ("another engine's", 409, "engine_differs"),
        ("too large", 413, "no_room"),
        ("at home", 409, "session_is_here"),
    ],
)
def test_what_is_not_as_it_must_be_is_not_taken(
    make_host: MakeHost, harm: str, status: int, code: str
) -> None:
    old = make_host()
    disk_bytes = 100 if harm == "too large" else 2**30
    new = make_host(Behaviour(), "attic/0", parking=ParkingSpec(2**20, disk_bytes))
    talked(old)
    data, made_by, who = bytearray(give(old).data), fingerprint(new), ANN
    match harm:
        case "a flipped bit":
            data[len(data) // 2] ^= 4
        case "another session's":
            who = session("ben")
        case "another engine's":
            made_by = "0" * 64
        case "at home":
            learn(new, "attic/0", 1)
    taken = take(new, bytes(data), made_by, who)
    assert (taken.status, taken.code) == (status, code)
    new.wait_until(lambda _: files(new) == set())
    assert new.faults() == ""


def test_half_a_context_is_not_kept_and_a_host_that_is_killed_keeps_none_that_has_no_session(
    make_host: MakeHost,
) -> None:
    old, new = make_host(), make_host(name="attic/0")
    talked(old)
    data = give(old).data
    half = http.client.HTTPConnection("127.0.0.1", new.port, timeout=30)
    half.putrequest("PUT", f"/parked/{ANN}")
    for name, value in {
        "authorization": f"Bearer {TOKEN}",
        "x-homeport-fingerprint": fingerprint(new),
        "content-length": str(len(data)),
    }.items():
        half.putheader(name, value)
    half.endheaders()
    half.send(data[: len(data) // 2])
    new.wait_until(lambda _: len(files(new)) == 1)
    half.close()
    new.wait_until(lambda _: files(new) == set())
    assert take(new, data, fingerprint(new)).status == 200
    assert len(files(new)) == 1
    new.kill()
    new.start()
    assert files(new) == set()
    assert give(new).code == "pin_not_found"
