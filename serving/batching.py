"""What goes into the next decode, decided step by step, and how much of a prompt a neighbour can bear.

Pure: it knows numbers of tokens, not the tokens, the engine or the clock. Who may use which sequence is decided
elsewhere (admission); here every turn given is one that runs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SINGLE_STEPS = 2.0
"""So many steps without it a chunk of a prompt may delay the tokens that are made beside it."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A turn whose prompt is not evaluated yet: `left` tokens are missing, the last of them included. At least 1."""

    turn: int
    left: int


@dataclass(frozen=True, slots=True)
class Budget:
    """`batch`: tokens that one decode takes at most. `chunk`: prompt tokens in a decode that a neighbour's next
    token waits for; without such a neighbour prompts may fill the batch. `exact`: nobody's tokens share a decode
    with another's, and prompts are cut at every `batch` tokens whoever else is there. `beside_more`: the chunk
    beside 2, 3, … neighbours, whose step takes longer anyway; beyond its end the last one counts."""

    batch: int
    chunk: int
    exact: bool = False
    beside_more: tuple[int, ...] = ()

    def beside(self, decoding: int) -> int:
        """The chunk in a step of so many decoding turns, at least 1."""
        chunks = (self.chunk, *self.beside_more)
        return chunks[min(decoding, len(chunks)) - 1]


@dataclass(frozen=True, slots=True)
class Piece:
    """The next `count` tokens of a turn. `last`: nothing is missing after them, so the turn's next token can be
    sampled from this piece's last token."""

    turn: int
    count: int
    last: bool


Decode = tuple[Piece, ...]


def next_round(decoding: Sequence[int], prompts: Sequence[Prompt], budget: Budget) -> tuple[Decode, ...]:
    """The next decodes, to be made one after the other: each decoding turn gets a token in them, and then prompts
    get on. None is empty; no turn is in two. Without turns there are none.

    One decode holds everybody, unless the budget is exact: then each decoding turn has its own, and the first of the
    prompts the last one. Where `after` orders the turns from round to round, every prompt gets on within as many
    rounds as there are prompts.
    """
    if not budget.exact:
        pieces = next_pieces(decoding, prompts, budget)
        return (pieces,) if pieces else ()
    alone: list[Decode] = [(Piece(turn, 1, True),) for turn in decoding]
    for prompt in prompts[:1]:
        count = min(prompt.left, budget.batch)
        alone.append((Piece(prompt.turn, count, count == prompt.left),))
    return tuple(alone)


def next_pieces(decoding: Sequence[int], prompts: Sequence[Prompt], budget: Budget) -> Decode:
    """The pieces of one decode: one token for every decoding turn, then parts of prompts.

    Prompts share what is left evenly, earlier ones first where it does not divide; what a short one does not need
    goes to the others. So a long prompt delays nobody's next token by more than a chunk, and a short prompt does
    not wait for a long one. Never more than `budget.batch` tokens in all; decoding turns beyond it are left out
    from the end (an engine has at most as many sequences as its batch has tokens). Empty only without turns.
    """
    pieces = [Piece(turn, 1, True) for turn in decoding[: budget.batch]]
    room = budget.batch - len(pieces)
    if pieces:
        room = min(room, budget.beside(len(pieces)))
    if prompts:
        for prompt, count in zip(prompts, shares([prompt.left for prompt in prompts], room), strict=True):
            if count:
                pieces.append(Piece(prompt.turn, count, count == prompt.left))
    return tuple(pieces)


def after(prompts: Sequence[Prompt], decodes: Iterable[Decode]) -> tuple[int, ...]:
    """Turns that must stand behind all others in the next round: those of the prompts that get on in `decodes`, in
    their order, if a prompt gets nothing there. Otherwise none: who came first stays first."""
    served = {piece.turn for pieces in decodes for piece in pieces}
    turns = tuple(prompt.turn for prompt in prompts if prompt.turn in served)
    return turns if len(turns) < len(prompts) else ()


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


def chunk_sizes(most: int) -> tuple[int, ...]:
    """Sizes of chunks to measure, ascending up to `most` (at least 1), each about twice the one before."""
    sizes = [2]
    while sizes[-1] < most:
        sizes.append(2 * sizes[-1])
    return tuple(sorted({min(size, most) for size in sizes}))


def bearable(took_s: float, alone_s: float, step_s: float) -> bool:
    """Whether a chunk keeps its neighbours waiting for no more than two of their steps without it. `took_s`: a step
    with the chunk beside one token; `alone_s`: that token's alone; `step_s`: the neighbours' step."""
    return took_s - alone_s <= SINGLE_STEPS * step_s


def largest_chunk(alone_s: float, step_s: float, measured: Sequence[tuple[int, float]]) -> int:
    """The largest chunk that is bearable; at least 1. `measured`: steps with a chunk beside one token, as (chunk,
    seconds) with chunks ascending; the rest as in `bearable`. Between two chunks a step's time is taken to be
    straight."""
    limit = alone_s + SINGLE_STEPS * step_s
    below, below_s = 0, alone_s
    for size, took_s in measured:
        if not bearable(took_s, alone_s, step_s):
            return max(1, below + int((size - below) * (limit - below_s) / (took_s - below_s)))
        below, below_s = size, took_s
    return max(1, below)


def largest_chunks(
    alone_s: float, all_s: float, sequences: int, measured: Sequence[tuple[int, float]]
) -> tuple[int, ...]:
    """`largest_chunk` beside 1, 2, … up to sequences - 1 neighbours; never falling. `all_s`: a step of one token of
    each of the `sequences`, at least 2; a step of fewer is taken to lie between, straight."""
    more_s = max(0.0, all_s - alone_s) / (sequences - 1)
    return tuple(
        largest_chunk(alone_s, alone_s + more_s * (decoding - 1), measured)
        for decoding in range(1, sequences)
    )
