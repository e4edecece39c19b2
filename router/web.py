"""The board and the desk as a browser gets them: files, and what it may do with them. Asks for no key, since nothing of
the cluster is in them; what they show, they ask the API for.
"""

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.requests import Request

from router.errors import Rejected, not_found

FOLDER = Path(__file__).with_name("board")
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
"""What of the folder is served, and as what."""
SAFE = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
    "vary": "accept-encoding",
}
METHODS = ["GET", "HEAD"]


@dataclass(frozen=True, slots=True)
class File:
    """One file, read once."""

    kind: str
    etag: str
    plain: bytes
    small: bytes
    """With gzip."""


def read_files(folder: Path = FOLDER) -> dict[str, File]:
    """What may be had, by its path below `folder`. Raises OSError."""
    return {
        path.relative_to(folder).as_posix(): _read(path, KINDS[path.suffix])
        for path in sorted(folder.rglob("*"))
        if path.suffix in KINDS and path.is_file()
    }


def _read(path: Path, kind: str) -> File:
    plain = path.read_bytes()
    return File(kind, f'"{sha256(plain).hexdigest()[:32]}"', plain, gzip.compress(plain, mtime=0))


def add_web(pages: FastAPI, files: Mapping[str, File], is_below: Callable[[Request], bool]) -> None:
    """`/`, `/desk/{machine}` and `/board/{file}`. `is_below`: whether a session or a machine stands before the path; a
    page would take it for its own there, and is not found.
    """

    def found(name: str, request: Request) -> Response:
        file = files.get(name)
        if file is None or is_below(request):
            raise Rejected(not_found(request.url.path))
        return answer(file, request.headers)

    @pages.api_route("/", methods=METHODS)
    async def board(request: Request) -> Response:
        return found("index.html", request)

    @pages.api_route("/desk/{machine}", methods=METHODS)
    async def desk(machine: str, request: Request) -> Response:
        return found("desk.html", request)

    @pages.api_route("/board/{name:path}", methods=METHODS)
    async def file(name: str, request: Request) -> Response:
        return found(name, request)


def answer(file: File, asked: Mapping[str, str]) -> Response:
    """`asked`: the request's headers, with lower-case names."""
    headers = {**SAFE, "etag": file.etag}
    if asked.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    headers["content-type"] = file.kind
    if "gzip" not in asked.get("accept-encoding", ""):
        return Response(file.plain, headers=headers)
    return Response(file.small, headers=headers | {"content-encoding": "gzip"})
