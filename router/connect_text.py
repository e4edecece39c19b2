"""Settings written as the text of a client's file, and put into one that is there. Pure.

A file's text is changed by lines, and whoever does it reads it again: what comes of it must say `merged`, else the
file is written in a way that this does not know.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from router.connect import Form
from router.connect_settings import Settings
from router.jsonc import Unclear, with_members

NAMES = ("name", "model_id")
"""By these a list's entries are known again."""
_SAME = re.compile(r"[A-Za-z0-9_./:@%+=,-]*")
"""What stands for itself, to a shell and to Docker."""
_PLAIN_YAML = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*(?: [A-Za-z0-9_./-]+)*")
_YAML_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})


def block(form: Form, settings: Settings) -> str:
    """What a person copies: the whole file, for one who has none. Ends without a line's end."""
    if form == "words":
        return settings.words
    data = settings.data
    if settings.first is not None:
        data = {**settings.first, **data}
    match form:
        case "json":
            return json.dumps(data, indent=2, ensure_ascii=False)
        case "toml":
            return "\n".join(_toml(data))
        case "yaml":
            return "\n".join(_yaml(data))
        case _:
            return "\n".join(f"{name}={value}" for name, value in data.items())


def merged(there: Any, wanted: Any) -> Any:
    """What is there with what is wanted in it: members of objects, and of lists those entries that have its name."""
    if isinstance(there, Mapping) and isinstance(wanted, Mapping):
        return {**there, **{name: merged(there.get(name), value) for name, value in wanted.items()}}
    if isinstance(there, Sequence) and isinstance(wanted, Sequence) and (by := _named_by(wanted)) is not None:
        new = {each[by]: each for each in wanted}
        kept = [
            new.pop(each[by]) if isinstance(each, Mapping) and _known(each.get(by), new) else each
            for each in there
        ]
        return [*kept, *new.values()]
    return wanted


def edited(form: Form, text: str, there: Any, settings: Settings) -> str:
    """A file's text with the settings in it; `there`: what it says now. Raises Unclear."""
    if form == "env" and (
        odd := [name for name, value in settings.data.items() if not _SAME.fullmatch(value)]
    ):
        raise Unclear(f"a shell would read the value of {odd[0]} otherwise")
    if not text.strip():
        return text + block(form, settings) + "\n"
    match form:
        case "json":
            return with_members(text, settings.data, merged)
        case "toml":
            return _lines_changed(text, lambda lines: _with_tables(lines, settings.data))
        case "yaml":
            return _lines_changed(text, lambda lines: _with_yaml(lines, there, settings.data))
        case "env":
            return _lines_changed(text, lambda lines: _with_values(lines, settings.data, "=", str))
        case "words":
            raise Unclear("it has no file")


def _known(name: object, names: Mapping[Any, Any]) -> bool:
    return isinstance(name, str) and name in names


def _named_by(entries: Sequence[Any]) -> str | None:
    for name in NAMES:
        if entries and all(isinstance(each, Mapping) and name in each for each in entries):
            return name
    return None


def _lines_changed(text: str, change: Any) -> str:
    """By lines, each as it ends; the new ones end as the first does."""
    ending = "\r\n" if "\r\n" in text else "\n"
    lines = text.split(ending)
    if lines[-1] == "":
        lines.pop()
    return ending.join(change(lines)) + ending


def _with_values(lines: Sequence[str], values: Mapping[str, Any], mark: str, written: Any) -> list[str]:
    """Each name's last line changed, or one more at the end."""
    changed = list(lines)
    for name, value in values.items():
        line = f"{name}{mark}{written(value)}"
        begins = re.compile(rf"(?:export\s+)?{re.escape(name)}\s*{re.escape(mark.strip())}")
        at = [number for number, each in enumerate(changed) if begins.match(each)]
        if not at:
            end = len(changed)
            while end and not changed[end - 1].strip():
                end -= 1
            changed.insert(end, line)
            continue
        there = changed[at[-1]].partition(mark.strip())[2].strip()
        if re.fullmatch(rf"{re.escape(written(value))}(?:\s+#.*)?", there):
            continue
        if "#" in there:
            raise Unclear(f"a comment beside {name!r} would be lost")
        changed[at[-1]] = line
    return changed


# TOML


def _toml(data: Mapping[str, Any]) -> list[str]:
    plain = {name: value for name, value in data.items() if not isinstance(value, Mapping)}
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in plain.items()]
    for path, values in _tables(data):
        lines += ["", f"[{path}]", *_toml(values)]
    return lines


