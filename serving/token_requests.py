"""Bodies of the two endpoints that only count, checked and frozen. Pure."""

from dataclasses import dataclass
from typing import Any

from serving.chat_messages import Message, read_messages
from serving.chat_tools import Tool, read_tool_use, read_variables
from serving.request_fields import BadRequest, is_token_list, missing, read_fields, read_model, wrong_type

HARMLESS = frozenset({"stream", "user"})


@dataclass(frozen=True, slots=True)
class TokenizeRequest:
    """A prompt's text, or a conversation, of which the tokens are wanted."""

    model: str | None
    """None: whatever is served."""
    text: str | None
    messages: tuple[Message, ...] = ()
    """Where there is no `text`."""
    tools: tuple[Tool, ...] = ()
    variables: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class DetokenizeRequest:
    """Token ids of which the text is wanted."""

    model: str | None
    tokens: tuple[int, ...]


def read_tokenize_request(body: object) -> TokenizeRequest:
    """`prompt`, or `messages` with what chat completions take beside them. Raises BadRequest."""
    names = {"chat_template_kwargs", "messages", "model", "prompt", "reasoning_effort", "tools"}
    fields = read_fields(body, names, HARMLESS, frozenset())
    model = read_model(fields) if "model" in fields else None
    if "messages" not in fields:
        text = fields.get("prompt")
        if text is None:
            raise missing("prompt")
        if not isinstance(text, str):
            raise wrong_type("prompt", "a string")
        return TokenizeRequest(model, text)
    if "prompt" in fields:
        raise BadRequest("send 'prompt' or 'messages', not both", "prompt")
    variables = tuple(read_variables(fields).items())
    return TokenizeRequest(model, None, read_messages(fields), read_tool_use(fields).tools, variables)


def read_detokenize_request(body: object) -> DetokenizeRequest:
    """Raises BadRequest."""
    fields = read_fields(body, frozenset({"model", "tokens"}), HARMLESS, frozenset())
    tokens = fields.get("tokens")
    if tokens is None:
        raise missing("tokens")
    if tokens != [] and not is_token_list(tokens):
        raise wrong_type("tokens", "a list of token ids")
    return DetokenizeRequest(read_model(fields) if "model" in fields else None, tuple(tokens))
