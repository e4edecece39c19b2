"""The script of a scripted engine: its rules, and what data must be like to be one. Pure.

Reads no file (script_file.py) and answers nobody (script_answers.py).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Loc = tuple[str | int, ...]
"""The way to a value: keys and list positions from the top."""

KNOWN_TEXTS = ("last_user", "system", "last_tool", "last_result")
"""What a text may name beside the groups of its rule: the texts that conditions look at."""
PLACE = re.compile(r"\$(?P<plain>\$)(?=\{)|\$\{(?P<name>[^}]*)(?P<closed>\}?)")
"""`${name}`, or the first `$` of `$${`, which stands for a plain `${`."""


class ScriptFault(Exception):
    """This is no script. `loc` leads to what is wrong."""

    def __init__(self, loc: Loc, message: str, remedy: str) -> None:
        super().__init__(message)
        self.loc = loc
        self.message = message
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class When:
    """All that is given must hold. A pattern may be found anywhere in its text, but `last_tool` is the whole name."""

    last_user: re.Pattern[str] | None = None
    """In what the user has said since the last answer that called no tool."""
    system: re.Pattern[str] | None = None
    last_tool: re.Pattern[str] | None = None
    """The newest message is a result of this tool."""
    last_result: re.Pattern[str] | None = None
    """The same, and what it gave."""
    turn: int | None = None
    """The conversation's so many-th answer, from 1."""
    step: int | None = None
    """The so many-th answer since the last one that called no tool, from 1."""
    tools: tuple[str, ...] | None = None
    """All of these are offered; empty: none is."""

    @property
    def patterns(self) -> dict[str, re.Pattern[str]]:
        """Those that are given, by their keys."""
        found = {name: getattr(self, name) for name in KNOWN_TEXTS}
        return {name: pattern for name, pattern in found.items() if pattern is not None}


@dataclass(frozen=True, slots=True)
class Call:
    """A tool that is called. Texts in `arguments` may name groups."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered, in this order: thought, said, called."""

    think: str = ""
    say: str = ""
    call: tuple[Call, ...] = ()
    repeat: int = 1
    """So many times it is said."""
    tokens_per_s: float | None = None
    """None: as fast as can be."""
    first_token_s: float = 0.0
    """From when the prompt is evaluated."""


@dataclass(frozen=True, slots=True)
class Rule:
    """It is passed over by a request that does not offer a tool which it calls."""

    when: When
    answer: Answer


@dataclass(frozen=True, slots=True)
class Script:
    """The first rule that matches answers, else `otherwise`."""

    rules: tuple[Rule, ...] = ()
    otherwise: Answer = Answer(say="${last_user}")
    prompt_tokens_per_s: float | None = None
    """None: prompts take no time."""


def read_script(data: Any) -> Script:
    """`data`: as YAML or JSON has it. Raises ScriptFault for the first thing that is wrong."""
    told = _section(data, (), _TOP)
    usual: dict[str, Any] = {name: told[name] for name in ("tokens_per_s", "first_token_s") if name in told}
    rules: list[Rule] = []
    for at, rule in enumerate(told.get("rules", ())):
        rules += _rules(rule, ("rules", at), usual)
    default = told.get("default")
    otherwise = Answer(say="${last_user}", **usual) if default is None else Answer(**(usual | default))
    _check_names(otherwise, When(), ("default",))
    return Script(tuple(rules), otherwise, told.get("prompt_tokens_per_s"))


def _rules(rule: Mapping[str, Any], loc: Loc, usual: dict[str, Any]) -> Iterator[Rule]:
    """One; of a rule with `steps` one for each."""
    when = When(**rule.get("when", {}))
    own = {name: value for name, value in rule.items() if name in _ANSWER}
    steps = rule.get("steps")
    if steps is None:
        answer = Answer(**(usual | own))
        _check_names(answer, when, loc)
        yield Rule(when, answer)
        return
    if when.step is not None:
        raise ScriptFault((*loc, "when", "step"), "the rule has steps of its own", "Remove it")
    for name in ("say", "think", "call", "repeat"):
        if name in own:
            raise ScriptFault((*loc, name), "the rule has steps that answer", "Move it into a step")
    for at, step in enumerate(steps):
        answer = Answer(**(usual | own | step))
        _check_names(answer, when, (*loc, "steps", at))
        yield Rule(replace(when, step=at + 1), answer)


def group_names(when: When) -> frozenset[str]:
    """What a text of this rule may name beside KNOWN_TEXTS. Groups have numbers where only one pattern has any."""
    grouped = [pattern for pattern in when.patterns.values() if pattern.groups]
    numbers = range(1, grouped[0].groups + 1) if len(grouped) == 1 else ()
    return frozenset({*map(str, numbers), *(name for pattern in grouped for name in pattern.groupindex)})


