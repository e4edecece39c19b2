"""What the decode loop asks of a model library: the one seam between turns and llama_*.

Shapes only: no library is imported here, and nothing is decided.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from serving.engine import Sampled, Turn


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

    @property
    def cuttable(self) -> bool:
        """Whether `keep` works at any count. Otherwise (sliding window, recurrent, hybrid) checkpoints are needed.
        Valid after `open`."""
        ...

    def open(self, progress: Callable[[float], None]) -> None:
        """Load and warm up. Raises LoadError. May be called again after `shut`."""
        ...

    def shut(self) -> None:
        """Free everything. Safe after a failed `open`."""
        ...

    def unfit(self, turn: Turn) -> str | None:
        """Why this model cannot answer the turn; None if it can."""
        ...

    def sampler(self, turn: Turn) -> Any:
        """A new sampler chain for one of the turn's answers, its constraint included; `free` it."""
        ...

    def free(self, sampler: Any) -> None: ...

    def keep(self, sequence: int, count: int) -> int:
        """Cut the sequence to its first `count` tokens. Returns how many stay: `count`, or 0 where the model's
        memory cannot be cut there, and then the sequence is empty."""
        ...

    def can_keep(self, sequence: int, count: int) -> bool:
        """Whether `keep` with this count, at least 1, would leave `count`."""
        ...

    def present(self, sequence: int) -> int:
        """Tokens that the sequence really holds."""
        ...

    def save(self, sequence: int) -> bytes | None:
        """All that the sequence holds. None: it failed."""
        ...

    def load(self, sequence: int, data: bytes) -> bool:
        """Make the sequence hold what `save` gave. False: it cannot be, and the sequence is empty."""
        ...

    def checkpoint(self, sequence: int) -> bytes | None:
        """What must be kept to come back to where the sequence is now: small for a sliding window, which gets by
        with the part that cannot be cut. None: it failed."""
        ...

    def roll_back(self, sequence: int, count: int, data: bytes) -> bool:
        """Make a sequence that has gone on since then hold again its first `count` tokens, of which `checkpoint` gave
        `data`. False: it cannot be, and the sequence is empty."""
        ...

    def copy(self, source: int, destination: int, count: int) -> bool:
        """Make `destination`, whatever it held, hold a copy of the first `count` tokens of `source`. Only of cuttable
        memory. False: it cannot be, and the destination is empty."""
        ...

    def decode(self, spans: Sequence[Span]) -> bool:
        """Evaluate. False: aborted, parts may have been evaluated, no logits. Raises RuntimeError on failure."""
        ...

    def sample(self, sampler: Any, row: int) -> int:
        """The next token after the batch's token number `row`, which must have had logits. A constraint that is
        complete samples a token that ends the answer."""
        ...

    def sample_told(self, sampler: Any, row: int, top: int) -> tuple[int, Sampled]:
        """`sample`, with log probabilities of the logits as the model gave them."""
        ...

    def embed(self, tokens: Sequence[int], room: Callable[[], int]) -> Generator[bytes | None]:
        """Make one text's vector, as `Embedded` has it, in parts of at most `room()` tokens: None after each part, the
        vector after the last. One text at a time; `close` gives it up. Raises RuntimeError on failure,
        InterruptedError when aborted."""
        ...

    def piece(self, token: int, special: bool = False) -> bytes | None:
        """The token's bytes, those of special tokens only if asked for; None for a token that ends an answer."""
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
