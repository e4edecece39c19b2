"""serving/decode_loop.py with backends that fail as real ones do: its life, and what it survives."""

import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from serving.backend import Span
from serving.batching import Budget
from serving.decode_loop import DecodeLoop
from serving.engine import Began, Broke, Embed, Ended, Event, LoadError, Sampling, Turn, Usage
from tests.backends import CountingBackend
from tests.loop_driver import PATIENCE_S, HeldBackend, Run, ended, following, loops, text, turn


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


@pytest.fixture
def run() -> Iterator[Run]:
    with loops() as start:
        yield start


def test_a_cancelled_prompt_ends_in_the_middle_of_its_chunk(run: Run) -> None:
    backend = HeldBackend()
    running = run(backend)
    running.loop.begin(turn(1, 20))
    assert backend.inside.wait(PATIENCE_S)
    running.loop.cancel(1)
    backend.go_on.set()
    events = running.events(1)[1]
    assert events == [Began(1, 0, 0), Ended(1, "cancelled", Usage(20, 0, 0, 0))]


def test_a_prompt_that_is_cancelled_leaves_what_was_evaluated_of_it(run: Run) -> None:
    backend = HeldBackend()
    backend.go_on.set()
    running = run(backend)
    running.answer(turn(1, 4, 1))
    backend.inside.clear()
    backend.go_on.clear()
    running.loop.begin(turn(2, 20))
    assert backend.inside.wait(PATIENCE_S)
    running.loop.cancel(2)
    backend.go_on.set()
    assert ended(running.events(2)[2]).usage == Usage(prompt=20, reused=4, evaluated=0, generated=0)
    assert running.saved().tokens == (1, 2, 3, 4)


def test_a_second_turn_on_a_busy_sequence_breaks_and_the_first_goes_on(run: Run) -> None:
    backend = HeldBackend()
    running = run(backend)
    running.loop.begin(turn(1, 5))
    assert backend.inside.wait(PATIENCE_S)
    running.loop.begin(turn(2, 5))
    backend.go_on.set()
    said = running.events(1, 2)
    assert said[2] == [Broke(2, "a turn already runs on sequence 0")]
    assert text(said[1]) == "5 6 7 8 "


# Failures


def test_a_failed_decode_breaks_every_running_turn_and_empties_the_engine(
    run: Run,
) -> None:
    running = run(FailingBackend(fails_at=4))
    said = running.answers(turn(1, 5, None), turn(2, 5, None, sequence=1))
    assert [type(events[-1]) for events in said.values()] == [Broke, Broke]
    assert (running.loop.held(0), running.loop.held(1)) == (0, 0)
    assert not running.backend.samplers
    assert text(running.answer(turn(3, 5))) == "5 6 7 8 "


def test_an_engine_that_cannot_go_on_says_so_to_every_later_turn_until_it_is_loaded_again(
    run: Run,
) -> None:
    running = run(FailingBackend(fails_at=1, for_ever=True))
    running.answer(turn(1, 5))
    said = running.answers(turn(2, 5))
    running.loop.embed(Embed(3, ((1,),)))
    said |= running.events(3)
    for number in (2, 3):
        assert said[number] == [
            Broke(number, "the engine failed and cannot go on until it is started anew; its log says where")
        ]
    running.loop.close()
    running.load()
    assert text(running.answer(turn(4, 5))) == "5 6 7 8 "


