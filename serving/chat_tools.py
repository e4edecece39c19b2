"""What a chat request says of tools and of the answer's form, checked. Pure.

Knows no template and no grammar: whether the model can do it is found out elsewhere.
"""

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal

from serving.request_fields import BadRequest, flag, missing, wrong_type

MAX_TOOLS = 1024
"""More than OpenAI's 128: agents of other APIs bring those of several MCP servers along."""
MAX_VARIABLES = 32
RESERVED = frozenset(
    {
        "add_generation_prompt",
        "bos_token",
        "continue_final_message",
        "documents",
        "eos_token",
        "messages",
        "raise_exception",
        "strftime_now",
        "tools",
    }
)
"""Variables of a template that a request may not set."""

_TOOL_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
Tool = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools that a model is told of, and whether it calls them."""

    tools: tuple[Tool, ...] = ()
    """In OpenAI's shape, each `{"type": "function", "function": {name, description?, parameters}}`."""
    choice: Literal["none", "auto", "required"] = "auto"
    named: str | None = None
    """With `required`: the one tool that must be called; None: any."""
    parallel: bool = True
    """Whether an answer may call more than one."""

    @property
    def callable(self) -> tuple[Tool, ...]:
        """Those that may be called in the answer."""
        if self.choice == "none":
            return ()
        return tuple(tool for tool in self.tools if self.named in (None, tool["function"]["name"]))


@dataclass(frozen=True, slots=True)
class JsonOutput:
    """The answer's text is JSON that fits the schema; None: any object."""

    schema: Mapping[str, Any] | None = None


def read_tool_use(fields: Mapping[str, Any]) -> ToolUse:
    tools = fields.get("tools", [])
    if not isinstance(tools, list):
        raise wrong_type("tools", "a list")
    if len(tools) > MAX_TOOLS:
        raise BadRequest(f"'tools' may hold at most {MAX_TOOLS} tools, not {len(tools)}", "tools")
    read = tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools))
    names: set[str] = set()
    for tool in read:
        name = tool["function"]["name"]
        if name in names:
            raise BadRequest(f"two of the 'tools' are called '{name}'", "tools")
        names.add(name)
    parallel = flag({"parallel_tool_calls": True, **fields}, "parallel_tool_calls")
    return _with_choice(read, names, fields.get("tool_choice", "auto"), parallel)


def _with_choice(tools: tuple[Tool, ...], names: Set[str], choice: object, parallel: bool) -> ToolUse:
    match choice:
        case "none" | "auto":
            return ToolUse(tools, "none" if choice == "none" else "auto", None, parallel)
        case "required":
            if not tools:
                raise BadRequest("'tool_choice' requires a call, and there are no 'tools'", "tool_choice")
            return ToolUse(tools, "required", None, parallel)
        case {"type": "function", "function": {"name": str(name)}}:
            if name not in names:
                raise BadRequest("'tool_choice' names a tool that is not in 'tools'", "tool_choice")
            return ToolUse(tools, "required", name, False)
        case {"type": "allowed_tools" | "custom"}:
            message = "this kind of 'tool_choice' does not work here; send only the tools that may be called"
            raise BadRequest(message, "tool_choice", "unsupported_parameter")
    wanted = "none, auto, required or {'type': 'function', 'function': {'name': …}}"
    raise wrong_type("tool_choice", wanted)


def _tool(tool: object, where: str) -> Tool:
    if not isinstance(tool, Mapping):
        raise wrong_type(where, "an object")
    if tool.get("type", "function") != "function":
        message = "only tools of type 'function' work here"
        raise BadRequest(message, f"{where}.type", "unsupported_parameter")
    function = tool.get("function")
    if function is None:
        raise missing(f"{where}.function")
    if not isinstance(function, Mapping):
        raise wrong_type(f"{where}.function", "an object")
    name = function.get("name")
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        message = f"'{where}.function.name' must be 1 to 128 letters, digits, '_', '-', '.', ':' or '/'"
        raise BadRequest(message, f"{where}.function.name")
    read: dict[str, Any] = {"name": name}
    description = function.get("description")
    if description is not None:
        if not isinstance(description, str):
            raise wrong_type(f"{where}.function.description", "a string")
        read["description"] = description
    parameters = function.get("parameters")
    if not isinstance(parameters, Mapping | None):
        raise wrong_type(f"{where}.function.parameters", "a JSON schema")
    read["parameters"] = parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": read}


def read_json_output(fields: Mapping[str, Any]) -> JsonOutput | None:
    """What `response_format` asks for; None: text as it comes."""
    form = fields.get("response_format", {"type": "text"})
    match form:
        case {"type": "text"}:
            return None
        case {"type": "json_object", "schema": schema}:  # as llama.cpp's own server takes it
            return JsonOutput(_schema(schema, "response_format.schema"))
        case {"type": "json_object"}:
            return JsonOutput()
        case {"type": "json_schema", "json_schema": Mapping() as told}:
            return JsonOutput(_schema(told.get("schema"), "response_format.json_schema.schema"))
        case {"type": "json_schema"}:
            raise missing("response_format.json_schema")
        case Mapping():
            message = "'response_format' must be of type text, json_object or json_schema"
            raise BadRequest(message, "response_format")
    raise wrong_type("response_format", "an object")


def _schema(told: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(told, Mapping):
        raise wrong_type(where, "a JSON schema")
    return told


def read_variables(fields: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """What the request tells the template beside the messages: `chat_template_kwargs` and `reasoning_effort`."""
    read: dict[str, str | int | float | bool] = {}
    effort = fields.get("reasoning_effort")
    if effort is not None:
        if not isinstance(effort, str):
            raise wrong_type("reasoning_effort", "a string")
        read["reasoning_effort"] = effort
    given = fields.get("chat_template_kwargs", {})
    if not isinstance(given, Mapping):
        raise wrong_type("chat_template_kwargs", "an object")
    if len(given) > MAX_VARIABLES:
        raise BadRequest("'chat_template_kwargs' holds too many values", "chat_template_kwargs")
    for name, value in given.items():
        if not _VARIABLE.fullmatch(name) or name in RESERVED:
            raise BadRequest("'chat_template_kwargs' names what may not be set", "chat_template_kwargs")
        if not isinstance(value, str | int | float):
            raise wrong_type(f"chat_template_kwargs.{name}", "a string, a number, true or false")
        read[name] = value
    return read
