"""serving/steps.py and prompt_chunk.py: what each decode holds, and what comes of it."""

import itertools
from collections.abc import Iterator, Sequence

import pytest

from serving.backend import Span
from serving.batching import Budget
from serving.decode_loop import DecodeLoop
from serving.engine import (
    Began,
    ChoiceEnded,
    Ended,
    LoadError,
    Prefilled,
    Text,
    Usage,
)
from tests.backends import CountingBackend, RecurrentBackend, WindowBackend
from tests.loop_driver import PATIENCE_S, HeldBackend, Run, ended, loops, text, turn


class AbortingBackend(CountingBackend):
    """Every other one of the first ten decodes is aborted after `kept` spans were evaluated."""

    def __init__(self, kept: int) -> None:
        super().__init__()
        self._kept = kept
        self._count = 0

    def decode(self, spans: Sequence[Span]) -> bool:
        self._count += 1
        if self._count % 2 and self._count < 10:
            self._evaluate(spans[: self._kept])
            return False
        return super().decode(spans)


class RecurrentAbortingBackend(AbortingBackend):
    """As a recurrent model whose decodes are aborted: what is lost is evaluated anew."""

    cuttable = False

    def can_keep(self, sequence: int, count: int) -> bool:
        return count == self.present(sequence)


class LosingBackend(CountingBackend):
    """The decode numbered `loses_at` is aborted, and nothing is left of what its sequences held."""

    def __init__(self, loses_at: int) -> None:
        super().__init__()
        self._left = loses_at

    def decode(self, spans: Sequence[Span]) -> bool:
        self._left -= 1
        if self._left:
            return super().decode(spans)
        for span in spans:
            self.held[span.sequence].clear()
        return False


class SlowBackend(CountingBackend):
    """A decode takes a second on the clock, and a second more for every `tokens` tokens."""

    def __init__(self, tokens: int, batch: int) -> None:
        super().__init__(batch)
        self.now_s = 0.0
        self._tokens = tokens

    def decode(self, spans: Sequence[Span]) -> bool:
        self.now_s += 1 + (sum(len(span.tokens) for span in spans) - 1) / self._tokens
        return super().decode(spans)


@pytest.fixture
def run() -> Iterator[Run]:
    with loops() as start:
        yield start


def test_a_prompt_enters_in_chunks_and_text_follows(run: Run) -> None:
    events = run(CountingBackend()).answer(turn(1, 20))
    assert events == [
        Began(1, held=0, reused=0),
        *(Prefilled(1, done, 20) for done in (8, 16, 20)),
        *(Text(1, f"{number} ", 1) for number in (20, 21, 22, 23)),
        ChoiceEnded(1, 0, "length"),
        Ended(1, "length", Usage(prompt=20, reused=0, evaluated=20, generated=4)),
    ]


def test_the_end_token_is_generated_but_is_no_text(run: Run) -> None:
    events = run(CountingBackend(end_at=22)).answer(turn(1, 20, None))
    assert text(events) == "20 21 "
    assert events[-1] == Ended(1, "stop", Usage(prompt=20, reused=0, evaluated=20, generated=3))


@pytest.mark.parametrize(
    "backend",
    [
        RecurrentBackend(),
        WindowBackend(),
        AbortingBackend(0),
        AbortingBackend(1),
        RecurrentAbortingBackend(0),
        RecurrentAbortingBackend(1),
    ],
)
def test_memory_that_cannot_be_cut_and_aborts_change_no_text(run: Run, backend: CountingBackend) -> None:
    running = run(backend)
    plain = run(CountingBackend())
    for number in (1, 3):
        both = (turn(number, 20 - number, 6), turn(number + 1, 9, 6, sequence=1))
        said, wanted = running.answers(*both), plain.answers(*both)
        for one in both:
            assert text(said[one.id]) == text(wanted[one.id])
            usage = ended(said[one.id]).usage
            assert usage.prompt == usage.reused + usage.evaluated
    assert running.loop.tokens_generated == plain.loop.tokens_generated


def test_what_an_abort_loses_is_evaluated_and_counted_anew(run: Run) -> None:
    running = run(
        LosingBackend(loses_at=7)
    )  # three for the prompt, three for the answer, and the next turn's first
    running.answer(turn(1, 20))
    events = running.answer(turn(2, 30, 1))
    assert [event.done for event in events if isinstance(event, Prefilled)] == [8, 16, 24, 30]
    assert ended(events).usage == Usage(prompt=30, reused=0, evaluated=30, generated=1)


