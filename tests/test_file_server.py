"""Files of models over a real socket: who gets them, and which bytes."""

import asyncio
import contextlib
import errno
import http.client
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from serving import file_server
from serving.file_server import FileServer
from tests.giver import TOKEN, ZONE, Giving, giving
from tests.ports import free_port

CONTENT = os.urandom(3_000_000)
DIGEST = "ab" * 32
HEADERS = {"authorization": f"Bearer {TOKEN}", "x-homeport-zone": ZONE}


@pytest.fixture
def den(tmp_path: Path) -> Iterator[Giving]:
    path = tmp_path / "m.gguf"
    path.write_bytes(CONTENT)
    with giving({DIGEST: path}) as found:
        yield found


def ask(
    den: Giving, path: str = f"/files/{DIGEST}", method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", den.port, timeout=10)
    try:
        sent = {**HEADERS, **{name.replace("_", "-"): value for name, value in headers.items()}}
        connection.request(method, path, headers=sent)
        answer = connection.getresponse()
        return answer.status, {n.lower(): v for n, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_a_file_is_given_whole_or_from_a_byte_on(den: Giving) -> None:
    assert ask(den)[::2] == (200, CONTENT)
    status, headers, body = ask(den, range="bytes=2999990-")
    assert (status, headers["content-range"], body) == (
        206,
        "bytes 2999990-2999999/3000000",
        CONTENT[2_999_990:],
    )
    assert ask(den, range="bytes=5-9")[::2] == (206, CONTENT[5:10])
    assert den.has_sent(len(CONTENT) + 15)


def test_a_file_is_given_where_rays_worker_has_set_another_loop(tmp_path: Path) -> None:
    former = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    try:
        (tmp_path / "m.gguf").write_bytes(CONTENT)
        with giving({DIGEST: tmp_path / "m.gguf"}) as den:
            assert ask(den)[::2] == (200, CONTENT)
    finally:
        asyncio.set_event_loop_policy(former)


def test_a_range_beyond_the_end_is_refused_with_the_size(den: Giving) -> None:
    status, headers, body = ask(den, range="bytes=3000000-")
    assert (status, headers["content-range"], body) == (416, "bytes */3000000", b"")


def test_nobody_without_the_clusters_token_gets_anything(den: Giving) -> None:
    for given in ("", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xff"):
        assert ask(den, authorization=given)[::2] == (401, b""), given


def test_nobody_of_another_zone_gets_anything(den: Giving) -> None:
    assert ask(den, x_homeport_zone="office")[::2] == (403, b"")
    assert ask(den, x_homeport_zone="")[::2] == (403, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/files/" + "cd" * 32,
        "/files/" + "AB" * 32,
        "/files/../../secrets/cluster_token",
        "/files/%2e%2e%2fsecrets",
        "//etc/passwd",
        f"/files/{DIGEST}/../x",
        f"/files/{DIGEST}?x=1",
        "/",
        "/files/",
        "*",
    ],
)
def test_nothing_but_known_digests_is_there(den: Giving, path: str) -> None:
    assert ask(den, path)[::2] == (404, b"")


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
def test_files_are_read_only(den: Giving, method: str) -> None:
    assert ask(den, method=method)[0] == 405
    assert ask(den)[2] == CONTENT


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /files HTTP/9\r\n\r\n",
        b"x" * 20000,
        b"\r\n\r\n",
        b"",
    ],
)
def test_what_is_no_request_harms_nobody(den: Giving, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", den.port), timeout=10) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):  # its head was longer than it reads
            assert connection.recv(100)[:15] in (b"", b"HTTP/1.1 400 Ba")
    assert ask(den)[2] == CONTENT


def test_who_says_nothing_is_left(den: Giving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_server, "HEAD_S", 0.1)
    with socket.create_connection(("127.0.0.1", den.port), timeout=10) as connection:
        connection.sendall(b"GET /files")
        assert connection.recv(100) == b""


def test_more_than_it_serves_at_once_are_told_so(den: Giving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_server, "AT_ONCE", 2)
    den.server.limit(100_000)
    head = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    with (
        socket.create_connection(("127.0.0.1", den.port)) as first,
        socket.create_connection(("127.0.0.1", den.port)) as second,
    ):
        for each in (first, second):
            each.sendall(f"GET /files/{DIGEST} HTTP/1.1\r\n{head}\r\n".encode())
            assert each.recv(12) == b"HTTP/1.1 200"
        assert ask(den, range="bytes=0-9")[0] == 503
    deadline = time.monotonic() + 10
    while ask(den, range="bytes=0-9")[0] != 206:
        assert time.monotonic() < deadline


def test_strangers_who_say_nothing_keep_nobody_from_copying(
    den: Giving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_server, "OPEN_MAX", 40)
    with contextlib.ExitStack() as strangers:
        for _ in range(40):
            strangers.enter_context(socket.create_connection(("127.0.0.1", den.port)))
        while len(den.server._open) < 40:
            time.sleep(0.01)
        with socket.create_connection(("127.0.0.1", den.port), timeout=10) as one_more:
            assert one_more.recv(1) == b""
        strangers.pop_all().__exit__(None, None, None)
    deadline = time.monotonic() + 10
    with contextlib.ExitStack() as strangers:
        for _ in range(30):
            strangers.enter_context(socket.create_connection(("127.0.0.1", den.port)))
        while len(den.server._open) != 30:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert ask(den)[0] == 200


def test_all_connections_together_stay_below_the_rate(den: Giving) -> None:
    den.server.limit(4_000_000)
    began = time.monotonic()
    threads = [threading.Thread(target=ask, args=(den,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    assert den.has_sent(2 * len(CONTENT))
    assert den.server.sent <= 4_000_000 * took + 2_000_000  # the first piece of each
    assert took > 1.0


def test_a_file_that_is_cut_while_it_is_given_ends_the_connection(den: Giving, tmp_path: Path) -> None:
    den.server.limit(1_000_000)
    connection = http.client.HTTPConnection("127.0.0.1", den.port, timeout=10)
    connection.request("GET", f"/files/{DIGEST}", headers=HEADERS)
    answer = connection.getresponse()
    answer.read(1000)
    os.truncate(tmp_path / "m.gguf", 300_000)
    with pytest.raises(http.client.IncompleteRead):
        answer.read()
    connection.close()


def test_a_port_that_is_taken_is_told_and_tried_again() -> None:
    server = FileServer(TOKEN, ZONE, lambda _: None)

    def listens() -> tuple[int | None, str | None]:
        return server.port, server.problem

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server.listen("127.0.0.1", port)
        assert listens()[0] is None
        assert f"port {port} of 127.0.0.1: " in str(listens()[1])
    server.listen("127.0.0.1", port)
    assert listens() == (port, None)
    other_port = free_port()
    server.listen("127.0.0.1", other_port)
    assert listens() == (other_port, None)
    server.close()


def test_a_server_that_cannot_even_begin_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    server, port = FileServer(TOKEN, ZONE, lambda _: None), free_port()
    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "SelectorEventLoop", exhausted)
        server.listen("127.0.0.1", port)
    assert (server.port, server.problem) == (None, "models cannot be copied from here: Too many open files")
    server.listen("127.0.0.1", port)
    assert server.port == port
    server.close()
