"""Adds and removes entries of keys.yaml; what people wrote around them stays as it is.

Whoever changes the file holds the lock beside it, and replaces it whole. Makes no keys and prints nothing.
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from cluster.paths import write_private
from serving.config_keys import KeySection, parse_document, parse_keys, read_document, read_text
from serving.config_problems import ConfigError

HEAD = """\
# Who may use homeport: `homeport key new NAME` adds a key, `homeport key remove NAME` takes one away, and both
# hold within a second. Only the SHA-256 of each key stands here.
"""


class NameTaken(Exception):
    """There is a key of this name."""


class NoSuchKey(Exception):
    """There is no key of this name."""


def add(path: Path, key: KeySection) -> None:
    """Append an entry, and make the file (mode 0600) where there is none.

    Raises NameTaken, ConfigError for a file that is broken already, OSError.
    """
    with _locked(path) as file:
        text = read_text(file) if file.exists() else HEAD
        document = read_document(file, text)
        keys = parse_document(file, document)
        if any(key.name == other.name for other in keys):
            raise NameTaken(key.name)
        before = text if not text or text.endswith("\n") else f"{text}\n"
        indent = _indent(text.splitlines(), document.line((0,)) if keys else 0)
        entry = "".join(f"{indent}{line}\n" for line in _entry(key).splitlines())
        _replace(file, before + entry, (*keys, key))


def remove(path: Path, name: str) -> tuple[KeySection, ...]:
    """Take the entry of this name away. Returns those that are left. Raises NoSuchKey, ConfigError, OSError."""
    with _locked(path) as file:
        text = read_text(file)
        document = read_document(file, text)
        keys = parse_document(file, document)
        at = next((at for at, key in enumerate(keys) if key.name == name), None)
        if at is None:
            raise NoSuchKey(name)
        left = (*keys[:at], *keys[at + 1 :])
        lines = text.splitlines(keepends=True)
        begin = document.line((at,)) - 1
        end = document.line((at + 1,)) - 1 if at + 1 < len(keys) else len(lines)
        while end > begin + 1 and re.match(r"\s*(#|$)", lines[end - 1]):
            end -= 1  # what stands between two entries is about the next one
        _replace(file, "".join(lines[:begin] + lines[end:]), left)
        return left


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[Path]:
    """The file itself (a link stays a link), while nobody else changes it."""
    file = path.resolve()
    lock = os.open(file.with_name(f".{file.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(lock)


def _replace(file: Path, text: str, meant: tuple[KeySection, ...]) -> None:
    """Write `text` if it says what is meant, else (a list in brackets, say) the entries alone."""
    owner = file.stat() if file.exists() else None
    write_private(file, text if _says(file, text, meant) else HEAD + "".join(map(_entry, meant)))
    if owner is not None and owner.st_uid != os.getuid():
        os.chown(file, owner.st_uid, owner.st_gid)


def _says(file: Path, text: str, meant: tuple[KeySection, ...]) -> bool:
    try:
        return parse_keys(file, text) == meant
    except ConfigError:
        return False


def _indent(lines: list[str], first: int) -> str:
    """How far the entry in this line (from 1) is indented."""
    match = re.match(r" *(?=- )", lines[first - 1]) if first else None
    return match[0] if match else ""


def _entry(key: KeySection) -> str:
    said = key.model_dump(exclude_defaults=True)
    data = {"name": key.name, "sha256": key.sha256, "role": key.role} | {
        name: list(value) if isinstance(value, tuple) else value for name, value in said.items()
    }
    return yaml.safe_dump([data], sort_keys=False, width=1000)
