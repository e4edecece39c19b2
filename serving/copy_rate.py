"""How fast files may be copied, and which bytes of one were asked for. Pure: the clock is an argument."""

import re
from dataclasses import dataclass


@dataclass(slots=True)
class CopyRate:
    """All copies that share it together stay below `bytes_s`, but for the piece that goes first; None: no limit."""

    bytes_s: int | None
    due: float = 0.0
    """When the next piece may go, on the caller's clock."""

    def after(self, count: int, now: float) -> float:
        """`count` bytes went: for how many seconds nothing more may."""
        if self.bytes_s is None:
            return 0.0
        self.due = max(self.due, now) + count / self.bytes_s
        return self.due - now

    def piece(self, most: int) -> int:
        """Bytes to send in one go: a quarter of a second's at most."""
        return most if self.bytes_s is None else max(1, min(most, self.bytes_s // 4))


class NoSuchBytes(ValueError):
    """The range lies outside the file."""


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last of what `Range: bytes=…` asks for; None: the whole file.

    A header that is no single range is passed over, as RFC 9110 allows. Raises NoSuchBytes.
    """
    match = re.fullmatch(r"bytes=(\d{0,19})-(\d{0,19})", (header or "").replace(" ", ""))
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        first, end = max(0, size - int(match[2])), size
        if match[2].strip("0") == "":
            raise NoSuchBytes
    else:
        first = int(match[1])
        end = min(size, int(match[2]) + 1) if match[2] else size
        if match[2] and int(match[2]) < first:
            return None
    if first >= size:
        raise NoSuchBytes
    return first, end
