"""Which build of homeport this is. Machines of one cluster must run the same one."""

import hashlib
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("cluster", "serving", "router")
ROOT = Path(__file__).resolve().parent.parent
DIGITS = 12


def build_id(root: Path = ROOT) -> str:
    """The distribution's version, `+`, and the beginning of a SHA-256 over names and texts of its sources."""
    digest = hashlib.sha256()
    for source in sorted(file for package in PACKAGES for file in (root / package).rglob("*.py")):
        text = source.read_bytes()
        digest.update(f"{source.relative_to(root).as_posix()}\0{len(text)}\0".encode())
        digest.update(text)
    return f"{version('homeport')}+{digest.hexdigest()[:DIGITS]}"
