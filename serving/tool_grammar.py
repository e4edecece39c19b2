"""Grammars for constrained answers, in llguidance's Lark dialect. Pure: texts in, text out.

Nothing here compiles a grammar; llguidance's words about a bad schema come from `Engine.constraint`.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serving import harmony
from serving.reasoning import ReasoningFormat
from serving.tool_formats import Section, ToolFormat

Specials = Mapping[str, int]
"""Token ids of the vocabulary's special tokens by their text. A grammar must name these by id: their text in a
grammar would be spelled out with other tokens."""

_TEXT = "TEXT: /(.|\\n)*/\nWS: /[ \\n]{0,4}/\n"


def json_grammar(schema: Mapping[str, Any] | None = None) -> str:
    """A grammar for one JSON value that matches the JSON schema; None: any JSON object."""
    return f"start: {json_rule(schema)}\n"


def json_rule(schema: Mapping[str, Any] | None) -> str:
    """The same as a part of a grammar. White space is bounded: small models get lost in it."""
    return _json({"type": "object"} if schema is None else schema, {"whitespace_pattern": "( |\\n {0,32})?"})


def arguments_rule(schema: Any) -> str:
    """A value of a call's arguments, written as Python's `json` and so as templates write it again next turn. What
    llguidance does not know of the schema is not looked at."""
    return _json(
        schema,
        {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": True},
    )


def _json(schema: Any, options: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": options} if isinstance(schema, Mapping) else schema)


def text_rule(text: str, specials: Specials) -> str:
    """Exactly this text, as a part of a grammar; "" for none."""
    found = sorted((mark for mark in specials if mark and mark in text), key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, found)) + ")", text) if found else [text]
    return " ".join(
        f"<[{specials[part]}]>" if part in specials else json.dumps(part, ensure_ascii=False)
        for part in parts
        if part
    )


def reasoned_grammar(answer: str, reasoning: ReasoningFormat | None, opened: bool, specials: Specials) -> str:
    """A grammar of which `answer` is the part after the reasoning: its rules, the first named `answer`. `opened`: the
    prompt ends within the reasoning."""
    if reasoning is None:
        return f"start: answer\n{answer}"
    close = text_rule(reasoning.close, specials)
    thought = f"thought: TEXT {close}" if close.startswith("<") else f"thought[lazy]: TEXT {close}"
    begin = "" if opened else text_rule(reasoning.open, specials) + " "
    start = "start: thought WS answer" if opened else "start: (thinking)? answer"
    thinking = "" if opened else f"thinking: {begin}thought WS\n"
    return f"{start}\n{thinking}{thought}\n{_TEXT}{answer}"


def call_rules(
    form: ToolFormat, schemas: Mapping[str, Mapping[str, Any]], parallel: bool, specials: Specials
) -> str:
    """Rules, the first named `answer`, of one call to one of these tools, or with `parallel` of several."""
    section = form.sections[0]
    bodies = [_body(section, name, schema, specials) for name, schema in schemas.items()]
    more_calls = more_sections = ""
    if parallel and section.between is not None:
        more_calls = f"({text_rule(section.between, specials)} call)*"
    elif parallel:
        more_sections = f"({text_rule(form.between_sections, specials)} section)*"
    opened = text_rule(section.open + section.inner, specials)
    before, after = text_rule(section.call_open, specials), text_rule(section.call_close, specials)
    rules = {
        "answer": f"section {more_sections}",
        "section": f"{opened} call {more_calls} {text_rule(section.close, specials)}",
        "call": f"{before} ({_any_of(len(bodies))}) {after}",
        **{f"call_{number}": body for number, body in enumerate(bodies)},
        **_shared(section, specials),
    }
    return "".join(f"{name}: {rule}\n" for name, rule in rules.items())


def harmony_grammar(answer: str, opened: bool, specials: Specials) -> str:
    """The same as `reasoned_grammar` for gpt-oss. `answer` begins with a channel."""
    head = text_rule(harmony.CHANNEL + "analysis" + harmony.MESSAGE, specials)
    end = text_rule(harmony.END + harmony.START + "assistant", specials)
    thought = f"thought: TEXT {end}" if end.startswith("<") else f"thought[lazy]: TEXT {end}"
    start = "thought answer" if opened else f"({head} thought)? answer"
    return f"start: {start}\n{thought}\n{_TEXT}{answer}"


def harmony_call_rules(schemas: Mapping[str, Mapping[str, Any]], specials: Specials) -> str:
    """The same as `call_rules` for gpt-oss, which makes one call at a time."""
    rules = [f"answer: {_any_of(len(schemas))}"]
    for number, (name, schema) in enumerate(schemas.items()):
        recipient = (
            f"{harmony.CHANNEL}commentary to=functions.{name} {harmony.CONSTRAIN}json{harmony.MESSAGE}"
        )
        end = text_rule(harmony.CALL, specials) if harmony.CALL in specials else ""
        rules.append(
            f"call_{number}: {text_rule(recipient, specials)} {arguments_rule(_object(schema))} {end}"
        )
    return "\n".join((*rules, ""))


def harmony_json_rules(schema: Mapping[str, Any] | None, specials: Specials) -> str:
    head = text_rule(harmony.CHANNEL + "final" + harmony.MESSAGE, specials)
    return f"answer: {head} {json_rule(schema)}\n"


def _any_of(count: int) -> str:
    return " | ".join(f"call_{number}" for number in range(count))


def _object(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Parameters that a tool does not tell of are none, unless it says otherwise."""
    closed = {"additionalProperties": False} if "properties" in schema else {}
    return {"type": "object", **closed, **schema}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _shared(section: Section, specials: Specials) -> dict[str, str]:
    """Rules that several bodies of a format use."""
    match section.bodies[0]:
        case "xml":
            return {"text[lazy]": '/(.|\\n)*/ "\\n</parameter>\\n"'}
        case "gemma":
            quote = text_rule(section.quote, specials)
            name = "text" if quote.startswith("<") else "text[lazy]"
            return {name: f"/(.|\\n)*/ {quote}"}
    return {}


