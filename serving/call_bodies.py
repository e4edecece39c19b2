"""How one tool call is written between its markers: a reader for each way of writing. Pure.

Each returns True after a whole call; False otherwise, and then `reader.calls` tells whether a call had begun, and the
reader, where it is pinned, is so after the last of the text that has come out. Arguments always come out as JSON.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from serving.answer_reader import AnswerReader
from serving.text_reader import Step

Known = Callable[[str], bool]
"""Whether a name may be called."""

NAME_KEYS = ("name", "function")
ARGUMENT_KEYS = ("arguments", "parameters")

_WORDS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\n": "", "'": "'", '"': '"', "\\": "\\"}
_DIGITS = {"x": 2, "u": 4, "U": 8}
_HEX = tuple("0123456789abcdefABCDEF")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")


def json_call(reader: AnswerReader, known: Known, *, need_arguments: bool) -> Step[bool]:
    """`{"name": "f", "arguments": {…}}`, its keys in any order, other keys ignored."""
    return (yield from _JsonCall(reader, known, need_arguments).read())


class _JsonCall:
    __slots__ = ("_began", "_held", "_known", "_name", "_need_arguments", "_reader")

    def __init__(self, reader: AnswerReader, known: Known, need_arguments: bool) -> None:
        self._reader = reader
        self._known = known
        self._need_arguments = need_arguments
        self._name: str | None = None
        self._held: str | None = None
        """Arguments that came before the name."""
        self._began = False

    def read(self) -> Step[bool]:
        reader = self._reader
        if not (yield from reader.literal("{")):
            return False
        while True:
            yield from reader.spaces()
            key = yield from reader.json_string()
            if key is None or not (yield from reader.loose(":")):
                return False
            yield from reader.spaces()
            if not (yield from self._value(key)):
                return False
            if self._began:
                reader.pin()
            yield from reader.spaces()
            if (yield from reader.literal("}")):
                return self._whole()
            if not (yield from reader.literal(",")):
                return self._began  # an outer brace that was forgotten does no harm

    def _value(self, key: str) -> Step[bool]:
        reader = self._reader
        if key in NAME_KEYS and self._name is None:
            self._name = yield from reader.json_string()
            return bool(self._name) and self._known(self._name or "")
        if key not in ARGUMENT_KEYS or self._began or self._held is not None:
            return (yield from reader.json_value(_drop))
        if (yield from reader.peek()) != "{":
            return False
        if self._name is not None:
            self._begin(self._name)
            return (yield from reader.json_value(reader.arguments))
        parts: list[str] = []
        whole = yield from reader.json_value(parts.append)
        self._held = "".join(parts)
        return whole

    def _begin(self, name: str) -> None:
        self._began = True
        self._reader.began(name)
        self._reader.unpin()

    def _whole(self) -> bool:
        if self._began:
            return True
        if self._name is None or (self._held is None and self._need_arguments):
            return False
        self._begin(self._name)
        self._reader.arguments(self._held or "{}")
        return True


def named_call(reader: AnswerReader, known: Known, before: str, skip: str) -> Step[bool]:
    """`f` and then `before`, then `{…}`. `skip`: a marker that may stand between, with a word after it."""
    name = yield from reader.name()
    if not name or not known(name):
        return False
    if skip and (yield from reader.literal(skip)):
        yield from reader.name()
    if not (yield from reader.loose(before)):
        return False
    yield from reader.spaces()
    if (yield from reader.peek()) != "{":
        return False
    reader.began(name)
    reader.unpin()
    return (yield from reader.json_value(reader.arguments))


def xml_call(reader: AnswerReader, known: Known, schemas: Mapping[str, Mapping[str, Any]]) -> Step[bool]:
    """`<function=f><parameter=a>value</parameter>…</function>`. A value is text or JSON as the tool's schema says;
    `schemas`: the JSON schema of each tool's arguments."""
    if not (yield from reader.loose("<function=")):
        return False
    name = yield from reader.name()
    if not name or not known(name) or not (yield from reader.literal(">")):
        return False
    reader.began(name)
    reader.unpin()
    properties = schemas.get(name, {}).get("properties", {})
    opening = "{"
    while True:
        reader.pin()
        yield from reader.spaces()
        if (yield from reader.literal("</function>")):
            reader.arguments("}" if opening == ", " else "{}")
            return True
        if not (yield from reader.literal("<parameter=")):
            return False
        key: list[str] = []
        if (yield from reader.until((">",), key.append)) is None:
            return False
        yield from reader.literal(">")
        yield from reader.literal("\n")
        parameter = "".join(key)
        if not (yield from _xml_value(reader, f"{opening}{_quoted(parameter)}: ", properties.get(parameter))):
            return False
        opening = ", "


def _xml_value(reader: AnswerReader, opening: str, schema: Any) -> Step[bool]:
    """`opening`: what stands before the value in the arguments."""
    ends = ("\n</parameter>", "</parameter>")
    if _is_text(schema):
        reader.unpin()
        reader.arguments(opening + '"')
        end = yield from reader.until(ends, lambda text: reader.arguments(_escaped(text)))
        if end is None:
            return False
        reader.arguments('"')
    else:
        parts: list[str] = []
        end = yield from reader.until(ends, parts.append)
        if end is None:
            return False
        reader.arguments(opening + _as_json("".join(parts)))
    return (yield from reader.literal(end))


