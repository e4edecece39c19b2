"""Which conversation does a nameless chat continue? Pure: a chain of hashes over what its messages say.

Two requests of one conversation share the chain up to the answer between them, although clients send a message
in other words of JSON the next time, and begin with the time of day. Looks nothing up and keeps nothing.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Place = Literal["system", "opening", "user"]
"""Where a client puts it: in system messages; in those and the first user message; in any user message."""

MOST_CONTINUED = 16
"""Histories that one request offers to be continued; a longer tail was answered long ago."""

SYSTEM_ROLES = frozenset({"system", "developer"})
TEXT_PARTS = ("text", "input_text", "output_text")
"""No set: what a client sent as a type may have no hash."""


@dataclass(frozen=True, slots=True)
class Message:
    """What counts of one message of a chat, as the client sent it: of any type, since nobody has checked it."""

    role: Any = None
    content: Any = None
    tool_calls: Any = None
    function_call: Any = None


@dataclass(frozen=True, slots=True)
class History:
    """What a request says so far (64 hex digits), and the histories it would continue, longest first."""

    whole: str
    continues: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Volatile:
    """A part that a client writes anew at every call, and that tells no two conversations apart."""

    client: str
    place: Place
    pattern: re.Pattern[str]
    example: str


# Every pattern begins with a literal or a digit, which the search skips to, and none reads past where the next match
# could begin: prompts are long, and anybody may write one.
_DATE = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
_CLOCK = r":[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?"
_LOCAL = r"(?: ?[AaPp][Mm]\b)?(?: ?(?:Z\b|[+-][0-9]{2}:?[0-9]{2}\b))?"
_STAMP = (
    r"[0-9](?<!\w.)(?:[0-9]{3}-[0-9]{2}-[0-9]{2}"
    rf"(?:[T ][0-9]{{1,2}}{_CLOCK}{_LOCAL}| [0-9]{{2}}:[0-9]{{2}}\b)|[0-9]?{_CLOCK}{_LOCAL})"
)
"""A date with a time, to the minute or better, or a time to the second, beginning at a word."""


BILLING = r"x-anthropic-billing-header:[^\n]*\n?"
"""A line that Claude Code puts before its system prompt. It says nothing to a model."""


def _volatile(client: str, place: Place, pattern: str, example: str) -> Volatile:
    return Volatile(client, place, re.compile(pattern), example)


VOLATILE = (
    _volatile(
        "Claude Code",
        "system",
        BILLING,
        "x-anthropic-billing-header: cc_version=2.1.37.0d9; cc_entrypoint=cli; cch=fa690;",
    ),
    _volatile(
        "Home Assistant",
        "system",
        rf"Current time is [0-9]{{2}}{_CLOCK}\. Today's date is {_DATE}\.",
        "Current time is 18:21:07. Today's date is 2025-11-02.",
    ),
    _volatile(
        "Roo Code",
        "opening",
        rf"# Current Time\nCurrent time in ISO 8601 UTC format: {_DATE}T[0-9]{{2}}{_CLOCK}Z",
        "# Current Time\nCurrent time in ISO 8601 UTC format: 2026-05-06T09:02:18.429Z",
    ),
    _volatile(
        "goose",
        "user",
        r"(?s)<info-msg>\nIt is currently (?:(?!</?info-msg>).)*</info-msg>",
        "<info-msg>\nIt is currently 2025-12-01 09:41:00\nWorking directory: /work\n</info-msg>",
    ),
    _volatile("goose", "system", _STAMP, "2025-12-01 09:00"),
    _volatile(
        "opencode",
        "system",
        r"Today's date: [A-Z][a-z]{2} [A-Z][a-z]{2} [0-9]{2} [0-9]{4}\b",
        "Today's date: Wed Nov 25 2026",
    ),
    _volatile("Open WebUI, {{CURRENT_DATETIME}}", "system", _STAMP, "2025-11-02 06:21:07 PM"),
    _volatile("Open WebUI, {{CURRENT_TIME}}", "system", _STAMP, "06:21:07 PM"),
    _volatile("LibreChat, {{current_datetime}}", "system", _STAMP, "2025-11-02 18:21:07"),
    _volatile("LibreChat, {{iso_datetime}}", "system", _STAMP, "2025-11-02T18:21:07.123Z"),
)
"""What is taken out before messages are compared, each with an example of how that client writes it."""

_PATTERNS = tuple(dict.fromkeys((volatile.place, volatile.pattern) for volatile in VOLATILE))


def history(messages: Sequence[Message], seed: bytes) -> History | None:
    """The chain over `messages`, begun at `seed` (of whose conversation it is).

    None where they cannot tell one conversation from another: nobody has spoken but the system, or something
    is not a message. `continues` holds the chain as it stood before each of the newest answers. A message of
    which nothing but volatile parts was there is none.
    """
    chain, before_answers, spoken, opened = seed, [], False, False
    try:
        for message in messages:
            role = message.role
            if not isinstance(role, str):
                return None
            pieces = list(_pieces(message, opening=role == "user" and not opened))
            if role == "user" and not pieces and any(_runs(message.content)):
                continue
            opened = opened or role == "user"
            spoken = spoken or role not in SYSTEM_ROLES
            if role == "assistant":
                before_answers.append(chain.hex())
            chain = hashlib.sha256(chain + _framed([_bytes(role), *pieces])).digest()
    except RecursionError:
        return None
    if not spoken:
        return None
    return History(chain.hex(), tuple(before_answers[: -MOST_CONTINUED - 1 : -1]))


def steady(text: str, role: str, opening: bool = False) -> str:
    """`text` of a message without what its client changes at every call, and without space around it."""
    for place, pattern in _PATTERNS:
        if _applies(place, role, opening):
            text = pattern.sub("", text)
    return text.strip()


def _applies(place: Place, role: str, opening: bool) -> bool:
    if place == "user":
        return role == "user"
    return role in SYSTEM_ROLES or (place == "opening" and opening)


def _pieces(message: Message, opening: bool) -> Iterator[bytes]:
    """Runs of text, other parts and tool calls. Ids are left out: they are the answer's, not the talk's."""
    for part in _runs(message.content):
        if isinstance(part, str):
            if text := steady(part, message.role, opening):
                yield b"text"
                yield _bytes(text)
        else:
            yield b"part"
            yield from _value(part)
    calls = message.tool_calls if isinstance(message.tool_calls, list) else []
    functions = [call.get("function", call) if isinstance(call, dict) else call for call in calls]
    if message.function_call is not None:
        functions.append(message.function_call)
    for function in functions:
        yield b"call"
        yield from _call(function)


def _runs(content: object) -> Iterator[object]:
    """The parts of a content, with texts that stand side by side as one, and none that is blank."""
    parts = content if isinstance(content, list) else [] if content is None else [content]
    run = ""
    for part in parts:
        text = _text_of(part)
        if text is not None:
            run += text
            continue
        if run.strip():
            yield run
        run = ""
        yield part
    if run.strip():
        yield run


def _text_of(part: object) -> str | None:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type") in TEXT_PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    return None


def _call(function: object) -> Iterator[bytes]:
    """A call's name and arguments; arguments that are JSON count by their values, however they are written."""
    if not isinstance(function, dict):
        yield from _value(function)
        return
    yield from _value(function.get("name"))
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = arguments.strip()
    yield from _value(arguments)


def _value(value: object) -> Iterator[bytes]:
    """A JSON value in pieces, whatever the order of its keys. Marks of a cache's are no part of it."""
    if isinstance(value, str):
        yield b"string"
        yield _bytes(value)
    elif isinstance(value, dict):
        kept = sorted((str(key), inner) for key, inner in value.items() if key != "cache_control")
        yield b"object %d" % len(kept)
        for key, inner in kept:
            yield _bytes(key)
            yield from _value(inner)
    elif isinstance(value, list):
        yield b"list %d" % len(value)
        for inner in value:
            yield from _value(inner)
    else:
        yield repr(value).encode()


def _framed(pieces: Iterable[bytes]) -> bytes:
    """Each piece behind its length: no two lists of pieces give the same bytes."""
    return b"".join(len(piece).to_bytes(8, "big") + piece for piece in pieces)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
