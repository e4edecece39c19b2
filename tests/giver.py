"""Machines that give files, for tests: the real file server on a socket of its own, and ones that misbehave."""

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.tls import ServerTls, url
from serving.bring_order import Giver
from serving.file_server import FileServer
from serving.model_files import Part
from tests.ports import free_port

TOKEN = "secret-of-the-cluster"
ZONE = "home"


def part_of(path: Path, name: str = "m.gguf") -> Part:
    data = path.read_bytes()
    return Part(name, len(data), hashlib.sha256(data).hexdigest())


@dataclass
class Giving:
    """A file server that listens."""

    server: FileServer
    port: int
    giver: Giver

    def has_sent(self, count: int) -> bool:
        """Whether it gave so many bytes: waited for, since it counts once they are gone."""
        deadline = time.monotonic() + 5
        while self.server.sent < count and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.server.sent == count


@contextmanager
def giving(
    files: dict[str, Path], name: str = "den", zone: str = ZONE, shown: ServerTls | None = None
) -> Iterator[Giving]:
    """`files`: by digest. `shown`: over TLS."""
    server, port = FileServer(TOKEN, zone, files.get, shown), free_port()
    server.listen("127.0.0.1", port)
    assert server.port == port, server.problem
    try:
        yield Giving(server, port, Giver(name, url("127.0.0.1", port, shown is not None)))
    finally:
        server.close()


@contextmanager
def answering(answer: Callable[[socket.socket, bytes], None], name: str = "bad") -> Iterator[Giver]:
    """One that reads the head of each request and has `answer` do the rest, one connection after another."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(0.05)
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                continue
            with connection:
                head = b""
                while b"\r\n\r\n" not in head and (more := connection.recv(4096)):
                    head += more
                answer(connection, head)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Giver(name, f"http://127.0.0.1:{listening.getsockname()[1]}")
    finally:
        over.set()
        thread.join()
        listening.close()


def head_206(first: int, size: int, length: int | None = None) -> bytes:
    count = size - first if length is None else length
    return (
        f"HTTP/1.1 206 Partial Content\r\ncontent-length: {count}\r\n"
        f"content-range: bytes {first}-{size - 1}/{size}\r\nconnection: close\r\n\r\n"
    ).encode()
