"""serving/embed_line.py: embeddings between the steps."""

from collections.abc import Iterator

import pytest

from serving.engine import Broke, Embed, Embedded, Ended, Text, Usage
from tests.backends import CountingBackend
from tests.loop_driver import PATIENCE_S, HeldBackend, Run, loops, text, turn


@pytest.fixture
def run() -> Iterator[Run]:
    with loops() as start:
        yield start


def test_embeddings_come_in_order_and_touch_no_sequence(run: Run) -> None:
    running = run(CountingBackend())
    running.answer(turn(1, 20))
    running.loop.embed(Embed(2, ((1, 2, 3), (4, 5), (6,))))
    assert running.events(2)[2] == [
        Embedded(2, (b"\3", b"\2", b"\1")),
        Ended(2, "stop", Usage(prompt=6, reused=0, evaluated=6, generated=0)),
    ]
    assert running.loop.held(0) == 23
    assert running.loop.tokens_evaluated == 26


def test_no_texts_give_no_vectors(run: Run) -> None:
    running = run(CountingBackend())
    running.loop.embed(Embed(1, ()))
    assert running.events(1)[1][0] == Embedded(1, ())


def test_embeddings_are_made_between_steps_and_in_turn(run: Run) -> None:
    backend = HeldBackend()
    running = run(backend)
    running.loop.begin(turn(1, 4, 4))
    assert backend.inside.wait(PATIENCE_S)
    running.loop.embed(Embed(2, ((1,), (2,), (3,))))
    running.loop.embed(Embed(3, ((4,), (5,))))
    backend.go_on.set()
    said = running.events(1, 2, 3)
    assert backend.embedded == [(1,), (4,), (2,), (5,), (3,)]
    assert text(said[1]) == "4 5 6 7 "


def test_a_long_text_keeps_no_neighbour_waiting_for_more_than_a_chunk(run: Run) -> None:
    backend = HeldBackend()
    running = run(backend)
    running.loop.begin(turn(1, 4, 8))
    assert backend.inside.wait(PATIENCE_S)
    running.loop.embed(Embed(2, ((1,) * 12,)))
    backend.go_on.set()
    said = running.said_in_order(1, 2)
    texts_before = said[: said.index(Embedded(2, (b"\x0c",)))]
    assert sum(isinstance(event, Text) for event in texts_before) >= 12 // running.loop.chunk


def test_a_long_text_that_is_cancelled_is_given_up_between_its_parts(run: Run) -> None:
    running = run(CountingBackend())
    running.loop.begin(turn(1, 4, 30))
    running.loop.embed(Embed(2, ((1,) * 60,)))
    running.loop.cancel(2)
    running.loop.embed(Embed(3, ((1,) * 4,)))
    said = running.events(1, 2, 3)
    assert said[2] == [Ended(2, "cancelled", Usage(60, 0, 0, 0))]
    assert said[3][0] == Embedded(3, (b"\4",))
    assert running.backend.embedded == [(1,) * 4]


def test_embeddings_are_cancelled_in_the_middle(run: Run) -> None:
    backend = HeldBackend()
    running = run(backend)
    running.loop.embed(Embed(1, ((1, 2), (3,))))
    assert backend.inside.wait(PATIENCE_S)
    running.loop.cancel(1)
    backend.go_on.set()
    assert running.events(1)[1] == [Ended(1, "cancelled", Usage(3, 0, 0, 0))]
    assert backend.embedded == []


def test_a_failed_embedding_breaks_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    running = run(CountingBackend())
    with monkeypatch.context() as patch:
        patch.setattr(running.backend, "embed", lambda *_: 1 / 0)
        running.loop.embed(Embed(1, ((1, 2),)))
        (event,) = running.events(1)[1]
    assert isinstance(event, Broke)
    running.loop.embed(Embed(2, ((1, 2),)))
    assert isinstance(running.events(2)[2][-1], Ended)


@pytest.mark.parametrize("size", [0, 65])
def test_a_text_that_does_not_fit_is_not_embedded(run: Run, size: int) -> None:
    running = run(CountingBackend())
    running.loop.embed(Embed(1, ((1,), (1,) * size)))
    assert running.events(1)[1] == [Broke(1, f"a text of {size} tokens does not fit a context of 64")]