def test_prompts_take_turns_where_the_chunk_is_too_small_for_all(run: Run) -> None:
    backend = HeldBackend()
    running = run(backend, sequences=3, prompt_chunk=1)
    running.loop.begin(turn(1, 4, 30))
    assert backend.inside.wait(PATIENCE_S)
    for number in (2, 3):
        running.loop.begin(turn(number, 6, 1, sequence=number - 1))
    backend.go_on.set()
    running.events(1, 2, 3)
    both = [spans[1].sequence for spans in backend.decodes if len(spans) == 2]
    assert both[:8] == [1, 2] * 4


def test_a_prompt_enters_in_small_chunks_behind_a_turn_that_decodes(run: Run) -> None:
    backend = HeldBackend()
    running = run(backend)
    running.loop.begin(turn(1, 4, 12))
    assert backend.inside.wait(PATIENCE_S)
    running.loop.begin(turn(2, 30, 1, sequence=1))
    backend.go_on.set()
    running.events(1, 2)
    both = [spans for spans in backend.decodes if len(spans) == 2]
    assert [[(span.sequence, len(span.tokens)) for span in spans] for spans in both] == [
        [(0, 1), (1, 3)]
    ] * 10


def test_an_exact_engine_decodes_each_sequence_by_itself_and_cuts_prompts_alike(
    run: Run,
) -> None:
    running = run(CountingBackend(), sequences=3, exact=True)
    turns = [turn(number, 12 + number, 5, sequence=number) for number in (0, 1, 2)]
    said = running.answers(*turns)
    assert all(len(spans) == 1 for spans in running.backend.decodes)
    together = spans_of(running.backend)
    alone = run(CountingBackend(), sequences=3, exact=True)
    for one in turns:
        assert alone.answer(one) == said[one.id]
    assert together == spans_of(alone.backend)


def spans_of(backend: CountingBackend) -> dict[int, list[Span]]:
    """What was decoded of each sequence, in order."""
    spans = sorted(itertools.chain(*backend.decodes), key=lambda span: span.sequence)
    return {key: list(of) for key, of in itertools.groupby(spans, key=lambda span: span.sequence)}


def test_the_chunk_is_measured_once_where_none_is_given() -> None:
    backend = SlowBackend(tokens=8, batch=64)
    loop = DecodeLoop(backend, 64, 2, Budget(64, 3), prompt_chunk=None, clock=lambda: backend.now_s)
    for _ in range(2):
        loop.load(lambda _: None)
        assert loop.chunk == 16
        assert not backend.held
        loop.close()
    sizes = [sum(len(span.tokens) for span in spans) for spans in backend.decodes]
    assert sizes == [1, 1, 1, 2, 2, 2, 3, 5, 9, 17, 33, 33, 33]
    assert not backend.samplers


class DeepBackend(SlowBackend):
    """A prompt's tokens cost more behind the 24th of their sequence."""

    def decode(self, spans: Sequence[Span]) -> bool:
        deep = sum(len(span.tokens) for span in spans if span.start >= 24 and len(span.tokens) > 1)
        self.now_s += deep * 0.5
        return super().decode(spans)


def test_a_chunk_shrinks_where_it_costs_more_than_was_measured(run: Run) -> None:
    backend = DeepBackend(tokens=2, batch=64)
    running = run(backend, sequences=2, context=64, prompt_chunk=None, clock=lambda: backend.now_s)
    assert running.loop.chunk == 4
    running.answer(turn(1, 2, 4))
    backend.decodes.clear()
    running.answers(turn(1, 4, 50), turn(2, 58, 1, sequence=1))
    chunks = [len(spans[1].tokens) for spans in backend.decodes[1:] if len(spans) == 2]
    assert chunks[:4] == [4] * 4
    assert set(chunks[9:-1]) == {2}


def test_a_chunk_that_is_given_is_not_measured() -> None:
    backend = CountingBackend(batch=64)
    loop = DecodeLoop(backend, 64, 2, Budget(64, 3), prompt_chunk=100)
    loop.load(lambda _: None)
    assert (loop.chunk, backend.decodes) == (64, [])
    loop.close()


def test_a_backend_that_is_aborted_while_the_chunk_is_measured_is_closed() -> None:
    backend = SlowBackend(tokens=10, batch=64)

    def closes() -> float:
        backend.abort()
        return 0.0

    loop = DecodeLoop(backend, 64, 2, Budget(64, 3), prompt_chunk=None, clock=closes)
    with pytest.raises(LoadError, match="given up"):
        loop.load(lambda _: None)
    assert not backend.samplers
    loop.close()


def test_a_batch_must_have_room_for_every_sequence() -> None:
    with pytest.raises(ValueError, match="no room"):
        DecodeLoop(CountingBackend(), 64, 9, Budget(8, 3))
