"""Turns in progress, step by step: what a step does with the memory, the samplers and the events.

For the loop's thread only; when there is a step is the loop's matter (decode_loop.py). What it decodes is decided in
batching.py, what a sequence can use again in prefixes.py, what may be sent in text.py.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from serving.backend import Backend, Span
from serving.batching import Budget, Decode, Patience, Piece, Prompt, after, next_round
from serving.engine import Began, Broke, ChoiceEnded, Ended, Event, Finish, Prefilled, PromptError, Text, Turn
from serving.runs import Answer, Run, for_choice, limit
from serving.sequences import Sequences
from serving.trouble import trace_of

logger = logging.getLogger(__name__)

Watch = Callable[[Iterable[int]], bool]
"""From now on, until it is called again, a cancel of one of these turns aborts what the backend does. False: something
was asked before it could see that, which is to be obeyed first; then nothing is watched."""


class Steps:
    """The turns that run. Each one taken ends in one Ended or Broke among the events."""

    def __init__(self, backend: Backend, context: int, watch: Watch, clock: Callable[[], float]) -> None:
        """`clock`: seconds. `renew` is due before a turn is taken."""
        self._backend = backend
        self._context = context
        self._watch = watch
        self._clock = clock
        self._patience: Patience | None = None
        self._runs: dict[int, Run] = {}
        self._round: deque[Decode] = deque()
        self._budget = Budget(1, 1)
        self.sequences = Sequences(backend, context, 0, share=False)
        self.failed: str | None = None
        """Why no turn can be made any more."""
        self.tokens_generated = 0
        self.tokens_evaluated = 0

    @property
    def turns(self) -> tuple[int, ...]:
        return tuple(self._runs)

    def renew(self, sequences: Sequences, budget: Budget, patience: Patience | None = None) -> None:
        """Begin with a memory that holds nothing. No turn runs. Without patience chunks stay as the budget has them."""
        self._patience = patience
        self.sequences = sequences
        self._budget = budget
        self._round.clear()
        self.failed = None

    def take(self, turn: Turn, events: list[Event]) -> None:
        """Give the turn its sequence, or break it."""
        sampler = None
        try:
            reason = self.failed or self._unfit(turn)
            if reason is not None:
                events.append(Broke(turn.id, reason))
                return
            sequence = self.sequences[turn.sequence]
            sampler = self._backend.sampler(for_choice(turn, turn.choices - 1))
            placed = self.sequences.place(turn)
        except Exception as error:  # noqa: BLE001  (logged without its words)
            logger.error("the engine could not begin a turn:\n%s", trace_of(error))
            events.append(Broke(turn.id, "the engine failed to begin this answer; its log says where"))
            self._free(sampler)
            self.sequences.forget(self.sequences[turn.sequence])
            return
        self._runs[turn.id] = Run.of(turn, sequence, placed, sampler, self._context)
        events.append(Began(turn.id, placed.held, placed.reused, placed.shared, placed.restored))

    def _unfit(self, turn: Turn) -> str | None:
        """What is wrong with the turn. Its sequence is emptied, as Broke promises, unless another turn runs there."""
        if not 0 <= turn.sequence < len(self.sequences):
            return f"there is no sequence {turn.sequence}, only 0 to {len(self.sequences) - 1}"
        sequence = self.sequences[turn.sequence]
        if sequence.turn is not None:
            return f"a turn already runs on sequence {turn.sequence}"
        if not 0 < len(turn.prompt) < self._context:
            reason: str | None = (
                f"a prompt of {len(turn.prompt)} tokens does not fit a context of {self._context}"
            )
        elif turn.choices < 1 or limit(turn, self._context) < 1:
            reason = "a turn makes at least one answer of at least one token"
        else:
            reason = self._backend.unfit(turn)
        if reason is not None:
            self.sequences.forget(sequence)
        return reason

    def cancel(self, turn: int, events: list[Event]) -> None:
        """Unknown turns are ignored."""
        if (run := self._runs.get(turn)) is not None:
            self._end(run, "cancelled", events)

    def step(self, events: list[Event]) -> None:
        """One decode, and a new token for every turn in it that has its prompt evaluated. There is a turn. If it
        raises, `break_all` is due."""
        decoding, prompts = self._waiting()
        # A recurrent memory has gone on when a decode is aborted, and cannot be taken back: there a cancel waits.
        abortable = [prompt.turn for prompt in prompts] if self._backend.cuttable else []
        if abortable and not self._watch(abortable):
            return
        begun_s = self._clock()
        pieces = self._next_decode(decoding, prompts)
        whole = self._backend.decode([self._span(piece) for piece in pieces])
        if abortable:
            self._watch(())
        row = -1
        for piece in pieces:
            row += piece.count
            run = self._runs[piece.turn]
            try:
                if whole:
                    self._advance(run, piece.count, row, events)
                else:
                    self._resume(run, events)
            except Exception as error:  # noqa: BLE001  (logged without its words)
                self._break(run, error, events)
        if whole and self._patience:
            decoded = sum(piece.turn in decoding for piece in pieces)
            self._patience.took(decoded, row + 1 - decoded, self._clock() - begun_s)

    def _waiting(self) -> tuple[list[int], list[Prompt]]:
        """Turns that wait for their next token, and those whose prompt is not evaluated yet."""
        decoding: list[int] = []
        prompts: list[Prompt] = []
        for number, run in self._runs.items():
            goal = run.goal
            left = goal - run.sequence.held
            if left == 1 and goal == len(run.sequence.tokens):
                decoding.append(number)
            else:
                prompts.append(Prompt(number, left))
        return decoding, prompts

    def _next_decode(self, decoding: Sequence[int], prompts: Sequence[Prompt]) -> Decode:
        """What is left of the round, or the first of a new one. There is a turn."""
        while self._round:
            pieces = tuple(piece for piece in self._round.popleft() if piece.turn in self._runs)
            if pieces:
                return pieces
        budget = self._patience.fitted(self._budget) if self._patience else self._budget
        first, *rest = next_round(decoding, prompts, budget)
        for number in after(prompts, (first, *rest), budget):
            self._runs[number] = self._runs.pop(number)
        self._round.extend(rest)
        return first

    def _span(self, piece: Piece) -> Span:
        sequence = self._runs[piece.turn].sequence
        start, end = sequence.held, sequence.held + piece.count
        return Span(sequence.number, start, sequence.tokens[start:end], end == len(sequence.tokens))

    def _advance(self, run: Run, count: int, row: int, events: list[Event]) -> None:
        """`count` tokens more were evaluated, the last of them as the batch's token number `row`."""
        sequence = run.sequence
        before = sequence.held
        sequence.held = held = before + count
        self._tell(run, before, events)
        if held == run.mark:
            self.sequences.checkpoint(sequence)
        if held == len(sequence.tokens):
            self._next_token(run, row, events)

    def _tell(self, run: Run, before: int, events: list[Event]) -> None:
        """Count what was evaluated of the prompt since the sequence held `before` tokens."""
        prompt = len(run.turn.prompt)
        if before >= prompt:
            return
        done = min(run.sequence.held, prompt)
        self.tokens_evaluated += done - before
        if done > run.done:
            run.done = done
            events.append(Prefilled(run.turn.id, done, prompt))

    def _resume(self, run: Run, events: list[Event]) -> None:
        """After an abort: go on from what the memory holds."""
        before = run.sequence.held
        self.sequences.resume(run.sequence)
        held = run.sequence.held
        if held > before:
            self._tell(run, before, events)
        else:
            run.reused = min(run.reused, held)
            run.done = min(run.done, held)

    def _next_token(self, run: Run, row: int, events: list[Event]) -> None:
        turn, answer = run.turn, run.answer
        if turn.logprobs is None:
            token, told = self._backend.sample(answer.sampler, row), None
        else:
            token, told = self._backend.sample_told(answer.sampler, row, turn.logprobs)
        self.tokens_generated += 1
        run.generated += 1
        reason, part = answer.push(self._backend.piece(token, turn.special), told)
        if part is not None:
            events.append(Text(turn.id, part.text, part.tokens, run.choice, part.sampled))
        if reason is None:
            run.sequence.tokens.append(token)
            return
        events.append(ChoiceEnded(turn.id, run.choice, reason, answer.stop))
        if run.choice:
            self._next_choice(run)
        else:
            self._end(run, reason, events)

    def _next_choice(self, run: Run) -> None:
        """Go back to the prompt's end for another answer."""
        run.choice -= 1
        self._free_of(run)
        sampler = self._backend.sampler(for_choice(run.turn, run.choice))
        run.answer = Answer(sampler, run.turn.stop, limit(run.turn, self._context))
        self.sequences.cut(run.sequence, len(run.turn.prompt) - 1)
        run.sequence.tokens = list(run.turn.prompt)

    def _end(self, run: Run, reason: Finish, events: list[Event]) -> None:
        self._free_of(run)
        self.sequences.leave(run.sequence)
        del self._runs[run.turn.id]
        events.append(Ended(run.turn.id, reason, run.usage()))

    def _free_of(self, run: Run) -> None:
        """Free the run's sampler, once."""
        sampler, run.answer.sampler = run.answer.sampler, None
        self._free(sampler)

    def _free(self, sampler: Any) -> None:
        """A sampler that cannot be freed is a leak, and no reason to fail a turn."""
        if sampler is None:
            return
        try:
            self._backend.free(sampler)
        except Exception as error:  # noqa: BLE001  (logged without its words)
            logger.error("a sampler could not be freed:\n%s", trace_of(error))

    def _break(self, run: Run, error: Exception, events: list[Event]) -> None:
        """This turn ends as broken and its sequence is emptied; the others go on."""
        self._free_of(run)
        del self._runs[run.turn.id]
        if isinstance(error, PromptError):
            message = f"{error}; ask for less with 'response_format' or 'tools'"
            events.append(Broke(run.turn.id, message, asked=True))
        else:
            logger.error("the engine failed at one turn:\n%s", trace_of(error))
            message = "the engine failed in the middle of this answer; its log says where"
            events.append(Broke(run.turn.id, message))
        self.sequences.forget(run.sequence)

    def break_all(self, error: Exception, events: list[Event]) -> None:
        """Every running turn ends as broken, every sequence is emptied. An engine that cannot even do that breaks all
        later turns at once."""
        logger.error("the engine failed:\n%s", trace_of(error))
        self._round.clear()
        for run in self._runs.values():
            self._free_of(run)
            events.append(Broke(run.turn.id, "the engine failed in the middle of a step; its log says where"))
        self._runs.clear()
        try:
            self.sequences.clear()
        except Exception as second:  # noqa: BLE001
            logger.error("the engine cannot go on:\n%s", trace_of(second))
            self.failed = "the engine failed and cannot go on until it is started anew; its log says where"
