"""JSON as programs let people write it, with comments and commas too many: read, and changed in place. Pure.

What is not changed keeps its bytes.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

DEEPEST = 100
_SPACE = re.compile(r"(?:[ \t\r\n]+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_COMMENT = re.compile(r"//|/\*")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_PLAIN = re.compile(r"true|false|null|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")

Merge = Callable[[Any, Any], Any]
"""What is there and what is wanted, to what is to stand there."""


class Unclear(ValueError):
    """The text cannot be read, or not be changed without loss. The message says why, to go on from `since`."""


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it stands. `spaced`: the stretches of space and comments in it."""

    value: Any
    start: int
    end: int
    members: Mapping[str, "Node"] | None = None
    """Of an object."""
    comma: bool = False
    """One stands behind the last member."""
    has_comments: bool = False


def read(text: str) -> Node:
    """Raises Unclear."""
    scan = _Scan(text)
    scan.skip()
    node = scan.value(0)
    scan.skip()
    if scan.at != len(text):
        raise scan.unclear("something stands behind its end")
    return node


def with_members(text: str, wanted: Mapping[str, Any], merge: Merge) -> str:
    """The same text with these members in its object. Raises Unclear."""
    node = read(text)
    if node.members is None:
        raise Unclear("it does not hold an object")
    edits = sorted(_Edits(text, merge).of(node, wanted, ""), key=lambda edit: edit[:2])
    for start, end, new in reversed(edits):  # of two at one place the first stands first in the end
        text = text[:start] + new + text[end:]
    return text


class _Scan:
    """One pass over a text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def unclear(self, why: str) -> Unclear:
        return Unclear(f"line {self.text.count(chr(10), 0, self.at) + 1}: {why}")

    def skip(self) -> bool:
        """Over space and comments; whether there was a comment."""
        found = _SPACE.match(self.text, self.at)
        assert found is not None
        self.at = found.end()
        return bool(_COMMENT.search(found.group()))

    def takes(self, mark: str) -> bool:
        if self.text.startswith(mark, self.at):
            self.at += 1
            return True
        return False

    def value(self, depth: int) -> Node:
        if depth > DEEPEST:
            raise self.unclear("it nests too deep")
        start = self.at
        if self.takes("{"):
            return self._object(start, depth)
        if self.takes("["):
            return self._list(start, depth)
        found = _STRING.match(self.text, start) or _PLAIN.match(self.text, start)
        if found is None:
            raise self.unclear("no JSON value stands there")
        self.at = found.end()
        return Node(self._loaded(found.group()), start, self.at)

    def _loaded(self, text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            raise self.unclear("no JSON value stands there") from None

    def _object(self, start: int, depth: int) -> Node:
        members: dict[str, Node] = {}
        comma, comments = True, self.skip()
        while not self.takes("}"):
            name = _STRING.match(self.text, self.at)
            if name is None or not comma:
                raise self.unclear("a member's name, a comma or } is missing")
            self.at = name.end()
            comments |= self.skip()
            if not self.takes(":"):
                raise self.unclear("a colon is missing")
            comments |= self.skip()
            member = self.value(depth + 1)
            members[str(self._loaded(name.group()))] = member
            comments |= self.skip() | member.has_comments
            comma = self.takes(",")
            comments |= self.skip()
        plain = {name: member.value for name, member in members.items()}
        return Node(plain, start, self.at, members, comma and bool(members), comments)

    def _list(self, start: int, depth: int) -> Node:
        found: list[Any] = []
        comma, comments = True, self.skip()
        while not self.takes("]"):
            if not comma:
                raise self.unclear("a comma or ] is missing")
            item = self.value(depth + 1)
            found.append(item.value)
            comments |= self.skip() | item.has_comments
            comma = self.takes(",")
            comments |= self.skip()
        return Node(found, start, self.at, None, False, comments)


class _Edits:
    """Which stretches of a text become what."""

    def __init__(self, text: str, merge: Merge) -> None:
        self._text = text
        self._merge = merge
        self._line = "\r\n" if "\r\n" in text else "\n"
        unit = re.search(r"^[ \t]+(?=\")", text, re.MULTILINE)
        self._unit = unit.group() if unit else "  "

    def of(self, node: Node, wanted: Mapping[str, Any], indent: str) -> Iterator[tuple[int, int, str]]:
        """`indent`: of the line on which the object ends."""
        assert node.members is not None
        inner = self._inner(node, indent)
        missing = {}
        for name, value in wanted.items():
            there = node.members.get(name)
            if there is None:
                missing[name] = value
            elif there.members is not None and isinstance(value, Mapping):
                yield from self.of(there, value, inner)
            elif (new := self._merge(there.value, value)) != there.value:
                if there.has_comments:
                    raise Unclear(f"comments in {name!r} would be lost")
                yield there.start, there.end, self._written(new, inner)
        if missing:
            yield from self._added(node, missing, inner, indent)

    def _added(
        self, node: Node, missing: Mapping[str, Any], inner: str, indent: str
    ) -> Iterator[tuple[int, int, str]]:
        assert node.members is not None
        last = max((member.end for member in node.members.values()), default=None)
        if last is not None and not node.comma:
            yield last, last, ","
        brace = node.end - 1
        spot = len(self._text[:brace].rstrip(" \t\r\n"))
        lines = [
            f"{inner}{json.dumps(name)}: {self._written(value, inner)}" for name, value in missing.items()
        ]
        added = self._line + f",{self._line}".join(lines)
        if "\n" not in self._text[spot:brace]:
            added += self._line + indent
        yield spot, spot, added

    def _inner(self, node: Node, indent: str) -> str:
        """How its members are indented."""
        assert node.members is not None
        for member in node.members.values():
            before = self._text[node.start + 1 : member.start].rpartition("\n")
            if before[1]:
                return before[2][: len(before[2]) - len(before[2].lstrip(" \t"))]
            break
        return indent + self._unit

    def _written(self, value: Any, indent: str) -> str:
        lines = json.dumps(value, indent=self._unit, ensure_ascii=False).split("\n")
        return f"{self._line}{indent}".join(lines)
