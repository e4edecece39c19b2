"""What set-up has installed in a clone, and what it is to install: the locks, set-up's own sources, this machine.

Standard library only. Installs nothing (see `install`).
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Profile = Literal["runtime", "dev", "bench"]

LOCKS: Mapping[Profile, str] = {
    "runtime": "requirements.lock",
    "dev": "requirements-dev.lock",
    "bench": "requirements-bench.lock",
}
"""Each has everything of those before it."""
BUILD_LOCK = "requirements-build.lock"
NODEPS_LOCK = "requirements-nodeps.lock"
SETUP_SOURCES = (
    "pyproject.toml",
    "cluster/bootstrap.py",
    "cluster/install.py",
    "cluster/llama_build.py",
    "cluster/llama_wheel.py",
    "cluster/stamp.py",
    "cluster/wheelhouse.py",
)


@dataclass(frozen=True, slots=True)
class Stamp:
    """What was set up, or what is wanted: equal means that there is nothing to do."""

    digest: str
    """Of the locks and of set-up's own sources."""
    python: str
    """The real path of the interpreter that `.venv` was made with."""
    llama: str
    """The key of the llama.cpp wheel that this machine wants."""
    profile: Profile = "runtime"

    def covers(self, wanted: "Stamp") -> bool:
        """Whether this set-up is all that is wanted: a profile has everything of those before it."""
        same = (self.digest, self.python, self.llama) == (wanted.digest, wanted.python, wanted.llama)
        order = list(LOCKS)
        return same and order.index(self.profile) >= order.index(wanted.profile)


def wanted(root: Path, python: Path, llama: str, profile: Profile) -> Stamp:
    """What the clone `root` asks for as it is now, on the interpreter `python`."""
    digest = hashlib.sha256()
    for name in (*sorted(LOCKS.values()), NODEPS_LOCK, *SETUP_SOURCES):
        digest.update(hashlib.sha256((root / name).read_bytes()).digest())
    return Stamp(digest.hexdigest(), os.path.realpath(python), llama, profile)


def kept(file: Path) -> Stamp | None:
    """What was set up, as it was written down; None where that is missing or broken."""
    try:
        return Stamp(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None
