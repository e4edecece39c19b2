"""serving/runs.py: a turn's answers, and the tokens behind their text."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from serving.engine import Began, ChoiceEnded, Ended, Event, Prefilled, Sampled, Sampling, Text, Turn, Usage
from tests.backends import CountingBackend, FakeSampler, RecurrentBackend, WindowBackend
from tests.loop_driver import Run, ended, following, loops, text, turn


class HalfCharacterBackend(CountingBackend):
    """Two tokens make a character, an even one and the odd one after it."""

    def piece(self, token: int, special: bool = False) -> bytes | None:
        return "é".encode()[token % 2 : token % 2 + 1]


class SpecialBackend(CountingBackend):
    """Every third token is a special one."""

    def piece(self, token: int, special: bool = False) -> bytes | None:
        if token % 3 == 0:
            return b"<%d>" % token if special else b""
        return super().piece(token)


@pytest.fixture
def run() -> Iterator[Run]:
    with loops() as start:
        yield start


# Several answers


@pytest.mark.parametrize("kind", [CountingBackend, RecurrentBackend, WindowBackend])
def test_choices_are_made_one_after_another_the_first_one_last(run: Run, kind: type[CountingBackend]) -> None:
    running = run(kind())
    events = running.answer(turn(1, 20, 3, choices=3))
    assert [event for event in events if isinstance(event, ChoiceEnded)] == [
        ChoiceEnded(1, choice, "length") for choice in (2, 1, 0)
    ]
    assert [text(events, choice) for choice in (0, 1, 2)] == ["20 21 22 "] * 3
    texts = [event.choice for event in events if isinstance(event, Text)]
    assert texts == [2, 2, 2, 1, 1, 1, 0, 0, 0]
    assert [event.done for event in events if isinstance(event, Prefilled)][-1] == 20
    assert ended(events) == Ended(1, "length", Usage(prompt=20, reused=0, evaluated=20, generated=9))
    assert running.loop.held(0) == 22
    again = 1 if kind is CountingBackend else 4  # three tokens are more than the window can be cut by
    assert running.loop.tokens_evaluated == 20 + 2 * again


def test_choices_of_a_prompt_that_is_held_already(run: Run) -> None:
    running = run(RecurrentBackend())
    running.answer(turn(1, 20))
    held = running.saved().tokens
    events = running.answer(following(2, held, 1, choices=2))
    assert events[0] == Began(2, held=23, reused=23)
    assert text(events, 0) == text(events, 1) == "24 25 26 27 "


def test_each_choice_draws_otherwise_and_the_first_one_as_if_it_were_alone(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = run(CountingBackend())
    seeds: list[int | None] = []
    real = running.backend.sampler

    def sampler(turn: Turn) -> FakeSampler:
        seeds.append(turn.sampling.seed)
        return real(turn)

    monkeypatch.setattr(running.backend, "sampler", sampler)
    running.answer(replace(turn(1, 20, 1, choices=3), sampling=Sampling(seed=7)))
    running.answer(turn(2, 20, 1, choices=2))
    assert seeds == [9, 8, 7, None, None]


def test_a_way_back_for_a_choice_that_fails_costs_time_only(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = RecurrentBackend()
    running = run(backend)
    monkeypatch.setattr(backend, "roll_back", lambda sequence, *_: backend.held[sequence].clear())
    events = running.answer(turn(1, 20, choices=2))
    assert text(events, 0) == text(events, 1) == "20 21 22 23 "
    assert ended(events).usage == Usage(prompt=20, reused=0, evaluated=20, generated=8)


# Log probabilities and special tokens


def told(events: Sequence[Event]) -> list[list[int]]:
    """Tokens behind each text."""
    return [
        [sampled.chosen.token for sampled in event.sampled] for event in events if isinstance(event, Text)
    ]


def test_log_probabilities_come_with_their_text(run: Run) -> None:
    events = run(CountingBackend(end_at=22)).answer(turn(1, 20, None, logprobs=2))
    assert told(events) == [[20], [21]]
    first = next(event for event in events if isinstance(event, Text)).sampled[0]
    assert isinstance(first, Sampled)
    assert (first.chosen.piece, len(first.top)) == (b"20 ", 2)


def test_a_token_within_a_character_comes_with_the_character(run: Run) -> None:
    events = run(HalfCharacterBackend()).answer(turn(1, 20, 5, logprobs=0))
    assert [event.text for event in events if isinstance(event, Text)] == ["é", "é"]
    assert told(events) == [[20, 21], [22, 23]]
    assert [event.tokens for event in events if isinstance(event, Text)] == [2, 2]


def test_tokens_of_a_stop_string_do_not_come(run: Run) -> None:
    events = run(CountingBackend()).answer(turn(1, 20, logprobs=0, stop=("1 2",)))
    assert text(events) == "20 2"
    assert told(events) == [[20], [21]]
    assert [event.stop for event in events if isinstance(event, ChoiceEnded)] == ["1 2"]
    assert ended(events) == Ended(1, "stop", Usage(prompt=20, reused=0, evaluated=20, generated=3))


def test_tokens_held_back_for_a_stop_string_come_when_it_is_none(run: Run) -> None:
    events = run(CountingBackend()).answer(turn(1, 20, 4, logprobs=0, stop=("20 21 9", "2 z")))
    assert [event.text for event in events if isinstance(event, Text)] == ["20 21 2", "2 23 "]
    assert told(events) == [[20, 21, 22], [23]]


def test_special_tokens_are_text_only_if_asked_for(run: Run) -> None:
    running = run(SpecialBackend())
    assert text(running.answer(turn(1, 20, 3))) == "20 22 "
    assert text(running.answer(turn(2, 20, 3, special=True))) == "20 <21>22 "
