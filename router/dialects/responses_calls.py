"""Calls to tools: the item of the tool's kind, made of a chat's call, and back. Pure."""

import json
from collections.abc import Mapping
from typing import Any, assert_never

from router.dialects.fields import mapping, name, text
from router.dialects.free_input import free_input, json_object
from router.dialects.responses_tools import Kind, Tool, chat_name

PREFIXES: Mapping[Kind, str] = {
    "function": "fc",
    "custom": "ctc",
    "local_shell": "lsh",
    "shell": "sh",
    "apply_patch": "apc",
}
"""What the ids of their calls begin with."""


def call_item(tool: Tool, item_id: str, call_id: str, arguments: str, status: str) -> dict[str, Any]:
    """A call to this tool as an item. `arguments`: JSON, or the beginning of it where `status` is incomplete."""
    item: dict[str, Any] = {"id": item_id, "type": "", "status": status, "call_id": call_id}
    match tool.kind:
        case "function":
            item |= {"type": "function_call", "name": tool.name, "arguments": arguments}
        case "custom":
            item |= {"type": "custom_tool_call", "name": tool.name, "input": free_input(arguments)}
        case "local_shell":
            item |= {"type": "local_shell_call", "action": _exec(json_object(arguments))}
        case "shell":
            told = json_object(arguments)
            limits = {key: _number(told.get(key)) for key in ("timeout_ms", "max_output_length")}
            item |= {"type": "shell_call", "action": {"commands": _texts(told.get("commands")), **limits}}
        case "apply_patch":
            told = {
                key: value for key, value in json_object(arguments).items() if key in ("type", "path", "diff")
            }
            item |= {"type": "apply_patch_call", "operation": told}
        case _:
            assert_never(tool.kind)
    return item if tool.namespace is None else item | {"namespace": tool.namespace}


def item_call(item: Mapping[str, Any], where: str) -> tuple[str, str] | None:
    """The chat's name and arguments of a call that a client sends back; None for an item of another kind."""
    match item.get("type"):
        case "function_call":
            return _called(item, where), text(item.get("arguments"), f"{where}.arguments")
        case "custom_tool_call":
            return _called(item, where), _json({"input": text(item.get("input"), f"{where}.input")})
        case "local_shell_call":
            action = mapping(item.get("action"), f"{where}.action")
            keys = ("command", "working_directory", "timeout_ms", "env")
            return "local_shell", _json({key: action[key] for key in keys if action.get(key)})
        case "shell_call":
            action = mapping(item.get("action"), f"{where}.action")
            limits = ("commands", "timeout_ms", "max_output_length")
            return "shell", _json({key: action[key] for key in limits if action.get(key)})
        case "apply_patch_call":
            return "apply_patch", _json(mapping(item.get("operation"), f"{where}.operation"))
    return None


def _called(item: Mapping[str, Any], where: str) -> str:
    namespace = item.get("namespace")
    space = None if namespace is None else name(namespace, f"{where}.namespace")
    return chat_name(space, name(item.get("name"), f"{where}.name"))


def _exec(told: Mapping[str, Any]) -> dict[str, Any]:
    env = told.get("env")
    place = told.get("working_directory")
    return {
        "type": "exec",
        "command": _texts(told.get("command")),
        "env": {key: str(value) for key, value in env.items()} if isinstance(env, dict) else {},
        "timeout_ms": _number(told.get("timeout_ms")),
        "user": None,
        "working_directory": place if isinstance(place, str) else None,
    }


def _texts(value: object) -> list[str]:
    return (
        [str(each) for each in value]
        if isinstance(value, list)
        else [value]
        if isinstance(value, str)
        else []
    )


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _json(value: object) -> str:
    """As hosts write a call's arguments."""
    return json.dumps(value, ensure_ascii=False)
