"""serving/decode_loop.py with backends that fail as real ones do."""

import queue
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import pytest

from serving.backend import Span
from serving.batching import Budget
from serving.decode_loop import DecodeLoop, common_prefix
from serving.engine import Began, Broke, Ended, Event, LoadError, Prefilled, Sampling, Text, Turn, Usage

PATIENCE_S = 10.0
END = 0


class CountingBackend:
    """Every answer is the number of tokens that the sequence holds, again and again, until `end_at` are held. Checks
    what llama.cpp would abort on: positions without a gap, no more tokens than the batch, samplers freed once."""

    def __init__(self, batch: int = 8, end_at: int = 1000) -> None:
        self.held: defaultdict[int, list[int]] = defaultdict(list)
        self.samplers: set[int] = set()
        self._made = 0
        self._batch = batch
        self._end_at = end_at
        self._rows: list[int] = []

    def open(self, progress: Callable[[float], None]) -> None:
        progress(1.0)

    def shut(self) -> None:
        assert not self.samplers

    def unfit(self, turn: Turn) -> str | None:
        return None

    def sampler(self, sampling: Sampling, prompt: Sequence[int]) -> int:
        self._made += 1
        self.samplers.add(self._made)
        return self._made

    def free(self, sampler: int) -> None:
        self.samplers.remove(sampler)

    def keep(self, sequence: int, count: int) -> int:
        del self.held[sequence][count:]
        return count

    def present(self, sequence: int) -> int:
        return len(self.held[sequence])

    def decode(self, spans: Sequence[Span]) -> bool:
        assert 0 < sum(len(span.tokens) for span in spans) <= self._batch
        self._rows = []
        for span in spans:
            held = self.held[span.sequence]
            assert span.start == len(held)
            held.extend(span.tokens)
            self._rows += [-1] * (len(span.tokens) - 1) + [len(held) if span.last else -1]
        return True

    def sample(self, sampler: int, row: int) -> int:
        assert sampler in self.samplers
        held = self._rows[row]
        assert held > 0
        return END if held >= self._end_at else held

    def piece(self, token: int) -> bytes | None:
        return None if token == END else b"%d " % token

    def clear(self) -> None:
        self.held.clear()

    def abort(self) -> None:
        pass

    def rearm(self) -> None:
        pass


class UncuttableBackend(CountingBackend):
    """Its memory can only be emptied, as a recurrent model's."""

    def keep(self, sequence: int, count: int) -> int:
        return super().keep(sequence, 0)


class AbortingBackend(CountingBackend):
    """Every other one of the first ten decodes is aborted after `kept` spans were evaluated."""

    def __init__(self, kept: int) -> None:
        super().__init__()
        self._kept = kept
        self._count = 0

    def decode(self, spans: Sequence[Span]) -> bool:
        self._count += 1
        if self._count % 2 and self._count < 10:
            if kept := spans[: self._kept]:
                super().decode(kept)
            return False
        return super().decode(spans)


class UncuttableAbortingBackend(AbortingBackend):
    """As a recurrent model whose decodes are aborted: what is lost is evaluated anew."""

    def keep(self, sequence: int, count: int) -> int:
        return super().keep(sequence, count if count == self.present(sequence) else 0)


class FailingBackend(CountingBackend):
    """The decode numbered `fails_at` raises; with `for_ever`, the engine cannot be emptied afterwards."""

    def __init__(self, fails_at: int, for_ever: bool = False) -> None:
        super().__init__()
        self._left = fails_at
        self._for_ever = for_ever

    def decode(self, spans: Sequence[Span]) -> bool:
        self._left -= 1
        if self._left == 0:
            raise RuntimeError("llama_decode returned -3")
        return super().decode(spans)

    def clear(self) -> None:
        if self._for_ever:
            raise RuntimeError("the device is gone")
        super().clear()


class UnloadableBackend(CountingBackend):
    def open(self, progress: Callable[[float], None]) -> None:
        raise LoadError("not today")


class Running:
    """A loop on a backend, and its events in order."""

    def __init__(self, backend: CountingBackend, sequences: int = 2, context: int = 64) -> None:
        self.backend = backend
        self.loop = DecodeLoop(backend, context, sequences, Budget(8, 3))
        self.loop.load(lambda _: None)
        self._heard: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.loop.start(self._hear)

    def _hear(self, events: Sequence[Event]) -> None:
        for event in events:
            self._heard.put(event)

    def answers(self, *turns: Turn) -> dict[int, list[Event]]:
        """Begin the turns together; their events until all have ended."""
        said: dict[int, list[Event]] = {turn.id: [] for turn in turns}
        for turn in turns:
            self.loop.begin(turn)
        while not all(events and isinstance(events[-1], Ended | Broke) for events in said.values()):
            event = self._heard.get(timeout=PATIENCE_S)
            said[event.turn].append(event)
        return said


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    loops: list[Running] = []

    def start(backend: CountingBackend, **more: int) -> Running:
        loops.append(Running(backend, **more))
        return loops[-1]

    yield start
    for running in loops:
        running.loop.close()


