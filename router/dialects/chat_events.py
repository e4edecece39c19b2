"""The events of a stream of chat completions, read from bytes that may end anywhere. Pure.

Reads what homeport's own hosts and router write: `data:` lines and comments, each event behind an empty line.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Comment:
    """A line that says nothing but that the stream lives, with the empty line behind it."""

    line: bytes


@dataclass(frozen=True, slots=True)
class Chunk:
    """One `chat.completion.chunk`."""

    data: Mapping[str, Any]

    @property
    def choice(self) -> Mapping[str, Any] | None:
        """The first choice's part; None for the event of the usage."""
        choices = self.data.get("choices")
        return choices[0] if choices else None


@dataclass(frozen=True, slots=True)
class Failed:
    """The stream's error: nothing follows it."""

    error: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Done:
    """`[DONE]`: the answer is whole."""


Event = Comment | Chunk | Failed | Done


class ChatEvents:
    """Bytes in, events out."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def take(self, part: bytes) -> Iterator[Event]:
        """The events that end in `part`; what begins in it is held back."""
        *whole, self._held = (self._held + part).split(b"\n\n")
        for event in whole:
            for line in event.split(b"\n"):
                if line.startswith(b":"):
                    yield Comment(line + b"\n\n")
                elif line.startswith(b"data:"):
                    yield _read(line[5:].strip())


def _read(data: bytes) -> Event:
    if data == b"[DONE]":
        return Done()
    told = json.loads(data)
    return Failed(told["error"]) if "error" in told else Chunk(told)
