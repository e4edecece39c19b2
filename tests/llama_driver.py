"""Drives a real LlamaEngine in tests."""

import queue
from collections.abc import Callable, Sequence
from typing import Any

from serving.engine import Broke, Ended, Event, Sampling, Text, Turn
from serving.llama_engine import LlamaEngine

GREEDY = Sampling(temperature=0)
PATIENCE_S = 60.0
Messages = list[dict[str, str]]


class Driver:
    """A loaded engine, and what it said of each turn. Gives turns their ids."""

    def __init__(self, engine: LlamaEngine) -> None:
        self.engine = engine
        self.progress: list[float] = []
        self.facts = engine.load(self.progress.append)
        self._said: dict[int, queue.SimpleQueue[Event]] = {}
        engine.start(self._hear)

    def _hear(self, events: Sequence[Event]) -> None:
        for event in events:
            self._said[event.turn].put(event)

    def begin(
        self,
        prompt: Sequence[int],
        max_tokens: int | None = 16,
        *,
        sampling: Sampling = GREEDY,
        stop: tuple[str, ...] = (),
        sequence: int = 0,
        **more: Any,
    ) -> int:
        """`more`: other fields of the turn."""
        turn = self.number()
        self.engine.begin(Turn(turn, sequence, tuple(prompt), max_tokens, sampling, stop, **more))
        return turn

    def number(self) -> int:
        """The next turn's id, whose events are kept from now on."""
        turn = len(self._said)
        self._said[turn] = queue.SimpleQueue()
        return turn

    def until(self, turn: int, wanted: Callable[[Event], bool]) -> list[Event]:
        """The turn's next events, up to the first wanted one."""
        events: list[Event] = []
        while not events or not wanted(events[-1]):
            events.append(self._said[turn].get(timeout=PATIENCE_S))
        return events

    def answer(self, turn: int) -> tuple[str, Ended]:
        """All of the turn's text, and its end."""
        events = self.until(turn, lambda event: isinstance(event, Ended | Broke))
        end = events[-1]
        assert isinstance(end, Ended), end
        return "".join(event.text for event in events if isinstance(event, Text)), end

    def ask(self, prompt: Sequence[int], max_tokens: int | None = 16, **more: Any) -> tuple[str, Ended]:
        return self.answer(self.begin(prompt, max_tokens, **more))

    def chat(self, *words: str) -> tuple[int, ...]:
        """The prompt of a conversation: user and assistant in turn, after a short system message."""
        messages: Messages = [{"role": "system", "content": "You are a helpful AI assistant."}]
        for index, text in enumerate(words):
            messages.append({"role": "assistant" if index % 2 else "user", "content": text})
        return self.engine.prompt(messages)
