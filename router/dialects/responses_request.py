"""A request of the Responses API, and the chat that it asks for. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from router.dialects.fields import (
    flag,
    listed,
    mapping,
    missing,
    read_object,
    text,
    unknown,
    unsupported,
    whole,
    wrong_type,
    wrong_value,
)
from router.dialects.responses_ids import response_of, session_of
from router.dialects.responses_items import Item, chat_messages, read_input, references, resolved, typed
from router.dialects.responses_tools import Toolbox, read_toolbox
from router.errors import Rejected, bad_request

PASSED = frozenset(
    {
        *("model", "stream", "temperature", "top_p", "parallel_tool_calls"),
        *("conversation", "metadata", "prompt_cache_key", "safety_identifier", "user", "session_id"),
        *("chat_template_kwargs", "frequency_penalty", "logit_bias", "min_p", "presence_penalty"),
        *("repeat_penalty", "seed", "stop", "top_k", "typical_p"),
    }
)
"""What a chat takes under the same name: the Responses API's own, what names a session, and what chats take beside."""

READ = frozenset(
    {
        *("include", "input", "instructions", "max_output_tokens", "max_tool_calls", "previous_response_id"),
        *(
            "reasoning",
            "store",
            "stream_options",
            "text",
            "tool_choice",
            "tools",
            "top_logprobs",
            "truncation",
        ),
    }
)

HARMLESS = frozenset(
    {
        *("access_programs", "background_options", "client_metadata", "image", "prompt_cache_options"),
        *("prompt_cache_retention", "service_tier"),
    }
)
"""They change nothing about the answer, or only other servers obey them: accepted and ignored."""

UNSUPPORTED = {
    "background": "ask with `stream`, and read for as long as it takes",
    "context_management": "send a shorter conversation instead",
    "moderation": "remove it",
    "prompt": "send its text as `instructions` and `input`",
}
"""They would change the answer and do not work here: refused, unless they ask for nothing. With what to do instead."""


@dataclass(frozen=True, slots=True)
class GoesOn:
    """What a conversation goes on from, beside what its request says."""

    previous: str | None
    """`previous_response_id`."""
    conversation: str | None
    responses: tuple[str, ...] = ()
    """Ids of responses of which the input only names items."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, checked as far as a chat could not check it in the client's terms."""

    told: Mapping[str, Any]
    """The body's fields; none is null."""
    items: Sequence[Item]
    toolbox: Toolbox
    goes_on: GoesOn | None

    @property
    def logprobs(self) -> bool:
        wanted = "message.output_text.logprobs" in self.told.get("include", [])
        return wanted or bool(self.told.get("top_logprobs"))

    @property
    def seals(self) -> bool:
        return "reasoning.encrypted_content" in self.told.get("include", [])

    @property
    def summarizes(self) -> bool:
        """Whether what the model thinks is told where clients look for summaries of it."""
        reasoning = self.told.get("reasoning", {})
        return bool(reasoning.get("summary") or reasoning.get("generate_summary"))

    @property
    def stores(self) -> bool:
        return bool(self.told.get("store", True))

    def chat(self, history: Sequence[Item], asked: Sequence[Item]) -> dict[str, Any]:
        """The chat's body. `history`: what was said before the items that are asked."""
        told = self.told
        messages = chat_messages(told.get("instructions"), history, asked)
        if not messages:
            raise wrong_value("input", "`input` holds nothing that a model could answer.")
        chat = self.opening() | {"messages": messages, **self.toolbox.chat, **_form(told)}
        if told.get("stream") is True:
            chat["stream_options"] = {"include_usage": True}
        if "max_output_tokens" in told:
            chat["max_completion_tokens"] = told["max_output_tokens"]
        if self.logprobs:
            chat |= {"logprobs": True, "top_logprobs": told.get("top_logprobs", 0)}
        if (effort := told.get("reasoning", {}).get("effort")) is not None:
            chat["reasoning_effort"] = effort
        return chat

    def opening(self) -> dict[str, Any]:
        """The same without what is said: it names model and session. What it goes on from does so before
        `prompt_cache_key`: a conversation is kept by its session, and found by its name alone."""
        chat: dict[str, Any] = {name: self.told[name] for name in self.told if name in PASSED}
        chat["messages"] = []
        goes_on = self.goes_on
        if goes_on is not None and (goes_on.previous or goes_on.conversation):
            chat.pop("prompt_cache_key", None)
        if goes_on is not None and goes_on.previous is not None:
            chat["conversation"] = session_of(goes_on.previous)
        elif goes_on is not None and goes_on.responses:
            chat.setdefault("conversation", session_of(goes_on.responses[0]))
        return chat


