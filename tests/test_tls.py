"""TLS between machines, over real sockets: whom one trusts, what is heard on the way, and how it ends if it fails."""

import asyncio
import contextlib
import http.client
import http.server
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster import join, machine_tls, tls
from cluster.certificates import MACHINE_DAYS, issue, new_authority, new_key, new_request
from cluster.join import HeadAway, JoinRefused, ask, joined, ray_of, settle
from cluster.paths import Paths, write_private
from cluster.proof import machine_token
from router.api_client import Away, ask_control
from serving import file_server
from serving.ask_host import AWAY, ask_host
from serving.bring_order import Giver
from serving.copy_rate import CopyRate
from serving.host import LOAD_FAILED
from serving.join_tokens import Now, make
from serving.model_copy import Copying
from serving.model_trouble import Trouble
from tests.fakes import Behaviour
from tests.giver import TOKEN as FILES_TOKEN
from tests.giver import ZONE, giving, part_of
from tests.heads import HEAD_ID, RAY, Head
from tests.host_process import TOKEN, HostProcess, model_spec
from tests.ports import free_port
from tests.standins import MODEL, AnswersHost, bearer_of, routed
from tests.tap import Tap


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    with Head(tmp_path, speaks_tls=True) as head:
        yield head


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "worker", tmp_path / "locks")


def a_token(head: Head) -> str:
    return make(head.paths, Now.here(), speaks_tls=head.shown is not None)


def refusal(url: str, token: str, paths: Paths) -> JoinRefused:
    with pytest.raises(JoinRefused) as refused:
        ask(url, token, paths, None, 5.0)
    return refused.value


# joining


def test_a_machine_that_joins_gets_a_certificate_and_knows_its_head_by_the_ca(
    head: Head, paths: Paths
) -> None:
    plain = head.url.replace("https", "http")  # what a person says is an address
    machine = settle(paths, ask(plain, a_token(head), paths, "attic", 5.0))
    kept = joined(paths)
    assert kept is not None
    assert (kept.head, kept.name) == (head.url, "attic")
    assert paths.ca.read_text() == machine_tls.authority(head.paths, 0.0).certificate
    assert machine_tls.is_on(paths)
    for file in (paths.key, paths.certificate, paths.ca):
        assert file.stat().st_mode & 0o777 == 0o600
    tls.ServerTls(machine_tls.own_files(paths))  # key and certificate belong together
    first = paths.certificate.read_text()

    again = ask(head.url, join.own_token(paths), paths, None, 5.0)
    assert (again.machine_token, again.ray_token) == (None, None)
    assert settle(paths, again).id == machine.id
    assert paths.certificate.read_text() != first
    told = ray_of(head.url, join.own_token(paths), machine.id, 5.0, paths)
    assert told is not None
    assert (told.ray, told.is_heard) == (RAY, True)
    assert ray_of(head.url, join.own_token(paths), machine.id, 5.0) is None


def test_nothing_of_a_join_can_be_read_on_the_way(head: Head, paths: Paths) -> None:
    token = a_token(head)
    with Tap(head.port) as tap:
        answer = ask(f"http://{tap.at}", token, paths, "attic", 5.0)
        settle(paths, answer)
        ask(answer.head, join.own_token(paths), paths, None, 5.0)
        heard = bytes(tap.asked + tap.answered)
    assert len(heard) > 2000
    secrets = (token, token.partition(".")[0], join.own_token(paths), paths.ray_token.read_text(), head.token)
    assert not [secret for secret in secrets if secret.encode() in heard]
    assert b"attic" not in heard
    assert b"PRIVATE KEY" not in heard


def test_a_head_that_the_token_is_not_of_hears_nothing(head: Head, paths: Paths, tmp_path: Path) -> None:
    with Head(tmp_path / "other", speaks_tls=True) as other:
        refused = refusal(other.url, a_token(head), paths)
        assert "is not the head that this token is of: its CA is another one" in str(refused)
        assert other.book.remembered() == {}
    assert not paths.machine_token.exists()


def test_a_head_with_another_ca_than_that_of_the_join_is_told_apart(
    head: Head, paths: Paths, tmp_path: Path
) -> None:
    settle(paths, ask(head.url, a_token(head), paths, "attic", 5.0))
    with Head(tmp_path / "other", speaks_tls=True) as other:
        refused = refusal(other.url, join.own_token(paths), paths)
        assert "is another one than this machine knows" in str(refused)
        assert "join anew with a new token (`homeport join-token` on the head)" in str(refused)
        settle(paths, ask(other.url, a_token(other), paths, "attic", 5.0))  # the remedy
        assert ask(other.url, join.own_token(paths), paths, None, 5.0).name == "attic"


