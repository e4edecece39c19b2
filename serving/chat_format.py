"""How one model is talked to: its chat template, and the form of the answers that belongs to it.

Nothing here knows tokens or engines. The template's text says what family it is of (tool_formats.py, reasoning.py,
harmony.py); what it wants messages to be like is found out by rendering small conversations once.
"""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any

from serving import harmony, tool_grammar
from serving.answer_parser import FormatParser, parameter_schemas
from serving.chat_template import ChatTemplate, TemplateBroken
from serving.deltas import AnswerParser, CallArguments, CallBegan, PlainParser
from serving.engine import PromptError
from serving.harmony import HarmonyParser
from serving.reasoning import reasoning_of
from serving.tool_formats import tool_format_of

__all__ = ["ChatFormat", "TemplateBroken"]

Message = Mapping[str, Any]
Tools = Sequence[Mapping[str, Any]]

_END = 200
"""Characters of a prompt's end that tell where the answer begins."""
_ENDS_KEPT = 64
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")

# A conversation of one call, with words that no template has.
_TOOL = {
    "type": "function",
    "function": {
        "name": "qxv_tool",
        "description": "A tool.",
        "parameters": {
            "type": "object",
            "properties": {"qxv_known": {"type": "string", "description": "A key."}},
        },
    },
}
_CALL = {
    "id": "qxvcall01",
    "type": "function",
    "function": {"name": "qxv_tool", "arguments": {"qxv_key": "qxv_value"}},
}
_ASKED: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
_CALLED: list[dict[str, Any]] = [
    *_ASKED,
    {"role": "assistant", "content": None, "tool_calls": [_CALL]},
    {"role": "tool", "tool_call_id": "qxvcall01", "name": "qxv_tool", "content": "1"},
]


_MISTAKEN = ("'qxv_key'", '\\"qxv_key')
"""Signs of an object or a text where the other was wanted."""


