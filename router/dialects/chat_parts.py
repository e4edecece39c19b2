"""Messages of a chat whose texts come in parts. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

TEXTS = ("content", "reasoning_content")


def joined(messages: Iterable[dict[str, Any]], between: Mapping[str, str]) -> list[dict[str, Any]]:
    """The messages with one text where a list of its parts stands. `between`: what comes between two parts, by role.

    Joined once, since a text that grows part by part is copied with each: a body of some MiB would hold up every other
    turn for minutes.
    """
    return [
        {
            name: between[message["role"]].join(value) if name in TEXTS and isinstance(value, list) else value
            for name, value in message.items()
        }
        for message in messages
    ]
