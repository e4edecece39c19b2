"""Reads answers of the formats in tool_formats.py and reasoning.py. Pure.

The order is reasoning, then the answer with calls in it; what looks like a call within the reasoning is reasoning.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serving import call_bodies
from serving.answer_reader import AnswerReader
from serving.deltas import Content, Reasoning
from serving.reasoning import ReasoningFormat
from serving.text_reader import Step
from serving.tool_formats import Body, Section, ToolFormat


class FormatParser(AnswerReader):
    """An AnswerParser (deltas.py)."""

    def __init__(
        self,
        tool_format: ToolFormat | None,
        reasoning_format: ReasoningFormat | None,
        tools: Sequence[Mapping[str, Any]],
        opened: bool,
        new_id: Callable[[], str],
    ) -> None:
        """`tools`: OpenAI's tool objects. `opened`: the prompt ends within the reasoning."""
        super().__init__(new_id)
        self._sections = tool_format.sections if tool_format else ()
        self._marks = tuple(dict.fromkeys(section.open for section in self._sections if section.open))
        self._reasoning_format = reasoning_format
        self._opened = opened
        self._schemas = parameter_schemas(tools)

    def read(self) -> Step[None]:
        if self._reasoning_format is not None:
            yield from self._reasoning(self._reasoning_format)
        self.gap += yield from self.spaces()
        for section in self._sections:
            if not section.open and (yield from self._calls(section)):
                break
        while (mark := (yield from self.until(self._marks, self.content))) is not None:
            for section in self._sections:
                if section.open == mark and (yield from self._calls(section)):
                    break
            else:
                self.at += len(mark)
                self.content(mark)
        self.flush(Content)

    def _reasoning(self, form: ReasoningFormat) -> Step[None]:
        self.gap = yield from self.spaces()
        again = yield from self.literal(form.open.rstrip())  # some models repeat what the prompt ends with
        if not (self._opened or again):
            return
        yield from self.spaces()
        self.gap = ""
        if (yield from self.until((form.close,), self.reasoning)) is None:
            self.flush(Reasoning)
            return
        self.gap = ""
        yield from self.literal(form.close)
        yield from self.spaces()

    def _calls(self, section: Section) -> Step[bool]:
        """Whether a call began here. Otherwise nothing was read."""
        self.pin()
        yield from self.literal(section.open)
        if section.inner and not (yield from self.loose(section.inner)):
            self.rewind()
            self.pin()
            yield from self.literal(section.open)
        begun = self.calls
        while True:
            count = self.calls
            whole = yield from self._call(section)
            if not whole:
                self.unfinished = self.unfinished or self.calls > count
                self.rewind()
                if self.calls == begun:
                    return False
                break
            self.pin()
            yield from self.spaces()
            if section.between is not None:
                _ = (yield from self.literal(",")) or (yield from self.literal(";"))
        yield from self._after_calls(section)
        return True

    def _after_calls(self, section: Section) -> Step[None]:
        self.pin()
        if section.close and (yield from self.loose(section.close)):
            self.unpin()
        else:
            self.rewind()
        self.gap = yield from self.spaces()
        if section.hand_over and (yield from self.literal(section.hand_over)):
            yield from self.until((), _drop)
        if not (yield from self.peek()):
            self.gap = ""

    def _call(self, section: Section) -> Step[bool]:
        if not (yield from self.loose(section.call_open)):
            return False
        yield from self.spaces()
        start = self.at
        for body in section.bodies:
            count = self.calls
            if (yield from self._body(section, body)):
                self.pin()
                if not (yield from self.loose(section.call_close)):
                    self.rewind()
                return True
            if self.calls > count:
                return False
            self.at = start
        return False

    def _body(self, section: Section, body: Body) -> Step[bool]:
        known = self._is_tool if not section.open or body == "python" else _any_name
        match body:
            case "json":
                return (yield from call_bodies.json_call(self, known, need_arguments=not section.open))
            case "named":
                return (
                    yield from call_bodies.named_call(self, known, section.before_arguments, section.skip)
                )
            case "xml":
                return (yield from call_bodies.xml_call(self, known, self._schemas))
            case "python":
                return (yield from call_bodies.python_call(self, known))
            case "gemma":
                return (yield from call_bodies.gemma_call(self, known, section.quote))

    def _is_tool(self, name: str) -> bool:
        return name in self._schemas


def _any_name(_: str) -> bool:
    return True


def _drop(_: str) -> None:
    pass


def parameter_schemas(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """By the name of each tool, the JSON schema of its arguments; a tool that tells of none has none."""
    functions = [tool.get("function") or {} for tool in tools]
    return {
        function["name"]: function.get("parameters") or {"type": "object", "properties": {}}
        for function in functions
    }
