"""What goes into the next decode, decided step by step.

Pure: it knows numbers of tokens, not the tokens, the engine or the clock. Who may use which sequence is decided
elsewhere (admission); here every turn given is one that runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """A turn whose prompt is not evaluated yet: `left` tokens are missing, the last of them included. At least 1."""

    turn: int
    left: int


@dataclass(frozen=True, slots=True)
class Budget:
    """`batch`: tokens that one decode takes at most. `chunk`: prompt tokens in a decode that a neighbour's next
    token waits for; without such a neighbour prompts may fill the batch."""

    batch: int
    chunk: int


@dataclass(frozen=True, slots=True)
class Piece:
    """The next `count` tokens of a turn. `last`: nothing is missing after them, so the turn's next token can be
    sampled from this piece's last token."""

    turn: int
    count: int
    last: bool


def next_pieces(decoding: Sequence[int], prompts: Sequence[Prompt], budget: Budget) -> tuple[Piece, ...]:
    """The pieces of the next decode: one token for every decoding turn, then parts of prompts.

    Prompts share what is left evenly, earlier ones first where it does not divide; what a short one does not need
    goes to the others. So a long prompt delays nobody's next token by more than a chunk, and a short prompt does
    not wait for a long one. Never more than `budget.batch` tokens in all; decoding turns beyond it are left out
    from the end (an engine has at most as many sequences as its batch has tokens). Empty only without turns.
    """
    pieces = [Piece(turn, 1, True) for turn in decoding[: budget.batch]]
    room = budget.batch - len(pieces)
    if pieces:
        room = min(room, budget.chunk)
    for prompt, count in zip(prompts, shares([prompt.left for prompt in prompts], room), strict=True):
        if count:
            pieces.append(Piece(prompt.turn, count, count == prompt.left))
    return tuple(pieces)


def shares(wants: Sequence[int], room: int) -> list[int]:
    """Split `room` evenly among `wants`, none getting more than it wants; nothing is left over while one wants more.

    Two that want the same get the same, or the earlier one gets 1 more.
    """
    given = [0] * len(wants)
    by_size = sorted(range(len(wants)), key=lambda index: wants[index])
    # The smallest is served first, so that what it leaves can be divided among the rest. Within the rest the
    # remainder of an uneven division belongs to the earlier ones.
    open_ = list(range(len(wants)))
    for index in by_size:
        share = room // len(open_)
        if wants[index] > share:
            break
        given[index] = wants[index]
        room -= wants[index]
        open_.remove(index)
    for place, index in enumerate(open_):
        given[index] = room // len(open_) + (1 if place < room % len(open_) else 0)
    return given
