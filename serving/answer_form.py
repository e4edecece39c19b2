"""How answers of all kinds are written: a form takes the engine's events and gives bytes to send. Pure.

Sends nothing and knows no turn's life; the forms themselves stand beside their endpoints' shapes.
"""

from serving.engine import ChoiceEnded, Embedded, Text, Usage
from serving.openai_wire import Outcome, PromptProgress


class Form:
    """One answer's bytes, which put together are its body. A whole answer gives b"" until its end.

    Called in the order of what happens: `prompt`, then `progress` of it, then `text` and `ended` of its choices, one
    choice after another, or `embedded`; again from `prompt` on for each further prompt; `end` once.
    """

    def prompt(self, number: int) -> None:
        """What comes from now on belongs to the prompt of this number, from 0."""

    def progress(self, progress: PromptProgress) -> bytes:
        """The prompt was begun, or a part of it evaluated. b"" where nobody asked to be told."""
        return b""

    def text(self, event: Text) -> bytes:
        """New text of a choice."""
        raise AssertionError("no text was asked for")

    def ended(self, event: ChoiceEnded) -> bytes:
        """A choice is whole."""
        raise AssertionError("no text was asked for")

    def embedded(self, event: Embedded) -> None:
        """Vectors came."""
        raise AssertionError("no embeddings were asked for")

    def end(self, usage: Usage, outcome: Outcome) -> bytes:
        """All is there. `usage` is that of all prompts."""
        raise NotImplementedError
