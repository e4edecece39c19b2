"""The text that a tool without a schema is called with, read out of the JSON that a chat calls it with. Pure."""

import json
import re
from collections.abc import Mapping
from typing import Any

_BEGIN = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_PIECES = re.compile(r'(\\u[0-9a-fA-F]{4}|\\[^u]|[^"\\])*', re.DOTALL)
_HALF = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}")
"""The first half of a character that JSON writes as two."""


class FreeInput:
    """`{"input": "…"}` in parts that may end anywhere, the text of it out."""

    __slots__ = ("_held", "began")

    def __init__(self) -> None:
        self._held = ""
        self.began = False
        """Whether a text has begun."""

    def take(self, part: str) -> str:
        """The text that ends in this part."""
        self._held += part
        if not self.began:
            found = _BEGIN.match(self._held)
            if found is None:
                return ""
            self.began = True
            self._held = self._held[found.end() :]
        found = _PIECES.match(self._held)
        assert found is not None
        end = found.end()
        last = found.group(1)
        if last is not None and _HALF.fullmatch(last) and self._held[end : end + 1] in ("", "\\"):
            end -= len(last)
        text, self._held = self._held[:end], self._held[end:]
        return _decoded(text)


def free_input(arguments: str) -> str:
    """The whole text, or as much as there is of one that was cut off. What is no such call goes to the tool as it
    is."""
    told = json_object(arguments).get("input")
    if isinstance(told, str):
        return told
    reader = FreeInput()
    text = reader.take(arguments)
    return text if reader.began else arguments


def json_object(arguments: str) -> Mapping[str, Any]:
    """What a model calls a tool with; empty where that is no object."""
    try:
        told = json.loads(arguments)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _decoded(text: str) -> str:
    """A JSON string's inside; one that JSON would not write comes as it is."""
    try:
        return str(json.loads(f'"{text}"', strict=False))
    except ValueError:
        return text
