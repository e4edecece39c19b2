"""What a model's answer is made of, piece by piece. Pure.

An AnswerParser takes the answer's text as the engine gives it and says which of it is the answer, which is reasoning
and which is tool calls. How the text is cut into pieces makes no difference to the pieces put together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Content:
    """New text of the answer itself; not empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """New text that the model thought before it answered; not empty."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegan:
    """A tool call begins. Calls are numbered from 0 and do not overlap. Its arguments follow."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of a call's arguments: a JSON object once all of it is put together, as far as the model wrote one."""

    index: int
    text: str


Delta = Content | Reasoning | CallBegan | CallArguments


class AnswerParser(Protocol):
    """Reads one answer.

    Nothing the model wrote is lost but the markers of its format, the white space around them, and answers to its own
    calls that it made up: what looks like a call and is none comes as Content. A call that breaks off after its
    CallBegan, or is not finished when the answer ends, keeps the arguments that it has, which are then no JSON; text
    that follows such a break is Content.
    """

    @property
    def plain(self) -> bool:
        """There is nothing to find: every text comes back as Content. The caller may skip the parser."""
        ...

    @property
    def calls(self) -> int:
        """How many calls have begun."""
        ...

    @property
    def unfinished(self) -> bool:
        """After `finish`: the arguments of the last call are cut off, or those of some call are broken."""
        ...

    def push(self, text: str) -> Sequence[Delta]:
        """What is certain now."""
        ...

    def finish(self) -> Sequence[Delta]:
        """What was held back. Nothing may be pushed after it."""
        ...


class PlainParser:
    """For answers in which there is nothing to find."""

    __slots__ = ()

    plain = True
    calls = 0
    unfinished = False

    def push(self, text: str) -> Sequence[Delta]:
        return (Content(text),) if text else ()

    def finish(self) -> Sequence[Delta]:
        return ()
