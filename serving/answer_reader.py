"""What readers of answers have in common: deltas on one side, text on the other. Pure."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from serving.deltas import CallArguments, CallBegan, Content, Delta, Reasoning
from serving.text_reader import Step, TextReader


class AnswerReader(TextReader, ABC):
    """An AnswerParser (deltas.py) whose work is one generator."""

    plain = False

    def __init__(self, new_id: Callable[[], str]) -> None:
        super().__init__()
        self.calls = 0
        self.unfinished = False
        self.gap = ""
        """White space that was read and belongs to the answer unless a marker follows it."""
        self._new_id = new_id
        self._out: list[Delta] = []
        self._steps = self.read()

    @abstractmethod
    def read(self) -> Step[None]:
        """Reads the whole answer."""

    def push(self, text: str) -> Sequence[Delta]:
        self.text += text
        next(self._steps, None)
        return self._taken()

    def finish(self) -> Sequence[Delta]:
        self.ended = True
        for _ in self._steps:
            pass
        return self._taken()

    def _taken(self) -> Sequence[Delta]:
        out, self._out = self._out, []
        return out

    def content(self, text: str) -> None:
        self._say(Content, text)

    def reasoning(self, text: str) -> None:
        self._say(Reasoning, text)

    def _say(self, kind: type[Content] | type[Reasoning], text: str) -> None:
        """White space at the end waits for what comes after it."""
        text = self.gap + text
        said = text.rstrip()
        self.gap = text[len(said) :]
        if not said:
            return
        last = self._out[-1] if self._out else None
        if isinstance(last, kind):
            self._out[-1] = kind(last.text + said)
        else:
            self._out.append(kind(said))

    def flush(self, kind: type[Content] | type[Reasoning]) -> None:
        """Say the white space that waits."""
        if self.gap:
            self._out.append(kind(self.gap))
            self.gap = ""

    def began(self, name: str) -> None:
        """A call begins; the white space before it is dropped."""
        self.gap = ""
        self._out.append(CallBegan(self.calls, self._new_id(), name))
        self.calls += 1

    def arguments(self, text: str) -> None:
        """More of the last call's arguments."""
        index = self.calls - 1
        last = self._out[-1] if self._out else None
        if isinstance(last, CallArguments):
            self._out[-1] = CallArguments(index, last.text + text)
        elif text:
            self._out.append(CallArguments(index, text))
