"""Reads YAML into plain data and keeps the line of every key. Checks no meaning (see `config_schema`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

Loc = tuple[str | int, ...]
"""The way to a value: keys and list positions from the top."""


class YamlError(Exception):
    """The text is no YAML that can be used. `line` counts from 1; 0 when it is not known."""

    def __init__(self, line: int, message: str, remedy: str, loc: Loc = ()) -> None:
        super().__init__(message)
        self.line = line
        self.message = message
        self.remedy = remedy
        self.loc = loc


@dataclass(frozen=True, slots=True)
class Document:
    """Plain data (mappings with text keys, lists, scalars; None for an empty text) and where they stand."""

    data: Any
    lines: Mapping[Loc, int]

    def line(self, loc: Loc) -> int:
        """The line of this value's key or list item, else of the nearest thing around it that has one, else
        0."""
        for length in range(len(loc), -1, -1):
            if loc[:length] in self.lines:
                return self.lines[loc[:length]]
        return 0


def key_text(loc: Loc) -> str:
    """For example `models[0].hold`."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_yaml(text: str) -> Document:
    """Read one YAML document. Raises YamlError: broken syntax, a key given twice, an alias inside itself."""
    lines: dict[Loc, int] = {}
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            data = None if node is None else _plain(loader, node, (), lines, ())
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = error.problem or error.context or "it cannot be read"
        tab = "'\\t'" in message
        remedy = (
            "Indent with spaces, not tabs" if tab else "Check indentation, colons and quotes around there"
        )
        raise YamlError(mark.line + 1 if mark else 0, f"not valid YAML: {message}", remedy) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(line, f"not valid YAML: {error.reason}", "Remove that character") from error
    return Document(data, lines)


def _plain(
    loader: yaml.SafeLoader, node: yaml.Node, loc: Loc, lines: dict[Loc, int], inside: tuple[int, ...]
) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(loc, line)
    if id(node) in inside:
        raise YamlError(line, "an alias refers to what it stands in", "Write the value out", loc)
    inside = (*inside, id(node))
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, item, (*loc, at), lines, inside) for at, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        try:
            return loader.construct_object(node)
        except ValueError as error:
            raise YamlError(line, f"{node.value!r}: {error}", "Put the value in quotes", loc) from error
    _refuse_twins(node, loc)
    loader.flatten_mapping(node)
    data = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        lines[(*loc, key)] = key_node.start_mark.line + 1
        data[key] = _plain(loader, value_node, (*loc, key), lines, inside)
    return data


def _refuse_twins(node: yaml.MappingNode, loc: Loc) -> None:
    seen: dict[str, int] = {}
    for key_node, _ in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in seen and key != "<<":
            raise YamlError(
                line, f"given twice, first in line {seen[key]}", "Remove one of them", (*loc, key)
            )
        seen[key] = line
