"""What sequences hold across turns, engines and parking, on real models: one whose memory can be cut at will, one with
a sliding window, and a tiny one that is recurrent. Texts are such that rounding does not change them: counting."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving.engine import Began, Ended, Event, SavedState
from serving.llama_engine import LlamaEngine
from serving.llama_options import EngineOptions
from tests.llama_driver import PATIENCE_S, Driver
from tests.models import bundled_model, gemma, recurrent

CONTEXT = 1024
WINDOW = 512
"""Gemma's. 768 tokens are kept, as llama.cpp rounds up."""
PLAIN = EngineOptions(batch=128, flash_attention=False, prompt_chunk=32)


@contextmanager
def running(
    path: Path, sequences: int = 1, options: EngineOptions = PLAIN, context: int = CONTEXT
) -> Iterator[Driver]:
    engine = LlamaEngine(path, context, sequences, threads=1, options=options)
    try:
        yield Driver(engine)
    finally:
        engine.close()


def counting(first: int, last: int) -> str:
    return ", ".join(str(number) for number in range(first, last)) + ","


def began(driver: Driver, turn: int) -> Began:
    (event,) = driver.until(turn, lambda event: isinstance(event, Began))
    assert isinstance(event, Began)
    return event


def saved(driver: Driver, sequence: int = 0) -> SavedState:
    state = driver.engine.save(sequence).result(PATIENCE_S)
    assert state is not None
    return state


@pytest.fixture(scope="module", params=[bundled_model, gemma])
def path(request: pytest.FixtureRequest) -> Path:
    find: Callable[[], Path] = request.param
    return find()


@pytest.fixture(scope="module")
def window() -> Iterator[Driver]:
    """Gemma, whose window is shorter than the prompts here."""
    with running(gemma()) as driver:
        yield driver


@pytest.fixture(scope="module")
def state_machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recurrent(tmp_path_factory.mktemp("models") / "mamba.gguf")


def test_a_paused_session_goes_on_in_another_engine_as_if_nothing_had_been(path: Path) -> None:
    with running(path) as driver:
        prompt = driver.engine.tokenize(counting(1, 150))
        assert len(prompt) > WINDOW
        first, _ = driver.ask(prompt, 12)
        state = saved(driver)
        longer = driver.engine.tokenize(counting(1, 150) + first + " then backwards: 20, 19, 18, 17,")
        unpaused, end = driver.ask(longer, 24)
        evaluated = end.usage.evaluated
    with running(path) as driver:
        turn = driver.begin(longer, 24, state=state)
        begin = began(driver, turn)
        resumed, end = driver.answer(turn)
    assert (begin.restored, begin.held) == (True, len(state.tokens))
    assert begin.reused == len(longer) - evaluated
    assert (resumed, end.usage.evaluated) == (unpaused, evaluated)
    assert evaluated < 40


def test_a_state_of_another_layout_is_refused_and_the_prompt_evaluated(path: Path) -> None:
    with running(path) as driver:
        prompt = driver.engine.tokenize(counting(1, 30))
        driver.ask(prompt, 4)
        state = saved(driver)
        layout = driver.facts.layout
    with running(path, 2) as driver:
        assert driver.facts.layout != layout
        turn = driver.begin(prompt, 4, sequence=1, state=state)
        begin = began(driver, turn)
        text, _ = driver.answer(turn)
        assert (begin.restored, begin.reused) == (False, 0)
        assert text == driver.ask(prompt, 4)[0]


def test_a_shortened_state_is_refused_and_the_prompt_evaluated(path: Path) -> None:
    with running(path) as driver:
        prompt = driver.engine.tokenize(counting(1, 30))
        text, _ = driver.ask(prompt, 4)
        state = saved(driver)
        short = SavedState(state.tokens, state.data[:-1000], state.checkpoints)
        turn = driver.begin(prompt, 4, state=short)
        assert began(driver, turn).restored is False
        again, end = driver.answer(turn)
        assert (again, end.usage.reused) == (text, 0)


def test_an_empty_sequence_has_nothing_to_save(window: Driver) -> None:
    window.engine.erase(0)
    assert window.engine.save(0).result(PATIENCE_S) is None


def cut_back(driver: Driver, number: int) -> tuple[str, str, int]:
    """A long counting is answered, then a shorter one up to `number`: its text, the same evaluated cold, and what of
    the first was used again."""
    driver.engine.erase(0)
    driver.ask(driver.engine.tokenize(counting(1, 210)), 8)
    shorter = driver.engine.tokenize(counting(1, number))
    warm, end = driver.ask(shorter, 24)
    driver.engine.erase(0)
    cold, _ = driver.ask(shorter, 24)
    return warm, cold, end.usage.reused


