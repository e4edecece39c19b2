"""A folder of wheels in the clone, from which set-up installs without asking any index.

`wheelhouse/` holds what the locks name for one Python on one platform, and what builds llama.cpp; below `llama/` it
holds built llama.cpp, each under its key as in the cache. Standard library only; who fills it is `fill_wheelhouse.py`.
"""

import hashlib
import json
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster import llama_wheel

FOLDER = "wheelhouse"
MANIFEST = "homeport.json"
LOCKS = ("requirements.lock", "requirements-build.lock", "requirements-nodeps.lock")
"""What it has everything of."""
UNWANTED = (
    "PYTHONPATH",
    "PYTHONHOME",
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_ROOT",
    "PIP_USER",
    "__PYVENV_LAUNCHER__",
)
"""What in a person's environment would make pip install elsewhere or Python import from elsewhere."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a wheelhouse is for: one that is for anything else is not used."""

    locks: str
    """The digest of the locks that it was filled from."""
    python: str
    """`3.11`: most wheels fit one Python only."""
    platform: str


def wanted(root: Path) -> Contents:
    """What a wheelhouse must be for, to be used here."""
    digest = hashlib.sha256()
    for name in LOCKS:
        digest.update(hashlib.sha256((root / name).read_bytes()).digest())
    return Contents(
        digest.hexdigest(), f"{sys.version_info[0]}.{sys.version_info[1]}", sysconfig.get_platform()
    )


def usable(root: Path) -> Path | str | None:
    """The wheelhouse of this clone. None where there is none; a sentence that says why the one there is not used."""
    folder = root / FOLDER
    if not (folder / MANIFEST).exists():
        return None
    here = wanted(root)
    try:
        found = Contents(**json.loads((folder / MANIFEST).read_text()))
    except (OSError, ValueError, TypeError):
        return "wheelhouse/ is damaged and not used: `make wheelhouse` makes it anew"
    if (found.python, found.platform) != (here.python, here.platform):
        return (
            f"wheelhouse/ is for Python {found.python} on {found.platform} and not used: "
            f"here is Python {here.python} on {here.platform}"
        )
    if found.locks != here.locks:
        return "wheelhouse/ is of another version of homeport and not used: `make wheelhouse` makes it anew"
    return folder


def seal(folder: Path, contents: Contents) -> None:
    """Say what the folder is for; done last, so that a part of one is never used."""
    (folder / MANIFEST).write_text(json.dumps(asdict(contents)))


def pip_environment(env: Mapping[str, str], temporary: Path, wheels: Path | None) -> dict[str, str]:
    """pip's environment: nothing that leads it out of the clone and, with `wheels`, no index."""
    kept = {name: value for name, value in env.items() if name not in UNWANTED}
    pip = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_RETRIES": "2"}
    # As an address: pip takes a blank in a path for the end of it.
    closed = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels.as_uri()} if wheels else {}
    return {**pip, **kept, "TMPDIR": str(temporary), **closed}


def bring_llama(wheels: Path, cache: Path, key: str) -> bool:
    """Copy the built llama.cpp of this key into the cache, unless it is there. Whether the cache has it now.

    Under another key it was built for another CPU: it might not run here, and set-up builds its own.
    """
    if llama_wheel.cached(cache, key) is not None:
        return True
    if llama_wheel.cached(wheels, key) is None:
        return False
    copy_llama(wheels, cache, key)
    return True


def copy_llama(source: Path, target: Path, key: str) -> None:
    """Copy a built llama.cpp from one folder of them into another; it is there whole or not at all."""
    (target / "llama").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix="build-", dir=target / "llama", ignore_cleanup_errors=True
    ) as folder:
        copy = Path(folder) / key
        shutil.copytree(source / "llama" / key, copy)
        try:
            copy.rename(target / "llama" / key)
        except OSError:
            if not (target / "llama" / key).is_dir():
                raise
