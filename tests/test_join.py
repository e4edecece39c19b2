"""A machine asks a head to be let in: the real controller app over a real socket."""

import http.server
import json
import logging
import socket
import socketserver
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import join
from cluster.build import build_id
from cluster.join import (
    HeadAway,
    JoinRefused,
    RayIs,
    ask,
    control_url,
    joined,
    local_address,
    ray_of,
    settle,
)
from cluster.paths import Paths, write_private
from cluster.proof import Purpose, key_of, machine_token, proven
from serving import join_routes
from serving.join_tokens import Now, make
from tests.heads import HEAD_ID, RAY, Head

BUILD = build_id()
ASKED = {
    "nonce": "n",
    "id": "a" * 32,
    "address": "127.0.0.1",
    "build": "b",
    "host_name": "h",
}


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    with Head(tmp_path) as head:
        yield head


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "worker", tmp_path / "locks")


def refusal(head: Head, token: str, paths: Paths, name: str | None = None) -> JoinRefused:
    with pytest.raises(JoinRefused) as refused:
        ask(head.url, token, paths, name, 5.0)
    return refused.value


def test_a_machine_learns_who_it_is_and_what_it_needs(head: Head, paths: Paths) -> None:
    head.revision["machines"] = [
        {
            "name": "attic",
            "address": "127.0.0.1",
            "zone": "home",
            "reserve_cores": 0,
            "yield_to": ["steam"],
        }
    ]
    answer = ask(head.url, head.list_token, paths, None, 5.0)
    assert (answer.name, answer.zone, answer.address, answer.ray) == ("attic", "home", "127.0.0.1", RAY)
    machine = settle(paths, answer)
    assert (machine.name, machine.reserve.cores, machine.address) == ("attic", 0, "127.0.0.1")
    assert paths.machine_token.read_text() == machine_token(head.token, machine.id)
    assert paths.ray_token.read_text() == head.paths.ray_token.read_text()
    assert not paths.digest_key.exists()
    assert not paths.cluster_token.exists()
    assert joined(paths) == join.Joined(head.url, "attic", answer.told)
    kept = json.loads(paths.machine.read_text())
    assert (kept["id"], kept["name"], kept["zone"], kept["ports"]) == (
        machine.id,
        "attic",
        "home",
        [8100, 8199],
    )
    assert kept["yield_to"] == ["steam"]
    for file in (paths.machine_token, paths.ray_token, paths.machine, paths.joined):
        assert file.stat().st_mode & 0o777 == 0o600
    assert head.book.remembered()[machine.id].address == "127.0.0.1"


def test_a_machine_that_joined_asks_again_with_its_own_token_and_stays_who_it_is(
    head: Head, paths: Paths
) -> None:
    first = settle(paths, ask(head.url, head.list_token, paths, "attic", 5.0))
    answer = ask(head.url, paths.machine_token.read_text(), paths, None, 5.0)
    assert (answer.machine_token, answer.ray_token) == (None, None)
    again = settle(paths, answer)
    assert (again.id, again.name) == (first.id, "attic")
    assert paths.machine_token.read_text() == machine_token(head.token, first.id)
    assert paths.ray_token.read_text() == head.paths.ray_token.read_text()


def test_a_machine_of_a_former_build_is_healed_by_its_next_join(head: Head, paths: Paths) -> None:
    write_private(head.paths.former_token, "what every machine had")
    paths.make()
    write_private(paths.cluster_token, "what every machine had")
    machine = settle(paths, ask(head.url, join.own_token(paths), paths, "attic", 5.0))
    assert paths.machine_token.read_text() == machine_token(head.token, machine.id)
    assert not paths.cluster_token.exists()


def test_a_token_is_used_by_the_machine_that_got_in_and_no_other(
    head: Head, paths: Paths, tmp_path: Path
) -> None:
    token = make(head.paths, Now.here())
    head.ray_is("starting")
    with pytest.raises(HeadAway, match="Ray is not up yet"):
        ask(head.url, token, paths, "attic", 5.0)
    head.ray_is("ready")
    assert refusal(head, token, paths, "den").code == "name_taken"
    other = Paths(tmp_path / "other", tmp_path / "locks")
    assert ask(head.url, token, other, "cellar", 5.0).name == "cellar"
    refused = refusal(head, token, paths, "attic")
    assert refused.code == "token_used"
    assert "`homeport join-token` on the head makes a new one" in str(refused)


def test_a_token_expires(head: Head, paths: Paths) -> None:
    assert refusal(head, make(head.paths, Now(time.time() - 601)), paths).code == "token_expired"


