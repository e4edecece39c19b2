"""What of a sequence can serve the next prompt. Pure: token ids in, numbers out; the memory is not touched here."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WORTH_COPYING = 32
"""So many tokens more than its own sequence must another's save a turn before they are copied."""
CHECKPOINTS = 4
"""So many are kept of a sequence, the newest."""
BEFORE_END = 4
"""So many tokens before a prompt's end its checkpoint is taken: the same prompt again needs its last token evaluated
anew, and a template may end a prompt with tokens that it does not repeat in a history (an opened reasoning)."""

Checkpoint = tuple[int, bytes]
"""How many tokens the sequence held, and the engine's bytes to come back to them."""


@dataclass(frozen=True, slots=True)
class Donor:
    """A sequence that has something to copy: `tokens[:held]`."""

    number: int
    tokens: Sequence[int]
    held: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy the first `count` tokens of the sequence `source`."""

    source: int
    count: int


def common_prefix(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many tokens both begin with."""
    shorter = min(len(held), len(wanted))
    if list(held[:shorter]) == list(wanted[:shorter]):
        return shorter
    return next(index for index in range(shorter) if held[index] != wanted[index])


def reusable(held: Sequence[int], prompt: Sequence[int]) -> int:
    """How many tokens of what is held can stay for a prompt, whose last token must be evaluated for its logits."""
    return min(common_prefix(held, prompt), len(prompt) - 1)


def worth_copying(prompt: Sequence[int], kept: int, donors: Iterable[Donor]) -> Copy | None:
    """The longest prefix that another sequence offers, if it is enough longer than the `kept` tokens that the turn's
    own sequence has. Of two that offer the same, the first."""
    best: Copy | None = None
    least = kept + WORTH_COPYING
    for donor in donors:
        if min(donor.held, len(prompt) - 1) < least:
            continue
        count = reusable(donor.tokens[: donor.held], prompt)
        if count >= least:
            best = Copy(donor.number, count)
            least = count + 1
    return best


def way_back(checkpoints: Sequence[Checkpoint], most: int) -> Checkpoint | None:
    """The latest checkpoint with no more than `most` tokens."""
    fitting = [checkpoint for checkpoint in checkpoints if checkpoint[0] <= most]
    return max(fitting, key=lambda checkpoint: checkpoint[0], default=None)


def with_checkpoint(checkpoints: Sequence[Checkpoint], new: Checkpoint) -> list[Checkpoint]:
    """The checkpoints to keep, ascending, `new` among them."""
    others = [checkpoint for checkpoint in checkpoints if checkpoint[0] != new[0]]
    return sorted([*others, new], key=lambda checkpoint: checkpoint[0])[-CHECKPOINTS:]
