"""The loop that makes turns into events: one thread, one model context.

The thread is the only one that touches the context, from loading to freeing. What a step decodes is decided in
batching.py, what may be sent in text.py; who gets which sequence is the host's matter. No model library is imported
here: a Backend (backend.py) does what needs one.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from serving.backend import Backend, Span
from serving.batching import Budget, Piece, Prompt, next_pieces
from serving.engine import Began, Broke, Emit, Ended, Event, Finish, Prefilled, Text, Turn, Usage
from serving.text import TextAssembler
from serving.trouble import trace_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Cancel:
    turn: int


@dataclass(frozen=True, slots=True)
class _Erase:
    sequence: int


@dataclass(frozen=True, slots=True)
class _Start:
    emit: Emit


@dataclass(frozen=True, slots=True)
class _Close:
    pass


_Command = Turn | _Cancel | _Erase | _Start | _Close


@dataclass(slots=True)
class _Sequence:
    """`tokens[:held]` is what the model's memory holds; the rest waits to be evaluated. At rest nothing waits."""

    number: int
    tokens: list[int]
    held: int = 0
    run: "_Run | None" = None


@dataclass(slots=True)
class _Run:
    """A turn in progress."""

    turn: Turn
    sequence: _Sequence
    sampler: Any
    text: TextAssembler
    limit: int
    reused: int
    generated: int = 0
    unsent: int = 0
    """Tokens sampled since the last Text."""


