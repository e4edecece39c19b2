"""Texts that wait for their embeddings: one after the other, in turn for all who asked, and each part by part.

For the loop's thread only. What an embedding is, is the backend's matter.
"""

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from serving.backend import Backend
from serving.engine import Broke, Embed, Embedded, Ended, Event, Usage
from serving.steps import Watch
from serving.trouble import trace_of

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Work:
    """An Embed in progress."""

    embed: Embed
    vectors: list[bytes] = field(default_factory=list)
    making: Generator[bytes | None] | None = None
    """What is being made of the next text."""

    def give_up(self) -> None:
        """What was begun of the next text; it can be begun again."""
        making, self.making = self.making, None
        if making is not None:
            making.close()

    def end(self, cancelled: bool = False) -> Ended:
        return Ended(
            self.embed.id, "cancelled" if cancelled else "stop", usage(self.embed, len(self.vectors))
        )


class EmbedLine:
    """Each Embed taken ends in one Ended or Broke among the events."""

    def __init__(self, backend: Backend, context: int, watch: Watch, room: Callable[[], int]) -> None:
        """`room`: how many tokens may be evaluated at a time now."""
        self._backend = backend
        self._context = context
        self._watch = watch
        self._room = room
        self._works: dict[int, _Work] = {}
        self.tokens_evaluated = 0

    @property
    def turns(self) -> tuple[int, ...]:
        return tuple(self._works)

    def take(self, embed: Embed, events: list[Event]) -> None:
        """Let it wait, or break it."""
        for tokens in embed.inputs:
            if not 0 < len(tokens) <= self._context:
                events.append(
                    Broke(
                        embed.id, f"a text of {len(tokens)} tokens does not fit a context of {self._context}"
                    )
                )
                return
        self._works[embed.id] = _Work(embed)

    def cancel(self, turn: int, events: list[Event]) -> None:
        """Unknown ones are ignored."""
        if (work := self._works.pop(turn, None)) is not None:
            work.give_up()
            events.append(work.end(cancelled=True))

    def step(self, events: list[Event]) -> None:
        """Make a part of an embedding. One waits."""
        number, work = next(iter(self._works.items()))
        inputs = work.embed.inputs
        if len(work.vectors) < len(inputs):
            if not self._watch((number,)):
                return
            tokens = inputs[len(work.vectors)]
            try:
                if work.making is None:
                    work.making = self._backend.embed(tokens, self._room)
                vector = next(work.making)
            except InterruptedError:
                work.give_up()
                return  # cancelled, which is still to be read; or aborted for another's sake, and to be made again
            except Exception as error:  # noqa: BLE001  (logged without its words)
                logger.error("the engine could not make an embedding:\n%s", trace_of(error))
                del self._works[number]
                events.append(Broke(number, "the engine failed to make this embedding; its log says where"))
                return
            finally:
                self._watch(())
            if vector is None:
                return
            work.give_up()
            work.vectors.append(vector)
            self.tokens_evaluated += len(tokens)
        del self._works[number]
        if len(work.vectors) < len(inputs):
            self._works[number] = work  # behind the others
        else:
            events.append(Embedded(number, tuple(work.vectors)))
            events.append(work.end())

    def break_all(self, reason: str, events: list[Event]) -> None:
        for number, work in self._works.items():
            work.give_up()
            events.append(Broke(number, reason))
        self._works.clear()


def usage(embed: Embed, done: int) -> Usage:
    """Tokens of an Embed of which `done` texts have their vectors."""
    sizes = [len(tokens) for tokens in embed.inputs]
    return Usage(sum(sizes), 0, sum(sizes[:done]), 0)
