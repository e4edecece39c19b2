"""From the bytes of tokens to text that can be sent.

Pure. It knows nothing of tokens' numbers, of turns or of events. A token may end within a character, and a stop
string may begin in one token and end in another: both are held back until it is clear what they are.
"""

import codecs
from collections.abc import Sequence


class TextAssembler:
    """Collects the pieces of one answer.

    The text that comes out does not depend on how the bytes were cut into pieces. It ends before the first stop
    string to be completed; of two that are completed by the same character the longer one counts. Bytes that are
    no UTF-8 become U+FFFD.
    """

    __slots__ = ("_decode", "_held", "_stops", "stop")

    def __init__(self, stops: Sequence[str] = ()) -> None:
        """`stops` that are empty are ignored."""
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stop: str | None = None
        """The stop string that was completed: nothing comes out any more."""

    def push(self, piece: bytes) -> str:
        """Text that is certain now; "" while everything is held back and after a stop."""
        text = self._decode(piece)
        if not self._stops:
            return text
        if self.stop is not None:
            return ""
        text = self._held + text
        found = _first_stop(text, self._stops)
        if found is not None:
            at, self.stop = found
            self._held = ""
            return text[:at]
        sure = len(text) - begun(text, self._stops)
        self._held = text[sure:]
        return text[:sure]

    @property
    def held_back(self) -> int:
        """Whole characters that were pushed and did not come out yet."""
        return len(self._held)

    def finish(self) -> str:
        """What was held back, at the end of an answer that was not stopped. The beginning of a character whose rest
        never came is dropped. Nothing may be pushed after it."""
        text, self._held = self._held, ""
        return text


def _first_stop(text: str, stops: tuple[str, ...]) -> tuple[int, str] | None:
    """The stop string that is the first to be complete in `text`, behind where it begins."""
    found = [(at + len(stop), at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    return min(found)[1:] if found else None


def begun(text: str, marks: Sequence[str]) -> int:
    """Length of the longest end of `text` with which one of the marks begins (no whole mark occurs in it)."""
    longest = 0
    for mark in marks:
        for length in range(min(len(mark) - 1, len(text)), longest, -1):
            if text.endswith(mark[:length]):
                longest = length
                break
    return longest
