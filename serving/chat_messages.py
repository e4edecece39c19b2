"""The messages of a chat, checked and brought into the form that chat templates expect. Pure.

Knows no template: whether it can render them is found out when it does.
"""

import json
from collections.abc import Mapping
from typing import Any

from serving.request_fields import BadRequest, missing, wrong_type

Message = Mapping[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")


def read_messages(fields: Mapping[str, Any]) -> tuple[Message, ...]:
    """Not empty. Each has `role` (system, user, assistant, tool) and `content` (a text; None of an assistant that
    only called tools), and what templates know beside: `name`, `tool_call_id`, `tool_calls` with their arguments as
    objects, `reasoning_content`. What else clients send back is left out."""
    messages = fields.get("messages")
    if messages is None:
        raise missing("messages")
    if not isinstance(messages, list):
        raise wrong_type("messages", "a list")
    if not messages:
        raise BadRequest("'messages' must hold at least one message", "messages", "empty_array")
    return tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages))


def needs_tools(messages: tuple[Message, ...]) -> str | None:
    """The first place that only a template with tools can render; None: there is none."""
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            return f"messages[{index}].role"
        if "tool_calls" in message:
            return f"messages[{index}].tool_calls"
    return None


def _message(message: object, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise wrong_type(where, "an object")
    role = message.get("role")
    if role not in ROLES:
        raise BadRequest(f"a message's role must be one of {', '.join(ROLES)}", f"{where}.role")
    for name in ("function_call", "audio"):
        if message.get(name):
            text = f"'{name}' in a message does not work here"
            raise BadRequest(text, f"{where}.{name}", "unsupported_parameter")
    calls = _calls(message.get("tool_calls"), f"{where}.tool_calls") if role == "assistant" else []
    content = message.get("content")
    if content is None and role == "assistant" and not calls:
        content = ""
    read: dict[str, Any] = {"role": "system" if role == "developer" else role}
    read["content"] = None if content is None and calls else _content(content, f"{where}.content")
    for name, of in (("name", ROLES), ("tool_call_id", ("tool",)), ("reasoning_content", ("assistant",))):
        value = message.get(name)
        if value is None or role not in of:
            continue
        if not isinstance(value, str):
            raise wrong_type(f"{where}.{name}", "a string")
        read[name] = value
    if calls:
        read["tool_calls"] = calls
    return read


def _content(content: object, where: str) -> str:
    """A message's text; parts are joined by line breaks, as other servers do it."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong_type(where, "a string or a list of parts")
    texts = []
    for index, part in enumerate(content):
        if not isinstance(part, Mapping):
            raise wrong_type(f"{where}[{index}]", "an object")
        kind = part.get("type")
        if kind not in ("text", "refusal"):
            known = kind if isinstance(kind, str) and len(kind) <= 40 else "?"
            message = f"content of type '{known}' does not work here: this model reads text only"
            raise BadRequest(message, f"{where}[{index}].type", "unsupported_content")
        text = part.get(kind)
        if not isinstance(text, str):
            raise wrong_type(f"{where}[{index}].{kind}", "a string")
        texts.append(text)
    return "\n".join(texts)


def _calls(calls: object, where: str) -> list[dict[str, Any]]:
    """An assistant's calls, their arguments decoded, as transformers passes them to templates."""
    if calls is None:
        return []
    if not isinstance(calls, list):
        raise wrong_type(where, "a list")
    return [_call(call, f"{where}[{index}]") for index, call in enumerate(calls)]


def _call(call: object, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise wrong_type(where, "an object with 'function'")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise wrong_type(f"{where}.function.name", "a string that is not empty")
    read: dict[str, Any] = {}
    if call.get("id") is not None:
        if not isinstance(call["id"], str):
            raise wrong_type(f"{where}.id", "a string")
        read["id"] = call["id"]
    arguments = _arguments(function.get("arguments"), f"{where}.function.arguments")
    return {**read, "type": "function", "function": {"name": name, "arguments": arguments}}


def _arguments(arguments: object, where: str) -> Mapping[str, Any]:
    if arguments is None or arguments == "":
        return {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise BadRequest(f"'{where}' must be a JSON object as a string", where) from None
    if not isinstance(arguments, Mapping):
        raise wrong_type(where, "a JSON object as a string")
    return arguments