def turn(number: int, prompt: int, max_tokens: int | None = 4, sequence: int = 0) -> Turn:
    return Turn(number, sequence, tuple(range(1, prompt + 1)), max_tokens, Sampling())


def text(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


def test_a_prompt_enters_in_chunks_and_text_follows(run: Callable[..., Running]) -> None:
    events = run(CountingBackend()).answers(turn(1, 20))[1]
    assert events == [
        Began(1, held=0, reused=0),
        *(Prefilled(1, done, 20) for done in (8, 16, 20)),
        *(Text(1, f"{number} ", 1) for number in (20, 21, 22, 23)),
        Ended(1, "length", Usage(prompt=20, reused=0, evaluated=20, generated=4)),
    ]


def test_the_end_token_is_generated_but_is_no_text(run: Callable[..., Running]) -> None:
    events = run(CountingBackend(end_at=22)).answers(turn(1, 20, None))[1]
    assert text(events) == "20 21 "
    assert events[-1] == Ended(1, "stop", Usage(prompt=20, reused=0, evaluated=20, generated=3))


@pytest.mark.parametrize(
    "backend", [UncuttableBackend(), AbortingBackend(0), AbortingBackend(1), UncuttableAbortingBackend(1)]
)
def test_memory_that_cannot_be_cut_and_aborts_change_no_text(
    run: Callable[..., Running], backend: CountingBackend
) -> None:
    running = run(backend)
    plain = run(CountingBackend())
    for number in (1, 3):
        both = (turn(number, 20 - number, 6), turn(number + 1, 9, 6, sequence=1))
        said, wanted = running.answers(*both), plain.answers(*both)
        for one in both:
            assert text(said[one.id]) == text(wanted[one.id])
            end = said[one.id][-1]
            assert isinstance(end, Ended)
            assert end.usage.prompt == end.usage.reused + end.usage.evaluated
    assert running.loop.tokens_generated == plain.loop.tokens_generated


def test_memory_that_cannot_be_cut_is_evaluated_anew(run: Callable[..., Running]) -> None:
    running = run(UncuttableBackend())
    running.answers(turn(1, 20))
    events = running.answers(turn(2, 10))[2]
    assert events[0] == Began(2, held=23, reused=0)
    assert events[-1] == Ended(2, "length", Usage(prompt=10, reused=0, evaluated=10, generated=4))


def test_a_failed_decode_breaks_every_running_turn_and_empties_the_engine(
    run: Callable[..., Running],
) -> None:
    running = run(FailingBackend(fails_at=4))
    said = running.answers(turn(1, 5, None), turn(2, 5, None, sequence=1))
    assert [type(events[-1]) for events in said.values()] == [Broke, Broke]
    assert (running.loop.held(0), running.loop.held(1)) == (0, 0)
    assert not running.backend.samplers
    assert text(running.answers(turn(3, 5))[3]) == "5 6 7 8 "


def test_an_engine_that_cannot_go_on_says_so_to_every_later_turn(run: Callable[..., Running]) -> None:
    running = run(FailingBackend(fails_at=1, for_ever=True))
    running.answers(turn(1, 5))
    (event,) = running.answers(turn(2, 5))[2]
    assert event == Broke(2, "the engine failed: llama_decode returned -3; then: the device is gone")


@pytest.mark.parametrize("broken", ["decode", "sampler"])
def test_what_an_error_says_is_not_logged(
    run: Callable[..., Running],
    broken: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("my " + "secret")

    running = run(CountingBackend())
    with monkeypatch.context() as patch:
        patch.setattr(running.backend, broken, fails)
        running.answers(turn(1, 5, 1))
    assert "ValueError" in caplog.text
    assert "test_decode_loop.py" in caplog.text
    assert "my secret" not in caplog.text


def test_a_receiver_that_fails_does_not_stop_the_engine(run: Callable[..., Running]) -> None:
    running = run(CountingBackend())
    heard: queue.SimpleQueue[Sequence[Event]] = queue.SimpleQueue()

    def fails(events: Sequence[Event]) -> None:
        heard.put(events)
        raise ValueError("no listener")

    running.loop.start(fails)
    running.loop.begin(turn(1, 5))
    while not isinstance(heard.get(timeout=PATIENCE_S)[-1], Ended):
        pass
    assert running.loop.tokens_generated == 4


def test_what_cannot_be_loaded_raises_and_can_be_closed() -> None:
    loop = DecodeLoop(UnloadableBackend(), 64, 1, Budget(8, 3))
    with pytest.raises(LoadError, match="not today"):
        loop.load(lambda _: None)
    loop.close()


def test_a_loop_that_was_never_loaded_can_be_closed() -> None:
    DecodeLoop(CountingBackend(), 64, 1, Budget(8, 3)).close()


@pytest.mark.parametrize(
    ("held", "wanted", "common"),
    [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 2], 2), ([1, 9, 3], [1, 2, 3], 1), ([9], [1], 0)],
)
def test_the_common_prefix(held: list[int], wanted: list[int], common: int) -> None:
    assert common_prefix(held, tuple(wanted)) == common
