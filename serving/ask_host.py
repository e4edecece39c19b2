"""One question to a host, by hand: an HTTP client library would cost a keeper more memory than all the rest of it."""

import asyncio
import json
import ssl
from typing import Any

AWAY = (OSError, TimeoutError, ValueError, IndexError)
"""How a host that gives no usable answer shows itself."""


class OtherToken(ValueError):
    """The host does not know the token of its machine."""


async def ask_host(
    address: str,
    port: int,
    token: str,
    method: str,
    path: str,
    body: bytes = b"",
    tls: ssl.SSLContext | None = None,
) -> dict[str, Any]:
    """The object that it answers with 200. `token`: its machine's. `tls`: whom to trust; None: it is asked in clear.

    Raises one of AWAY; sets no limit to the time.
    """
    reader, writer = await asyncio.open_connection(address, port, ssl=tls)
    try:
        head = f"{method} {path} HTTP/1.1\r\nhost: {address}:{port}\r\nauthorization: Bearer {token}\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
        await writer.drain()
        answer = await reader.read(-1)
    finally:
        writer.close()
    top, _, answered = answer.partition(b"\r\n\r\n")
    if top.startswith(b"HTTP/1.1 401 "):
        raise OtherToken("the host does not know the token of its machine")
    if b" 200 " not in top.split(b"\r\n")[0]:
        raise ValueError(f"the host answered {top[:40]!r}")
    told = json.loads(answered)
    if not isinstance(told, dict):
        raise ValueError("the host's answer is no object")
    return told
