"""How mistakes in files that people write are told: with file, line, key and remedy, and all there are.

Puts pydantic's findings into our words. Reads no file, and knows no section but those that it is given.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.schema_values import Section, known_keys, shown
from serving.yaml_lines import Document, Loc, key_text

HINTS = {"threads": "The slice decides it: set needs.cores"}
MISSING = {
    "name": "Add it: what clients put in `model`",
    "source": "Add it: bundled, or the path of a GGUF file",
    "models": "Add a model; configs/homeport.yaml shows one",
}

WORDS = {
    "homeport": ("{problem}", "{remedy}"),
    "int_type": ("{value} is not a whole number", "Write it as digits, without quotes or unit"),
    "int_from_float": ("{value} is not a whole number", "Write it without a point"),
    "bool_type": ("{value} is not true or false", "Write true or false, without quotes"),
    "float_type": ("{value} is not a number", "Write it as digits, without quotes or unit"),
    "finite_number": ("{value} is not a number", "Write it as digits"),
    "string_type": ("{value} is not text", "Put it in quotes"),
    "list_type": ("is not a list", "Begin each entry with a dash: `- name: ...`"),
    "model_type": ("{value} has no keys in it", "Write `key: value` pairs below it"),
    "greater_than_equal": ("{value} is too small", "Use {ge} or more"),
    "greater_than": ("{value} is too small", "Use more than {gt}"),
    "less_than_equal": ("{value} is too large", "Use {le} or less"),
    "literal_error": ("{value} is not possible here", "Use {expected}"),
}
"""By pydantic's name of a finding: message and remedy."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with the file."""

    line: int
    """From 1; 0 when it is about the whole file."""
    key: str
    """For example `models[0].hold`; "" when it is about the whole file."""
    message: str
    remedy: str

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        return f"{key}{self.message}. {self.remedy}{'' if self.remedy.endswith('?') else '.'}"


class ConfigError(Exception):
    """The file cannot be used. Its text has a line `FILE:LINE: KEY: MESSAGE. REMEDY.` for each problem."""

    def __init__(self, path: Path, problems: list[Problem]) -> None:
        self.path = path
        self.problems = sorted(problems, key=lambda problem: problem.line)
        places = (f"{path}:{problem.line}" if problem.line else str(path) for problem in self.problems)
        super().__init__(
            "\n".join(f"{place}: {problem}" for place, problem in zip(places, self.problems, strict=True))
        )


def translate(
    document: Document, fault: Mapping[str, Any], sections: Mapping[tuple[str, ...], type[Section]]
) -> Problem:
    """pydantic's finding in our words. `sections` are those of the file, by the keys that lead there."""
    loc: Loc = fault["loc"]
    last = str(loc[-1]) if loc else ""
    words: Mapping[str, Any] = {**fault.get("ctx", {}), "value": shown(fault["input"])}
    kind = fault["type"]
    if kind == "extra_forbidden":
        message, remedy = "unknown key", _suggestion(loc, sections)
    elif kind in ("missing", "too_short"):
        message = "is missing" if kind == "missing" else "is empty"
        remedy = MISSING.get(last, "Add it")
    elif kind != "homeport" and fault["input"] is None:
        message, remedy = "has no value", "Give it one, or remove the key"
    else:
        message, remedy = WORDS.get(kind, ("{value}: " + fault["msg"].replace("{", "{{"), "Correct it"))
    return Problem(document.line(loc), key_text(loc), message.format_map(words), remedy.format_map(words))


def _suggestion(loc: Loc, sections: Mapping[tuple[str, ...], type[Section]]) -> str:
    way = tuple(part for part in loc[:-1] if isinstance(part, str))
    unknown = str(loc[-1])
    known = known_keys(sections[way])
    if close := difflib.get_close_matches(unknown, known, n=1, cutoff=0.6):
        return f"Did you mean {close[0]}?"
    if unknown in HINTS:
        return HINTS[unknown]
    # A section below the one where it stands is more likely meant than one elsewhere.
    for other, section in sorted(sections.items(), key=lambda entry: entry[0][: len(way)] != way):
        if unknown in known_keys(section):
            return f"It belongs below {'.'.join(other)}" if other else "It belongs at the top of the file"
    return f"Known here: {', '.join(known)}"
