"""serving/sequences.py and prefixes.py: what a sequence can use again, and what is saved of it."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from serving.engine import Began, SavedState, Usage
from serving.prefixes import common_prefix
from tests.backends import CountingBackend, RecurrentBackend, WindowBackend
from tests.loop_driver import PATIENCE_S, HeldBackend, Run, ended, following, loops, text, turn


@pytest.fixture
def run() -> Iterator[Run]:
    with loops() as start:
        yield start


def test_a_changed_history_is_cut_at_the_first_difference(run: Run) -> None:
    running = run(CountingBackend())
    running.answer(turn(1, 20))
    assert running.began(following(2, range(1, 13), 5)) == Began(2, held=23, reused=12)


def test_memory_that_cannot_be_cut_goes_back_to_before_the_end_of_the_prompt(
    run: Run,
) -> None:
    running = run(RecurrentBackend())
    running.answer(turn(1, 20))
    events = running.answer(turn(2, 20))
    assert events[0] == Began(2, held=23, reused=16)
    assert ended(events).usage == Usage(prompt=20, reused=16, evaluated=4, generated=4)


def test_memory_that_cannot_be_cut_goes_back_to_where_a_turn_began(run: Run) -> None:
    """Each turn leaves two ways back, and the newest four are kept."""
    running = run(RecurrentBackend())
    held: list[int] = []
    for number in range(1, 5):
        held.append(running.loop.held(0))
        running.answer(following(number, running.saved().tokens if held[-1] else (), 6))
    tokens = running.saved().tokens
    assert [count for count, _ in running.saved().checkpoints] == [held[2], held[2] + 2, held[3], held[3] + 2]
    assert running.began(following(7, tokens[: held[3] + 1], 3)).reused == held[3]
    assert running.began(following(8, tokens[: held[2] + 1], 3)).reused == held[2]
    assert running.began(following(9, tokens[: held[1] + 1], 3)).reused == 0


def test_a_way_back_is_forgotten_with_what_it_leads_to(run: Run) -> None:
    running = run(RecurrentBackend())
    running.answer(turn(1, 20))
    other = (*range(1, 15), *[900] * 16)
    running.answer(following(2, other, 1))
    assert [count for count, _ in running.saved().checkpoints] == [27]
    assert running.began(following(3, other[:20], 4)).reused == 0


def test_memory_that_can_be_cut_near_its_end_needs_no_checkpoint_there(run: Run) -> None:
    running = run(WindowBackend())
    running.answer(turn(1, 20))
    assert running.began(following(2, running.saved().tokens[:22], 4)).reused == 22


def test_a_way_back_that_fails_costs_time_only(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = RecurrentBackend()
    running = run(backend)
    running.answer(turn(1, 20))
    with monkeypatch.context() as patch:
        patch.setattr(backend, "roll_back", lambda sequence, *_: backend.held[sequence].clear())
        events = running.answer(turn(2, 20))
    assert events[0] == Began(2, held=23, reused=0)
    assert text(events) == "20 21 22 23 "


def test_a_sequence_of_another_scope_is_forgotten(run: Run) -> None:
    running = run(CountingBackend())
    running.answer(turn(1, 20, scope="a"))
    assert running.began(turn(2, 20, scope="b")) == Began(2, held=0, reused=0)


def test_a_prefix_is_copied_within_a_scope_only(run: Run) -> None:
    running = run(CountingBackend(), sequences=4)
    running.answer(turn(1, 50, scope="a"))
    assert running.began(turn(2, 50, sequence=1, scope="b")) == Began(2, held=0, reused=0)
    assert running.began(turn(3, 50, sequence=2)) == Began(3, held=0, reused=0)
    running.loop.erase(1)
    events = running.answer(turn(4, 50, sequence=1, scope="a"))
    assert events[0] == Began(4, held=0, reused=49, shared=49)
    assert ended(events).usage == Usage(prompt=50, reused=49, evaluated=1, generated=4)
    assert text(events) == "50 51 52 53 "


def test_a_prefix_is_copied_from_a_turn_that_runs(run: Run) -> None:
    backend = HeldBackend()
    backend.go_on.set()
    running = run(backend)
    running.answer(turn(1, 45, scope="a"))
    backend.go_on.clear()
    backend.inside.clear()
    running.loop.begin(turn(2, 50, 8, scope="a"))
    assert backend.inside.wait(PATIENCE_S)
    running.loop.begin(turn(3, 50, 8, sequence=1, scope="a"))
    backend.go_on.set()
    said = running.events(2, 3)
    assert said[3][0] == Began(3, held=0, reused=49, shared=49)
    assert text(said[2]) == text(said[3]) == "50 51 52 53 54 55 56 57 "


@pytest.mark.parametrize("more", [{"share": False}, {"exact": True}])
def test_nothing_is_copied_where_that_is_off(run: Run, more: dict[str, bool]) -> None:
    running = run(CountingBackend(), **more)
    running.answer(turn(1, 50, scope="a"))
    assert running.began(turn(2, 50, sequence=1, scope="a")) == Began(2, held=0, reused=0)


@pytest.mark.parametrize("own", [0, 18, 19])
def test_a_copy_must_be_worth_it(run: Run, own: int) -> None:
    running = run(CountingBackend())
    running.answer(turn(1, 51, 1, scope="a"))
    if own:
        running.answer(following(2, range(1, own + 1), 1, sequence=1, scope="a"))
    began = running.began(turn(3, 51, sequence=1, scope="a"))
    assert began.shared == (0 if own == 19 else 50)
    assert began.reused == (19 if own == 19 else 50)
    assert began.held == (own + 4 if own else 0)


def test_a_copy_that_fails_costs_time_only(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    running = run(CountingBackend())
    running.answer(turn(1, 50, scope="a"))
    monkeypatch.setattr(running.backend, "copy", lambda *_: False)
    events = running.answer(turn(2, 50, sequence=1, scope="a"))
    assert events[0] == Began(2, held=0, reused=0)
    assert text(events) == "50 51 52 53 "


# Saving and restoring


@pytest.mark.parametrize("kind", [CountingBackend, RecurrentBackend])
def test_a_saved_state_is_resumed_in_another_engine(run: Run, kind: type[CountingBackend]) -> None:
    first = run(kind())
    first.answer(turn(1, 20))
    state = first.saved()
    assert state.tokens == (*range(1, 21), 20, 21, 22)
    assert first.loop.held(0) == 23
    other = run(kind())
    other.answer(turn(1, 9, sequence=1))
    again = following(2, state.tokens, 3, sequence=1, state=state)
    events = other.answer(again)
    assert events[0] == Began(2, held=23, reused=23, restored=True)
    assert text(events) == text(first.answer(replace(again, sequence=0, state=None)))
    assert other.saved(1).checkpoints[: len(state.checkpoints)] == state.checkpoints
    assert bool(state.checkpoints) == (kind is RecurrentBackend)


def test_a_restored_state_can_be_rolled_back(run: Run) -> None:
    running = run(RecurrentBackend())
    running.answer(turn(1, 20))
    state = running.saved()
    began = running.began(turn(2, 20, sequence=1, state=state))
    assert began == Began(2, held=23, reused=16, restored=True)


@pytest.mark.parametrize("data", [b"not a state", b"[1, 2, 3]"])
def test_a_state_that_cannot_be_loaded_is_told_and_evaluated_anew(run: Run, data: bytes) -> None:
    running = run(CountingBackend())
    running.answer(turn(1, 20))
    events = running.answer(turn(2, 20, state=replace(running.saved(), data=data)))
    assert events[0] == Began(2, held=0, reused=0, restored=False)
    assert text(events) == "20 21 22 23 "


def test_a_state_beyond_the_context_is_not_loaded(run: Run) -> None:
    running = run(CountingBackend())
    state = SavedState(tuple(range(1, 66)), b"[1]")
    assert running.began(turn(1, 20, state=state)) == Began(1, held=0, reused=0, restored=False)


def test_there_is_nothing_to_save_of_an_empty_sequence_a_busy_one_or_none(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    backend = HeldBackend()
    running = run(backend)
    assert [running.loop.save(number).result(PATIENCE_S) for number in (0, 2, -1)] == [None] * 3
    running.loop.begin(turn(1, 20))
    assert backend.inside.wait(PATIENCE_S)
    saved = running.loop.save(0)
    running.loop.erase(0)
    backend.go_on.set()
    assert saved.result(PATIENCE_S) is None
    assert text(running.events(1)[1]) == "20 21 22 23 "
    assert caplog.text.count("a turn runs on it") == 2


def test_save_erase_and_begin_are_done_in_the_order_in_which_they_are_asked(
    run: Run,
) -> None:
    running = run(CountingBackend())
    running.answer(turn(1, 20))
    saves = [running.loop.save(0)]
    running.loop.erase(0)
    saves.append(running.loop.save(0))
    assert running.began(turn(2, 9)).held == 0
    states = [save.result(PATIENCE_S) for save in saves]
    assert states[0] is not None
    assert len(states[0].tokens) == 23
    assert states[1] is None


@pytest.mark.parametrize("fails", [lambda _: None, lambda _: 1 / 0])
def test_a_save_that_fails_gives_nothing_and_changes_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch, fails: Callable[[int], bytes | None]
) -> None:
    running = run(CountingBackend())
    running.answer(turn(1, 20))
    with monkeypatch.context() as patch:
        patch.setattr(running.backend, "save", fails)
        assert running.loop.save(0).result(PATIENCE_S) is None
    assert running.began(turn(2, 30)).reused == 20


def test_a_save_that_nobody_waits_for_any_more_is_not_made(run: Run) -> None:
    backend = HeldBackend()
    running = run(backend)
    running.loop.begin(turn(1, 20))
    assert backend.inside.wait(PATIENCE_S)
    saved = running.loop.save(1)
    saved.cancel()
    backend.go_on.set()
    assert text(running.events(1)[1]) == "20 21 22 23 "
    assert running.began(turn(2, 30)).reused == 20


@pytest.mark.parametrize(
    ("held", "wanted", "common"),
    [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 2], 2), ([1, 9, 3], [1, 2, 3], 1), ([9], [1], 0)],
)
def test_the_common_prefix(held: list[int], wanted: list[int], common: int) -> None:
    assert common_prefix(held, tuple(wanted)) == common
