"""The head of a host's answer: read, and refused where it could be understood in two ways. Pure."""

import re
from functools import lru_cache
from typing import NamedTuple

from router.errors import RawHeaders

_HEAD_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9])(?: [^\r\n]*)?")
_HEADER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\r\n\0]*?)[ \t]*")


class Broken(ConnectionError):
    """The connection was lost in the middle, or what came over it is not HTTP."""


class AnswerHead(NamedTuple):
    """What stands before a body."""

    status: int
    headers: RawHeaders
    """With lower-case names."""
    length: int | None
    """Of the body in bytes; None: it is chunked."""
    keeps: bool
    """Whether the connection goes on after it."""


def read_head(data: bytes) -> AnswerHead:
    """Of an answer, without the empty line. Raises Broken for what is not HTTP/1.1 or says two things of its length."""
    first, *lines = data.split(b"\r\n")
    if (line := _HEAD_LINE.fullmatch(first)) is None:
        raise Broken("its answer is not HTTP/1.1")
    status, headers, keeps = int(line[1]), [], True
    lengths: set[bytes] = set()
    encodings: list[bytes] = []
    for each in lines:
        name, value = header = _read_header(each)
        headers.append(header)
        if name == b"content-length":
            lengths.add(value)
        elif name == b"transfer-encoding":
            encodings.append(value.lower())
        elif name == b"connection" and value.lower() == b"close":
            keeps = False
    if status < 200 or status in (204, 304):
        lengths, encodings = {b"0"}, []
    if encodings == [b"chunked"] and not lengths:
        return AnswerHead(status, headers, None, keeps)
    if encodings or len(lengths) != 1 or not (length := lengths.pop()).isdigit():
        raise Broken("no length, or several")
    return AnswerHead(status, headers, int(length), keeps)


@lru_cache(256)
def _read_header(line: bytes) -> tuple[bytes, bytes]:
    """Raises Broken. Most lines of most answers are those of the answer before."""
    if (header := _HEADER.fullmatch(line)) is None:
        raise Broken("a header that is none")
    return header[1].lower(), header[2]
