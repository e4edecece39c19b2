"""What of a sequence can serve the next prompt. Pure: token ids in, numbers out; the memory is not touched here."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

WORTH_COPYING = 32
"""So many tokens more than its own sequence must another's save a turn before they are copied."""
CHECKPOINTS = 4
"""So many are kept of a sequence, the newest."""
BEFORE_END = 4
"""So many tokens before a prompt's end its checkpoint is taken: the same prompt again needs its last token evaluated
anew, and a template may end a prompt with tokens that it does not repeat in a history (an opened reasoning)."""

Piece = Callable[[int], bytes | None]
"""A token's bytes; none for one that stands for no text, which is like itself only."""
Spell = Callable[[str], Sequence[int]]
"""How the tokenizer writes a part of a text."""
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


def spelled_as(held: Sequence[int], prompt: Sequence[int], piece: Piece, spell: Spell) -> tuple[int, ...]:
    """The prompt in the tokens that are held, as far as both stand for the same text; behind that in its own.

    A model does not always spell what it says as its tokenizer would, so that its answer comes back in other tokens.
    And of an answer that was cut off the last token is not held, which the tokenizer may join with the one before.
    """
    here = there = common_prefix(held, prompt)
    while (meeting := _meeting(held, here, prompt, there, piece)) is not None:
        after_here, after, rest = meeting
        if rest:
            own = _own(rest, prompt[after:], piece, spell)
            return (*held, *own, *prompt[after:]) if own else (*held[:here], *prompt[there:])
        here, there = after_here, after
        # Not by slices: a text may be spelled otherwise at each of its words.
        while here < len(held) and there < len(prompt) and held[here] == prompt[there]:
            here, there = here + 1, there + 1
    return (*held[:here], *prompt[there:])


def _meeting(
    held: Sequence[int], here: int, prompt: Sequence[int], there: int, piece: Piece
) -> tuple[int, int, bytes] | None:
    """Where next a token ends in both behind the same bytes; or where in the prompt a token ends in which all that is
    held does, with its bytes behind that. None: nowhere."""
    ours = theirs = b""
    while True:
        is_ours = len(ours) <= len(theirs)
        if is_ours and here == len(held) and theirs:
            return here, there, theirs
        tokens, at = (held, here) if is_ours else (prompt, there)
        more = piece(tokens[at]) if at < len(tokens) else None
        if not more:
            return None
        if is_ours:
            ours, here = ours + more, here + 1
        else:
            theirs, there = theirs + more, there + 1
        both = min(len(ours), len(theirs))
        if ours[:both] != theirs[:both]:
            return None
        ours, theirs = ours[both:], theirs[both:]
        if both and not ours and not theirs:
            return here, there, b""


def _own(rest: bytes, behind: Sequence[int], piece: Piece, spell: Spell) -> tuple[int, ...]:
    """Tokens for these bytes alone, where a text ends with them; otherwise, and where there are none for them, none."""
    if not behind or piece(behind[0]):
        return ()
    try:
        tokens = tuple(spell(rest.decode()))
    except UnicodeDecodeError:  # a part of a character
        return ()
    return tokens if b"".join(piece(token) or b"" for token in tokens) == rest else ()


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
