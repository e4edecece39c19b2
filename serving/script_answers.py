"""What a script answers in a conversation. Pure.

Knows no tokens: the conversation comes as messages, and the answer goes out as the text that a model would write.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.script import PLACE, Answer, Script, When


@dataclass(frozen=True, slots=True)
class Message:
    """One of the conversation. `name`: of a tool's result, the tool."""

    role: str
    text: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Moment:
    """What conditions look at."""

    last_user: str
    """All that the user has said since the last answer that called no tool: agents put reminders between the calls."""
    system: str
    last_tool: str | None
    """The tool whose result came last; None: no result came since the last answer."""
    last_result: str | None
    turn: int
    step: int
    tools: frozenset[str]


@dataclass(frozen=True, slots=True)
class Played:
    """An answer as a model writes it, and how fast."""

    text: str
    tokens_per_s: float | None
    first_token_s: float


def moment(messages: Sequence[Message], tools: frozenset[str]) -> Moment:
    """Where this conversation stands, the answer to it not begun."""
    answers = [at for at, message in enumerate(messages) if message.role == "assistant"]
    finished = [at for at in answers if at + 1 == len(messages) or messages[at + 1].role != "tool"]
    task = messages[finished[-1] + 1 :] if finished else messages
    users = [message.text for message in task if message.role == "user"]
    if not users:  # somebody has an answer gone on with
        users = [message.text for message in messages if message.role == "user"][-1:]
    news = messages[answers[-1] + 1 :] if answers else messages
    result = next((message for message in reversed(news) if message.role == "tool"), None)
    return Moment(
        last_user="\n".join(users),
        system="\n".join(message.text for message in messages if message.role == "system"),
        last_tool=None if result is None else result.name,
        last_result=None if result is None else result.text,
        turn=len(answers) + 1,
        step=sum(message.role == "assistant" for message in task) + 1,
        tools=tools,
    )


def play(script: Script, now: Moment) -> Played:
    """The answer of the first rule that matches, else the default one."""
    for rule in script.rules:
        called = {call.name for call in rule.answer.call}
        if called <= now.tools and (groups := matched(rule.when, now)) is not None:
            return _played(rule.answer, groups)
    return _played(script.otherwise, matched(When(), now) or {})


def matched(when: When, now: Moment) -> Mapping[str, str] | None:
    """The texts that an answer may name, where all conditions hold; else None."""
    if when.turn not in (None, now.turn) or when.step not in (None, now.step):
        return None
    if when.tools is not None and not (set(when.tools) <= now.tools if when.tools else not now.tools):
        return None
    texts = {
        "last_user": now.last_user,
        "system": now.system,
        "last_tool": now.last_tool,
        "last_result": now.last_result,
    }
    known = {name: text or "" for name, text in texts.items()}
    patterns = when.patterns
    alone = sum(pattern.groups > 0 for pattern in patterns.values()) == 1
    for name, pattern in patterns.items():
        text = texts[name]
        look = pattern.fullmatch if name == "last_tool" else pattern.search
        found = None if text is None else look(text)
        if found is None:
            return None
        if alone:
            known |= {str(number): group or "" for number, group in enumerate(found.groups(), 1)}
        known |= {group: text or "" for group, text in found.groupdict().items()}
    return known


def _played(answer: Answer, known: Mapping[str, str]) -> Played:
    think, say = _filled(answer.think, known), _filled(answer.say, known) * answer.repeat
    parts = [f"<think>\n{think}\n</think>\n\n"] if think else []
    calls = [
        f"<tool_call>\n{_json({'name': call.name, 'arguments': _filled(call.arguments, known)})}\n</tool_call>"
        for call in answer.call
    ]
    parts.append("\n".join([say, *calls] if say else calls))
    return Played("".join(parts), answer.tokens_per_s, answer.first_token_s)


def _filled(value: Any, known: Mapping[str, str]) -> Any:
    """With what its `${name}` stand for."""

    def text_of(place: re.Match[str]) -> str:
        return "$" if place["plain"] else known[place["name"]]

    if isinstance(value, str):
        return PLACE.sub(text_of, value)
    if isinstance(value, Mapping):
        return {key: _filled(each, known) for key, each in value.items()}
    return [_filled(each, known) for each in value] if isinstance(value, list) else value


def _json(value: Any) -> str:
    """As the template writes it, so that the same call is the same tokens later."""
    return json.dumps(value, ensure_ascii=False)