class ChatFormat:
    """One model's template and format. Keeps no state but what it found out; may be used from any thread."""

    def __init__(
        self,
        template: str,
        bos: str,
        eos: str,
        now: Callable[[], datetime],
        specials: Mapping[str, int] | None = None,
        new_id: Callable[[], str] | None = None,
    ) -> None:
        """`bos` and `eos`: the special tokens as text, "" for a model without. `now`: the local time, for templates
        that tell the model the date. `specials`: ids of the tokens that llguidance takes for special ones, by their
        text: control tokens, and user-defined ones of the form `<…>`. `new_id`: ids for calls. Raises
        TemplateBroken."""
        self._template = ChatTemplate(template, now)
        self._bos = bos
        self._eos = eos
        self._specials = {} if specials is None else specials
        self._harmony = harmony.is_harmony(template)
        self._tool_format = None if self._harmony else tool_format_of(template)
        self._reasoning = None if self._harmony else reasoning_of(template)
        self._id_length = self._tool_format.id_length if self._tool_format else None
        self._new_id: Callable[[], str] = str  # finding out needs none
        self._ends: dict[str, str] = {}
        self._objects, self._empty = True, "missing"
        self._knows_tools = self._renders_tools()
        if self._knows_tools:
            self._knows_tools = self._reads_back(self._find_shape())
        self._new_id = new_id or self._random_id

    @property
    def knows_tools(self) -> bool:
        """Whether the template tells the model of tools, and the form in which it then calls them is a known one."""
        return self._knows_tools

    @property
    def knows_reasoning(self) -> bool:
        """Whether its answers may hold reasoning that is told apart."""
        return self._harmony or self._reasoning is not None

    @property
    def special(self) -> bool:
        """Whether answers must be read with the text of special tokens. Only where the parser is not `plain`."""
        rows = [row for row in (self._tool_format, self._reasoning) if row is not None]
        marks = (mark for row in rows for mark in row.markers)
        return (
            self._harmony
            or any(row.special for row in rows)
            or any(token in mark for mark in marks for token in self._specials)
        )

    def render(
        self, messages: Sequence[Message], tools: Tools = (), variables: Mapping[str, Any] | None = None
    ) -> str:
        """The conversation as one text that ends where the model's answer begins.

        `messages`: OpenAI's, contents as text; a call's arguments as JSON. Keys whose value is None are left out.
        `tools`: OpenAI's tool objects; `variables`: more for the template. Raises PromptError with the template's
        own words, when it refuses the conversation or fails on it."""
        return self._template.render(
            {
                **(variables or {}),
                "messages": [self._message(message) for message in messages],
                "tools": [dict(tool) for tool in tools] or None,
                "documents": None,
                "add_generation_prompt": True,
                "bos_token": self._bos,
                "eos_token": self._eos,
            }
        )

    def prompt_end(
        self, messages: Sequence[Message], tools: Tools = (), variables: Mapping[str, Any] | None = None
    ) -> str:
        """The last characters of what `render` gives for these, worked out once for all conversations of a kind by
        rendering a tiny one; "" where that fails. For `parser` and the grammars."""
        if not self._harmony and self._reasoning is None:
            return ""
        after_tool = bool(messages) and messages[-1].get("role") == "tool"
        key = json.dumps([after_tool, bool(tools), variables or {}], sort_keys=True, default=str)
        if key not in self._ends:
            if len(self._ends) >= _ENDS_KEPT:
                self._ends.clear()
            try:
                text = self.render(_CALLED if after_tool else _ASKED, (_TOOL,) if tools else (), variables)
            except PromptError:
                text = ""
            self._ends[key] = text[-_END:]
        return self._ends.get(key, "")

    def opens_reasoning(
        self, messages: Sequence[Message], tools: Tools = (), variables: Mapping[str, Any] | None = None
    ) -> bool:
        """Whether the prompt ends within the model's reasoning."""
        return self._opened(self.prompt_end(messages, tools, variables))

    def parser(self, prompt_end: str, tools: Tools = ()) -> AnswerParser:
        """A new parser for one answer. `tools`: those that the model may call; without any, calls are not looked
        for."""
        if self._harmony:
            return HarmonyParser(tools, prompt_end, self._new_id)
        form = self._tool_format if tools else None
        if form is None and self._reasoning is None:
            return PlainParser()
        return FormatParser(form, self._reasoning, tools, self._opened(prompt_end), self._new_id)

    def call_grammar(self, tools: Tools, choice: str, parallel: bool, prompt_end: str = "") -> str:
        """A grammar of answers that are tool calls and nothing else, but for reasoning before them. `choice`:
        "required", or the name of the one tool to call. `parallel`: several calls may be made. Raises PromptError
        for a tool that is not among them."""
        schemas = parameter_schemas(tools)
        if choice != "required":
            if choice not in schemas:
                raise PromptError(f"tool_choice names '{choice}', which is none of the tools", "tool_choice")
            schemas = {choice: schemas[choice]}
        return self._grammar(self._call_rules(schemas, parallel), prompt_end)

    def json_grammar(self, schema: Mapping[str, Any] | None, prompt_end: str = "") -> str:
        """A grammar of answers that are JSON by this schema (None: any object), but for reasoning before it."""
        return self._grammar(self._json_rules(schema), prompt_end)

    def call_or_json_grammar(
        self, tools: Tools, parallel: bool, schema: Mapping[str, Any] | None, prompt_end: str = ""
    ) -> str:
        """A grammar of answers that are either; the model chooses. Raises PromptError for a model whose calls begin
        as other JSON does: the grammar's lexer looks no further."""
        section = self._tool_format.sections[0] if self._tool_format else None
        if section is not None and not section.open + section.inner + section.call_open:
            raise PromptError(
                "this model's calls are plain JSON, so they do not work together with 'response_format'; leave one of "
                "them out, or set 'tool_choice' to none",
                "tools",
            )
        calls = self._call_rules(parameter_schemas(tools), parallel).removeprefix("answer")
        as_json = self._json_rules(schema).removeprefix("answer")
        return self._grammar(f"answer: calls | as_json\ncalls{calls}as_json{as_json}", prompt_end)

    def _call_rules(self, schemas: Mapping[str, Mapping[str, Any]], parallel: bool) -> str:
        if self._harmony:
            return tool_grammar.harmony_call_rules(schemas, self._specials)
        if self._tool_format is None:
            raise PromptError("this model's chat template knows no tools", "tools")
        return tool_grammar.call_rules(self._tool_format, schemas, parallel, self._specials)

    def _json_rules(self, schema: Mapping[str, Any] | None) -> str:
        if self._harmony:
            return tool_grammar.harmony_json_rules(schema, self._specials)
        return f"answer: {tool_grammar.json_rule(schema)}\n"

    def _grammar(self, answer: str, prompt_end: str) -> str:
        opened = self._opened(prompt_end)
        if self._harmony:
            return tool_grammar.harmony_grammar(answer, opened, self._specials)
        return tool_grammar.reasoned_grammar(answer, self._reasoning, opened, self._specials)

    def _opened(self, prompt_end: str) -> bool:
        if self._harmony:
            return harmony.opens_reasoning(prompt_end)
        return self._reasoning is not None and self._reasoning.opened_by(prompt_end)

    def _random_id(self) -> str:
        return secrets.token_hex(8)[: self._id_length] if self._id_length else f"call_{secrets.token_hex(12)}"

    # What the template wants messages to be like

    def _message(self, message: Message) -> dict[str, Any]:
        """As transformers hands it to a template, and as this one can take it."""
        given = {key: value for key, value in message.items() if value is not None}
        thought = next((given[key] for key in _REASONING_KEYS if key in given), None)
        if thought is not None:
            given = {"thinking": thought, **given, "reasoning_content": thought}
        if "tool_calls" in given:
            given["tool_calls"] = [self._call(call) for call in given["tool_calls"]]
            if "content" not in given and self._empty != "missing":
                given["content"] = None if self._empty == "null" else ""
        if "tool_call_id" in given:
            given["tool_call_id"] = self._id(given["tool_call_id"])
        return given

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = dict(call.get("function") or {})
        arguments = function.get("arguments")
        if self._objects and isinstance(arguments, str):
            function["arguments"] = _loaded(arguments)
        elif not self._objects and not isinstance(arguments, str):
            function["arguments"] = json.dumps(arguments, ensure_ascii=False)
        known = {"id": self._id(call["id"])} if "id" in call else {}
        return {**call, **known, "function": function}

    def _id(self, given: Any) -> Any:
        """An id that the template takes; one that came from elsewhere becomes another, always the same."""
        if self._id_length is None or (
            isinstance(given, str) and len(given) == self._id_length and given.isascii() and given.isalnum()
        ):
            return given
        return sha256(str(given).encode()).hexdigest()[: self._id_length]

    def _renders_tools(self) -> bool:
        if not self._harmony and self._tool_format is None:
            return False
        try:
            return "qxv_tool" in self.render(_ASKED, (_TOOL,))
        except PromptError:
            return False

    def _find_shape(self) -> str:
        """Whether arguments are wanted as objects or as text, and what an empty content is. Returns the conversation
        of one call as rendered so; "" where that never shows the call."""
        nones = self.render(_ASKED, (_TOOL,)).count("None")  # of other empty things than contents
        for objects in (True, False):
            for empty in ("missing", "null", "text"):
                self._objects, self._empty = objects, empty
                try:
                    text = self.render(_CALLED, (_TOOL,))
                except PromptError:
                    continue
                wrong = any(sign in text for sign in _MISTAKEN) or text.count("None") > nones
                if "qxv_value" in text and not wrong:
                    return text
        self._objects, self._empty = True, "missing"
        return ""

    def _reads_back(self, rendered: str) -> bool:
        """Whether the call that the template wrote is one to the format's parser: there are models that share a
        marker and nothing else."""
        if not rendered:
            return True
        texts = [rendered]
        if self._tool_format is not None and not self._tool_format.sections[0].open:
            before = rendered[: rendered.rindex("qxv_value")]
            before = before[: max(0, before.rfind("qxv_tool"))]
            texts = [rendered[max(0, before.rfind(bracket)) :] for bracket in "{["]
        return any(self._finds_call(text) for text in texts)

    def _finds_call(self, text: str) -> bool:
        parser = self.parser("", (_TOOL,))
        deltas = (*parser.push(text), *parser.finish())
        names = {delta.index: delta.name for delta in deltas if isinstance(delta, CallBegan)}
        written = [
            delta for delta in deltas if isinstance(delta, CallArguments) and "qxv_value" in delta.text
        ]
        return any(names[delta.index] == "qxv_tool" for delta in written)


def _loaded(arguments: str) -> Any:
    """An object, or the text itself where it is none."""
    try:
        value = json.loads(arguments, strict=False)
    except ValueError:
        return arguments
    return value if isinstance(value, dict) else arguments
