"""Works the versions of the client programs out anew: `python -m tests.clients.lock`, after `make test-clients`."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

from tests.clients.prepare import UV
from tests.clients.programs import LOCKS, PEERS, PYTHON, programs

COMPILE = "pip compile --quiet --upgrade --universal --python-version 3.11 --no-header --no-annotate"
PLAIN = ("--no-emit-index-url", "--no-emit-find-links")
NPM = "install --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved --no-audit --no-fund"


def sources() -> str:
    """The releases whose tests are run: those of the SDKs that run them, and of llama.cpp as it is served."""
    pinned = (LOCKS / f"{PEERS}.txt").read_text()
    sdks = re.findall(r"^(?:anthropic|openai)==\S+", pinned, re.MULTILINE)
    groups = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["dependency-groups"]
    engine = [each for each in groups["nodeps"] if each.startswith("llama-cpp-python==")]
    return "".join(f"{each}\n" for each in sorted([*sdks, *engine]))


def main() -> None:
    for environment in (*PYTHON, PEERS):
        without = LOCKS / f"{environment}.without"
        override = ["--override", str(without)] if without.exists() else []
        files = [str(LOCKS / f"{environment}.in"), "-o", str(LOCKS / f"{environment}.txt")]
        subprocess.run([str(UV), *COMPILE.split(), *PLAIN, *override, *files], check=True)
    (LOCKS / "sources.txt").write_text(sources())
    found = programs()
    path = f"{found.node.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    (LOCKS / "package-lock.json").unlink(missing_ok=True)
    subprocess.run([*found.npm, *NPM.split()], cwd=LOCKS, env={**os.environ, "PATH": path}, check=True)


if __name__ == "__main__":
    main()