def test_a_token_of_the_old_form_is_refused_with_the_remedy(head: Head, paths: Paths) -> None:
    plain = head.url.replace("https", "http")
    for token in (make(head.paths, Now.here()), "0" * 64):
        refused = refusal(plain, token, paths)
        assert refused.code == "needs_tls"
        assert "speaks TLS, and the token of this machine does not say by which CA" in str(refused)
        assert "`homeport join-token` on the head makes one" in str(refused)


def test_a_token_for_tls_is_never_used_in_clear(head: Head, paths: Paths, tmp_path: Path) -> None:
    token = a_token(head)
    with Head(tmp_path / "plain") as plain, Tap(plain.port) as tap:
        refused = refusal(f"http://{tap.at}", token, paths)
        assert "speaks no TLS, as the head that this token is of does" in str(refused)
        assert b"/join" not in tap.asked
    with pytest.raises(HeadAway, match="Nothing answers at https://"):
        ask("http://127.0.0.1:9", token, paths, None, 2.0)


def test_a_machine_that_joined_over_tls_does_not_go_back_to_plain_http(
    head: Head, paths: Paths, tmp_path: Path
) -> None:
    settle(paths, ask(head.url, a_token(head), paths, "attic", 5.0))
    with Head(tmp_path / "plain") as plain, Tap(plain.port) as tap:
        refused = refusal(f"https://{tap.at}", join.own_token(paths), paths)
        assert "does not speak TLS as this cluster does" in str(refused)
        assert b"/join" not in tap.asked
    paths.ca.unlink()
    assert "by which this machine knew its head" in str(refusal(head.url, join.own_token(paths), paths))


def test_a_machine_that_asks_for_no_certificate_does_not_join(head: Head, paths: Paths) -> None:
    def without(_paths: Paths, _machine: str) -> None:
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine_tls, "request", without)
        assert "it asks for no certificate" in str(refusal(head.url, a_token(head), paths))
        patch.setattr(machine_tls, "request", lambda *_: "x")
        assert "it is no request for a certificate" in str(refusal(head.url, a_token(head), paths))


def test_the_token_of_one_machine_joins_as_no_other(head: Head, paths: Paths, tmp_path: Path) -> None:
    settle(paths, ask(head.url, a_token(head), paths, "attic", 5.0))
    thief = Paths(tmp_path / "thief", tmp_path / "locks")
    machine_tls.keep(thief, "none", paths.ca.read_text())
    assert refusal(head.url, join.own_token(paths), thief).code == "token_unknown"
    for stolen in (join.own_token(paths), machine_token(head.token, HEAD_ID)):
        assert control(head, paths, "/fleet", stolen) == 401
        assert control(head, paths, "/leave", stolen, "POST") == 401
    assert control(head, paths, "/fleet", head.token) == 200


def control(head: Head, paths: Paths, path: str, token: str, method: str = "GET") -> int:
    context = tls.client_context(paths.ca)
    connection = http.client.HTTPSConnection("127.0.0.1", head.port, timeout=5, context=context)
    with contextlib.closing(connection):
        connection.request(method, path, headers={"authorization": f"Bearer {token}"})
        return connection.getresponse().status


def test_the_command_line_asks_the_controller_over_tls_and_says_what_is_wrong(
    head: Head, tmp_path: Path
) -> None:
    told = {"control": {"host": "127.0.0.1", "port": head.port, "tls": True}}
    write_private(head.paths.revision, json.dumps(told))
    assert ask_control(head.paths, "POST", "/leave", {}) == head.leaving
    write_private(head.paths.ca, new_authority(time.time()).certificate)
    with pytest.raises(Away, match="certificate verify failed"):
        ask_control(head.paths, "GET", "/fleet")
    head.paths.ca.unlink()
    with pytest.raises(Away, match="`homeport up` make it anew"):
        ask_control(head.paths, "GET", "/fleet")


# a machine's servers


