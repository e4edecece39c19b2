"""The file with a script: read, checked, and what identifies its content."""

import hashlib
from pathlib import Path

from serving.script import Script, ScriptFault, read_script
from serving.yaml_lines import YamlError, key_text, read_yaml

BYTES_MAX = 16 * 2**20
REMEDY = 'Give the path of a script (docs/operations.md, "A scripted engine for tests")'


class ScriptError(Exception):
    """The file is no script that can be played. `message` says where and what, `remedy` what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}. {remedy}")
        self.message = message
        self.remedy = remedy


def load_script(path: Path) -> Script:
    """Raises ScriptError."""
    return _parsed(path, _content(path))


def script_digest(path: Path) -> str:
    """64 hex digits for its content. Raises ScriptError where `load_script` would."""
    content = _content(path)
    _parsed(path, content)
    return hashlib.sha256(content).hexdigest()


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(BYTES_MAX + 1)
    except FileNotFoundError:
        raise ScriptError(f"{path} does not exist", "Correct the path") from None
    except OSError as error:
        raise ScriptError(f"{path}: {error.strerror}", REMEDY) from error
    if len(content) > BYTES_MAX:
        raise ScriptError(f"{path} is larger than 16 MiB", REMEDY)
    return content


def _parsed(path: Path, content: bytes) -> Script:
    try:
        document = read_yaml(content.decode())
    except UnicodeDecodeError:
        raise ScriptError(f"{path} is not UTF-8 text", REMEDY) from None
    except YamlError as error:
        raise ScriptError(f"{path}:{error.line}: {error.message}", error.remedy) from error
    try:
        return read_script({} if document.data is None else document.data)
    except ScriptFault as fault:
        key = key_text(fault.loc)
        where = f"{path}:{document.line(fault.loc)}: {key}" if key else str(path)
        raise ScriptError(f"{where}: {fault.message}", fault.remedy) from fault