def _is_text(schema: Any) -> bool:
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    return kind == "string"


def _escaped(text: str) -> str:
    return _quoted(text)[1:-1]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _as_json(text: str) -> str:
    text = _WORDS.get(text.strip(), text)
    try:
        json.loads(text)
    except ValueError:
        return _quoted(text)
    return text.strip()


def python_call(reader: AnswerReader, known: Known) -> Step[bool]:
    """`f(a="x", b=[1, None])`, or `f.call(…)`; arguments by name only, values as Python writes them."""
    name = (yield from reader.name()).removesuffix(".call")
    if not name or not known(name) or not (yield from reader.literal("(")):
        return False
    return (yield from _pairs(reader, name, "=", ")", ""))


def gemma_call(reader: AnswerReader, known: Known, quote: str) -> Step[bool]:
    """`call:f{a:<escape>x<escape>,b:1}`, where `quote` stands for `<escape>`."""
    if not (yield from reader.loose("call:")):
        return False
    name = yield from reader.name()
    if not name or not known(name) or not (yield from reader.literal("{")):
        return False
    return (yield from _pairs(reader, name, ":", "}", quote))


def _pairs(reader: AnswerReader, name: str, between: str, end: str, quote: str) -> Step[bool]:
    """Begins a call with arguments up to `end`, once the first of them is known to be one."""
    opening = "{"
    while True:
        yield from reader.spaces()
        if (yield from reader.literal(end)):
            break
        key = yield from reader.name()
        if not key or not (yield from reader.loose(between)):
            return False
        value = yield from _value(reader, quote)
        if value is None:
            return False
        if opening == "{":
            reader.began(name)
        reader.arguments(f"{opening}{_quoted(key)}: {value}")
        reader.pin()
        opening = ", "
        yield from reader.spaces()
        if not (yield from reader.literal(",")) and (yield from reader.peek()) != end:
            return False
    if opening == "{":
        reader.began(name)
    reader.arguments("}" if opening == ", " else "{}")
    return True


def _value(reader: AnswerReader, quote: str, depth: int = 0) -> Step[str | None]:
    """A value as JSON; None where none comes."""
    if depth > 64:
        return None
    yield from reader.spaces()
    if quote and (yield from reader.literal(quote)):
        parts: list[str] = []
        if (yield from reader.until((quote,), parts.append)) is None:
            return None
        yield from reader.literal(quote)
        return _quoted("".join(parts))
    first = yield from reader.peek()
    match first:
        case '"' | "'":
            return (yield from _python_string(reader, first))
        case "[" | "(":
            return (yield from _list(reader, quote, "]" if first == "[" else ")", depth))
        case "{":
            return (yield from _dict(reader, quote, depth))
    word = yield from _word(reader)
    return _WORDS.get(word) or (word if _NUMBER.fullmatch(word) else None)


def _word(reader: AnswerReader) -> Step[str]:
    word = ""
    while (character := (yield from reader.peek())) and (character.isalnum() or character in "+-._"):
        word += character
        reader.at += 1
    return word


def _python_string(reader: AnswerReader, delimiter: str) -> Step[str | None]:
    reader.at += 1
    text = ""
    while (character := (yield from reader.peek())) != delimiter:
        if not character:
            return None
        reader.at += 1
        if character == "\\":
            character = yield from _escape(reader)
        text += character
    reader.at += 1
    return _quoted(text)


def _escape(reader: AnswerReader) -> Step[str]:
    """What stands for the escape sequence whose backslash was read; the sequence itself if it is none."""
    escaped = yield from reader.peek()
    reader.at += len(escaped)
    if escaped not in _DIGITS:
        return _ESCAPES.get(escaped, "\\" + escaped)
    digits = ""
    while len(digits) < _DIGITS[escaped] and (yield from reader.peek()) in _HEX:
        digits += reader.text[reader.at]
        reader.at += 1
    code = int(digits or "0", 16)
    if len(digits) < _DIGITS[escaped] or code > 0x10FFFF or 0xD800 <= code < 0xE000:
        return "\\" + escaped + digits
    return chr(code)


def _list(reader: AnswerReader, quote: str, end: str, depth: int) -> Step[str | None]:
    reader.at += 1
    items: list[str] = []
    while True:
        yield from reader.spaces()
        if (yield from reader.literal(end)):
            return "[" + ", ".join(items) + "]"
        item = yield from _value(reader, quote, depth + 1)
        if item is None:
            return None
        items.append(item)
        yield from reader.spaces()
        if not (yield from reader.literal(",")) and (yield from reader.peek()) != end:
            return None


def _dict(reader: AnswerReader, quote: str, depth: int) -> Step[str | None]:
    reader.at += 1
    items: list[str] = []
    while True:
        yield from reader.spaces()
        if (yield from reader.literal("}")):
            return "{" + ", ".join(items) + "}"
        first = yield from reader.peek()
        if first in ('"', "'") or (quote and first == quote[0]):
            key = yield from _value(reader, quote, depth + 1)
        else:
            key = _quoted((yield from reader.name()))
        if key is None or not (yield from reader.loose(":")):
            return None
        value = yield from _value(reader, quote, depth + 1)
        if value is None:
            return None
        items.append(f"{key}: {value}")
        yield from reader.spaces()
        if not (yield from reader.literal(",")) and (yield from reader.peek()) != "}":
            return None


def _drop(_: str) -> None:
    pass