@dataclass
class Machine:
    """A machine's files, made by the CA of a head."""

    paths: Paths
    signer: Any

    @property
    def files(self) -> tls.Files:
        return machine_tls.own_files(self.paths)

    @property
    def trust(self) -> ssl.SSLContext:
        return tls.client_context(self.paths.ca)

    def certify(self, address: str = "127.0.0.1", now: float | None = None) -> None:
        now = time.time() if now is None else now
        made = issue(self.signer, machine_tls.request(self.paths, "a" * 32), "a" * 32, address, now)
        machine_tls.keep(self.paths, made, self.signer.certificate)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    of_old = new_authority(time.time() - (MACHINE_DAYS + 365) * 86400)
    made = Machine(Paths(tmp_path / "machine", tmp_path / "locks"), of_old)
    made.certify()
    return made


def says_why(server: tls.ServerTls, trust: ssl.SSLContext, address: str = "127.0.0.1") -> str:
    """What a client says of a server that it does not trust."""
    listening = socket.create_server((address, 0))

    def serve() -> None:
        with contextlib.suppress(OSError), listening, listening.accept()[0] as there:
            server.context.wrap_socket(there, server_side=True).close()

    thread = threading.Thread(target=serve)
    thread.start()
    port = int(listening.getsockname()[1])
    connection = http.client.HTTPSConnection(address, port, timeout=5, context=trust)
    with contextlib.closing(connection), pytest.raises(ssl.SSLError) as refused:
        connection.connect()
    thread.join(10)
    return tls.why(refused.value, "attic") or ""


def test_a_ca_that_stands_behind_the_right_one_is_not_taken(machine: Machine, paths: Paths) -> None:
    """Base64 ends at its padding, wherever the text ends: the fingerprint is that of the first."""
    right = next(ca for ca in iter(lambda: new_authority(time.time()).certificate, None) if "=" in ca)

    class Between(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = (right + machine.signer.certificate).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Between) as server:
        server.socket = tls.ServerTls(machine.files).context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        taken = tls.fetch_ca("127.0.0.1", server.server_port, tls.fingerprint(right), 5.0)
        thread.join(10)
    assert taken == right
    assert tls.context_of(taken).cert_store_stats()["x509_ca"] == 1


def test_a_client_says_what_is_wrong_with_a_certificate(machine: Machine) -> None:
    server = tls.ServerTls(machine.files)
    assert "for another address" in says_why(server, machine.trust, "127.0.0.2")
    assert "another one than this machine knows" in says_why(
        server, tls.context_of(new_authority(time.time()).certificate)
    )
    machine.certify(now=time.time() - (MACHINE_DAYS + 1) * 86400)
    assert server.renew()
    assert "has expired by the clock of this machine. Look at `date` on both" in says_why(
        server, machine.trust
    )
    machine.certify(now=time.time() + 3 * 86400)
    assert server.renew()
    assert "is not valid yet" in says_why(server, machine.trust)


def test_a_server_takes_a_new_certificate_while_it_runs_and_keeps_the_old_one_over_a_broken_one(
    machine: Machine,
) -> None:
    server = tls.ServerTls(machine.files)
    assert not server.renew()
    machine.certify()
    assert server.renew()
    assert not server.renew()
    for broken in (
        "nonsense",
        issue(machine.signer, new_request(new_key(), "b"), "b", "127.0.0.1", time.time()),
    ):
        write_private(machine.paths.certificate, broken)
        with pytest.raises(ssl.SSLError):
            server.renew()
        assert "another one than this machine knows" in says_why(
            server, tls.context_of(new_authority(time.time()).certificate)
        )


@pytest.fixture
def host(machine: Machine, tmp_path: Path) -> Iterator[HostProcess]:
    made = HostProcess(tmp_path / "host", model_spec(), "none", Behaviour(), machine.files, machine.trust)
    try:
        made.start()
        yield made
    finally:
        made.kill()


def test_a_host_serves_tls_to_who_has_its_machines_token(machine: Machine, host: HostProcess) -> None:
    answer = host.chat("Hello.", who="tea")
    assert (answer.status, answer.body["choices"][0]["message"]["content"]) == (200, "It is so.")
    stream = host.stream("Hello again.", who="tea")
    assert stream.first_text()
    assert list(stream.events())
    assert stream.done
    secret = "the cluster's"
    assert host.get("/state", machine_token(secret, "b" * 32)).status == 401
    assert (
        asyncio.run(ask_host("127.0.0.1", host.port, TOKEN, "GET", "/state", b"", machine.trust))["pins"] == 1
    )