def _check_names(answer: Answer, when: When, loc: Loc) -> None:
    """Every `${name}` in the answer's texts leads to something."""
    known = (*KNOWN_TEXTS, *sorted(group_names(when)))
    texts = [("think", answer.think), ("say", answer.say)]
    texts += [("call", text) for call in answer.call for text in _texts(call.arguments)]
    for key, text in texts:
        for place in PLACE.finditer(text):
            if not place["plain"] and not (place["closed"] and place["name"] in known):
                shown = place[0] if len(place[0]) <= _SHOWN else f"{place[0][:_SHOWN]}..."
                remedy = f"Known here: {', '.join(known)}. A plain ${{ is written $${{"
                raise ScriptFault((*loc, key), f"{shown} names nothing", remedy)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


# Values

_SHOWN = 60
Read = Callable[[Any, Loc], Any]
"""Checks a value, and gives it as it is used."""


def _section(value: Any, loc: Loc, keys: Mapping[str, Read]) -> dict[str, Any]:
    """The keys that are given."""
    if not isinstance(value, Mapping):
        raise ScriptFault(loc, "has no keys in it", f"Write some of {', '.join(keys)} below it")
    for key in value:
        if key not in keys:
            raise ScriptFault((*loc, str(key)), "unknown key", f"Known here: {', '.join(keys)}")
    return {key: keys[key](each, (*loc, key)) for key, each in value.items()}


def _listed(read: Read) -> Read:
    def check(value: Any, loc: Loc) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ScriptFault(loc, "is not a list", "Begin each entry with a dash")
        return tuple(read(each, (*loc, at)) for at, each in enumerate(value))

    return check


def _text(value: Any, loc: Loc) -> str:
    if not isinstance(value, str):
        raise ScriptFault(loc, "is not text", "Put it in quotes")
    return value


def _pattern(value: Any, loc: Loc) -> re.Pattern[str]:
    try:
        return re.compile(_text(value, loc))
    except re.error as error:
        raise ScriptFault(
            loc, f"is no regular expression: {error}", "Correct it, as Python has them"
        ) from None


def _whole(value: Any, loc: Loc) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ScriptFault(loc, "is not a whole number from 1", "Write it as digits")
    return value


def _seconds(value: Any, loc: Loc) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < _LONGEST_S:
        raise ScriptFault(loc, "is not a number of seconds", "Write it as digits, without a unit")
    return float(value)


def _rate(value: Any, loc: Loc) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1 / _LONGEST_S < value < _FASTEST:
        raise ScriptFault(loc, "is not a number of tokens a second", "Write more than 0, or remove it")
    return float(value)


def _arguments(value: Any, loc: Loc) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ScriptFault(loc, "is not an object", "Write the arguments as keys below it")
    _check_plain(value, loc)
    return value


def _check_plain(value: Any, loc: Loc) -> None:
    """Only what JSON has: YAML knows dates, for example."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            _check_plain(each, (*loc, str(key)))
    elif isinstance(value, list):
        for at, each in enumerate(value):
            _check_plain(each, (*loc, at))
    elif value is not None and not isinstance(value, str | int | float):
        raise ScriptFault(loc, "is nothing that JSON has", "Put it in quotes")


def _call(value: Any, loc: Loc) -> Call:
    told = _section(value, loc, {"name": _text, "arguments": _arguments})
    if not told.get("name"):
        raise ScriptFault(loc, "calls no tool", "Write its name")
    return Call(**told)


def _calls(value: Any, loc: Loc) -> tuple[Call, ...]:
    """One needs no list."""
    if isinstance(value, Mapping):
        return (_call(value, loc),)
    calls: tuple[Call, ...] = _listed(_call)(value, loc)
    return calls


_LONGEST_S = 86400.0
_FASTEST = 1e9
_WHEN: Mapping[str, Read] = {
    **dict.fromkeys(KNOWN_TEXTS, _pattern),
    "turn": _whole,
    "step": _whole,
    "tools": _listed(_text),
}
_ANSWER: Mapping[str, Read] = {
    "think": _text,
    "say": _text,
    "call": _calls,
    "repeat": _whole,
    "tokens_per_s": _rate,
    "first_token_s": _seconds,
}
_STEPS = _listed(lambda value, loc: _section(value, loc, _ANSWER))
_RULE: Mapping[str, Read] = {
    "when": lambda value, loc: _section(value, loc, _WHEN),
    "steps": _STEPS,
    **_ANSWER,
}
_TOP: Mapping[str, Read] = {
    "rules": _listed(lambda value, loc: _section(value, loc, _RULE)),
    "default": lambda value, loc: _section(value, loc, _ANSWER),
    "prompt_tokens_per_s": _rate,
    "tokens_per_s": _rate,
    "first_token_s": _seconds,
}
