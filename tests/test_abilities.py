"""What a model can follows from its template and from what its engine makes of it."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from serving.abilities import abilities_of
from serving.chat_format import ChatFormat
from serving.engine import ModelFacts

FACTS = ModelFacts(512, 1, "a model", 1, 0.0, True, 256)
TEMPLATES = Path(__file__).parent / "templates"
PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "can"),
    [
        (None, []),
        (PLAIN, ["chat", "structured_outputs"]),
        ((TEMPLATES / "smollm2_tools.jinja").read_text(), ["chat", "tools", "structured_outputs"]),
        (
            (TEMPLATES / "hermes_thinking.jinja").read_text(),
            ["chat", "tools", "reasoning", "structured_outputs"],
        ),
    ],
)
def test_a_template_says_what_a_model_can(template: str | None, can: list[str]) -> None:
    chat_format = None if template is None else ChatFormat(template, "", "", datetime.now)
    assert abilities_of(FACTS, chat_format) == can
    assert abilities_of(replace(FACTS, embedding=64), chat_format) == [*can, "embeddings"]
