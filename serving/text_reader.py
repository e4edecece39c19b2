"""Reading a text that comes in pieces. Pure.

A reader's methods are generators: where the text so far does not decide, they yield, and go on once there is more.
No decision depends on how the text was cut, because none is taken before all that it needs is there.
"""

import json
import re
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from serving.text import begun

T = TypeVar("T")
Step = Generator[None, None, T]
"""Something that is being read: yields for more text, returns what it read."""

Take = Callable[[str], None]

_SPACES = re.compile(r"\s*")
_NAME = re.compile(r"[\w.$-]*")
_WORD = re.compile(r"[\w.+-]*")
_SCALAR = re.compile(r"true|false|null|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")


class TextReader:
    """Holds what is not read yet, and while it is pinned also what was read since."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        """What `text` holds before this index was read."""
        self.ended = False
        """No more text comes."""
        self._pinned = False

    def more(self) -> Step[bool]:
        """Wait for more text; False where none comes. Indices into `text` other than `at` are void afterwards."""
        if self.ended:
            return False
        if not self._pinned:
            self._cut()
        size = len(self.text) - self.at
        while len(self.text) - self.at == size and not self.ended:
            yield
        return len(self.text) - self.at > size

    def pin(self) -> None:
        """From here on what is read can be read again."""
        self._cut()
        self._pinned = True

    def unpin(self) -> None:
        self._pinned = False

    def rewind(self) -> None:
        """Back to where `pin` was called, and unpin; nothing if it is not pinned."""
        if self._pinned:
            self.at = 0
            self._pinned = False

    def _cut(self) -> None:
        self.text = self.text[self.at :]
        self.at = 0

    def peek(self) -> Step[str]:
        """The next character, which stays; "" at the end."""
        while self.at == len(self.text):
            if not (yield from self.more()):
                return ""
        return self.text[self.at]

    def spaces(self) -> Step[str]:
        """The white space that comes next."""
        return (yield from self._run(_SPACES))

    def name(self) -> Step[str]:
        """A function's name; "" where none comes."""
        return (yield from self._run(_NAME))

    def _run(self, pattern: re.Pattern[str]) -> Step[str]:
        parts: list[str] = []
        while True:
            found = pattern.match(self.text, self.at)
            end = found.end() if found else self.at
            parts.append(self.text[self.at : end])
            self.at = end
            if end < len(self.text) or not (yield from self.more()):
                return "".join(parts)

    def literal(self, mark: str) -> Step[bool]:
        """Whether exactly this comes next; then it is read."""
        while True:
            rest = self.text[self.at : self.at + len(mark)]
            if rest == mark:
                self.at += len(mark)
                return True
            if not mark.startswith(rest) or not (yield from self.more()):
                return False

    def loose(self, mark: str) -> Step[bool]:
        """The same with any white space, or none, before it and where `mark` has some. Where it returns False, some
        of it may have been read."""
        for word in mark.split():
            yield from self.spaces()
            if not (yield from self.literal(word)):
                return False
        return True

    def until(self, marks: Sequence[str], take: Take) -> Step[str | None]:
        """Give `take` the text before the first of the marks, as it comes. Returns the mark, which is not read yet;
        None where there is none up to the end. No mark may be part of another but at its end."""
        while True:
            rest = self.text[self.at :]
            found = [(place, mark) for mark in marks if (place := rest.find(mark)) >= 0]
            if found:
                place, mark = min(found)
                self._give(rest[:place], take)
                return mark
            sure = rest if self.ended else rest[: len(rest) - begun(rest, marks)]
            self._give(sure, take)
            if not (yield from self.more()) and self.at == len(self.text):
                return None

    def _give(self, text: str, take: Take) -> None:
        self.at += len(text)
        if text:
            take(text)

    def json_string(self) -> Step[str | None]:
        """A JSON string, decoded; None where none comes."""
        raw: list[str] = []
        if (yield from self.peek()) != '"' or not (yield from self.json_value(raw.append)):
            return None
        try:
            return str(json.loads("".join(raw), strict=False))
        except ValueError:
            return None

    def json_value(self, take: Take) -> Step[bool]:
        """Give `take` a JSON value, as it comes. False where it is none or does not end: then what was taken before
        the place at fault stays read."""
        scan = _JsonScan()
        while True:
            end = scan.go(self.text, self.at, self.ended)
            self._give(self.text[self.at : end], take)
            if scan.state in ("whole", "broken"):
                return scan.state == "whole"
            if not (yield from self.more()) and not scan.scalar:
                return False


class _JsonScan:
    """Finds a JSON value's end. `state` says what may come next."""

    __slots__ = ("_escaped", "_open", "_then", "scalar", "state")

    def __init__(self) -> None:
        self.state = "value"
        self.scalar = ""
        """A number or word that is not read yet, because it may go on."""
        self._open: list[str] = []
        self._then = ""
        self._escaped = False

    def go(self, text: str, at: int, ended: bool) -> int:
        """Reads on from `at`; returns the index of what is not part of the value or not yet known to be."""
        while at < len(text) and self.state not in ("whole", "broken"):
            if self.state == "string":
                at = self._string(text, at)
            elif text[at] in " \t\r\n" and self._open:
                at += 1
            elif self.state in ("value", "item") and text[at] not in '{["]':
                found = _WORD.match(text, at)
                end = found.end() if found else at
                self.scalar = text[at:end]
                if end == len(text) and not ended and self.scalar:
                    return at
                if not _SCALAR.fullmatch(self.scalar):
                    self.state = "broken"
                    return at
                self.scalar = ""
                self._value_ended()
                at = end
            elif self._structure(text[at]):
                at += 1
            else:
                self.state = "broken"
        return at

    def _string(self, text: str, at: int) -> int:
        for place in range(at, len(text)):
            character = text[place]
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                if self._then == "colon":
                    self.state = "colon"
                else:
                    self._value_ended()
                return place + 1
        return len(text)

    def _structure(self, character: str) -> bool:
        match self.state, character:
            case (("value" | "item"), '"'):
                self.state, self._then = "string", "value"
            case (("value" | "item"), "{"):
                self._open.append("}")
                self.state = "first key"
            case (("value" | "item"), "["):
                self._open.append("]")
                self.state = "item"
            case (("key" | "first key"), '"'):
                self.state, self._then = "string", "colon"
            case "colon", ":":
                self.state = "value"
            case "comma", ",":
                self.state = "key" if self._open[-1] == "}" else "value"
            case ("first key", "}") | ("item", "]"):
                self._open.pop()
                self._value_ended()
            case "comma", ("}" | "]") if character == self._open[-1]:
                self._open.pop()
                self._value_ended()
            case _:
                return False
        return True

    def _value_ended(self) -> None:
        self.state = "comma" if self._open else "whole"
