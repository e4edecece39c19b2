"""What keys.yaml may say: a list of who may use homeport, each with the SHA-256 of a key.

Refusals repeat nothing of the file but the names of keys: somebody may have put a key where its digest belongs.
Compares no keys and knows no paths of requests (see router/keys.py).
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from serving.config_problems import ConfigError, Problem
from serving.config_schema import MachineName, ModelName
from serving.schema_values import Section, distinct, fault, known_keys
from serving.yaml_lines import Document, Loc, YamlError, read_yaml

Role = Literal["use", "admin", "metrics"]

OWNER = "local"
"""Whose sessions are those of this machine's owner, and of everybody while there are no keys (router/identity.py)."""

MOST_PER_MINUTE = 100_000
MAKE_ONE = "Make one with `homeport key new NAME`"
REMEDIES = {
    "name": "Use letters, digits and . _ @ -, at most 63",
    "sha256": "Write the 64 hex digits of the key's SHA-256, in quotes; `homeport key new` does",
    "role": "Use use, admin or metrics",
    "models": "Name models as clients do, each once, for example [assistant]",
    "zones": "Name zones, each once, for example [home]",
    "machines": "Name machines, each once, for example [den-pc]",
    "places": "Write a whole number from 1 to 10000",
    "requests_per_minute": f"Write a whole number from 1 to {MOST_PER_MINUTE}",
    "weight": "Write a number above 0, at most 100",
}


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise fault("this is not text", "Put it in quotes")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}", value):
        raise fault("this cannot be a name", REMEDIES["name"])
    if re.match(r"hp-[A-Za-z0-9_-]{40}", value):
        raise fault("this looks like a key, not like a name", "Choose a name that people may see")
    if value == OWNER:
        raise fault("this is the name of who asks from this machine without a key", "Choose another name")
    return value


def _sha256(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise fault("this is not a SHA-256", REMEDIES["sha256"])
    return value.lower()


def _names(value: object) -> tuple[Any, ...]:
    """A list, or one name alone."""
    names = tuple(value) if isinstance(value, list) else (value,)
    if not names or any(not isinstance(name, str) for name in names):
        raise fault("this is no list of names", "Write text")
    return distinct(names, "a name is there twice")


class KeySection(Section):
    """One key. What is left out is not limited."""

    name: Annotated[str, BeforeValidator(_name)]
    sha256: Annotated[str, BeforeValidator(_sha256)]
    role: Role = "use"
    models: Annotated[tuple[ModelName, ...], BeforeValidator(_names)] | None = None
    zones: Annotated[tuple[MachineName, ...], BeforeValidator(_names)] | None = None
    machines: Annotated[tuple[MachineName, ...], BeforeValidator(_names)] | None = None
    places: Annotated[int, Field(ge=1, le=10_000)] | None = None
    requests_per_minute: Annotated[int, Field(ge=1, le=MOST_PER_MINUTE)] | None = None
    weight: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] = 1.0


KEYS = TypeAdapter(list[KeySection])


def read_keys(path: Path) -> tuple[KeySection, ...]:
    """The keys of this file. Raises ConfigError."""
    return parse_keys(path, read_text(path))


def read_text(path: Path) -> str:
    """What stands in the file. Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _refuse(path, "there is no such file", MAKE_ONE) from None
    except UnicodeDecodeError:
        raise _refuse(path, "it is not UTF-8 text", "Save it as UTF-8") from None
    except OSError as error:
        remedy = "Give the user that homeport runs as the right to read it"
        raise _refuse(path, f"it cannot be read: {error.strerror}", remedy) from error


def parse_keys(path: Path, text: str) -> tuple[KeySection, ...]:
    """The keys that this text of `path` names; () for one that names none. Raises ConfigError."""
    return parse_document(path, read_document(path, text))


def read_document(path: Path, text: str) -> Document:
    """The YAML in it. Raises ConfigError."""
    try:
        return read_yaml(text)
    except RecursionError:
        raise _refuse(path, "it is nested too deeply", "Write a list of keys") from None
    except YamlError as error:
        # Without YAML's own words, which may quote what stands there.
        raise ConfigError(path, [Problem(error.line, "", "not valid YAML", error.remedy)]) from None


def parse_document(path: Path, document: Document) -> tuple[KeySection, ...]:
    """See `parse_keys`."""
    if document.data is None:
        return ()
    try:
        keys = tuple(KEYS.validate_python(document.data))
    except ValidationError as error:
        raise ConfigError(path, [_problem(document, dict(found)) for found in error.errors()]) from None
    if twins := list(_twins(keys, document)):
        raise ConfigError(path, twins)
    return keys


def lets_anybody_in(keys: tuple[KeySection, ...]) -> bool:
    """Whether one of them may use or administer, not only read metrics."""
    return any(key.role != "metrics" for key in keys)


def _twins(keys: tuple[KeySection, ...], document: Document) -> Iterator[Problem]:
    names: dict[str, int] = {}
    digests: dict[str, int] = {}
    for at, key in enumerate(keys):
        first = names.setdefault(key.name, at)
        if first != at:
            message = f"{key.name} is also the name in line {document.line((first, 'name'))}"
            yield Problem(document.line((at, "name")), f"[{at}].name", message, "Rename one of them")
        first = digests.setdefault(key.sha256, at)
        if first != at:
            message = f"it is also the key in line {document.line((first, 'sha256'))}"
            remedy = f"Give each name a key of its own: {MAKE_ONE[0].lower()}{MAKE_ONE[1:]}"
            yield Problem(document.line((at, "sha256")), f"[{at}].sha256", message, remedy)


def _problem(document: Document, found: Mapping[str, Any]) -> Problem:
    """pydantic's finding, without the value that it is about."""
    loc: Loc = found["loc"]
    line = document.line(loc)
    known = known_keys(KeySection)
    field = next((part for part in loc if isinstance(part, str)), "")
    entry = f"[{loc[0]}]" if loc else ""
    if not field:
        message = "this is no entry" if loc else "it is not a list"
        return Problem(line, entry, message, "Write each entry as `- name: ...`; `homeport key new` does")
    if found["type"] == "extra_forbidden":
        close = difflib.get_close_matches(field, known, n=1, cutoff=0.6)
        remedy = f"Did you mean {close[0]}?" if close else f"Known here: {', '.join(known)}"
        return Problem(line, entry, "it has an unknown field", remedy)
    return Problem(line, f"{entry}.{field}", *refusal(found))


def refusal(found: Mapping[str, Any]) -> tuple[str, str]:
    """pydantic's finding about a field, in our words and without its value: what is wrong, and a remedy."""
    field = next(part for part in found["loc"] if isinstance(part, str))
    if found["type"] == "missing":
        return "is missing", REMEDIES[field]
    if found["type"] == "homeport" and field in ("name", "sha256"):
        return found["ctx"]["problem"], found["ctx"]["remedy"]
    return "this is not possible here", REMEDIES[field]


def _refuse(path: Path, message: str, remedy: str) -> ConfigError:
    return ConfigError(path, [Problem(0, "", message, remedy)])
