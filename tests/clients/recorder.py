"""Who stands between a client and homeport, passes on every byte, and tells afterwards what was said.

Each connection is one of its own to homeport, and ends when the client's ends: a client that is killed is seen there.
"""

import contextlib
import json
import math
import re
import socket
import socketserver
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

NO_BODY = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its answer, as far as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    """With lower-case names."""
    sent: bytes
    status: int
    answer_headers: Mapping[str, str]
    answer: bytes
    began: float
    """Seconds of the monotonic clock."""

    @property
    def body(self) -> Any:
        return json.loads(self.sent)

    @property
    def told(self) -> dict[str, Any]:
        return told_in(self.answer)

    def __repr__(self) -> str:
        return f"{self.method} {self.path}: {self.status}, {self.answer[-300:]!r}"


def told_in(answer: bytes) -> dict[str, Any]:
    """What homeport told of the turn in the answer's last part; empty if it did not come so far."""
    found: dict[str, Any] = {}
    for part in _parts(answer):
        for holder in (part, part.get("response")):
            if isinstance(holder, dict):
                found = holder.get("homeport") or found
    return found


@dataclass
class _Way:
    """What went one way of a connection, and when each piece of it came."""

    said: bytearray = field(default_factory=bytearray)
    came: list[tuple[int, float]] = field(default_factory=list)

    def add(self, said: bytes) -> None:
        self.came.append((len(self.said), time.monotonic()))
        self.said += said

    def when(self, offset: int) -> float:
        """The time at which the byte at `offset` came."""
        return self.came[bisect_right(self.came, (offset, math.inf)) - 1][1]


@dataclass
class _Heard:
    asked: _Way = field(default_factory=_Way)
    answered: _Way = field(default_factory=_Way)


class Recorder:
    """Listens on a port of loopback for as long as its block lasts."""

    def __init__(self, to: int) -> None:
        self._heard: list[_Heard] = []
        self.connections = 0
        """That clients have open now."""
        self._lock = threading.Lock()
        recorder = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                recorder._pass_on(self.request, to)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> "Recorder":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def exchanges(self) -> list[Exchange]:
        """All so far, in the order in which their requests began."""
        found = [exchange for heard in list(self._heard) for exchange in _read(heard)]
        return sorted(found, key=lambda exchange: exchange.began)

    def turns(self) -> list[Exchange]:
        """The requests for an answer of a model."""
        ends = ("/chat/completions", "/responses", "/messages")
        return [e for e in self.exchanges() if e.path.partition("?")[0].endswith(ends)]

    def _pass_on(self, client: socket.socket, to: int) -> None:
        heard = _Heard()
        self._heard.append(heard)
        self._count(1)
        with socket.create_connection(("127.0.0.1", to)) as there:
            back = threading.Thread(target=_copy, args=(there, client, heard.answered), daemon=True)
            back.start()
            _copy(client, there, heard.asked)
            self._count(-1)
            back.join()

    def _count(self, more: int) -> None:
        with self._lock:
            self.connections += more


def _copy(here: socket.socket, there: socket.socket, kept: _Way) -> None:
    try:
        while said := here.recv(65536):
            kept.add(said)
            there.sendall(said)
    except OSError:
        pass
    finally:
        for end in (here, there):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _read(heard: _Heard) -> Iterator[Exchange]:
    """The messages of one connection, request by request."""
    asked, answered = bytes(heard.asked.said), bytes(heard.answered.said)
    length = len(asked)
    while (request := _message(asked, bare=lambda _: False)) is not None:
        began = heard.asked.when(length - len(asked))
        (first, headers, sent), asked = request
        method, path, _ = first.split(" ", 2)
        response = _message(answered, bare=partial(_is_bare, method))
        (line, answer_headers, answer), answered = response or (("- 0", {}, b""), b"")
        status = int(line.split(" ")[1])
        yield Exchange(method, path, headers, sent, status, answer_headers, answer, began)


def _is_bare(method: str, line: str) -> bool:
    """Whether the answer that begins with this line has no body, whatever its headers say."""
    return method == "HEAD" or int(line.split(" ")[1]) in NO_BODY


_Message = tuple[str, dict[str, str], bytes]


def _message(data: bytes, bare: Callable[[str], bool]) -> tuple[_Message, bytes] | None:
    """The first message of `data` (its first line, its headers, its body as far as it came), and what comes behind it;
    None before its head is there."""
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if first.startswith("HTTP/1.1 1"):
        return _message(rest, bare)
    if bare(first):
        return (first, headers, b""), rest
    if "chunked" in headers.get("transfer-encoding", ""):
        body, rest = _chunks(rest)
        return (first, headers, body), rest
    if first.startswith("HTTP/") and "content-length" not in headers:
        return (first, headers, rest), b""
    length = int(headers.get("content-length", 0))
    return (first, headers, rest[:length]), rest[length:]


def _chunks(data: bytes) -> tuple[bytes, bytes]:
    body = b""
    while (size := re.match(rb"([0-9a-fA-F]+)[^\r\n]*\r\n", data)) is not None:
        length = int(size[1], 16)
        start, end = size.end(), size.end() + length
        body += data[start:end]
        if len(data) < end + 2:
            return body, b""
        data = data[end + 2 :]
        if length == 0:
            return body, data
    return body, b""


def _parts(answer: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects of an answer, be it one or a stream of events."""
    text = answer.decode(errors="replace")
    for line in [text] if text.startswith("{") else text.split("\n"):
        data = line.removeprefix("data:").strip()
        with contextlib.suppress(ValueError):
            if isinstance(part := json.loads(data), dict):
                yield part
