"""Items of the Responses API as messages of a chat. Pure.

What one answer said, be it reasoning, words or calls, is one message of the assistant again, so that a conversation
that is sent back reads to the model as it did when it was made.
"""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from router.dialects.chat_parts import joined
from router.dialects.fields import mapping, name, text, unsupported, wrong_type, wrong_value
from router.dialects.responses_calls import item_call
from router.errors import Rejected, bad_request

Item = Mapping[str, Any]

BETWEEN = {"system": "\n\n", "assistant": ""}
"""The parts of what one role says in a row."""
SYSTEM = ("system", "developer")
LEFT_OUT = frozenset({"web_search_call"})
"""They hold nothing that a model reads."""
PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "custom_tool_call": "ctc",
    "local_shell_call": "lsh",
    "shell_call": "sh",
    "apply_patch_call": "apc",
}
"""What the ids of items begin with."""
OUTPUT = "out"
"""The same for results of calls."""

_SEALED = "homeport."
_WORDS = ("input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text")


def read_input(told: object) -> list[Item]:
    """The items of a request, each an object with a type."""
    if isinstance(told, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": told}]}]
    if not isinstance(told, list):
        raise wrong_type("input", "a string or a list of items")
    return [typed(mapping(item, f"input[{index}]"), f"input[{index}]") for index, item in enumerate(told)]


def typed(item: Item, where: str) -> Item:
    """With the type that may be left out of a message and of a reference."""
    kind = item.get("type")
    if kind is None:
        return {**item, "type": "message" if "role" in item else "item_reference"}
    text(kind, f"{where}.type")
    return item


def references(items: Iterable[Item]) -> tuple[str, ...]:
    """Ids of items that are only named."""
    return tuple(str(item.get("id")) for item in items if item["type"] == "item_reference")


def resolved(items: Sequence[Item], known: Mapping[str, Item]) -> list[Item]:
    """The items, with those in place that are only named. Raises Rejected for one that is not `known`."""
    return [
        _known(item, known, f"input[{index}]") if item["type"] == "item_reference" else item
        for index, item in enumerate(items)
    ]


def _known(item: Item, known: Mapping[str, Item], where: str) -> Item:
    called = name(item.get("id"), f"{where}.id")
    if called not in known:
        message = f"Item with id '{called[:80]}' not found. Send the item itself, or go on from its response."
        raise Rejected(bad_request(message, "item_not_found", f"{where}.id"))
    return known[called]


def chat_messages(
    instructions: str | None, history: Sequence[Item], asked: Sequence[Item]
) -> list[dict[str, Any]]:
    """`history` was answered before, `asked` comes now: only there a fault is the client's to mend.

    Instructions and what developers say right behind them are one message: many templates take no second.
    """
    conversation = _Conversation(instructions)
    for item in history:
        conversation.add(item, "previous_response_id")
    for index, item in enumerate(asked):
        conversation.add(item, f"input[{index}]")
    return joined(conversation.messages, BETWEEN)


class _Conversation:
    """A chat as it grows: texts of the system's and the assistant's are lists of their parts."""

    def __init__(self, instructions: str | None) -> None:
        self.messages: list[dict[str, Any]] = []
        self._answer: dict[str, Any] | None = None
        """The assistant's message that may still grow."""
        if instructions:
            self._hear("system", instructions)

    def add(self, item: Item, where: str) -> None:
        kind = item["type"]
        if kind == "message":
            self._message(item, where)
        elif kind == "reasoning":
            self._reasoning(item, where)
        elif (call := item_call(item, where)) is not None:
            self._call(call, item, where)
        elif kind.endswith("_output"):
            self._output(kind, item, where)
        elif kind not in LEFT_OUT:
            raise unsupported(
                f"{where}.type", f"An item of type '{kind[:40]}' does not work here; remove it."
            )

    def _message(self, item: Item, where: str) -> None:
        role, content, at = item.get("role"), item.get("content"), f"{where}.content"
        if role == "assistant":
            self._say(_text(content, at, ""))
        elif role in SYSTEM or role == "user":
            self._hear("user" if role == "user" else "system", _text(content, at, "\n"))
        else:
            message = f"`{where}.role` must be user, assistant, system or developer."
            raise wrong_value(f"{where}.role", message)

    def _hear(self, role: str, content: str) -> None:
        self._answer = None
        if role == "system" and self.messages and self.messages[-1]["role"] == role:
            self.messages[-1]["content"].append(content)
        else:
            self.messages.append({"role": role, "content": [content] if role == "system" else content})

    def _say(self, words: str) -> None:
        answer = self._answer
        if answer is None or (answer["content"] is not None and "tool_calls" not in answer):
            answer = self._begin()
        answer["content"] = answer["content"] or []
        answer["content"].append(words)

    def _reasoning(self, item: Item, where: str) -> None:
        thought = _thought(item, where)
        if not thought:
            return
        answer = self._answer
        if answer is None or answer["content"] is not None or "tool_calls" in answer:
            answer = self._begin()
        answer.setdefault("reasoning_content", []).append(thought)

    def _call(self, call: tuple[str, str], item: Item, where: str) -> None:
        answer = self._answer or self._begin()
        called, arguments = call
        answer.setdefault("tool_calls", []).append(
            {
                "id": _call_id(item, where),
                "type": "function",
                "function": {"name": called, "arguments": arguments},
            }
        )

    def _output(self, kind: str, item: Item, where: str) -> None:
        result = _result(kind, item, where)
        if result is None:
            raise unsupported(
                f"{where}.type", f"An item of type '{kind[:40]}' does not work here; remove it."
            )
        self._answer = None
        self.messages.append({"role": "tool", "tool_call_id": _call_id(item, where), "content": result})

    def _begin(self) -> dict[str, Any]:
        self._answer = {"role": "assistant", "content": None}
        self.messages.append(self._answer)
        return self._answer


def _call_id(item: Item, where: str) -> str:
    """A local shell's results carry it as their own id."""
    told = item.get("call_id")
    return name(item.get("id") if told is None else told, f"{where}.call_id")


def _result(kind: str, item: Item, where: str) -> str | None:
    """What a tool gave; None for a tool that does not exist here."""
    output, at = item.get("output"), f"{where}.output"
    match kind:
        case "function_call_output" | "custom_tool_call_output" | "local_shell_call_output":
            return _text(output, at, "\n")
        case "shell_call_output":
            if isinstance(output, str):
                return output
            if not isinstance(output, list):
                raise wrong_type(at, "a list")
            return "\n".join(_printed(mapping(part, f"{at}[{index}]")) for index, part in enumerate(output))
        case "apply_patch_call_output":
            status = text(item.get("status"), f"{where}.status")
            return f"{status}\n{text(output, at)}" if output else status
    return None


def _printed(part: Item) -> str:
    told = {key: part.get(key) for key in ("stdout", "stderr", "outcome")}
    return json.dumps(told, ensure_ascii=False)


def _text(content: object, where: str, between: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong_type(where, "a string or a list of parts")
    return between.join(
        _part(mapping(part, f"{where}[{n}]"), f"{where}[{n}]") for n, part in enumerate(content)
    )


def _part(part: Item, where: str) -> str:
    kind = part.get("type")
    if kind not in _WORDS:
        known = kind if isinstance(kind, str) and len(kind) <= 40 else "?"
        message = f"Content of type '{known}' does not work here: this model reads text only."
        raise Rejected(bad_request(message, "unsupported_content", f"{where}.type"))
    field = "refusal" if kind == "refusal" else "text"
    return text(part.get(field), f"{where}.{field}")


def _thought(item: Item, where: str) -> str:
    """A reasoning item's text: as it was said, as we sealed it, or what others summed up of it."""
    if item.get("content"):
        return _text(item["content"], f"{where}.content", "")
    return unsealed(item.get("encrypted_content")) or _text(
        item.get("summary") or [], f"{where}.summary", "\n\n"
    )


def sealed(thought: str) -> str:
    """Reasoning as a text that clients pass back unread. It hides nothing: it was theirs to read."""
    return _SEALED + base64.urlsafe_b64encode(thought.encode(errors="surrogatepass")).decode()


def unsealed(told: object) -> str | None:
    """None for what others have sealed."""
    if not isinstance(told, str) or not told.startswith(_SEALED):
        return None
    try:
        return base64.urlsafe_b64decode(told.removeprefix(_SEALED)).decode()
    except ValueError:
        return None