def test_a_history_changed_inside_the_window_is_cut_there(window: Driver) -> None:
    warm, cold, reused = cut_back(window, 209)
    assert warm == cold
    assert warm.startswith(" 209, 210")
    assert reused > WINDOW


def test_a_history_changed_before_the_window_is_not_cut_behind_it(window: Driver) -> None:
    """What the layers with the window look back on is gone there: the text would be nonsense."""
    warm, cold, reused = cut_back(window, 40)
    assert warm == cold
    assert warm.startswith(" 40, 41")
    assert reused < len(window.engine.tokenize(counting(1, 40)))


def test_the_next_turn_of_a_sliding_window_evaluates_only_what_is_new(window: Driver) -> None:
    window.engine.erase(0)
    text, _ = window.ask(window.engine.tokenize(counting(1, 150)), 10)
    longer = window.engine.tokenize(counting(1, 150) + text + " 7, 8, 9,")
    warm, end = window.ask(longer, 8)
    assert end.usage.evaluated < 30
    window.engine.erase(0)
    assert window.ask(longer, 8)[0] == warm


def test_an_answer_that_is_made_anew_goes_back_to_the_prompts_end(window: Driver) -> None:
    window.engine.erase(0)
    prompt = window.engine.tokenize(counting(1, 150))
    first, _ = window.ask(prompt, 40)
    again, end = window.ask(prompt, 40)
    assert again == first
    assert end.usage.evaluated < 20


def test_a_recurrent_model_goes_on_and_goes_back(state_machine: Path) -> None:
    with running(state_machine, context=512) as driver:
        prompt = driver.engine.tokenize(counting(1, 60))
        first, _ = driver.ask(prompt, 20)
        state = saved(driver)
        held = driver.engine.held(0)
        assert driver.engine.tokens(0) == state.tokens
        longer = (*state.tokens, *driver.engine.tokenize(" and so on"))
        turn = driver.begin(longer, 20)
        assert began(driver, turn).reused == held
        warm, _ = driver.answer(turn)
        driver.engine.erase(0)
        assert driver.ask(longer, 20)[0] == warm
        turn = driver.begin(longer, 20, state=state)
        assert began(driver, turn).restored is True
        assert driver.answer(turn)[0] == warm
        assert driver.ask(prompt, 20)[0] == first


def test_sessions_of_one_scope_share_a_prefix_and_others_do_not() -> None:
    with running(bundled_model(), 3) as driver:
        common = counting(1, 100)
        prompts = [driver.engine.tokenize(common + more) for more in (" 100, 101,", " then 7, 8, 9,")]
        driver.ask(prompts[0], 4, sequence=0, scope="a")
        turn = driver.begin(prompts[1], 12, sequence=1, scope="a")
        begin = began(driver, turn)
        shared, _ = driver.answer(turn)
        assert begin.shared > 200
        turn = driver.begin(prompts[1], 12, sequence=2, scope="b")
        assert began(driver, turn).reused == 0
        assert driver.answer(turn)[0] == shared


def test_an_engine_loads_again_after_it_was_closed(path: Path) -> None:
    engine = LlamaEngine(path, 512, 1, threads=1, options=PLAIN)
    driver = Driver(engine)
    prompt = engine.tokenize(counting(1, 30))
    text, _ = driver.ask(prompt, 8)
    state = saved(driver)
    engine.close()
    assert engine.facts == driver.facts
    assert (engine.format is None) == (not driver.facts.template)
    with pytest.raises(RuntimeError, match="closed"):
        engine.tokenize("7")
    again = Driver(engine)
    try:
        assert again.facts.layout == driver.facts.layout
        assert engine.held(0) == 0
        turn = again.begin(prompt, 8, state=state)
        assert began(again, turn).restored is True
        assert again.answer(turn)[0] == text
    finally:
        engine.close()


def test_several_choices_are_made_on_one_prompt(path: Path) -> None:
    with running(path) as driver:
        prompt = driver.engine.tokenize(counting(1, 150))
        turn = driver.begin(prompt, 12, choices=3)
        events: list[Event] = driver.until(turn, lambda event: isinstance(event, Ended))
        texts = [
            "".join(getattr(e, "text", "") for e in events if getattr(e, "choice", -1) == n) for n in range(3)
        ]
        alone, end = driver.ask(prompt, 12)
        assert texts == [alone] * 3
        assert end.usage.evaluated < 20