def _tables(data: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The tables in it, one below another's name."""
    return [
        (f"{name}.{below}", values)
        for name, tables in data.items()
        if isinstance(tables, Mapping)
        for below, values in tables.items()
    ]


def _with_tables(lines: Sequence[str], data: Mapping[str, Any]) -> list[str]:
    plain = {name: value for name, value in data.items() if not isinstance(value, Mapping)}
    first = next((at for at, line in enumerate(lines) if line.lstrip().startswith("[")), len(lines))
    head = _with_values(lines[:first], plain, " = ", _as_toml)
    rest = list(lines[first:])
    if rest and head and len(head) > first and head[-1].strip():
        head.append("")
    for path, values in _tables(data):
        heading = re.compile(rf"\s*\[\s*{re.escape(path)}\s*\]")
        at = next((number for number, line in enumerate(rest) if heading.match(line)), None)
        if at is None:
            rest += ["", f"[{path}]", *_toml(values)]
            continue
        end = next(
            (number for number in range(at + 1, len(rest)) if rest[number].lstrip().startswith("[")),
            len(rest),
        )
        rest[at + 1 : end] = _with_values(rest[at + 1 : end], values, " = ", _as_toml)
    return [*head, *rest]


def _as_toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# YAML


def _yaml(data: Any, indent: str = "") -> list[str]:
    if isinstance(data, Mapping):
        return [line for name, value in data.items() for line in _yaml_member(name, value, indent)]
    return [line for item in data for line in _yaml_item(item, indent)]


def _yaml_member(name: str, value: Any, indent: str) -> list[str]:
    if isinstance(value, Mapping) or (isinstance(value, list) and value and isinstance(value[0], Mapping)):
        return [f"{indent}{name}:", *_yaml(value, indent + "  ")]
    return [f"{indent}{name}: {_as_yaml(value)}"]


def _yaml_item(item: Mapping[str, Any], indent: str) -> list[str]:
    lines = _yaml(item, indent + "  ")
    return [f"{indent}- {lines[0].lstrip()}", *lines[1:]]


def _as_yaml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_as_yaml, value)) + "]"
    if isinstance(value, str) and _PLAIN_YAML.fullmatch(value) and value.lower() not in _YAML_WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)


def _with_yaml(lines: Sequence[str], there: Any, data: Any) -> list[str]:
    if not isinstance(data, Mapping):
        return _with_items(lines, there or [], data, "")
    changed = list(lines)
    for name, value in data.items():
        if not isinstance(value, list):
            changed = _with_values(changed, {name: value}, ": ", _as_yaml)
            continue
        at = next((n for n, line in enumerate(changed) if re.fullmatch(rf"{name}:\s*(?:#.*)?", line)), None)
        if at is None:
            if name in there:
                raise Unclear(f"{name!r} is written in one line")
            changed += [f"{name}:", *_yaml(value, "  ")]
            continue
        end = next((n for n in range(at + 1, len(changed)) if re.match(r"[^\s#-]", changed[n])), len(changed))
        changed[at + 1 : end] = _with_items(changed[at + 1 : end], there.get(name) or [], value, "  ")
    return changed


def _with_items(lines: Sequence[str], there: Sequence[Any], items: Sequence[Any], indent: str) -> list[str]:
    """A list's lines with these entries."""
    changed = list(lines)
    first = next((found for line in changed if (found := re.match(r"(\s*)- ", line))), None)
    indent = indent if first is None else first.group(1)
    by = _named_by(items)
    names = [each.get(by) if isinstance(each, Mapping) else None for each in there]
    begins = [at for at, line in enumerate(changed) if line.startswith(f"{indent}- ")]
    if len(begins) != len(there):
        raise Unclear("its list is written in another way")
    end = len(changed)
    while end and not changed[end - 1].strip():
        end -= 1
    spans = list(zip(begins, [*begins[1:], end], strict=False))
    for item in reversed(items):
        if item[by] not in names:
            changed[end:end] = _yaml_item(item, indent)
            continue
        at = names.index(item[by])
        if there[at] == item:
            continue
        begin, upto = spans[at]
        if any("#" in line for line in changed[begin:upto]):
            raise Unclear(f"comments beside {item[by]!r} would be lost")
        changed[begin:upto] = _yaml_item(item, indent)
    return changed
