"""A turn in progress, and the answer that it is making: tokens in, text with the tokens behind it out.

Touches no memory and no model; the sampler is only kept here.
"""

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Any

from serving.engine import Finish, Sampled, Turn, Usage
from serving.sequences import Placed, Sequence
from serving.text import TextAssembler


@dataclass(frozen=True, slots=True)
class Part:
    """Text to send, and what stands behind it."""

    text: str
    tokens: int
    sampled: tuple[Sampled, ...]


class Answer:
    """One of a turn's answers. `limit`: tokens that it may have, at least 1."""

    __slots__ = ("_count", "_limit", "_sent", "_starts", "_text", "_told", "sampler")

    def __init__(self, sampler: Any, stops: tuple[str, ...], limit: int) -> None:
        self.sampler = sampler
        self._text = TextAssembler(stops)
        self._limit = limit
        self._count = 0
        self._sent = 0
        self._starts: list[int] = []
        self._told: list[Sampled] = []

    def push(self, piece: bytes | None, told: Sampled | None = None) -> tuple[Finish | None, Part | None]:
        """The next token, as the bytes it stands for; None: it ends the answer. Returns why the answer is whole, or
        None, and the text that is certain now. Tokens come with the first of their text; those of which nothing is
        sent (they were part of a stop string, or of no whole character) do not come at all."""
        if piece is None:
            return "stop", self._part(self._text.finish())
        # Where in the answer's text the token begins, in characters: before what it finishes of a character.
        self._starts.append(self._sent + self._text.held_back)
        if told is not None:
            self._told.append(told)
        self._count += 1
        text = self._text.push(piece)
        if self.stop is not None:
            return "stop", self._part(text)
        if self._count >= self._limit:
            return "length", self._part(text + self._text.finish())
        return None, self._part(text)

    @property
    def stop(self) -> str | None:
        """The stop string that ended it."""
        return self._text.stop

    def _part(self, text: str) -> Part | None:
        if not text:
            return None
        self._sent += len(text)
        count = bisect_left(self._starts, self._sent)
        del self._starts[:count]
        told = tuple(self._told[:count])
        del self._told[:count]
        return Part(text, count, told)


@dataclass(slots=True)
class Run:
    """A turn in progress. `answer` is its choice numbered `choice`; `generated` counts the tokens of all of them."""

    turn: Turn
    sequence: Sequence
    answer: Answer
    choice: int
    reused: int
    done: int
    """Prompt tokens that are in the sequence, as was told last."""
    mark: int
    """Where in the prompt a decode must end, for a checkpoint."""
    generated: int = 0

    @classmethod
    def of(cls, turn: Turn, sequence: Sequence, placed: Placed, sampler: Any, context: int) -> "Run":
        """A turn that was placed. What it brought to be loaded is let go."""
        return cls(
            replace(turn, state=None),
            sequence,
            Answer(sampler, turn.stop, limit(turn, context)),
            turn.choices - 1,
            placed.reused,
            placed.reused,
            placed.mark,
        )

    @property
    def goal(self) -> int:
        """Tokens that the sequence is to hold before anything else is done with it."""
        held = self.sequence.held
        return self.mark if held < self.mark else len(self.sequence.tokens)

    def usage(self) -> Usage:
        prompt = len(self.turn.prompt)
        return Usage(prompt, self.reused, self.done - self.reused, self.generated)


def limit(turn: Turn, context: int) -> int:
    """Tokens that one answer may have: what was asked for, and what the context has room for."""
    room = context - len(turn.prompt)
    return room if turn.max_tokens is None else min(room, turn.max_tokens)


def for_choice(turn: Turn, choice: int) -> Turn:
    """The turn as its sampler sees it for a choice: from one seed each choice must draw otherwise, and the one
    numbered 0 as if it were alone."""
    seed = turn.sampling.seed
    if not choice or seed is None:
        return turn
    return replace(turn, sampling=replace(turn.sampling, seed=seed + choice))
