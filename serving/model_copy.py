"""Copies one file of a model from other machines of the zone, over HTTP with ranges: from the byte on where it is, and
from the next machine where one dies. Checks no digest (serving/bring_model.py does) and knows no folder.
"""

import http.client
import re
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO
from urllib.parse import urlsplit

from serving.bring_order import Giver
from serving.copy_rate import CopyRate
from serving.model_files import Part
from serving.model_trouble import Trouble

ANSWER_S = 10.0
"""A machine that sends nothing for so long is left for the next one."""
READ_BYTES = 1024**2


@dataclass(slots=True)
class Copying:
    """How this machine asks: with the token for files, from its zone, no faster than `rate` allows. `trust`: over TLS,
    whatever a giver's URL says; None: in clear."""

    token: str = field(repr=False)
    zone: str
    rate: CopyRate
    trust: ssl.SSLContext | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def copy(
        self, part: Part, givers: Sequence[Giver], file: BinaryIO, told: Callable[[int, str], None]
    ) -> list[str]:
        """Append what is missing to `file`, which is at its end; `told` hears how much there is, and from whom.

        Returns the names of those that gave some of it. Raises Trouble when none of them gives more, and OSError of
        the disk.
        """
        gave: list[str] = []
        why: dict[str, str] = {}
        if file.tell() > part.size:
            file.seek(0)
            file.truncate()
        while file.tell() < part.size:
            before = file.tell()
            for giver in givers:
                at = file.tell()
                if at == part.size:
                    break
                told(at, giver.name)
                try:
                    self._take(part, giver, file, told)
                except (OSError, http.client.HTTPException, _Refused) as error:
                    if isinstance(error, _DiskError):
                        raise error.error from None
                    why[giver.name] = str(error) or type(error).__name__
                if file.tell() > at and giver.name not in gave:
                    gave.append(giver.name)
            if file.tell() == before:
                words = "; ".join(f"{name}: {reason}" for name, reason in why.items()) or "nobody has it"
                raise Trouble(
                    "network",
                    f"{part.name} cannot be copied from other machines ({words})",
                    "It is tried again",
                )
        return gave

    def _take(self, part: Part, giver: Giver, file: BinaryIO, told: Callable[[int, str], None]) -> None:
        """What this machine gives, until it is all or the connection ends."""
        where = urlsplit(giver.url)
        connection = self._connect(where.hostname or "", where.port)
        at = file.tell()
        try:
            headers = {
                "authorization": f"Bearer {self.token}",
                "x-homeport-zone": self.zone,
                "range": f"bytes={at}-",
            }
            connection.request("GET", f"/files/{part.sha256}", headers=headers)
            with connection.getresponse() as answer:
                self._read(answer, part, giver, file, told)
        finally:
            connection.close()

    def _connect(self, host: str, port: int | None) -> http.client.HTTPConnection:
        if self.trust is None:
            return http.client.HTTPConnection(host, port, timeout=ANSWER_S)
        return http.client.HTTPSConnection(host, port, timeout=ANSWER_S, context=self.trust)

    def _read(
        self,
        answer: http.client.HTTPResponse,
        part: Part,
        giver: Giver,
        file: BinaryIO,
        told: Callable[[int, str], None],
    ) -> None:
        at = file.tell()
        total = re.fullmatch(rf"bytes {at}-(\d+)/(\d+)", answer.headers.get("content-range", ""))
        if answer.status != 206 or total is None:
            raise _Refused(f"it answered with status {answer.status}")
        if int(total[2]) != part.size:
            raise _Refused(f"its file has {total[2]} bytes instead of {part.size}")
        while at < part.size and (data := answer.read1(self.rate.piece(READ_BYTES))):
            if at + len(data) > part.size:
                raise _Refused("it sent more than the file has")
            _write(file, data)
            at += len(data)
            told(at, giver.name)
            wait_s = self.rate.after(len(data), self.clock())
            if wait_s > 0:
                self.sleep(wait_s)
        if at < part.size:
            raise _Refused(f"it broke off at byte {at}")


def _write(file: BinaryIO, data: bytes) -> None:
    try:
        file.write(data)
        file.flush()
    except OSError as error:
        raise _DiskError(error) from error


class _Refused(Exception):
    """This machine gives nothing more."""


class _DiskError(OSError):
    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error
