"""The sequences of one model context: what each holds, and how it comes to hold what a turn needs.

For the loop's thread only, but `Sequence.at_rest`. When something is done to a sequence is the loop's matter
(decode_loop.py), what of it can be used again is decided in prefixes.py.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

from serving.backend import Backend
from serving.engine import SavedState, Turn
from serving.prefixes import (
    BEFORE_END,
    Checkpoint,
    Donor,
    reusable,
    way_back,
    with_checkpoint,
    worth_copying,
)

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Sequence:
    """`tokens[:held]` is what the model's memory holds; the rest waits to be evaluated. At rest nothing waits."""

    number: int
    tokens: list[int] = field(default_factory=list)
    held: int = 0
    scope: str | None = None
    """Whose tokens they are."""
    turn: int | None = None
    """The turn that runs here."""
    checkpoints: list[Checkpoint] = field(default_factory=list)
    """Ascending, none beyond `held`; only of memory that cannot be cut at will."""

    def at_rest(self) -> tuple[int, ...]:
        """What it holds between turns. Any thread: nobody changes a sequence at rest, but who empties it."""
        return tuple(self.tokens)


@dataclass(frozen=True, slots=True)
class Placed:
    """What a turn found, as Began tells it. `mark`: a checkpoint is due when so many tokens are held; 0: none is."""

    held: int
    reused: int
    shared: int
    restored: bool | None
    mark: int


class Sequences:
    """All of them, by their numbers."""

    def __init__(self, backend: Backend, context: int, count: int, share: bool) -> None:
        self._backend = backend
        self._context = context
        self._share = share
        self._all = [Sequence(number) for number in range(count)]

    def __getitem__(self, number: int) -> Sequence:
        return self._all[number]

    def __len__(self) -> int:
        return len(self._all)

    def place(self, turn: Turn) -> Placed:
        """Let the turn's sequence hold as much of its prompt as can be had without evaluating it, and make the whole
        prompt wait there. No turn may be running on it."""
        sequence = self._all[turn.sequence]
        if sequence.scope != turn.scope:
            self.forget(sequence)  # nobody's tokens may shorten the prompt of somebody else
        restored = None if turn.state is None else self._restore(sequence, turn.state)
        held = sequence.held
        kept = reusable(sequence.tokens[:held], turn.prompt)
        shared = self._copied(sequence, turn, kept)
        if not shared:
            self.cut(sequence, kept)
        sequence.tokens = list(turn.prompt)
        sequence.scope = turn.scope
        sequence.turn = turn.id
        mark = 0
        if not self._backend.cuttable:
            mark = max(sequence.held, len(turn.prompt) - BEFORE_END)
            self.checkpoint(sequence)
        return Placed(held, sequence.held, shared, restored, mark)

    def _restore(self, sequence: Sequence, state: SavedState) -> bool:
        """Let the sequence hold what was saved. False: it holds nothing."""
        self.forget(sequence)
        count = len(state.tokens)
        if not 0 < count <= self._context or not self._backend.load(sequence.number, state.data):
            return False
        present = self._backend.present(sequence.number)
        if present != count:
            logger.warning("a saved state of %d tokens brought %d: it is not used", count, present)
            self.forget(sequence)
            return False
        sequence.tokens = list(state.tokens)
        sequence.held = count
        if not self._backend.cuttable:
            sequence.checkpoints = [point for point in state.checkpoints if 0 < point[0] <= count]
        return True

    def _copied(self, sequence: Sequence, turn: Turn, kept: int) -> int:
        """Copy from another sequence what is worth it. Returns how many tokens came; 0 leaves the sequence usable."""
        if not self._share or turn.scope is None or not self._backend.cuttable:
            return 0
        copy = worth_copying(turn.prompt, kept, self._donors(sequence, turn.scope))
        if copy is None:
            return 0
        if not self._backend.copy(copy.source, sequence.number, copy.count):
            sequence.held = 0
            return 0
        sequence.held = copy.count
        return copy.count

    def _donors(self, receiver: Sequence, scope: str) -> Iterator[Donor]:
        for other in self._all:
            if other is not receiver and other.scope == scope and other.held:
                yield Donor(other.number, other.tokens, other.held)

    def cut(self, sequence: Sequence, most: int) -> None:
        """Let the sequence hold its first `most` tokens, or fewer where its memory cannot be cut there. Its tokens
        are left as they are: those no longer held wait to be evaluated."""
        if most >= sequence.held:
            return
        sequence.held, before = 0, sequence.held
        if most and (self._backend.cuttable or self._backend.can_keep(sequence.number, most)):
            sequence.held = self._backend.keep(sequence.number, most)
        elif most and (point := way_back(sequence.checkpoints, most)) is not None:
            count, data = point
            if self._backend.roll_back(sequence.number, count, data):
                sequence.held = count
            else:
                logger.warning("a sequence of %d tokens could not be rolled back to %d", before, count)
        else:
            self._backend.keep(sequence.number, 0)
        self._drop_checkpoints(sequence)

    def resume(self, sequence: Sequence) -> None:
        """After an aborted decode: find out what the memory holds of what waits, and leave at least one token to
        evaluate for its logits."""
        sequence.held = min(self._backend.present(sequence.number), len(sequence.tokens))
        self._drop_checkpoints(sequence)
        self.cut(sequence, len(sequence.tokens) - 1)

    def checkpoint(self, sequence: Sequence) -> None:
        """Remember a way back to what is held now."""
        held = sequence.held
        if not held or any(count == held for count, _ in sequence.checkpoints):
            return
        data = self._backend.checkpoint(sequence.number)
        if data is None:
            logger.warning("no checkpoint could be taken at %d tokens", held)
            return
        sequence.checkpoints = with_checkpoint(sequence.checkpoints, (held, data))

    def leave(self, sequence: Sequence) -> None:
        """The turn is over: what was not evaluated is dropped."""
        sequence.turn = None
        del sequence.tokens[sequence.held :]

    def save(self, sequence: Sequence) -> SavedState | None:
        """As `Engine.save`. No turn may be running on it."""
        if not sequence.held:
            return None
        data = self._backend.save(sequence.number)
        if data is None:
            logger.warning("a sequence of %d tokens could not be saved", sequence.held)
            return None
        return SavedState(tuple(sequence.tokens), data, tuple(sequence.checkpoints))

    def forget(self, sequence: Sequence) -> None:
        """Empty the sequence. No turn may be running on it."""
        self._blank(sequence)
        self._backend.keep(sequence.number, 0)

    def clear(self) -> None:
        """Empty all sequences, whoever runs there."""
        for sequence in self._all:
            self._blank(sequence)
        self._backend.clear()

    @staticmethod
    def _drop_checkpoints(sequence: Sequence) -> None:
        """Those beyond what is held lead to tokens that are gone."""
        if sequence.checkpoints:
            sequence.checkpoints = [point for point in sequence.checkpoints if point[0] <= sequence.held]

    @staticmethod
    def _blank(sequence: Sequence) -> None:
        sequence.tokens = []
        sequence.held = 0
        sequence.scope = None
        sequence.turn = None
        sequence.checkpoints = []
