"""The items of an answer while they grow, and the events that tell of it. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from router.dialects.free_input import FreeInput
from router.dialects.responses_calls import call_item
from router.dialects.responses_items import sealed
from router.dialects.responses_tools import Tool

Say = Callable[[str, Mapping[str, Any]], None]
"""Tells of one event: its kind, behind `response.`, and its data."""


class Grows(Protocol):
    """One item on its way."""

    def close(self, status: str) -> Mapping[str, Any]:
        """The item as it is now, and for good. `status`: completed or incomplete."""


class Words:
    """A message."""

    def __init__(self, say: Say, index: int, item_id: str) -> None:
        self._say = say
        self._at = {"item_id": item_id, "output_index": index, "content_index": 0}
        self._item = {"id": item_id, "type": "message", "role": "assistant"}
        self._text: list[str] = []
        self._logprobs: list[Any] = []
        item = {**self._item, "status": "in_progress", "content": []}
        say("output_item.added", {"output_index": index, "item": item})
        say("content_part.added", {**self._at, "part": _output_text("", [])})

    def add(self, text: str, logprobs: Sequence[Any]) -> None:
        self._text.append(text)
        self._logprobs += logprobs
        self._say("output_text.delta", {**self._at, "delta": text, "logprobs": list(logprobs)})

    def close(self, status: str) -> Mapping[str, Any]:
        text = "".join(self._text)
        part = _output_text(text, self._logprobs)
        item = {**self._item, "status": status, "content": [part]}
        self._say("output_text.done", {**self._at, "text": text, "logprobs": self._logprobs})
        self._say("content_part.done", {**self._at, "part": part})
        self._say("output_item.done", {"output_index": self._at["output_index"], "item": item})
        return item


class Thought:
    """Reasoning: told as its summary where the client asked for one, else as it is."""

    def __init__(self, say: Say, index: int, item_id: str, summarizes: bool, seals: bool) -> None:
        self._say = say
        self._seals = seals
        self._part = "reasoning_summary_part" if summarizes else "content_part"
        self._kind = "reasoning_summary_text" if summarizes else "reasoning_text"
        self._type = "summary_text" if summarizes else "reasoning_text"
        self._field = "summary" if summarizes else "content"
        self._at = {"item_id": item_id, "output_index": index, f"{self._field}_index": 0}
        self._item = {"id": item_id, "type": "reasoning", "summary": []}
        self._text: list[str] = []
        say("output_item.added", {"output_index": index, "item": {**self._item, "status": "in_progress"}})
        say(f"{self._part}.added", {**self._at, "part": {"type": self._type, "text": ""}})

    def add(self, text: str) -> None:
        self._text.append(text)
        self._say(f"{self._kind}.delta", {**self._at, "delta": text})

    def close(self, status: str) -> Mapping[str, Any]:
        text = "".join(self._text)
        part = {"type": self._type, "text": text}
        item = {**self._item, self._field: [part], "status": status}
        if self._seals:
            item["encrypted_content"] = sealed(text)
        self._say(f"{self._kind}.done", {**self._at, "text": text})
        self._say(f"{self._part}.done", {**self._at, "part": part})
        self._say("output_item.done", {"output_index": self._at["output_index"], "item": item})
        return item


class Call:
    """A call to a tool. Functions and custom tools are told of as their arguments grow, others once they are whole."""

    def __init__(self, say: Say, index: int, item_id: str, call_id: str, tool: Tool) -> None:
        self._say = say
        self._tool = tool
        self._at = {"item_id": item_id, "output_index": index}
        self._call_id = call_id
        self._arguments: list[str] = []
        self._input = FreeInput()
        if tool.kind in ("function", "custom"):
            item = call_item(tool, item_id, call_id, "", "in_progress")
            say("output_item.added", {"output_index": index, "item": item})

    def add(self, arguments: str) -> None:
        self._arguments.append(arguments)
        if self._tool.kind == "function":
            self._say("function_call_arguments.delta", {**self._at, "delta": arguments})
        elif self._tool.kind == "custom" and (text := self._input.take(arguments)):
            self._say("custom_tool_call_input.delta", {**self._at, "delta": text})

    def close(self, status: str) -> Mapping[str, Any]:
        arguments, index = "".join(self._arguments), self._at["output_index"]
        item = call_item(self._tool, str(self._at["item_id"]), self._call_id, arguments, status)
        if self._tool.kind == "function":
            told = {"name": self._tool.name, "arguments": arguments}
            self._say("function_call_arguments.done", {**self._at, **told})
        elif self._tool.kind == "custom":
            self._say("custom_tool_call_input.done", {**self._at, "input": item["input"]})
        else:
            self._say("output_item.added", {"output_index": index, "item": {**item, "status": "in_progress"}})
        self._say("output_item.done", {"output_index": index, "item": item})
        return item


def _output_text(text: str, logprobs: Sequence[Any]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}
