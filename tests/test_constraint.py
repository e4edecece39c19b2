"""serving/constraint.py: grammars that cannot be followed. What a good one does to answers: test_llama_backend.py."""

from collections.abc import Iterator
from typing import Any

import pytest

from serving.engine import Broke, Ended, PromptError
from serving.llama_engine import LlamaEngine
from serving.tool_grammar import json_grammar
from tests.llama_driver import Driver
from tests.models import bundled_model


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    engine = LlamaEngine(bundled_model(), 256, sequences=1, threads=1)
    yield Driver(engine)
    engine.close()


def listed(keys: int) -> dict[str, Any]:
    names = [f"key_{number}" for number in range(keys)]
    return {"type": "object", "properties": {name: {"type": "string"} for name in names}}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "#"}, "no text can match it"),
        (listed(6000), "Too many items"),
        ({"enum": ["x" * 10_000], "type": "nonsense"}, "Invalid type: nonsense"),
    ],
)
def test_a_constraint_that_no_answer_can_begin_is_refused_in_few_words(
    driver: Driver, schema: dict[str, Any], words: str
) -> None:
    with pytest.raises(PromptError, match=words) as refused:
        driver.engine.constraint(json_grammar(schema))
    assert len(str(refused.value)) < 500


def test_a_constraint_that_becomes_too_hard_is_the_turns_own_fault(driver: Driver) -> None:
    schema = {"type": "object", "properties": {"a": listed(6000)}, "required": ["a"]}
    constraint = driver.engine.constraint(json_grammar(schema))
    turn = driver.begin(driver.chat("Hello"), 40, constraint=constraint)
    broke = driver.until(turn, lambda event: isinstance(event, Broke | Ended))[-1]
    assert isinstance(broke, Broke)
    assert broke.asked
    assert "this constraint is too hard to follow: " in broke.message