def read_request(body: bytes) -> Request:
    """Raises Rejected with the field at fault."""
    told = read_object(body)
    for field, value in told.items():
        if field in UNSUPPORTED and value not in (False, 0, "", [], {}):
            raise unsupported(field, f"`{field}` does not work here; {UNSUPPORTED[field]}.")
        if not (field in PASSED or field in READ or field in HARMLESS or field in UNSUPPORTED):
            raise unknown(field)
    _check(told)
    items = read_input(told["input"])
    return Request(told, items, read_toolbox(told), _goes_on(told, items))


def known_items(items: Sequence[Item], records: Sequence[Mapping[str, Any]]) -> list[Item]:
    """The items, with those in place that are only named and stand in `records`."""
    if not references(items):
        return list(items)
    known = {item["id"]: item for record in records for item in said(record) if "id" in item}
    return resolved(items, known)


def said(record: Mapping[str, Any]) -> list[Item]:
    """All that was said in a turn that was kept."""
    return [typed(item, "previous_response_id") for item in (*record["input"], *record["response"]["output"])]


def _check(told: Mapping[str, Any]) -> None:
    if "input" not in told:
        raise missing("input")
    if "instructions" in told:
        text(told["instructions"], "instructions")
    for field in ("store", "parallel_tool_calls"):
        if field in told:
            flag(told[field], field)
    for field in ("max_output_tokens", "max_tool_calls", "top_logprobs"):
        if field in told:
            whole(told[field], field)
    listed(told.get("include", []), "include")
    mapping(told.get("reasoning", {}), "reasoning")
    for field in mapping(told.get("stream_options", {}), "stream_options"):
        if field != "include_obfuscation":
            raise unknown(f"stream_options.{field}")
    if told.get("truncation", "auto") not in ("auto", "disabled"):
        raise wrong_value("truncation", "`truncation` must be auto or disabled.")


def _goes_on(told: Mapping[str, Any], items: Sequence[Item]) -> GoesOn | None:
    previous, conversation = told.get("previous_response_id"), told.get("conversation")
    if isinstance(conversation, dict):
        conversation = conversation.get("id")
    if not isinstance(conversation, str | None):
        raise wrong_type("conversation", "an id, or an object with one")
    conversation = conversation or None
    if previous is not None and conversation is not None:
        message = "`previous_response_id` and `conversation` exclude each other; send one of them."
        raise Rejected(bad_request(message, "mutually_exclusive_parameters", "previous_response_id"))
    if previous is not None and session_of(text(previous, "previous_response_id")) is None:
        raise previous_not_found(previous)
    responses = dict.fromkeys(found for name in references(items) if (found := response_of(name)) is not None)
    if previous is None and conversation is None and not responses:
        return None
    return GoesOn(previous, conversation, tuple(responses))


def previous_not_found(response_id: str) -> Rejected:
    called = response_id[:80]
    message = (
        f"Previous response with id '{called}' not found. Send the conversation itself as `input` instead."
    )
    return Rejected(bad_request(message, "previous_response_not_found", "previous_response_id"))


def _form(told: Mapping[str, Any]) -> dict[str, Any]:
    """What the answer's text is like."""
    wanted = mapping(told.get("text", {}), "text")
    chat = {"verbosity": wanted["verbosity"]} if wanted.get("verbosity") is not None else {}
    form = wanted.get("format")
    match form:
        case None | {"type": "text"}:
            return chat
        case {"type": "json_object"}:
            return chat | {"response_format": {"type": "json_object"}}
        case {"type": "json_schema", "schema": dict()}:
            schema = {key: value for key, value in form.items() if key != "type" and value is not None}
            return chat | {"response_format": {"type": "json_schema", "json_schema": schema}}
        case {"type": "json_schema"}:
            raise missing("text.format.schema")
    raise wrong_value("text.format", "`text.format` must be of type text, json_object or json_schema.")
