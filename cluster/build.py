"""Which build of homeport this is. Machines of one cluster must run the same one."""

import hashlib
import re
import sys
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("cluster", "serving", "router")
ROOT = Path(__file__).resolve().parent.parent
ENTRY = "router.cli"
DIGITS = 12

_ANY = "|".join(PACKAGES)
_NAMED = re.compile(rf"\b(?:{_ANY})(?:\.\w+)+")
_IMPORTED = re.compile(rf"^\s*from ((?:{_ANY})(?:\.\w+)*) import (\([^)]*\)|[^(\n]*)", re.MULTILINE)


def build_id(root: Path = ROOT) -> str:
    """`VERSION+DIGEST.pyMAJOR.MINOR`: the distribution's version, the beginning of a SHA-256 over names and texts of
    its sources, and Python's version as far as Ray's nodes must have the same."""
    digest = hashlib.sha256()
    for name, text in sorted(sources(root).items()):
        digest.update(f"{name}\0{len(text)}\0".encode())
        digest.update(text)
    python = f"py{sys.version_info.major}.{sys.version_info.minor}"
    return f"{version('homeport')}+{digest.hexdigest()[:DIGITS]}.{python}"


def sources(root: Path = ROOT) -> dict[str, bytes]:
    """Names and texts of the modules that the command leads to, over what each imports or starts by its name.

    Others may be left from an earlier version, since rsync copies a clone without deleting: they do nothing.
    """
    found: dict[str, bytes] = {}
    named = {ENTRY, *(f"{package}.__init__" for package in PACKAGES)}
    left = list(named)
    while left:
        name = left.pop().replace(".", "/") + ".py"
        try:
            found[name] = (root / name).read_bytes()
        except FileNotFoundError:
            continue  # another word with a dot in it
        new = _names(found[name].decode()) - named
        named |= new
        left += new
    return found


def _names(text: str) -> set[str]:
    """Modules of ours that a source names, and other words that look like one."""
    names = set()
    for dotted in _NAMED.findall(text):
        package, *inner = dotted.split(".")
        for word in inner:  # each may be a folder or a module
            names |= {f"{package}.{word}", f"{package}.{word}.__init__"}
            package += f".{word}"
    for package, listed in _IMPORTED.findall(text):
        names |= {f"{package}.{module}" for module in re.findall(r"\w+", listed)}
    return names
