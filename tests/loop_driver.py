"""A decode loop on a backend without a model, and what it says."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from serving.backend import Span
from serving.batching import Budget
from serving.decode_loop import DecodeLoop
from serving.engine import Began, Broke, Ended, Event, Sampling, SavedState, Text, Turn
from tests.backends import CountingBackend

PATIENCE_S = 10.0


class HeldBackend(CountingBackend):
    """The first decode and the first embedding wait: the loop stands still in the middle of them."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = threading.Event()
        self.go_on = threading.Event()
        self.aborted = threading.Event()

    def abort(self) -> None:
        super().abort()
        self.aborted.set()

    def _hold(self) -> None:
        self.inside.set()
        assert self.go_on.wait(PATIENCE_S)

    def decode(self, spans: Sequence[Span]) -> bool:
        self._hold()
        return super().decode(spans)

    def embed(self, tokens: Sequence[int], room: Callable[[], int]) -> Generator[bytes | None]:
        self._hold()
        return super().embed(tokens, room)


class Running:
    """A loop on a backend, and its events in order."""

    def __init__(self, backend: CountingBackend, sequences: int = 2, context: int = 64, **more: Any) -> None:
        self.backend = backend
        self.loop = DecodeLoop(
            backend, context, sequences, Budget(8, 3), **{"share": True, "prompt_chunk": 3, **more}
        )
        self._heard: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.load()

    def load(self) -> None:
        self.loop.load(lambda _: None)
        self.loop.start(self._hear)

    def _hear(self, events: Sequence[Event]) -> None:
        for event in events:
            self._heard.put(event)

    def events(self, *asked: int) -> dict[int, list[Event]]:
        """Of these turns, until all have ended."""
        said: dict[int, list[Event]] = {number: [] for number in asked}
        for event in self.said_in_order(*asked):
            said[event.turn].append(event)
        return said

    def said_in_order(self, *asked: int) -> list[Event]:
        """The same in one list."""
        said: list[Event] = []
        going = set(asked)
        while going:
            said.append(event := self._heard.get(timeout=PATIENCE_S))
            assert event.turn in asked, event
            if isinstance(event, Ended | Broke):
                going.remove(event.turn)
        return said

    def answers(self, *turns: Turn) -> dict[int, list[Event]]:
        """Begin the turns together; their events until all have ended."""
        for turn in turns:
            self.loop.begin(turn)
        return self.events(*(turn.id for turn in turns))

    def answer(self, turn: Turn) -> list[Event]:
        return self.answers(turn)[turn.id]

    def began(self, turn: Turn) -> Began:
        event = self.answer(turn)[0]
        assert isinstance(event, Began)
        return event

    def saved(self, sequence: int = 0) -> SavedState:
        state = self.loop.save(sequence).result(PATIENCE_S)
        assert state is not None
        return state


Run = Callable[..., Running]
"""Backend, and more for the loop."""


@contextmanager
def loops() -> Iterator[Run]:
    """Starts loops, and ends them all; by then every sampler must have been freed."""
    started: list[Running] = []

    def start(backend: CountingBackend, **more: Any) -> Running:
        started.append(Running(backend, **more))
        return started[-1]

    try:
        yield start
    finally:
        for running in started:
            running.loop.close()
    for running in started:
        assert not running.backend.samplers


def turn(number: int, prompt: int, max_tokens: int | None = 4, sequence: int = 0, **more: Any) -> Turn:
    return Turn(number, sequence, tuple(range(1, prompt + 1)), max_tokens, Sampling(), **more)


def following(number: int, after: Sequence[int], new: int, **more: Any) -> Turn:
    """A turn whose prompt is what is held, and `new` tokens that nothing else begins with."""
    return Turn(number, more.pop("sequence", 0), (*after, *([500 + number] * new)), 4, Sampling(), **more)


def text(events: Sequence[Event], choice: int = 0) -> str:
    return "".join(event.text for event in events if isinstance(event, Text) and event.choice == choice)


def ended(events: Sequence[Event]) -> Ended:
    end = events[-1]
    assert isinstance(end, Ended), end
    return end
