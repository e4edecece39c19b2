"""What goes into the next decode, decided step by step, and how much of a prompt a neighbour can bear.

Pure: it knows numbers of tokens, not the tokens, the engine or the clock. Who may use which sequence is decided
elsewhere (admission); here every turn given is one that runs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

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
    prompts the last one. Where `after` orders the turns from round to round, every prompt gets on.
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

    A long prompt delays nobody's next token by more than a chunk. Half of what is left is the first prompt's, so that
    every one gets on once those before it are through; the rest goes to the one that has the least left, so that a
    short prompt does not wait for a long one, and equal ones are ready one after the other rather than all at the
    end. Never more than `budget.batch` tokens in all; decoding turns beyond it are left out from the end (an engine
    has at most as many sequences as its batch has tokens). Empty only without turns.
    """
    pieces = [Piece(turn, 1, True) for turn in decoding[: budget.batch]]
    room = budget.batch - len(pieces)
    if pieces:
        room = min(room, budget.beside(len(pieces)))
    for prompt, count in zip(prompts, shares([prompt.left for prompt in prompts], room), strict=True):
        if count:
            pieces.append(Piece(prompt.turn, count, count == prompt.left))
    return tuple(pieces)


def after(prompts: Sequence[Prompt], decodes: Iterable[Decode], budget: Budget) -> tuple[int, ...]:
    """Turns that must stand behind all others in the next round, in their order. Who came first stays first, unless
    a round has room for one prompt only, exact or with a chunk of 1: then they take turns."""
    counts = {piece.turn: piece.count for pieces in decodes for piece in pieces}
    served = [prompt for prompt in prompts if prompt.turn in counts]
    if budget.exact or sum(counts[prompt.turn] for prompt in served) == 1:
        return tuple(prompt.turn for prompt in served)
    return ()


def shares(wants: Sequence[int], room: int) -> list[int]:
    """Split `room` among `wants`: half of it, rounded up, for the first, then what is left for the smallest, and so
    on. None gets more than it wants; nothing is left over while one wants more."""
    if not wants:
        return []
    given = [min(wants[0], (room + 1) // 2), *[0] * (len(wants) - 1)]
    room -= given[0]
    for index in sorted(range(len(wants)), key=lambda index: wants[index] - given[index]):
        more = min(wants[index] - given[index], room)
        given[index] += more
        room -= more
    return given


class Patience:
    """How long neighbours really wait. What a chunk costs grows with its place in the prompt, as each of its tokens
    looks at all before it; the chunks that were measured when the model was loaded are those of a prompt's begin.

    Tell it of every step. As long as prompts are evaluated beside decoding turns, chunks get smaller whenever so many
    steps in a row were not bearable that it is no accident, and are whole again once the prompts are through."""

    _ACCIDENTS = 3

    def __init__(self) -> None:
        self._single_s: dict[int, float] = {}
        self._share = 1.0
        self._slow = 0

    def fitted(self, budget: Budget) -> Budget:
        """The budget with chunks as small as they must be now."""
        if self._share == 1.0:
            return budget
        chunk, *more = (max(1, int(size * self._share)) for size in (budget.chunk, *budget.beside_more))
        return replace(budget, chunk=chunk, beside_more=tuple(more))

    def took(self, decoding: int, prompt: int, seconds: float) -> None:
        """A step of so many decoding turns and tokens of prompts."""
        if not prompt or not decoding:
            self._share, self._slow = 1.0, 0
            if decoding:
                before_s = self._single_s.get(decoding, seconds)
                self._single_s[decoding] = before_s + (seconds - before_s) / 4
            return
        single_s = self._single_s.get(decoding)
        if single_s is None or bearable(seconds, single_s, single_s):
            self._slow = 0
            return
        self._slow += 1
        if self._slow == self._ACCIDENTS:
            self._share *= SINGLE_STEPS * single_s / (seconds - single_s)
            self._slow = 0


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