def test_an_unknown_token_is_refused_and_told_to_nobody(
    head: Head, paths: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        refused = refusal(head, "my-secret-token", paths)
        ask(head.url, head.list_token, paths, None, 5.0)
    assert refused.code == "token_unknown"
    assert "my-secret-token" not in str(refused)
    assert "127.0.0.1 may not join: token_unknown" in caplog.text
    for kept in ("my-secret-token", head.list_token, head.token):
        assert kept not in caplog.text


def test_an_answer_shows_no_secret(head: Head, paths: Paths) -> None:
    answer = ask(head.url, head.list_token, paths, None, 5.0)
    assert answer.machine_token is not None
    assert answer.ray_token is not None
    assert answer.machine_token not in repr(answer)
    assert answer.ray_token not in repr(answer)


def test_another_build_is_refused_and_both_are_named(
    head: Head, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join, "build_id", lambda: "0.0.9+abc")
    refused = refusal(head, head.list_token, paths)
    assert refused.code == "other_build"
    assert BUILD in str(refused)
    assert "0.0.9+abc" in str(refused)


def test_a_name_that_another_machine_has_is_refused(head: Head, paths: Paths, tmp_path: Path) -> None:
    ask(head.url, head.list_token, paths, "ubuntu", 5.0)
    second = Paths(tmp_path / "second", tmp_path / "locks")
    refused = refusal(head, head.list_token, second, "ubuntu")
    assert refused.code == "name_taken"
    assert "--name NAME" in str(refused)
    head.book.forget("ubuntu", ())
    assert ask(head.url, head.list_token, second, "ubuntu", 5.0).name == "ubuntu"


def test_the_head_does_not_join_itself(head: Head) -> None:
    assert refusal(head, head.list_token, head.paths).code == "is_head"


def test_a_head_that_serves_its_machine_alone_lets_nobody_in(head: Head, paths: Paths) -> None:
    head.revision["control"] = {"host": "127.0.0.1", "port": 8090}
    assert refusal(head, head.list_token, paths).code == "alone"


def test_an_address_that_the_head_sees_otherwise_is_refused(
    head: Head, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.join_routes._peer", lambda _: "192.0.2.5")
    refused = refusal(head, head.list_token, paths)
    assert refused.code == "other_address"
    assert "192.0.2.5" in str(refused)
    assert head.book.remembered() == {}


def test_a_full_disk_of_the_head_is_told(head: Head, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(head.book, "here", full)
    assert "make room on its disk" in str(refusal(head, head.list_token, paths))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"nonce": 5}',
        json.dumps({**ASKED, "proof": "p", "id": "../etc"}).encode(),
        json.dumps({**ASKED, "proof": "p", "host_name": "h" * 300}).encode(),
        json.dumps({**ASKED, "proof": "p", "name": 7}).encode(),
        json.dumps({**ASKED, "proof": None}).encode(),
        b"[" * 16000,
        b"x" * 20000,
    ],
)
def test_what_is_no_request_to_join_is_refused(head: Head, body: bytes) -> None:
    status, told = post(head, "/join", body)
    assert (status, told["error"]["code"]) == (400, "malformed")


def test_a_proof_holds_for_the_whole_request(head: Head) -> None:
    asked = proven(key_of(head.list_token), "join", ASKED)
    assert post(head, "/join", json.dumps({**asked, "id": "b" * 32}).encode())[0] == 401
    assert post(head, "/join", json.dumps(asked).encode())[1]["error"]["code"] == "other_build"


def test_where_ray_is_and_leaving_are_for_the_clusters_own(head: Head) -> None:
    head.leaving = {"left": ["attic"], "away": ["cellar"], "hosts": {"attic": []}}
    for token in ("", head.list_token):
        assert post(head, "/leave", b"{}", token=token)[0] == 401
        assert post(head, "/ray", json.dumps(proven(key_of(token), "ray", {"nonce": "n"})).encode())[0] == 401
        assert ray_of(head.url, token, HEAD_ID, 5.0) is None
    assert post(head, "/ray", b"[" * 16000)[0] == 400
    assert head.left == []
    assert ray_of(head.url, machine_token(head.token, HEAD_ID), HEAD_ID, 5.0) == RayIs(RAY, is_heard=False)
    head.ray_is("failed")
    assert ray_of(head.url, machine_token(head.token, HEAD_ID), HEAD_ID, 5.0) is None
    assert post(head, "/leave", b"{}", token=head.token) == (200, head.leaving)


