"""The loop that makes turns into events: one thread, one model context.

The thread is the only one that touches the context, from loading to freeing. What a step does is the matter of
steps.py and embed_line.py; who gets which sequence is the host's. No model library is imported here: a Backend
(backend.py) does what needs one.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from serving.backend import Backend
from serving.batching import Budget, Patience
from serving.embed_line import EmbedLine, usage
from serving.engine import Broke, Embed, Emit, Ended, Event, LoadError, SavedState, Turn, Usage
from serving.inbox import Inbox
from serving.prompt_chunk import measured_chunks
from serving.sequences import Sequences
from serving.steps import Steps
from serving.trouble import trace_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Cancel:
    turn: int


@dataclass(frozen=True, slots=True)
class _Save:
    sequence: int
    saved: "Future[SavedState | None]"


@dataclass(frozen=True, slots=True)
class _Erase:
    sequence: int


@dataclass(frozen=True, slots=True)
class _Start:
    emit: Emit


@dataclass(frozen=True, slots=True)
class _Close:
    pass


_Command = Turn | Embed | _Cancel | _Save | _Erase | _Start | _Close


class DecodeLoop:
    """begin, embed, cancel, save, erase, start and close may be called from any thread and return at once, but for
    load and close, which wait for the loop's thread. Turns that a closed loop is given break at once."""

    def __init__(
        self,
        backend: Backend,
        context: int,
        sequences: int,
        budget: Budget,
        *,
        share: bool = False,
        exact: bool = False,
        prompt_chunk: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`budget`: its `batch` counts, its `chunk` until `load` has set it. `share`: whether what sequences of one
        scope hold may be copied between them. `exact`: every decode holds one sequence's tokens only, and none are
        shared. `prompt_chunk` None: measured by the first `load`, with `clock` (seconds); `chunk` tells it then."""
        if budget.batch < sequences:
            raise ValueError(
                f"a batch of {budget.batch} tokens has no room for each of {sequences} sequences"
            )
        self._backend = backend
        self._context = context
        self._count = sequences
        self._budget = replace(budget, exact=exact)
        self._share = share and not exact
        self._chunks: tuple[int, ...] | None = None
        self._fixed = prompt_chunk is not None
        if prompt_chunk is not None:
            self._chunks = (max(1, min(prompt_chunk, budget.batch)),)
        self._clock = clock
        self._inbox: Inbox[_Command] = Inbox()
        self._abortable: frozenset[int] = frozenset()
        self._steps = Steps(backend, context, self._watch, clock)
        self._renew()
        self._embeds = EmbedLine(backend, context, self._watch, self._room)
        self._emit: Emit = _nobody
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def chunk(self) -> int:
        """Prompt tokens in a step that one neighbour's next token waits for. Valid after `load`."""
        return self._budget.chunk

    @property
    def tokens_generated(self) -> int:
        return self._steps.tokens_generated

    @property
    def tokens_evaluated(self) -> int:
        return self._steps.tokens_evaluated + self._embeds.tokens_evaluated

    def load(self, progress: Callable[[float], None]) -> None:
        """Start the thread and load the model in it; blocks. Raises LoadError. A loop that was closed starts anew."""
        if self._thread is not None and self._thread.is_alive():
            raise RuntimeError("the engine is loaded already")
        loaded: Future[None] = Future()
        self._closing = False
        self._inbox.open()
        self._thread = threading.Thread(
            target=self._live, args=(loaded, progress), name="engine", daemon=True
        )
        self._thread.start()
        loaded.result()

    def start(self, emit: Emit) -> None:
        self._inbox.put(_Start(emit))

    def begin(self, turn: Turn) -> None:
        if not self._inbox.put(turn):
            self._refuse(turn.id)

    def embed(self, embed: Embed) -> None:
        if not self._inbox.put(embed):
            self._refuse(embed.id)

    def _refuse(self, turn: int) -> None:
        self._send([Broke(turn, "the engine is not loaded")])

    def cancel(self, turn: int) -> None:
        self._inbox.put(_Cancel(turn))
        if turn in self._abortable:
            self._backend.abort()

    def save(self, sequence: int) -> "Future[SavedState | None]":
        saved: Future[SavedState | None] = Future()
        if not self._inbox.put(_Save(sequence, saved)):
            saved.set_result(None)
        return saved

    def erase(self, sequence: int) -> None:
        self._inbox.put(_Erase(sequence))

    def held(self, sequence: int) -> int:
        return self._steps.sequences[sequence].held

    def tokens(self, sequence: int) -> tuple[int, ...]:
        return self._steps.sequences[sequence].at_rest()

    def close(self) -> None:
        """End all turns as cancelled and the thread; blocks until the model is freed."""
        self._closing = True
        if self._inbox.put(_Close()):
            self._backend.abort()
        if self._thread is not None:
            self._thread.join()

    # Everything below runs on the loop's thread, but `_send` for a closed loop.

    def _live(self, loaded: "Future[None]", progress: Callable[[float], None]) -> None:
        try:
            self._open(progress)
        except Exception as error:  # noqa: BLE001  (handed to whoever called load)
            self._shut()
            loaded.set_exception(error)
            return
        loaded.set_result(None)
        try:
            while self._turn_over():
                pass
        finally:
            self._shut()

    def _open(self, progress: Callable[[float], None]) -> None:
        self._backend.rearm()
        if self._closing:  # its abort may have been taken back just now
            raise LoadError("loading was given up: the engine was closed")
        self._backend.open(progress)
        chunk, *beside_more = self._choose_chunks()
        self._budget = replace(self._budget, chunk=chunk, beside_more=tuple(beside_more))
        self._renew()

    def _choose_chunks(self) -> tuple[int, ...]:
        """Those beside 1, 2, … decoding turns; measured once, where they are not given."""
        batch = self._budget.batch
        if self._chunks is None:
            if self._budget.exact or self._count == 1 or batch == 1:
                self._chunks = (batch,)  # no neighbour is in the same decode
            else:
                most = min(batch - 1, self._context)
                self._chunks = measured_chunks(self._backend, self._count, most, self._clock)
                self._backend.clear()
        return self._chunks

    def _shut(self) -> None:
        """Nothing more comes in; what came in too late is answered; everything is freed."""
        events: list[Event] = []
        for command in self._inbox.close():
            match command:
                case Turn() as turn:
                    events.append(Ended(turn.id, "cancelled", Usage(len(turn.prompt), 0, 0, 0)))
                case Embed() as embed:
                    events.append(Ended(embed.id, "cancelled", usage(embed, 0)))
                case _Save(saved=saved):
                    _resolve(saved, None)
                case _:
                    pass
        self._send(events)
        self._renew()
        try:
            self._backend.shut()
        except Exception as error:  # noqa: BLE001  (logged without its words)
            logger.error("the engine could not be freed:\n%s", trace_of(error))

    def _renew(self) -> None:
        sequences = Sequences(self._backend, self._context, self._count, self._share)
        self._steps.renew(sequences, self._budget, None if self._fixed else Patience())

    def _turn_over(self) -> bool:
        """Obey what was asked, then make one step. False: closed."""
        self._backend.rearm()
        events: list[Event] = []
        open_ = True
        try:
            open_ = self._obey(events)
        except Exception as error:  # noqa: BLE001  (logged without its words)
            self._break_all(error, events)
        self._send(events)
        if open_ and self._steps.turns:
            events = []
            try:
                self._steps.step(events)
            except Exception as error:  # noqa: BLE001  (logged without its words)
                self._break_all(error, events)
            self._send(events)
        if open_ and self._embeds.turns:
            events = []
            self._embeds.step(events)
            self._send(events)
        return open_

    def _break_all(self, error: Exception, events: list[Event]) -> None:
        self._watch(())
        self._steps.break_all(error, events)
        if self._steps.failed is not None:
            self._embeds.break_all(self._steps.failed, events)

    def _room(self) -> int:
        """Tokens of a text to be embedded between two steps."""
        return self._budget.chunk if self._steps.turns else self._budget.batch

    def _watch(self, turns: Iterable[int]) -> bool:
        """As steps.Watch."""
        self._abortable = frozenset(turns)
        if not self._abortable or self._inbox.empty():
            return True
        self._abortable = frozenset()
        return False

    def _send(self, events: list[Event]) -> None:
        if not events:
            return
        try:
            self._emit(events)
        except Exception as error:  # noqa: BLE001  (logged without its words)
            logger.error("the receiver of the engine's events failed:\n%s", trace_of(error))

    def _obey(self, events: list[Event]) -> bool:
        """Carry out the commands that wait; without anything to work on or to tell, wait for one. False: close."""
        while not self._inbox.empty() or not (self._steps.turns or self._embeds.turns or events):
            if not self._carry_out(self._inbox.get(), events):
                return False
        return True

    def _carry_out(self, command: _Command, events: list[Event]) -> bool:
        """Apart from the waiting, during which nothing may keep a state that was saved. False: close."""
        match command:
            case Turn() as turn:
                self._steps.take(turn, events)
            case Embed(id=number) as embed:
                if self._steps.failed is not None:
                    events.append(Broke(number, self._steps.failed))
                else:
                    self._embeds.take(embed, events)
            case _Cancel(turn=number):
                self._cancel(number, events)
            case _Save(sequence=number, saved=saved):
                _resolve(saved, self._save(number))
            case _Erase(sequence=number):
                if self._at_rest(number):
                    self._steps.sequences.forget(self._steps.sequences[number])
            case _Start(emit=emit):
                self._emit = emit
            case _Close():
                for number in (*self._steps.turns, *self._embeds.turns):
                    self._cancel(number, events)
                return False
        return True

    def _cancel(self, turn: int, events: list[Event]) -> None:
        self._steps.cancel(turn, events)
        self._embeds.cancel(turn, events)

    def _save(self, number: int) -> SavedState | None:
        if not self._at_rest(number):
            return None
        try:
            return self._steps.sequences.save(self._steps.sequences[number])
        except Exception as error:  # noqa: BLE001  (logged without its words)
            logger.error("the engine could not save a sequence:\n%s", trace_of(error))
            return None

    def _at_rest(self, number: int) -> bool:
        """Whether there is such a sequence, and no turn runs on it."""
        if not 0 <= number < len(self._steps.sequences):
            logger.error("there is no sequence %d to save or erase", number)
            return False
        if self._steps.sequences[number].turn is not None:
            logger.error("sequence %d was neither saved nor erased: a turn runs on it", number)
            return False
        return True


def _resolve(saved: "Future[SavedState | None]", state: SavedState | None) -> None:
    if saved.set_running_or_notify_cancel():
        saved.set_result(state)


def _nobody(events: Sequence[Event]) -> None:
    logger.error("%d events of the engine had no receiver", len(events))
