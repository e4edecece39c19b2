"""gpt-oss answers in messages of several channels: the harmony format. Pure.

As in OpenAI's guide (cookbook.openai.com/articles/openai-harmony): `analysis` is reasoning, `final` and a `commentary`
to nobody are for the user, a message `to=functions.f` is a call. Calls to the model's own tools (browser, python) are
none of the client's: they come as what their channel is.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serving.answer_reader import AnswerReader
from serving.deltas import Content, Reasoning
from serving.text_reader import Step

START, CHANNEL, MESSAGE, CALL = "<|start|>", "<|channel|>", "<|message|>", "<|call|>"
END, CONSTRAIN = "<|end|>", "<|constrain|>"
_ENDS = (END, "<|return|>", CALL, START, CHANNEL)

_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_CHANNEL_NAME = re.compile(r"<\|channel\|>\s*(\w+)")
_FUNCTIONS = "functions."


def is_harmony(template: str) -> bool:
    return CHANNEL in template and START in template and MESSAGE in template


def opens_reasoning(prompt_end: str) -> bool:
    """Whether the prompt ends within the analysis."""
    head = _last_head(prompt_end)
    return head.endswith(MESSAGE) and _channel(head) == "analysis"


class HarmonyParser(AnswerReader):
    """An AnswerParser (deltas.py)."""

    def __init__(
        self, tools: Sequence[Mapping[str, Any]], prompt_end: str, new_id: Callable[[], str]
    ) -> None:
        """Without tools no calls are looked for: what would be one is Content."""
        super().__init__(new_id)
        self._tools = bool(tools)
        self._said: set[str] = set()
        self.text = _last_head(prompt_end)
        self._of_prompt = len(self.text)

    def read(self) -> Step[None]:
        while True:
            self.gap += yield from self.spaces()
            self.pin()
            if not (yield from self.peek()):
                break
            head = yield from self._head()
            if head is None:
                yield from self._no_message()
            elif (name := self._called(head)) and (yield from self._call(name)):
                self._of_prompt = 0
                yield from self._end()
            elif _channel(head) == "analysis":
                yield from self._body("reasoning")
            else:
                yield from self._body("content")
        self.flush(Content)

    def _head(self) -> Step[str | None]:
        """All before a message's body; None where no message begins. What was read stays pinned."""
        if (yield from self.literal(START)):
            yield from self.name()
            yield from self.spaces()
        for begin in (CHANNEL, "to=", MESSAGE):
            if (yield from self.literal(begin)):
                break
        else:
            return None
        rest: list[str] = [begin]
        if begin != MESSAGE:
            if (yield from self.until((MESSAGE, "\n", *_ENDS[:3]), rest.append)) != MESSAGE:
                return None
            yield from self.literal(MESSAGE)
        return "".join(rest)

    def _called(self, head: str) -> str | None:
        found = _RECIPIENT.search(head)
        if found is None or not self._tools or not found[1].startswith(_FUNCTIONS):
            return None
        return found[1].removeprefix(_FUNCTIONS) or None

    def _call(self, name: str) -> Step[bool]:
        start = self.at
        yield from self.spaces()
        first = yield from self.peek()
        if first == "{":
            self.began(name)
            self.unpin()
            if not (yield from self.json_value(self.arguments)):
                self.unfinished = True
            return True
        for end in _ENDS[:3]:
            if (yield from self.literal(end)):
                self.began(name)
                self.arguments("{}")
                return True
        self.at = start
        return False

    def _body(self, kind: str) -> Step[None]:
        self.unpin()
        self._of_prompt = 0
        self.gap = "\n\n" if kind in self._said else ""
        self._said.add(kind)
        reasons = kind == "reasoning"
        if (yield from self.until(_ENDS, self.reasoning if reasons else self.content)) is None and reasons:
            self.flush(Reasoning)
        if reasons:
            self.gap = ""
        yield from self._end()

    def _end(self) -> Step[None]:
        self.pin()
        yield from self.spaces()
        for end in _ENDS[:3]:
            if (yield from self.literal(end)):
                self.unpin()
                return
        self.rewind()

    def _no_message(self) -> Step[None]:
        """What is no message is for the user."""
        self.rewind()
        self.at += self._of_prompt
        self._of_prompt = 0
        first = yield from self.peek()
        self.content(first)
        self.at += len(first)
        yield from self.until((START, CHANNEL), self.content)


def _channel(head: str) -> str:
    found = _CHANNEL_NAME.search(head)
    return found[1] if found else ""


def _last_head(prompt_end: str) -> str:
    at = prompt_end.rfind(START)
    return prompt_end[at:] if at >= 0 else ""
