"""What the decode loop asks of a model library: the one seam between turns and llama_*.

Shapes only: no library is imported here, and nothing is decided.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from serving.engine import Sampling, Turn


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one sequence for the next decode, the first of them at position `start`. `last`: logits
    are wanted for the last of them."""

    sequence: int
    start: int
    tokens: Sequence[int]
    last: bool


class Backend(Protocol):
    """A loaded model with its context. Everything but `abort` is called on the loop's thread only."""

    def open(self, progress: Callable[[float], None]) -> None:
        """Load and warm up. Raises LoadError."""
        ...

    def shut(self) -> None:
        """Free everything. Safe after a failed `open`."""
        ...

    def unfit(self, turn: Turn) -> str | None:
        """Why this model cannot answer the turn; None if it can."""
        ...

    def sampler(self, sampling: Sampling, prompt: Sequence[int]) -> Any:
        """A new sampler chain; `free` it."""
        ...

    def free(self, sampler: Any) -> None: ...

    def keep(self, sequence: int, count: int) -> int:
        """Cut the sequence to its first `count` tokens. Returns how many stay: `count`, or 0 where the model's
        memory cannot be cut there."""
        ...

    def present(self, sequence: int) -> int:
        """Tokens that the sequence really holds."""
        ...

    def decode(self, spans: Sequence[Span]) -> bool:
        """Evaluate. False: aborted, parts may have been evaluated, no logits. Raises RuntimeError on failure."""
        ...

    def sample(self, sampler: Any, row: int) -> int:
        """The next token after the batch's token number `row`, which must have had logits."""
        ...

    def piece(self, token: int) -> bytes | None:
        """The token's bytes; None for a token that ends an answer."""
        ...

    def clear(self) -> None:
        """Empty all sequences."""
        ...

    def abort(self) -> None:
        """Let the decode that runs, or the next one, return early. Any thread."""
        ...

    def rearm(self) -> None:
        """Take `abort` back."""
        ...
