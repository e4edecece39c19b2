"""A stand-in for Hugging Face on a real socket: as much of its HTTP as huggingface_hub needs to list a
repository and to fetch its files.

`python -m tests.hub ADDRESS PORT LOG REPO/FILE=PATH …` serves until it is killed, and writes a line of JSON for every
request to LOG. Pages, accounts and Xet are not here.
"""

import hashlib
import http.server
import json
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

COMMIT = "c0ffee" * 6 + "c0de"
BLOCK = 256 * 1024


@dataclass
class HubFile:
    """One file. What is wrong with it, or with who may have it, says a test."""

    path: Path
    sha256: str
    gated: bool = False
    """Only who has the token `hf_good` may read it."""
    is_lfs: bool = True
    """Else it is known by the SHA-1 of its git blob."""
    ignores_ranges: bool = False
    dies_at: int | None = None
    """An answer ends after so many bytes, once."""
    excess: int = 0
    """An answer has so many bytes more than the file."""
    slow: threading.Event | None = None
    """After the first block, an answer waits for this."""

    @property
    def etag(self) -> str:
        if self.is_lfs:
            return self.sha256
        data = self.path.read_bytes()
        return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()  # noqa: S324 - git's own


@dataclass
class Hub:
    """`files`: by REPO/FILE. `sent`: bytes of files that left it, by who asked; `asked`: `METHOD path range`."""

    files: dict[str, HubFile]
    url: str = ""
    sent: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    status: int | None = None
    """Every answer has it."""
    log: Path | None = None

    @property
    def total(self) -> int:
        return sum(self.sent.values())

    def note(self, who: str, what: str, count: int) -> None:
        self.sent[who] = self.sent.get(who, 0) + count
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(json.dumps({"from": who, "asked": what, "sent": count}) + "\n")


def add(path: Path, **told: Any) -> HubFile:
    with path.open("rb") as file:
        return HubFile(path, hashlib.file_digest(file, "sha256").hexdigest(), **told)


def add_all(folder: Path, repo: str, **told: Any) -> dict[str, HubFile]:
    """A repository of all that is in a folder: weights are known by their SHA-256, what is small by the digest of its
    git blob."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        f"{repo}/{path.relative_to(folder)}": add(path, is_lfs=path.suffix == ".safetensors", **told)
        for path in paths
    }


def be_told(monkeypatch: pytest.MonkeyPatch, made: "Hub") -> None:
    """huggingface_hub in this process asks this one."""
    monkeypatch.setattr(constants, "ENDPOINT", made.url)
    template = f"{made.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@contextmanager
def hub(files: Mapping[str, HubFile], address: str = "127.0.0.1", port: int = 0) -> Iterator[Hub]:
    """Serves them until the end of the block."""
    made = Hub(dict(files))
    server = _Server((address, port), _Handler)
    server.hub = made
    made.url = f"http://{address}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        assert isinstance(self.server, _Server)
        return self.server.hub

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name
        """Nothing on stderr."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        self.hub.asked.append(f"{self.command} {self.path} {self.headers.get('range', '')}".strip())
        if self.hub.status is not None:
            return self._refuse(self.hub.status)
        if found is None:
            return self._list()
        if not any(name.startswith(f"{found[1]}/") for name in self.hub.files):
            return self._refuse(401, "RepoNotFound")
        if found[2] not in ("main", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        file = self.hub.files.get(f"{found[1]}/{found[3]}")
        if file is None:
            return self._refuse(404, "EntryNotFound")
        if file.gated and self.headers.get("authorization") != "Bearer hf_good":
            return self._refuse(403 if "authorization" in self.headers else 401, "GatedRepo")
        return self._give(file, with_body)

    def _list(self) -> None:
        """Which files a repository has. That may be known of gated ones too."""
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", self.path)
        if found is None:
            return self._refuse(404)
        names = [
            name.removeprefix(f"{found[1]}/") for name in self.hub.files if name.startswith(f"{found[1]}/")
        ]
        if not names:
            return self._refuse(401, "RepoNotFound")
        if found[2] not in (None, "main", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        told = {"id": found[1], "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        return None

    def _give(self, file: HubFile, with_body: bool) -> None:
        size = file.path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        first = int(asked[1]) if asked and not file.ignores_ranges else 0
        end = min(size, int(asked[2]) + 1) if asked and asked[2] and not file.ignores_ranges else size
        self.send_response(206 if asked and not file.ignores_ranges else 200)
        self.send_header("etag", f'"{file.etag}"')
        self.send_header("x-repo-commit", COMMIT)
        if file.is_lfs:
            self.send_header("x-linked-etag", f'"{file.sha256}"')
            self.send_header("x-linked-size", str(size))
        if asked and not file.ignores_ranges:
            self.send_header("content-range", f"bytes {first}-{end - 1}/{size}")
        self.send_header("content-length", str(end - first + (file.excess if with_body else 0)))
        self.send_header("accept-ranges", "bytes")
        self.end_headers()
        if with_body:
            sent = 0
            try:
                sent = self._send(file, first, end)
            finally:
                self.hub.note(self.client_address[0], self.path, sent)

    def _send(self, file: HubFile, first: int, end: int) -> int:
        sent, dies_at = 0, file.dies_at
        with file.path.open("rb") as content:
            content.seek(first)
            while data := content.read(min(BLOCK, end - first - sent)):
                if dies_at is not None and sent + len(data) > dies_at:
                    file.dies_at = None
                    self.wfile.write(data[: dies_at - sent])
                    self.close_connection = True
                    return dies_at
                try:
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True
                    return sent
                sent += len(data)
                if file.slow is not None:
                    file.slow.wait(60)
        try:
            self.wfile.write(bytes(file.excess))
        except OSError:
            self.close_connection = True
        return sent

    def _refuse(self, status: int, code: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("x-error-code", code)
            self.send_header("x-error-message", f"made up: {code}")
        self.send_header("content-length", "0")
        self.end_headers()


def main() -> None:
    address, port, log, *files = sys.argv[1:]
    given = {name: add(Path(path)) for name, _, path in (each.partition("=") for each in files)}
    with hub(given, address, int(port)) as made:
        made.log = Path(log)
        print(json.dumps({"url": made.url}), flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
