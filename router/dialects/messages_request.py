"""A request to Anthropic's Messages as a body of chat completions. Pure.

Checks what it translates; the rest the host checks. Fields that nobody here knows are let be, as clients send new ones
with every version.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from router.dialects.fields import read_object
from router.dialects.messages_blocks import chat_messages
from router.dialects.messages_errors import wrong

SAME = ("temperature", "top_k", "top_p")
NAMING = ("metadata", "prompt_cache_key", "conversation", "session_id", "user", "safety_identifier")
"""Fields that may name the session, for `router.identity`."""
ELSEWHERE = ("container", "mcp_servers")
"""What would have to run at Anthropic."""
EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
"""As models of any family know them."""

Shown = Literal["whole", "signed", "nothing"]
"""Of what a model thinks: its text; no text, but a signature that carries it; nothing, as nobody asked for it."""


@dataclass(frozen=True, slots=True)
class ChatAsked:
    """A request in a chat's terms, and what its answer needs to know of it."""

    chat: Mapping[str, Any]
    shown: Shown
    max_tokens: int


def read_body(body: bytes) -> Mapping[str, Any]:
    """The request's fields; null counts as absent. Raises Rejected."""
    told = read_object(body)
    for name in ELSEWHERE:
        if told.get(name):
            raise wrong(name, "does not work here; remove it", "unsupported_parameter")
    return told


def conversation(told: Mapping[str, Any]) -> dict[str, Any]:
    """What the model reads: all that counts as input tokens. Raises Rejected."""
    chat: dict[str, Any] = {name: told[name] for name in ("model",) if name in told}
    chat["messages"] = chat_messages(told)
    if tools := _tools(told):
        chat["tools"] = tools
    thinks = _shown(told) != "nothing"
    chat["chat_template_kwargs"] = {"enable_thinking": thinks}
    effort = _config(told).get("effort")
    if effort is not None and (not isinstance(effort, str) or effort not in EFFORTS):
        raise wrong("output_config.effort", f"must be one of {', '.join(EFFORTS)}")
    if thinks and effort is not None:
        chat["reasoning_effort"] = EFFORTS[effort]
    return chat


def read_chat(told: Mapping[str, Any]) -> ChatAsked:
    """A request for an answer. Raises Rejected."""
    chat = conversation(told)
    max_tokens = told.get("max_tokens")
    if max_tokens is None:
        raise wrong(
            "max_tokens", "is missing: how many tokens the answer may have", "missing_required_parameter"
        )
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
        raise wrong("max_tokens", "must be a whole number from 1")
    chat["max_tokens"] = max_tokens
    chat |= {name: told[name] for name in (*SAME, *NAMING) if name in told}
    stops = told.get("stop_sequences", [])
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise wrong("stop_sequences", "must be a list of strings", "invalid_type")
    if stops:
        chat["stop"] = stops
    stream = told.get("stream", False)
    if not isinstance(stream, bool):
        raise wrong("stream", "must be true or false", "invalid_type")
    if stream:
        # How far the prompt is tells how long it is, before anything of the answer.
        chat |= {"stream": True, "stream_options": {"include_usage": True}, "return_progress": True}
    return ChatAsked(chat | _choice(told) | _form(told), _shown(told), max_tokens)


def _tools(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    tools = told.get("tools", [])
    if not isinstance(tools, list):
        raise wrong("tools", "must be a list", "invalid_type")
    return [_tool(tool, f"tools.{index}") for index, tool in enumerate(tools)]


def _tool(tool: object, where: str) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        raise wrong(where, "must be an object", "invalid_type")
    if (kind := tool.get("type")) not in (None, "custom"):
        known = kind if isinstance(kind, str) and len(kind) <= 40 else "?"
        message = f"tools of type '{known}' are Anthropic's own and do not work here; send tools with an input_schema"
        raise wrong(where, message, "unsupported_parameter")
    for name, type_ in (("name", str), ("input_schema", Mapping)):
        if not isinstance(tool.get(name), type_):
            raise wrong(f"{where}.{name}", "is missing or has the wrong type", "invalid_type")
    function = {"name": tool["name"], "parameters": tool["input_schema"]}
    if tool.get("description") is not None:
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _choice(told: Mapping[str, Any]) -> dict[str, Any]:
    choice = told.get("tool_choice")
    match choice:
        case None:
            return {}
        case {"type": "none"}:
            return {"tool_choice": "none"}
        case {"type": "auto"}:
            chat: dict[str, Any] = {"tool_choice": "auto"}
        case {"type": "any"}:
            chat = {"tool_choice": "required"}
        case {"type": "tool", "name": str(name)}:
            chat = {"tool_choice": {"type": "function", "function": {"name": name}}}
        case _:
            message = "must be of type auto, any, none, or tool with a name"
            raise wrong("tool_choice", message)
    if choice.get("disable_parallel_tool_use") is True:
        chat["parallel_tool_calls"] = False
    return chat


def _shown(told: Mapping[str, Any]) -> Shown:
    match told.get("thinking"):
        case None | {"type": "disabled"}:
            return "nothing"
        case {"type": "enabled" | "adaptive" | "between_tools", "display": "omitted"}:
            return "signed"
        case {"type": "enabled" | "adaptive" | "between_tools"}:
            return "whole"
    raise wrong("thinking", "must be of type enabled, adaptive or disabled")


def _config(told: Mapping[str, Any]) -> Mapping[str, Any]:
    config = told.get("output_config", {})
    if not isinstance(config, Mapping):
        raise wrong("output_config", "must be an object", "invalid_type")
    return config


def _form(told: Mapping[str, Any]) -> dict[str, Any]:
    """The form of the answer. `output_format` is the older name."""
    config = _config(told)
    name = "output_config.format" if config.get("format") is not None else "output_format"
    match config.get("format") or told.get("output_format"):
        case None:
            return {}
        case {"type": "json_schema", "schema": Mapping() as schema}:
            named = {"name": "answer", "schema": schema}
            return {"response_format": {"type": "json_schema", "json_schema": named}}
    raise wrong(name, "must be of type json_schema, with a schema")
