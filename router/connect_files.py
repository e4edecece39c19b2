"""A client's own file on this machine: found, changed as a whole, a copy kept of what it was. Decides no setting."""

import os
import stat
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from router.connect import Client, Form
from router.connect_settings import Settings
from router.connect_text import edited, merged
from router.jsonc import Unclear, read

WRITABLE = 0o222
MARK = "\ufeff"
"""Some editors begin a file with it."""
Owner = tuple[int, int]
"""A user's and a group's number."""
BEFORE = ".before-homeport"
"""Behind a file's name: what it was before it was changed for the first time."""


def file_of(client: Client, env: Mapping[str, str], home: Path) -> Path | None:
    """Where the client looks; None: it has no file that could be written."""
    if not client.file:
        return None
    found = home / client.file
    for variable, below in client.elsewhere:
        if value := env.get(variable):
            found = Path(value) / below if below else Path(value)
            break
    beside = found.with_suffix(".jsonc")
    return beside if client.has_jsonc and beside.exists() else found


def put(file: Path, form: Form, settings: Settings) -> bool:
    """Have the settings stand in the file; False: they stood there already, and nothing was touched.

    Keeps its mode, its owner and the text of all else; follows a link. Raises Unclear where that cannot be done, and
    OSError.
    """
    target = Path(os.path.realpath(file))
    mode = owner = None
    try:
        text = target.read_bytes().decode()
        known = target.stat()
        mode, owner = stat.S_IMODE(known.st_mode), (known.st_uid, known.st_gid)
    except FileNotFoundError:
        text = ""
    except UnicodeDecodeError:
        raise Unclear("it is not UTF-8") from None
    before, mark, text = text.encode(), MARK * text.startswith(MARK), text.removeprefix(MARK)
    there = _parsed(form, text, settings)
    if there == merged(there, settings.data) and text.strip():
        return False
    new = edited(form, text, there, settings)
    _check(form, new, merged(there, settings.data), settings, is_new=not text.strip())
    if mode is not None:
        if not mode & WRITABLE:
            raise Unclear("it is read-only")
        _keep(target, before, mode, owner)
    _replace(target, (mark + new).encode(), mode or 0o600, owner)
    return True


def _check(form: Form, new: str, expected: Any, settings: Settings, is_new: bool) -> None:
    """Whether that text says what was meant, whatever the way in which it is written. Raises Unclear."""
    if is_new and settings.first is not None:
        expected = {**settings.first, **expected}
    try:
        if _parsed(form, new, settings) == expected:
            return
    except Unclear:
        pass
    raise Unclear("it is written in a way that is not changed here")


def _parsed(form: Form, text: str, settings: Settings) -> Any:
    """What a file says, of the same kind as the settings. Raises Unclear."""
    kind: type = list if isinstance(settings.data, list) else dict
    found: Any = None
    try:
        if not text.strip():
            return kind()
        match form:
            case "json":
                found = read(text).value
            case "toml":
                found = tomllib.loads(text)
            case "yaml":
                found = yaml.safe_load(text)
            case _:
                found = _variables(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, Unclear):
            raise
        raise Unclear(str(error).splitlines()[0] if str(error) else "it cannot be read") from None
    if found is None:  # YAML of nothing but comments
        return kind()
    if not isinstance(found, kind):
        raise Unclear(f"it holds no {'list' if kind is list else 'settings by name'}")
    return found


def _variables(text: str) -> dict[str, str]:
    lines = [line.strip().removeprefix("export ").strip() for line in text.splitlines()]
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    return {name.strip(): value.strip() for name, _, value in pairs}


def _keep(file: Path, data: bytes, mode: int, owner: Owner | None) -> None:
    """The file as it was first."""
    kept = file.with_name(file.name + BEFORE)
    if not kept.exists():
        _replace(kept, data, mode, owner)


def _replace(file: Path, data: bytes, mode: int, owner: Owner | None) -> None:
    """At once, or not at all. `owner`: who has it, if it is there; else who runs this."""
    file.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    made = Path(name)
    try:
        with os.fdopen(number, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(number)
        if owner is not None and owner != (os.geteuid(), os.getegid()):
            os.chown(made, *owner)
        made.chmod(mode)
        made.replace(file)
    except OSError:
        made.unlink(missing_ok=True)
        raise
