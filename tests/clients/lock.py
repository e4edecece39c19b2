"""Works the versions of the client programs out anew: `python -m tests.clients.lock`, after `make test-clients`."""

import os
import subprocess

from tests.clients.prepare import UV
from tests.clients.programs import LOCKS, PYTHON, programs

COMPILE = "pip compile --quiet --upgrade --universal --python-version 3.11 --no-header --no-annotate"
PLAIN = ("--no-emit-index-url", "--no-emit-find-links")
NPM = "install --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved --no-audit --no-fund"


def main() -> None:
    for environment in PYTHON:
        without = LOCKS / f"{environment}.without"
        override = ["--override", str(without)] if without.exists() else []
        files = [str(LOCKS / f"{environment}.in"), "-o", str(LOCKS / f"{environment}.txt")]
        subprocess.run([str(UV), *COMPILE.split(), *PLAIN, *override, *files], check=True)
    found = programs()
    path = f"{found.node.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    (LOCKS / "package-lock.json").unlink(missing_ok=True)
    subprocess.run([*found.npm, *NPM.split()], cwd=LOCKS, env={**os.environ, "PATH": path}, check=True)


if __name__ == "__main__":
    main()
