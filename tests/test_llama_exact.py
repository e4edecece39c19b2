"""`exact: true` on the bundled model: greedy text that rounding would change if the neighbours did."""

from collections.abc import Iterator

import pytest

from serving.engine import Prefilled
from serving.llama_engine import LlamaEngine
from serving.llama_options import EngineOptions
from tests.llama_driver import Driver
from tests.models import bundled_model

QUESTIONS = (
    "Write a long story about the sea.",
    "Invent a language for birds and give examples. " * 8,
    "What would a lighthouse dream of? Think of many things.",
    "List strange names for ships. " * 20,
)
TOKENS = 40


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    engine = LlamaEngine(
        bundled_model(), 512, len(QUESTIONS), threads=1, options=EngineOptions(batch=64, exact=True)
    )
    yield Driver(engine)
    engine.close()


def empty(driver: Driver) -> None:
    for sequence in range(len(QUESTIONS)):
        driver.engine.erase(sequence)


def test_a_greedy_text_is_the_same_alone_and_beside_three_others(driver: Driver) -> None:
    prompts = [driver.chat(question) for question in QUESTIONS]
    alone = []
    for sequence, prompt in enumerate(prompts):
        empty(driver)
        alone.append(driver.ask(prompt, TOKENS, sequence=sequence)[0])
    empty(driver)
    turns = [driver.begin(prompt, TOKENS, sequence=at) for at, prompt in enumerate(prompts)]
    assert [driver.answer(turn)[0] for turn in turns] == alone


def test_a_prefix_is_not_shared_and_a_neighbour_that_comes_in_between_changes_nothing(driver: Driver) -> None:
    empty(driver)
    prompt = driver.chat(QUESTIONS[3])
    alone, _ = driver.ask(prompt, TOKENS, scope="a")
    empty(driver)
    talker = driver.begin(driver.chat(QUESTIONS[0]), 200, sequence=1, scope="a")
    driver.until(talker, lambda event: isinstance(event, Prefilled))
    driver.ask(prompt, 1, sequence=2, scope="a")
    text, end = driver.ask(prompt, TOKENS, scope="a")
    driver.engine.cancel(talker)
    driver.answer(talker)
    assert (text, end.usage.reused) == (alone, 0)