def _body(section: Section, name: str, schema: Mapping[str, Any], specials: Specials) -> str:
    match section.bodies[0]:
        case "json":
            head = f'{{"name": {_quoted(name)}, "{section.argument_key}": '
            return f'{_quoted(head)} {arguments_rule(_object(schema))} "}}"'
        case "named":
            before = text_rule(section.before_arguments, specials)
            return f"{_quoted(name)} {before} {arguments_rule(_object(schema))}"
        case "xml":
            parameters = "".join(
                f" {rule}" if needed else f" ({rule})?"
                for rule, needed in _parameters(
                    schema, lambda key: f"<parameter={key}>\n", "text", ' "\\n</parameter>\\n"'
                )
            )
            return f'{_quoted(f"<function={name}>" + chr(10))}{parameters} "</function>"'
        case "python":
            json_text = arguments_rule({"type": "string"})
            return (
                f'{_quoted(name + "(")} {_listed(_parameters(schema, lambda key: key + "=", json_text))} ")"'
            )
        case "gemma":
            text = f"{text_rule(section.quote, specials)} text"
            return f'{_quoted("call:" + name + "{")} {_listed(_parameters(schema, lambda key: key + ":", text))} "}}"'


def _parameters(
    schema: Mapping[str, Any], head: Callable[[str], str], text: str, after: str = ""
) -> list[tuple[str, bool]]:
    """A rule for each parameter with its value, and whether it is required; those first. `text`: the rule of a
    string; `after`: what follows any other value."""
    properties: Mapping[str, Any] = schema.get("properties") or {}
    required = set(schema.get("required") or ())
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    rules = []
    for key in sorted(properties, key=lambda key: key not in required):
        value = properties[key]
        plain = isinstance(value, Mapping) and value.get("type") == "string" and "enum" not in value
        if isinstance(value, Mapping):
            value = {**value, **shared}
        rules.append(
            (f"{_quoted(head(key))} {text if plain else arguments_rule(value) + after}", key in required)
        )
    return rules


def _listed(parameters: Sequence[tuple[str, bool]]) -> str:
    """Parameters with commas between them, in this order, of which some may be missing."""
    needed = [rule for rule, required in parameters if required]
    free = [rule for rule, required in parameters if not required]
    if needed:
        return ' "," '.join(needed) + "".join(f' ("," {rule})?' for rule in free)
    ways = [
        rule + "".join(f' ("," {later})?' for later in free[place + 1 :]) for place, rule in enumerate(free)
    ]
    return f"({' | '.join(ways)})?" if ways else ""
