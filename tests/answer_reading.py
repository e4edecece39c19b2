"""What tests of answers' formats share: the templates, tools, and an answer put together from its deltas."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from serving.chat_format import ChatFormat
from serving.deltas import AnswerParser, CallArguments, CallBegan, Content, Delta, Reasoning

TEMPLATES = Path(__file__).parent / "templates"


def chat_format(name: str, specials: dict[str, int] | None = None) -> ChatFormat:
    """The format of a template in tests/templates; its calls' ids are "id0", "id1" …"""
    numbers = count()
    template = (TEMPLATES / f"{name}.jinja").read_text()
    return ChatFormat(
        template,
        "<s>",
        "</s>",
        lambda: datetime(2026, 11, 24, 9, 30, tzinfo=UTC),
        specials,
        lambda: f"id{next(numbers)}",
    )


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


TEXT = {"type": "string"}
TOOLS = [
    tool("get_weather", location=TEXT, unit={"enum": ["celsius", "fahrenheit"]}),
    tool("get_user_info", user_id={"type": "integer"}, special=TEXT),
    tool("brave_search", query=TEXT),
]


@dataclass
class Answer:
    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    """Name and arguments."""
    unfinished: bool = False


def read(parser: AnswerParser, pieces: Iterable[str]) -> Answer:
    """The answer that these pieces make, with its deltas checked."""
    answer = Answer()
    for piece in pieces:
        _add(answer, parser.push(piece))
    _add(answer, parser.finish())
    answer.unfinished = parser.unfinished
    assert parser.calls == len(answer.calls)
    return answer


def _add(answer: Answer, deltas: Sequence[Delta]) -> None:
    for delta in deltas:
        match delta:
            case Content(text):
                assert text
                answer.content += text
            case Reasoning(text):
                assert text
                answer.reasoning += text
            case CallBegan(index, id_, name):
                assert index == len(answer.calls)
                assert id_
                assert name
                answer.calls.append((name, ""))
            case CallArguments(index, text):
                assert text
                assert index == len(answer.calls) - 1
                name, so_far = answer.calls[index]
                answer.calls[index] = (name, so_far + text)
