"""Tools of the Responses API as functions of a chat. Pure: responses_calls.py has the calls to them.

A chat knows functions only. A tool of another kind becomes a function that takes what a call to such a tool says.
Tools that OpenAI's servers run by themselves do not exist here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from router.dialects.fields import listed, mapping, name, text, unsupported, wrong_type, wrong_value

Kind = Literal["function", "custom", "local_shell", "shell", "apply_patch"]
OFFERS = frozenset(
    {
        *("web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11"),
        "tool_search",
    }
)
"""Tools of the server's that clients offer unasked: left out, since no model has to take them. Codex offers the web
with every request; tools need no search, since all are told of."""

_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_STRINGS = {"type": "array", "items": {"type": "string"}}
_SHELLS: Mapping[Kind, tuple[str, Mapping[str, Any]]] = {
    "local_shell": (
        "Runs a command on the user's machine and returns its output.",
        {
            "type": "object",
            "properties": {
                "command": {**_STRINGS, "description": "The program and its arguments."},
                "working_directory": {"type": "string"},
                "timeout_ms": {"type": "integer"},
                "env": {"type": "object", "additionalProperties": {"type": "string"}},
            },
            "required": ["command"],
        },
    ),
    "shell": (
        "Runs shell commands on the user's machine and returns what each of them printed and its exit code.",
        {
            "type": "object",
            "properties": {
                "commands": {**_STRINGS, "description": "Command lines, each run by a shell."},
                "timeout_ms": {"type": "integer"},
                "max_output_length": {"type": "integer"},
            },
            "required": ["commands"],
        },
    ),
    "apply_patch": (
        "Creates, updates or deletes one file of the user's.",
        {
            "type": "object",
            "properties": {
                "type": {"enum": ["create_file", "update_file", "delete_file"]},
                "path": {"type": "string"},
                "diff": {
                    "type": "string",
                    "description": "What changes, as lines that begin with '+', '-' or ' ', after '@@' lines where "
                    "they stand; a new file's lines all begin with '+'. Not for delete_file.",
                },
            },
            "required": ["type", "path"],
        },
    ),
}
"""What a model is told of the tools that have no description of their own."""


@dataclass(frozen=True, slots=True)
class Tool:
    """One that a model may call."""

    kind: Kind
    name: str
    namespace: str | None
    chat: Mapping[str, Any]
    """As a chat's tool."""

    @property
    def chat_name(self) -> str:
        return chat_name(self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Toolbox:
    """All that a request says of tools."""

    tools: Mapping[str, Tool]
    """By their names in the chat."""
    told: Sequence[Mapping[str, Any]]
    """As the client sent them, without those left out."""
    choice: Any
    """Likewise."""
    chat: Mapping[str, Any]
    """`tools` and `tool_choice` of the chat."""

    def called(self, name: str) -> Tool:
        """Models call what nobody offered them, too: the client says so then."""
        return self.tools.get(name) or Tool("function", name, None, {})


def chat_name(namespace: str | None, name: str) -> str:
    """What a tool is called in a chat: the same whether it is offered or was called in a turn before."""
    if namespace is None:
        return name
    return f"{namespace}{name}" if namespace.endswith("__") else f"{namespace}__{name}"


def read_toolbox(told: Mapping[str, Any]) -> Toolbox:
    """Raises Rejected for tools that cannot be had here."""
    tools: dict[str, Tool] = {}
    kept = []
    for index, each in enumerate(listed(told.get("tools", []), "tools")):
        where = f"tools[{index}]"
        read = _read_tool(mapping(each, where), where)
        if read:
            kept.append(each)
        for tool in read:
            if tool.chat_name in tools:
                raise wrong_value(f"{where}.name", f"Two of the `tools` are called '{tool.chat_name}'.")
            tools[tool.chat_name] = tool
    choice = told.get("tool_choice", "auto")
    return Toolbox(tools, kept, choice, _chosen(tools, choice))


def _read_tool(told: Mapping[str, Any], where: str) -> Sequence[Tool]:
    kind = told.get("type")
    match kind:
        case "function":
            return (_function(told, None, where),)
        case "custom":
            return (_custom(told, None, where),)
        case "local_shell" | "apply_patch":
            return (_own(kind),)
        case "shell":
            environment = told.get("environment")
            place = environment.get("type") if isinstance(environment, dict) else environment
            if place not in (None, "local"):
                raise unsupported(
                    f"{where}.environment", "Only a shell of the client's own works here: local."
                )
            return (_own("shell"),)
        case "namespace":
            return _namespace(told, where)
        case str() if kind in OFFERS:
            return ()
    if not isinstance(kind, str):
        raise wrong_type(f"{where}.type", "a tool's type")
    raise unsupported(
        f"{where}.type", f"There is no tool '{kind[:40]}' here; send function or custom tools instead."
    )


def _namespace(told: Mapping[str, Any], where: str) -> Sequence[Tool]:
    space = name(told.get("name"), f"{where}.name")
    tools = []
    for index, each in enumerate(listed(told.get("tools", []), f"{where}.tools")):
        at = f"{where}.tools[{index}]"
        kind = mapping(each, at).get("type")
        if kind not in ("function", "custom"):
            raise unsupported(f"{at}.type", "A namespace holds tools of type function or custom only.")
        tools.append((_function if kind == "function" else _custom)(each, space, at))
    return tools


def _function(told: Mapping[str, Any], namespace: str | None, where: str) -> Tool:
    parameters = told.get("parameters")
    if parameters is not None:
        mapping(parameters, f"{where}.parameters")
    return _tool("function", told, namespace, where, parameters, "")


def _custom(told: Mapping[str, Any], namespace: str | None, where: str) -> Tool:
    form = told.get("format") or {"type": "text"}
    rules = ""
    match form:
        case {"type": "grammar", "syntax": "lark" | "regex" as syntax, "definition": str(definition)}:
            rules = f"The input must match this {'regular expression' if syntax == 'regex' else 'Lark grammar'}:\n"
            rules += definition
        case {"type": "text"}:
            pass
        case _:
            raise wrong_value(f"{where}.format", f"`{where}.format` must be of type text or grammar.")
    parameters = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
    return _tool("custom", told, namespace, where, parameters, rules)


def _tool(
    kind: Kind,
    told: Mapping[str, Any],
    namespace: str | None,
    where: str,
    parameters: Mapping[str, Any] | None,
    rules: str,
) -> Tool:
    called = name(told.get("name"), f"{where}.name")
    if not _NAME.fullmatch(chat_name(namespace, called)):
        message = f"`{where}.name` must be 1 to 128 letters, digits, '_', '-', '.', ':' or '/'."
        raise wrong_value(f"{where}.name", message)
    said = told.get("description")
    described = "\n\n".join(part for part in (said and text(said, f"{where}.description"), rules) if part)
    return Tool(kind, called, namespace, _chat_tool(chat_name(namespace, called), described, parameters))


def _own(kind: Kind) -> Tool:
    return Tool(kind, kind, None, _chat_tool(kind, *_SHELLS[kind]))


def _chat_tool(called: str, described: str, parameters: Mapping[str, Any] | None) -> Mapping[str, Any]:
    function: dict[str, Any] = {"name": called}
    if described:
        function["description"] = described
    if parameters is not None:
        function["parameters"] = parameters
    return {"type": "function", "function": function}


def _chosen(tools: Mapping[str, Tool], choice: Any) -> Mapping[str, Any]:
    """The chat's `tools` and `tool_choice`."""
    match choice:
        case "none" | "auto" | "required":
            return _chat(list(tools.values()), choice)
        case {"type": "function" | "custom", "name": str(called), **more}:
            return _chat(list(tools.values()), _named(tools, called, more.get("namespace")))
        case {"type": "local_shell" | "shell" | "apply_patch" as called}:
            return _chat(list(tools.values()), _named(tools, called, None))
        case {"type": "allowed_tools", "mode": "auto" | "required" as mode, "tools": list(allowed)}:
            names = {_allowed(each, f"tool_choice.tools[{index}]") for index, each in enumerate(allowed)}
            return _chat(
                [tool for tool in tools.values() if tool.name in names or tool.namespace in names], mode
            )
        case {"type": str(kind)} if kind != "allowed_tools":
            raise unsupported("tool_choice.type", f"There is no tool '{kind[:40]}' here to be chosen.")
    wanted = "none, auto, required, allowed_tools, or one of the tools by type and name"
    raise wrong_type("tool_choice", wanted)


def _allowed(told: object, where: str) -> str:
    tool = mapping(told, where)
    return name(tool.get("name", tool.get("type")), f"{where}.name")


def _named(tools: Mapping[str, Tool], called: str, namespace: object) -> Mapping[str, Any]:
    chat = chat_name(namespace if isinstance(namespace, str) else None, called)
    if chat not in tools:
        raise wrong_value("tool_choice", "`tool_choice` names a tool that is not in `tools`.")
    return {"type": "function", "function": {"name": chat}}


def _chat(tools: Sequence[Tool], choice: Any) -> Mapping[str, Any]:
    if choice == "required" and not tools:
        raise wrong_value(
            "tool_choice", "`tool_choice` requires a call, and none of the `tools` can be called here."
        )
    if not tools:
        return {}
    return {"tools": [tool.chat for tool in tools], "tool_choice": choice}
