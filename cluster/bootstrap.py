"""Where set-up begins: `python3 -m cluster.bootstrap [runtime|dev|bench]`, called by the Makefile.

Finds a Python that is new enough and hands over to `install.py`. Every Python from 3.6 on can read this
file, so that an old one says what is missing instead of stopping at a syntax that it does not know.
"""

import os
import subprocess
import sys
from typing import List, Optional, Tuple

LEAST = (3, 11)
CANDIDATES = ("python3.13", "python3.12", "python3.11", "python3.14", "python3")
PROBE = "import sys; print(sys.version_info[:2] >= (3, 11)); import ensurepip, venv; print('venv')"


def programs(path: str) -> List[str]:
    """The Pythons that PATH has, best first. Some may not run, as pyenv's shims for absent versions."""
    found = []
    for name in CANDIDATES:
        for folder in path.split(os.pathsep):
            program = os.path.join(folder, name)
            if os.access(program, os.X_OK) and program not in found:
                found.append(program)
    return found


def probe(program: str) -> Tuple[bool, bool]:
    """Whether a Python runs and is new enough, and whether it can also make virtual environments."""
    try:
        ran = subprocess.run(
            [program, "-c", PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False, False
    said = ran.stdout.decode(errors="replace").split()
    return said[:1] == ["True"], said == ["True", "venv"]


def refusal(version: Tuple[int, int], lacks_venv: Optional[str]) -> str:
    """The sentence for a machine on which no Python will do."""
    if lacks_venv:
        return (
            "homeport cannot make a virtual environment with %s: install the package python3-venv "
            "(Debian, Ubuntu: apt-get install python3-venv), then try again." % lacks_venv
        )
    return (
        "homeport needs Python 3.11 or newer, and this is %d.%d: install python3.11 or newer "
        "(Debian, Ubuntu: apt-get install python3.11 python3.11-venv), then try again." % version
    )


def can_make_environments() -> bool:
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return False
    return True


def main(argv: List[str]) -> int:
    """Set up, with another Python if this one will not do. Returns the exit code."""
    new_enough = sys.version_info[:2] >= LEAST
    if new_enough and can_make_environments():
        from cluster.install import main as install

        return install(argv)
    lacks_venv = sys.executable if new_enough else None
    for program in programs(os.environ.get("PATH", "")):
        fits, complete = probe(program)
        if complete:
            sys.stdout.flush()
            os.execv(program, [program, "-m", "cluster.bootstrap"] + argv)
        if fits and lacks_venv is None:
            lacks_venv = program
    sys.stderr.write(refusal((sys.version_info[0], sys.version_info[1]), lacks_venv) + "\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