@pytest.mark.parametrize("broken", ["sample", "piece", "sampler", "keep", "unfit"])
def test_what_fails_at_one_turn_breaks_it_alone(
    run: Run, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The neighbour is in the middle of its answer when the other fails."""
    backend = HeldBackend()
    running = run(backend)
    backend.go_on.set()
    running.answer(turn(1, 20, sequence=1))
    real = getattr(backend, broken)
    heard = threading.Event()

    def fails(*args: Any) -> Any:
        if concerns_second(args):
            heard.set()
            raise ValueError("my " + "secret")
        return real(*args)

    def concerns_second(args: tuple[Any, ...]) -> bool:
        match broken:
            case "sample":
                return bool(args[0].turn.id == 3)
            case "piece":
                return bool(args[0] == 15)
            case "keep":
                return args == (1, 14)
            case _:
                return bool(args[0].id == 3)

    with monkeypatch.context() as patch:
        patch.setattr(backend, broken, fails)
        said = running.answers(turn(2, 30, 8), following(3, range(1, 15), 1, sequence=1))
    assert heard.is_set()
    assert text(said[2]) == "30 31 32 33 34 35 36 37 "
    assert isinstance(said[3][-1], Broke)
    assert "secret" not in said[3][-1].message
    assert running.loop.held(1) == 0
    assert text(running.answer(turn(4, 20, sequence=1))) == "20 21 22 23 "


def test_a_sampler_that_cannot_be_freed_loses_no_turn(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    running = run(CountingBackend())
    with monkeypatch.context() as patch:
        patch.setattr(running.backend, "free", lambda _: 1 / 0)
        assert text(running.answer(turn(1, 5, choices=2))) == "5 6 7 8 "
    assert caplog.text.count("a sampler could not be freed") == 2
    running.backend.samplers.clear()
    assert text(running.answer(turn(2, 5))) == "5 6 7 8 "


@pytest.mark.parametrize("broken", ["decode", "sampler", "sample", "save", "embed", "shut"])
def test_what_an_error_says_is_neither_logged_nor_sent(
    run: Run,
    broken: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("my " + "secret")

    running = run(CountingBackend())
    running.answer(turn(1, 5, 1))
    with monkeypatch.context() as patch:
        patch.setattr(running.backend, broken, fails)
        running.loop.save(0).result(PATIENCE_S)
        said = running.answers(turn(2, 5, 1))
        running.loop.embed(Embed(3, ((1,),)))
        said |= running.events(3)
        running.loop.close()
    assert "ValueError" in caplog.text
    assert "test_decode_loop.py" in caplog.text
    assert "my secret" not in caplog.text
    assert "my secret" not in str(said)


def test_a_receiver_that_fails_does_not_stop_the_engine(run: Run) -> None:
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


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (turn(1, 5, sequence=2), "there is no sequence 2, only 0 to 1"),
        (turn(1, 64), "a prompt of 64 tokens does not fit a context of 64"),
        (turn(1, 0), "a prompt of 0 tokens does not fit a context of 64"),
        (turn(1, 5, 0), "a turn makes at least one answer of at least one token"),
        (turn(1, 5, choices=0), "a turn makes at least one answer of at least one token"),
        (Turn(1, 0, (-1,), 4, Sampling()), "the prompt has token ids that this model does not know"),
    ],
)
def test_a_turn_against_the_contract_breaks(run: Run, wrong: Turn, words: str) -> None:
    running = run(CountingBackend())
    assert running.answer(wrong) == [Broke(1, words)]
    assert text(running.answer(turn(2, 5))) == "5 6 7 8 "


# Life


def test_what_cannot_be_loaded_raises_and_can_be_closed() -> None:
    loop = DecodeLoop(UnloadableBackend(), 64, 1, Budget(8, 3))
    with pytest.raises(LoadError, match="not today"):
        loop.load(lambda _: None)
    assert loop.save(0).result(0) is None
    loop.close()


def test_a_loop_that_was_never_loaded_can_be_closed() -> None:
    DecodeLoop(CountingBackend(), 64, 1, Budget(8, 3)).close()


def test_a_closed_loop_refuses_turns_and_can_be_loaded_again(run: Run) -> None:
    running = run(CountingBackend())
    running.answer(turn(1, 20))
    running.loop.close()
    running.loop.close()
    assert running.loop.held(0) == 0
    assert running.loop.save(0).result(0) is None
    running.loop.erase(0)
    running.loop.cancel(1)
    running.loop.embed(Embed(3, ((1,),)))
    running.loop.begin(turn(2, 20))
    said = running.events(2, 3)
    for number in (2, 3):
        assert said[number] == [Broke(number, "the engine is not loaded")]
    running.load()
    assert running.backend.opened == 2
    assert running.began(turn(4, 20)) == Began(4, held=0, reused=0)
    assert (running.loop.tokens_generated, running.loop.tokens_evaluated) == (8, 40)


def test_a_loaded_loop_is_not_loaded_twice(run: Run) -> None:
    running = run(CountingBackend())
    with pytest.raises(RuntimeError, match="loaded already"):
        running.loop.load(lambda _: None)
    assert text(running.answer(turn(1, 5))) == "5 6 7 8 "


def test_an_idle_loop_keeps_no_state_that_it_saved(run: Run) -> None:
    running = run(CountingBackend())
    running.answer(turn(1, 20))
    gone = threading.Event()
    saved = running.loop.save(0)
    weakref.finalize(saved, gone.set)
    assert saved.result(PATIENCE_S) is not None
    del saved
    assert gone.wait(PATIENCE_S)


def test_closing_ends_what_runs_and_what_waits_as_cancelled(run: Run) -> None:
    backend = HeldBackend()
    running = run(backend)
    running.loop.begin(turn(1, 20))
    assert backend.inside.wait(PATIENCE_S)
    running.loop.embed(Embed(2, ((1, 2),)))
    closing = threading.Thread(target=running.loop.close)
    closing.start()
    assert backend.aborted.wait(PATIENCE_S)
    running.loop.begin(turn(3, 20, sequence=1))
    running.loop.embed(Embed(4, ((1, 2),)))
    saved = running.loop.save(0)
    backend.go_on.set()
    closing.join(PATIENCE_S)
    said = running.events(1, 2, 3, 4)
    assert [ended(events).reason for events in said.values()] == ["cancelled"] * 4
    assert saved.result(0) is None


def test_what_a_sequence_holds_between_turns_can_be_asked_for_at_any_time(run: Run) -> None:
    running = run(CountingBackend())
    assert running.loop.tokens(0) == ()
    running.answer(turn(1, 20))
    assert running.loop.tokens(0) == running.saved().tokens
    assert len(running.loop.tokens(0)) == running.loop.held(0) > 20
    assert running.loop.tokens(1) == ()
    running.loop.erase(0)
    running.answer(turn(2, 3, sequence=1))
    assert running.loop.tokens(0) == ()


def test_a_cancelled_turn_leaves_no_tokens_that_were_not_evaluated(run: Run) -> None:
    backend = HeldBackend()
    running = run(backend)
    running.loop.begin(turn(1, 20))
    assert backend.inside.wait(PATIENCE_S)
    running.loop.cancel(1)
    backend.go_on.set()
    running.events(1)
    assert len(running.loop.tokens(0)) == running.loop.held(0)
