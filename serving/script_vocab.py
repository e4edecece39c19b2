"""The tokens of a scripted engine, and how a conversation is written in them. Pure.

A token is up to three bytes of one line, a line break, or one of two special ones. So a text is always cut in the same
way from its beginning on, and what was made token by token is read as the same tokens later.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from serving.script_answers import Message

BEGIN, END = "<|im_start|>", "<|im_end|>"
SPECIALS = (BEGIN, END)
BEGIN_ID, END_ID = 0, 1
LONGEST = max(map(len, SPECIALS))
"""Bytes behind one token at most."""
_WIDTH = 3
_FIRST: Mapping[int, int] = {
    width: len(SPECIALS) + sum(256**shorter for shorter in range(1, width)) for width in range(1, _WIDTH + 2)
}
"""By how many bytes it has: the smallest id."""
SIZE = _FIRST[_WIDTH + 1]
_PIECE = re.compile(rb"\n|[^\n]{1,%d}" % _WIDTH)
_SPECIAL = re.compile(f"({'|'.join(map(re.escape, SPECIALS))})")

TOOLS = "tools"
"""The role of the message that tells which tools there are, one a line."""
TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>tools\\n' }}
{%- for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}{{ '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}{{ '<|im_start|>' + message.role }}
{%- if message.role == 'tool' %}
{%- set tool = namespace(name=message.name or '') %}
{%- for other in messages %}{%- for call in other.tool_calls or [] %}
{%- if call.id == message.tool_call_id %}{%- set tool.name = call.function.name %}{%- endif %}
{%- endfor %}{%- endfor %}{{ ' ' + tool.name }}
{%- endif %}{{ '\\n' }}
{%- if message.role == 'assistant' and message.reasoning_content %}
{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
{%- endif %}{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}
{%- if message.content or not loop.first %}{{ '\\n' }}{%- endif %}
{{- '<tool_call>\\n{"name": ' }}{{ call.function.name | tojson }}{{ ', "arguments": ' }}
{{- call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}
{%- endfor %}{{ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
"""ChatML, with calls and reasoning written as Hermes and Qwen do. A tool's result names its tool."""


def tokens_of(text: str, special: bool) -> tuple[int, ...]:
    """`special`: the names of special tokens in it are read as such."""
    parts = _SPECIAL.split(text) if special else [text]
    found: list[int] = []
    for part in parts:
        if special and part in SPECIALS:
            found.append(SPECIALS.index(part))
        else:
            # What JSON can say and UTF-8 cannot, half a pair of surrogates, becomes a question mark.
            found += [_id(piece) for piece in _PIECE.findall(part.encode("utf-8", "replace"))]
    return tuple(found)


def _id(piece: bytes) -> int:
    return _FIRST[len(piece)] + int.from_bytes(piece)


def bytes_of(token: int) -> bytes:
    """What it stands for; of a special token its name. 0 <= token < SIZE."""
    if token < len(SPECIALS):
        return SPECIALS[token].encode()
    width = 3 if token >= _FIRST[3] else 2 if token >= _FIRST[2] else 1
    return (token - _FIRST[width]).to_bytes(width)


def text_of(tokens: Sequence[int]) -> str:
    return b"".join(map(bytes_of, tokens)).decode(errors="replace")


def heard(tokens: Sequence[int]) -> tuple[tuple[Message, ...], frozenset[str]]:
    """The conversation that TEMPLATE wrote, whose answer comes next, and the tools that are offered. Without any role
    it is one text of the user's. What clients write as TEMPLATE does is read likewise, and may be anything."""
    if BEGIN_ID not in tokens:
        return (Message("user", text_of(tokens)),), frozenset()
    messages: list[Message] = []
    tools: frozenset[str] = frozenset()
    for role, text in list(_written(tokens))[:-1]:
        kind, _, name = role.partition(" ")
        if kind == TOOLS:
            tools |= frozenset(_tool_names(text))
        else:
            messages.append(Message(kind, text, name))
    return tuple(messages), tools


def _tool_names(text: str) -> Iterator[str]:
    for line in text.splitlines():
        try:
            yield str(json.loads(line)["function"]["name"])
        except (ValueError, TypeError, LookupError, RecursionError):
            continue


def _written(tokens: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Each message's first line, and the rest."""
    text = text_of(tokens)
    for part in text.split(BEGIN)[1:]:
        role, _, rest = part.partition("\n")
        yield role, rest.partition(END)[0]
