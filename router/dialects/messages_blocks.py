"""The conversation of a Messages request as a chat's messages. Pure.

What a model cannot read is refused by its path. A model reads the same words the same way at every turn: what clients
change from call to call (marks of caches, a line for the bill) is left out.
"""

import base64
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from router.dialects.chat_parts import joined
from router.dialects.messages_errors import wrong
from router.likeness import BILLING

BETWEEN = {"system": "\n\n", "user": "\n\n", "assistant": "\n"}
"""The parts of what one role says in a row."""
SIGNED = "hp1."
"""Begins the signature of a thought. Behind it stands the thought itself, where its text was not shown."""

_BILLING = re.compile(BILLING)
_REMINDER = "<system-reminder>\n{}\n</system-reminder>"
"""How Claude Code has always put words of the system's into a user's message."""

Block = Mapping[str, Any]


def chat_messages(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`system` and `messages` in a chat's terms. Raises Rejected.

    Messages of one role that stand side by side are one, as at Anthropic. Words of the system's within the
    conversation, which many templates refuse, become a reminder in the user's message.
    """
    messages = told.get("messages")
    if not isinstance(messages, list):
        raise wrong("messages", "must be a list of messages", "invalid_type")
    if not messages:
        raise wrong("messages", "must hold at least one message", "empty_array")
    chat = _Chat()
    if (system := told.get("system")) is not None:
        chat.instructed(system, "system")
    role = None
    for index, message in enumerate(messages):
        where = f"messages.{index}"
        if not isinstance(message, Mapping):
            raise wrong(where, "must be an object", "invalid_type")
        role, content = message.get("role"), message.get("content")
        match role:
            case "user":
                chat.asked(content, f"{where}.content")
            case "assistant":
                chat.answered(content, f"{where}.content")
            case "system":
                chat.instructed(content, f"{where}.content")
            case _:
                raise wrong(f"{where}.role", "must be user, assistant or system")
    if role == "assistant":
        message = "an answer cannot be begun for the model here; end with a user's message"
        raise wrong(f"messages.{len(messages) - 1}", message, "unsupported_value")
    return joined(chat.messages, BETWEEN)


class _Chat:
    """A chat as it grows: texts are lists of their parts, but for results."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._names: dict[str, str] = {}
        """Of the tools that were called, by the call's id."""

    def instructed(self, content: object, where: str) -> None:
        texts = [
            _BILLING.sub("", text, 1) if _BILLING.match(text) else text
            for text in (_text(block, at) for block, at in _blocks(content, where))
        ]
        text = "\n".join(text for text in texts if text)
        if not text:
            return
        if all(message["role"] == "system" for message in self.messages):
            self._say("system", text)
        else:
            self._say("user", _REMINDER.format(text.strip()))

    def asked(self, content: object, where: str) -> None:
        texts: list[str] = []
        for block, at in _blocks(content, where):
            if block["type"] == "tool_result":
                self._say("user", *texts)
                texts = []
                self._result(block, at)
            else:
                texts.append(_text(block, at))
        self._say("user", *texts)

    def _say(self, role: str, *texts: str) -> None:
        if not texts:
            return
        text = "\n".join(texts)
        last = self.messages[-1] if self.messages else None
        if last is not None and last["role"] == role:
            last["content"].append(text)
        else:
            self.messages.append({"role": role, "content": [text]})

    def _result(self, block: Block, where: str) -> None:
        called = _string(block, "tool_use_id", where)
        content = block.get("content")
        blocks = [] if content is None else _blocks(content, f"{where}.content")
        text = "\n".join(_text(each, at) for each, at in blocks)
        if block.get("is_error") is True and not text.startswith("Error"):
            text = f"Error: {text}" if text else "Error"
        message = {"role": "tool", "tool_call_id": called, "content": text}
        if called in self._names:
            message["name"] = self._names[called]
        self.messages.append(message)

    def answered(self, content: object, where: str) -> None:
        texts: list[str] = []
        thoughts: list[str] = []
        calls: list[dict[str, Any]] = []
        for block, at in _blocks(content, where):
            match block["type"]:
                case "thinking":
                    thoughts.append(_thought(block, at))
                case "redacted_thinking":
                    pass
                case "tool_use":
                    calls.append(self._call(block, at))
                case _:
                    texts.append(_text(block, at))
        last = self.messages[-1] if self.messages else None
        if last is None or last["role"] != "assistant":
            last = {"role": "assistant", "content": []}
            self.messages.append(last)
        for name, parts in (("content", texts), ("reasoning_content", thoughts), ("tool_calls", calls)):
            if said := [part for part in parts if part]:
                last.setdefault(name, []).extend(said)

    def _call(self, block: Block, where: str) -> dict[str, Any]:
        called, name = _string(block, "id", where), _string(block, "name", where)
        given = block.get("input")
        if not isinstance(given, Mapping):
            raise wrong(f"{where}.input", "must be an object", "invalid_type")
        self._names[called] = name
        return {"id": called, "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}


def signature(thought: str, shown: bool) -> str:
    """What makes a thought whole when it is given back."""
    return SIGNED if shown else SIGNED + base64.urlsafe_b64encode(thought.encode()).decode()


def _thought(block: Block, where: str) -> str:
    """A thought that is given back; of one from elsewhere whose text was not shown, nothing."""
    text, signed = _string(block, "thinking", where), block.get("signature")
    if text or not isinstance(signed, str) or not signed.startswith(SIGNED):
        return text
    try:
        return base64.urlsafe_b64decode(signed.removeprefix(SIGNED)).decode()
    except ValueError:
        return ""


def _blocks(content: object, where: str) -> Iterator[tuple[Block, str]]:
    """Content blocks and where each stands; a text is one."""
    if isinstance(content, str):
        yield {"type": "text", "text": content}, where
        return
    if not isinstance(content, list):
        raise wrong(where, "must be a string or a list of content blocks", "invalid_type")
    for index, block in enumerate(content):
        at = f"{where}.{index}"
        if not isinstance(block, Mapping):
            raise wrong(at, "must be an object", "invalid_type")
        _string(block, "type", at)
        yield block, at


def _text(block: Block, where: str) -> str:
    """What a block says, where that is text."""
    match block:
        case {"type": "text"}:
            return _string(block, "text", where)
        case {"type": "document", "source": {"type": "text", "data": str(text)}}:
            return _titled(block, text)
        case {"type": "document", "source": {"type": "content", "content": content}}:
            at = f"{where}.source.content"
            return _titled(block, "\n".join(_text(each, place) for each, place in _blocks(content, at)))
        case {"type": "search_result", "content": content}:
            found = "\n".join(_text(each, place) for each, place in _blocks(content, f"{where}.content"))
            return _titled(block, found)
        case {"type": "tool_reference", "tool_name": str(name)}:
            return f"The tool {name} can be called."
    kind = block["type"] if len(block["type"]) <= 40 else "?"
    message = f"content of type '{kind}' does not work here: this model reads text only; leave it out"
    raise wrong(where, message, "unsupported_content")


def _titled(block: Block, text: str) -> str:
    heads = [block[name] for name in ("title", "source") if isinstance(block.get(name), str)]
    return "\n".join([*heads, text])


def _string(block: Block, name: str, where: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise wrong(f"{where}.{name}", "must be a string", "invalid_type")
    return value