def test_a_host_that_speaks_tls_ends_what_comes_in_clear_at_once(host: HostProcess) -> None:
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", host.port, timeout=10)
    connection.request("GET", "/state", headers={"authorization": f"Bearer {TOKEN}"})
    with contextlib.closing(connection), pytest.raises((http.client.HTTPException, OSError)):
        connection.getresponse()
    with pytest.raises(AWAY):
        asyncio.run(ask_host("127.0.0.1", host.port, TOKEN, "GET", "/state"))
    assert time.monotonic() - began < 5
    assert host.state()["state"] == "ready"


def test_a_host_without_its_certificate_says_so_and_does_not_start(machine: Machine, tmp_path: Path) -> None:
    machine.paths.certificate.unlink()
    host = HostProcess(tmp_path / "host", model_spec(), "none", Behaviour(), machine.files, None)
    try:
        host.start(until=None)
        assert host.wait_end(60.0) == LOAD_FAILED
        assert str(machine.paths.certificate) in host.errors()
        assert "`homeport join HEAD`" in host.errors()
    finally:
        host.kill()


# models' files


def test_a_models_file_is_copied_over_tls_alone(machine: Machine, tmp_path: Path) -> None:
    words = b"the weights of a model " * 10_000
    file, target = tmp_path / "model.gguf", tmp_path / "copy"
    file.write_bytes(words)
    part = part_of(file)
    with giving({part.sha256: file}, shown=tls.ServerTls(machine.files)) as den, Tap(den.port) as tap:
        # Even where its keeper says that it speaks in clear.
        giver = Giver("den", f"http://{tap.at}")
        with target.open("wb") as out:
            clear = Copying(FILES_TOKEN, ZONE, CopyRate(None))
            with pytest.raises(Trouble):
                clear.copy(part, [giver], out, lambda *_: None)
            tap.asked.clear()
            secret = Copying(FILES_TOKEN, ZONE, CopyRate(None), machine.trust)
            assert secret.copy(part, [giver], out, lambda *_: None) == ["den"]
        heard = bytes(tap.asked + tap.answered)
    assert target.read_bytes() == words
    assert words[:100] not in heard
    assert FILES_TOKEN.encode() not in heard


def test_a_stranger_who_never_shakes_hands_is_left(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_server, "HEAD_S", 0.5)
    with (
        giving({}, shown=tls.ServerTls(machine.files)) as den,
        socket.create_connection(("127.0.0.1", den.port), timeout=10) as stranger,
    ):
        assert stranger.recv(1) == b""


# the router


class Tapped(AnswersHost):
    """A host whose address, as the controller tells it, is that of somebody on the way."""

    tapped_port = 0

    def listed(self) -> dict[str, Any]:
        return {**super().listed(), "port": self.tapped_port}


async def test_nothing_of_a_turn_can_be_read_between_router_and_host(
    machine: Machine, tmp_path: Path
) -> None:
    host = Tapped("den/0", port=free_port(), shown=tls.ServerTls(machine.files).context)
    with Tap(host.port) as tap:
        host.tapped_port = tap.port
        async with routed(tmp_path, host, ca_file=machine.paths.ca) as router:
            words = "my most secret prompt"
            body = {"model": MODEL, "messages": [{"role": "user", "content": words}]}
            async with router.client.post(f"{router.url}/v1/chat/completions", json=body) as answer:
                assert answer.status == 200
                assert b"Hello there" in await answer.read()
        assert words.encode() in host.bodies[0]
        heard = bytes(tap.asked + tap.answered)
    assert len(heard) > 1000
    for secret in (words.encode(), bearer_of("den/0").encode(), b"Hello", b"x-homeport", b"HTTP/1.1"):
        assert secret not in heard


async def test_a_router_does_not_send_a_turn_to_a_host_that_it_cannot_trust(
    machine: Machine, tmp_path: Path
) -> None:
    """The controller is trusted; at the host's address somebody else has a certificate of another CA."""
    other = Machine(Paths(tmp_path / "other", tmp_path / "locks"), new_authority(time.time()))
    other.certify()
    host = AnswersHost("den/0", shown=tls.ServerTls(machine.files).context)
    async with routed(tmp_path, host, ca_file=machine.paths.ca) as router:
        await host.stop()
        host.shown = tls.ServerTls(other.files).context
        await host.start()
        seen = host.state_asked
        router.parts.fleet.saw_silent("den/0")
        await router.parts.fleet.refresh("den/0")
        assert host.state_asked == seen
        assert not host.seen
        detail = router.parts.fleet.snapshot().replicas["den/0"].detail
        assert "another one than this machine knows" in detail