class DecodeLoop:
    """begin, cancel, erase, start and close may be called from any thread and return at once, but for load and
    close, which wait for the loop's thread."""

    def __init__(self, backend: Backend, context: int, sequences: int, budget: Budget) -> None:
        self._backend = backend
        self._context = context
        self._budget = budget
        self._commands: SimpleQueue[_Command] = SimpleQueue()
        self._sequences = [_Sequence(number, []) for number in range(sequences)]
        self._runs: dict[int, _Run] = {}
        self._prefilling: frozenset[int] = frozenset()
        self._emit: Emit = _nobody
        self._failed: str | None = None
        self._thread: threading.Thread | None = None
        self.tokens_generated = 0
        self.tokens_evaluated = 0

    def load(self, progress: Callable[[float], None]) -> None:
        """Start the thread and load the model in it; blocks. Raises LoadError."""
        loaded: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._live, args=(loaded, progress), name="engine", daemon=True
        )
        self._thread.start()
        loaded.result()

    def start(self, emit: Emit) -> None:
        self._commands.put(_Start(emit))

    def begin(self, turn: Turn) -> None:
        self._commands.put(turn)

    def cancel(self, turn: int) -> None:
        self._commands.put(_Cancel(turn))
        if turn in self._prefilling:
            self._backend.abort()

    def erase(self, sequence: int) -> None:
        self._commands.put(_Erase(sequence))

    def held(self, sequence: int) -> int:
        return self._sequences[sequence].held

    def close(self) -> None:
        """End all turns as cancelled and the thread; blocks until the model is freed."""
        self._commands.put(_Close())
        self._backend.abort()
        if self._thread is not None:
            self._thread.join()

    # Everything below runs on the loop's thread.

    def _live(self, loaded: "Future[None]", progress: Callable[[float], None]) -> None:
        try:
            self._backend.open(progress)
        except Exception as error:  # noqa: BLE001  (handed to whoever called load)
            self._backend.shut()
            loaded.set_exception(error)
            return
        loaded.set_result(None)
        while self._turn_over():
            pass
        self._backend.shut()

    def _turn_over(self) -> bool:
        """Obey what was asked, then make one step. False: closed."""
        events: list[Event] = []
        self._backend.rearm()
        try:
            open_ = self._obey(events)
        except Exception as error:  # noqa: BLE001  (logged without its words)
            logger.error("the engine failed between two steps:\n%s", trace_of(error))
            self._break_all(error, events)
            open_ = True
        if events:
            self._send(events)
            events = []
        if not open_:
            return False
        if self._runs:
            try:
                self._step(events)
            except Exception as error:  # noqa: BLE001  (logged without its words)
                logger.error("the engine failed in a step:\n%s", trace_of(error))
                self._break_all(error, events)
            if events:
                self._send(events)
        return True

    def _send(self, events: list[Event]) -> None:
        try:
            self._emit(events)
        except Exception as error:  # noqa: BLE001  (logged without its words)
            logger.error("the receiver of the engine's events failed:\n%s", trace_of(error))

    def _obey(self, events: list[Event]) -> bool:
        """Carry out the commands that wait; without a turn to work on, wait for one. False: close."""
        while not self._runs or not self._commands.empty():
            match self._commands.get():
                case Turn() as turn:
                    self._take(turn, events)
                case _Cancel(turn=number):
                    if (run := self._runs.get(number)) is not None:
                        self._end(run, "cancelled", events)
                case _Erase(sequence=number):
                    self._forget(number)
                case _Start(emit=emit):
                    self._emit = emit
                case _Close():
                    for run in list(self._runs.values()):
                        self._end(run, "cancelled", events)
                    return False
            if events and not self._runs:
                break
        return True

    def _take(self, turn: Turn, events: list[Event]) -> None:
        """Give the turn its sequence, or break it."""
        reason = self._failed or self._unfit(turn)
        if reason is not None:
            events.append(Broke(turn.id, reason))
            return
        try:
            self._place(turn, self._sequences[turn.sequence], events)
        except Exception as error:  # noqa: BLE001  (logged without its words)
            logger.error("the engine could not begin a turn:\n%s", trace_of(error))
            events.append(Broke(turn.id, f"the engine failed: {error}"))
            self._forget(turn.sequence)

    def _place(self, turn: Turn, sequence: _Sequence, events: list[Event]) -> None:
        """Cut the sequence to what it shares with the prompt, and let the turn run there."""
        sampler = self._backend.sampler(turn.sampling, turn.prompt)
        before = sequence.held
        reused = min(common_prefix(sequence.tokens, turn.prompt), len(turn.prompt) - 1)
        if reused < before:
            reused = self._backend.keep(sequence.number, reused)
        sequence.tokens = list(turn.prompt)
        sequence.held = reused
        limit = self._context - len(turn.prompt)
        if turn.max_tokens is not None:
            limit = min(limit, turn.max_tokens)
        run = _Run(turn, sequence, sampler, TextAssembler(turn.stop), limit, reused)
        self._runs[turn.id] = sequence.run = run
        events.append(Began(turn.id, before, reused))

    def _unfit(self, turn: Turn) -> str | None:
        """What is wrong with the turn. Its sequence is emptied, as Broke promises, unless another turn runs there."""
        if not 0 <= turn.sequence < len(self._sequences):
            return f"there is no sequence {turn.sequence}, only 0 to {len(self._sequences) - 1}"
        if self._sequences[turn.sequence].run is not None:
            return f"a turn already runs on sequence {turn.sequence}"
        if not 0 < len(turn.prompt) < self._context:
            reason: str | None = (
                f"a prompt of {len(turn.prompt)} tokens does not fit a context of {self._context}"
            )
        else:
            reason = self._backend.unfit(turn)
        if reason is not None:
            self._forget(turn.sequence)
        return reason

    def _forget(self, number: int) -> None:
        sequence = self._sequences[number]
        if sequence.run is not None:
            logger.error("sequence %d was not erased: a turn runs on it", number)
            return
        self._backend.keep(number, 0)
        sequence.tokens = []
        sequence.held = 0

    def _step(self, events: list[Event]) -> None:
        """One decode, and a new token for every turn that has its prompt evaluated."""
        decoding: list[int] = []
        prompts: list[Prompt] = []
        for number, run in self._runs.items():
            left = len(run.sequence.tokens) - run.sequence.held
            if left == 1:
                decoding.append(number)
            else:
                prompts.append(Prompt(number, left))
        pieces = next_pieces(decoding, prompts, self._budget)
        if prompts:
            self._prefilling = frozenset(prompt.turn for prompt in prompts)
            if not self._commands.empty():  # a cancel that came before it could see whom to abort
                self._prefilling = frozenset()
                return
        whole = self._backend.decode([self._span(piece) for piece in pieces])
        self._prefilling = frozenset()
        row = -1
        for piece in pieces:
            row += piece.count
            run = self._runs[piece.turn]
            if not whole:
                self._resume(run, events)
                continue
            self._count(run, run.sequence.held + piece.count, events)
            if piece.last:
                self._next_token(run, row, events)

    def _span(self, piece: Piece) -> Span:
        sequence = self._runs[piece.turn].sequence
        start = sequence.held
        return Span(sequence.number, start, sequence.tokens[start : start + piece.count], piece.last)

    def _count(self, run: _Run, held: int, events: list[Event]) -> None:
        """The run's sequence holds `held` tokens now."""
        before, run.sequence.held = run.sequence.held, held
        prompt = len(run.turn.prompt)
        if before < prompt and held > before:
            done = min(held, prompt)
            self.tokens_evaluated += done - before
            events.append(Prefilled(run.turn.id, done, prompt))

    def _resume(self, run: _Run, events: list[Event]) -> None:
        """After an abort: go on from what the memory holds, with at least one token to evaluate for its logits."""
        sequence = run.sequence
        present = self._backend.present(sequence.number)
        wanted = min(present, len(sequence.tokens) - 1)
        if wanted < present:
            wanted = self._backend.keep(sequence.number, wanted)
        run.reused = min(run.reused, wanted)
        self._count(run, wanted, events)

    def _next_token(self, run: _Run, row: int, events: list[Event]) -> None:
        token = self._backend.sample(run.sampler, row)
        self.tokens_generated += 1
        run.generated += 1
        run.unsent += 1
        piece = self._backend.piece(token)
        reason: Finish | None = None
        if piece is None:
            reason = "stop"
            run.unsent -= 1
            text = run.text.finish()
        else:
            text = run.text.push(piece)
            if run.text.stopped:
                reason = "stop"
            elif run.generated >= run.limit:
                reason = "length"
                text += run.text.finish()
        if text:
            events.append(Text(run.turn.id, text, run.unsent))
            run.unsent = 0
        if reason is None:
            run.sequence.tokens.append(token)
        else:
            self._end(run, reason, events)

    def _end(self, run: _Run, reason: Finish, events: list[Event]) -> None:
        self._release(run)
        sequence = run.sequence
        del sequence.tokens[sequence.held :]
        prompt = len(run.turn.prompt)
        evaluated = min(sequence.held, prompt) - run.reused
        usage = Usage(prompt, run.reused, evaluated, run.generated)
        events.append(Ended(run.turn.id, reason, usage))

    def _release(self, run: _Run) -> None:
        """Give back what the run holds, but for the sequence's content."""
        del self._runs[run.turn.id]
        run.sequence.run = None
        self._backend.free(run.sampler)

    def _break_all(self, error: Exception, events: list[Event]) -> None:
        """Every running turn ends as broken, every sequence is emptied. An engine that cannot even do that breaks all
        later turns at once."""
        message = f"the engine failed: {error}"
        runs = list(self._runs.values())
        self._runs.clear()
        events.extend(Broke(run.turn.id, message) for run in runs)
        try:
            for run in runs:
                self._backend.free(run.sampler)
            self._backend.clear()
        except Exception as second:  # noqa: BLE001
            logger.error("the engine cannot go on:\n%s", trace_of(second))
            self._failed = f"{message}; then: {second}"
        for sequence in self._sequences:
            sequence.run = None
            sequence.tokens = []
            sequence.held = 0


def common_prefix(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many tokens both begin with."""
    shorter = min(len(held), len(wanted))
    if list(held[:shorter]) == list(wanted[:shorter]):
        return shorter
    return next(index for index in range(shorter) if held[index] != wanted[index])


def _nobody(events: Sequence[Event]) -> None:
    logger.error("%d events of the engine had no receiver", len(events))