def test_nobody_is_let_in_once_all_were_asked_to_leave(
    head: Head, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    post(head, "/leave", b"{}", token=head.token)
    with pytest.raises(HeadAway, match="is being ended"):
        ask(head.url, head.list_token, paths, None, 5.0)
    assert head.book.remembered() == {}
    monkeypatch.setattr(
        join_routes, "LEAVING_S", 0.0
    )  # the head goes on: whoever asked for its end was stopped
    assert ask(head.url, head.list_token, paths, "attic", 5.0).name == "attic"


# who is no head


class Stranger:
    """Answers at a head's address; `heard` is what it was told, `says` what it answers."""

    def __init__(self, says: bytes) -> None:
        self.heard: list[bytes] = []
        self.says = says

    def __enter__(self) -> "Stranger":
        stranger = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                head = f"{self.requestline}\n{self.headers}".encode()
                stranger.heard.append(head + self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(stranger.says)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"


@pytest.mark.parametrize("which", ["its own", "a lists", "for one machine"])
def test_a_stranger_at_the_heads_address_learns_no_token_and_is_not_obeyed(
    head: Head, paths: Paths, which: str
) -> None:
    tokens = {
        "its own": machine_token(head.token, join.machine_id(paths)),
        "a lists": head.list_token,
        "for one machine": make(head.paths, Now.here()),
    }
    token = tokens[which]
    machine = {"name": "attic", "zone": "x", "address": "127.0.0.1", "ports": [8100, 8199]}
    answer = {"machine_token": "theirs", "ray_token": "theirs", "ray": "192.0.2.1:1", "machine": machine}
    with Stranger(json.dumps(answer).encode()) as stranger:
        purposes: list[Purpose] = ["join", "ray", "ray_is", "joined"]
        for purpose in purposes:
            asked = json.loads(stranger.heard[-1].splitlines()[-1]) if stranger.heard else {}
            told = {**answer, "nonce": asked.get("nonce", "")}
            stranger.says = json.dumps(proven(key_of("a guess"), purpose, told)).encode()
            with pytest.raises(JoinRefused, match="does not prove that it knows the token") as refused:
                ask(stranger.url, token, paths, None, 5.0)
            assert refused.value.code == "no_homeport"
            assert ray_of(stranger.url, token, HEAD_ID, 5.0) is None
        stranger.says = b"[" * 60000
        assert ray_of(stranger.url, token, HEAD_ID, 5.0) is None
    for heard in stranger.heard:
        assert token.encode() not in heard
        assert key_of(token).encode() not in heard
    assert not paths.cluster_token.exists()
    assert not paths.joined.exists()


def test_what_a_head_answered_before_proves_nothing_when_it_is_said_again(head: Head, paths: Paths) -> None:
    asked = {**ASKED, "build": build_id(), "address": "127.0.0.1"}
    body = json.dumps(proven(key_of(head.list_token), "join", asked)).encode()
    status, told = post(head, "/join", body)
    assert status == 200
    with Stranger(json.dumps(told).encode()) as stranger, pytest.raises(JoinRefused, match="does not prove"):
        ask(stranger.url, head.list_token, paths, None, 5.0)
    assert not paths.machine_token.exists()


def test_an_address_where_nothing_listens_is_away(paths: Paths) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        with pytest.raises(HeadAway, match=rf"Nothing answers at http://127.0.0.1:{port} .*firewall"):
            ask(f"http://127.0.0.1:{port}", "t", paths, None, 2.0)


def test_one_that_accepts_and_says_nothing_is_away(paths: Paths) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(HeadAway, match="timed out"):
            ask(f"http://127.0.0.1:{silent.getsockname()[1]}", "t", paths, None, 0.3)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\nnot found",
        b'HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{"hello": "you"}',
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]",
        b'HTTP/1.1 404 Not Found\r\ncontent-length: 22\r\n\r\n{"detail":"Not Found"}',
        b'HTTP/1.1 500 X\r\ncontent-length: 32\r\n\r\n{"error":{"message":"a","code":1}}',
    ],
)
def test_what_is_no_homeport_is_told_apart(paths: Paths, answer: bytes) -> None:
    with says(answer) as port, pytest.raises(JoinRefused) as refused:
        ask(f"http://127.0.0.1:{port}", "my-secret", paths, None, 2.0)
    assert refused.value.code == "no_homeport"
    assert "network.control" in str(refused.value)
    assert "my-secret" not in str(refused.value)


# addresses, ids


def test_a_head_is_named_by_address_and_port() -> None:
    assert control_url("192.168.1.10") == "http://192.168.1.10:8090"
    assert control_url("192.168.1.10:9") == "http://192.168.1.10:9"
    for wrong in ("", "den", "den:8090", "1.2.3.4:", "1.2.3.4:x", "1.2.3.4:70000", "::1", "http://1.2.3.4"):
        with pytest.raises(JoinRefused, match=r"192\.168\.1\.10:9090"):
            control_url(wrong)


def test_the_own_address_towards_a_head() -> None:
    assert local_address("http://127.0.0.1:8090") == "127.0.0.1"


def test_an_id_stays(paths: Paths) -> None:
    assert join.machine_id(paths) == join.machine_id(paths)
    assert len(join.machine_id(paths)) == 32


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"head": "x"}', "null"])
def test_a_broken_note_is_no_head(paths: Paths, text: str) -> None:
    paths.make()
    paths.joined.write_text(text)
    assert joined(paths) is None


def post(head: Head, path: str, body: bytes | None, *, token: str = "") -> tuple[int, Any]:
    asked = urllib.request.Request(head.url + path, body, {"authorization": f"Bearer {token}"})  # noqa: S310
    try:
        with urllib.request.urlopen(asked, timeout=5) as answer:  # noqa: S310
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


class says:  # noqa: N801 - reads as a sentence
    """A server that answers every connection with these bytes."""

    def __init__(self, answer: bytes) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.recv(65536)
                self.request.sendall(answer)

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> int:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return int(self.server.server_address[1])

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
