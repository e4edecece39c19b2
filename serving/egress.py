"""Tries, from inside a host, to get out: connections, datagrams, a look-up of a name. For `homeport doctor --egress`.

It says what came of it and judges nothing (cluster/egress.py does): who asks listens where it is sent, and so knows
more. Every try has its limit, and there is one round at a time.
"""

import asyncio
import errno
import ipaddress
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from cluster import network
from serving.asgi import Problem, Receive, Send, read_body, send_whole
from serving.desk import decode
from serving.request_fields import BadRequest, missing, wrong_type

TRY_S = 2.0
LOOKUP_S = 4.0
TARGETS_MAX = 8
NAME_MAX = 253
LATE = {"tcp": "timeout", "udp": "timeout"}
WORD = b"homeport egress "
"""How a datagram begins that a host sends; the asker's own word follows."""


class Egress:
    """The tries of one host."""

    def __init__(self) -> None:
        self._alone = asyncio.Lock()

    async def answer(self, receive: Receive, send: Send) -> None:
        """POST /egress. Raises Problem."""
        try:
            told = await self.attempt(decode(await read_body(receive), "targets and word"))
        except BadRequest as bad:
            raise Problem(400, bad.message, bad.code, bad.param) from None
        await send_whole(send, 200, msgspec.json.encode(told))

    async def attempt(self, body: object) -> dict[str, Any]:
        """What came of it. `body`: {"targets": [[IP, PORT], …], "name": text | null, "word": text}; raises BadRequest.

        {"interfaces": [NAME that is up], "targets": [{"address", "port", "tcp": WORD, "udp": WORD}], "name": WORD |
        null}, where WORD is "ok", or the name of an errno, "timeout", or for a name what the resolver said.
        """
        targets, name, word = _read(body)
        async with self._alone:
            tries = [aside(_both(*target, word), 2 * TRY_S + 0.5, LATE) for target in targets]
            looked = None if name is None else aside(lambda: look_up(name), LOOKUP_S, "timeout")
            found = await asyncio.gather(*tries)
            said = None if looked is None else await looked
        told = [
            {"address": address, "port": port, **result}
            for (address, port), result in zip(targets, found, strict=True)
        ]
        return {"interfaces": _up(), "targets": told, "name": said}


def _read(body: object) -> tuple[list[tuple[str, int]], str | None, bytes]:
    if not isinstance(body, Mapping):
        raise wrong_type("the body", "an object")
    given, name, word = body.get("targets"), body.get("name"), body.get("word")
    if given is None:
        raise missing("targets")
    if not isinstance(given, list) or not 1 <= len(given) <= TARGETS_MAX:
        raise wrong_type("targets", f"a list of 1 to {TARGETS_MAX}")
    targets = []
    for each in given:
        match each:
            case [str(address), int(port)] if 1 <= port <= 65535 and _is_address(address):
                targets.append((address, port))
            case _:
                raise BadRequest("each of 'targets' must be [IP address, port]", "targets")
    if name is not None and not (isinstance(name, str) and 1 <= len(name) <= NAME_MAX):
        raise wrong_type("name", "a host name")
    if not isinstance(word, str) or not (word.isascii() and len(word) <= 64):
        raise wrong_type("word", "at most 64 ASCII characters")
    return targets, name, word.encode()


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _up() -> list[str]:
    """The network cards that are up; some kernels put idle tunnels into every namespace."""
    return [name for _, name in socket.if_nameindex() if network.is_up(name)]


def _both(address: str, port: int, word: bytes) -> Callable[[], dict[str, str]]:
    return lambda: {"tcp": _connect(address, port), "udp": _send(address, port, word)}


def _connect(address: str, port: int) -> str:
    try:
        socket.create_connection((address, port), timeout=TRY_S).close()
    except OSError as error:
        return _named(error)
    return "ok"


def _send(address: str, port: int, word: bytes) -> str:
    """`ok` means that it went off, not that it came."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sending:
            sending.settimeout(TRY_S)
            sending.sendto(WORD + word, (address, port))
    except OSError as error:
        return _named(error)
    return "ok"


def look_up(name: str) -> str:
    """`ok`, or what the resolver says."""
    try:
        socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return str(error.strerror) if isinstance(error, OSError) and error.strerror else "no name"
    return "ok"


def _named(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    return errno.errorcode.get(error.errno or 0, str(error))


def aside(call: Callable[[], Any], limit_s: float, late: object) -> "asyncio.Future[Any]":
    """What the call gives, or `late`. On a thread that keeps nobody from ending: a look-up cannot be ended itself."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(result: object) -> None:
        if not done.done():
            done.set_result(result)

    def work() -> None:
        result = call()
        try:
            loop.call_soon_threadsafe(settle, result)
        except RuntimeError:  # the loop has ended meanwhile
            return

    threading.Thread(target=work, name="egress", daemon=True).start()
    loop.call_later(limit_s, settle, late)
    return done
