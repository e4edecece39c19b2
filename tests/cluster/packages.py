"""`python -m tests.cluster.packages`: before `make test`, brings what tests of several machines need.

On Debian and its kin, as root: installed. Elsewhere it says what is missing and that those tests are skipped;
never a failure.
"""

import os
import subprocess
import sys

from tests.cluster.lab import NEEDS, missing, program

INSTALL_S = 600


def main() -> int:
    """0 always: what is missing then is told by the skipped tests themselves, too."""
    lacks = missing()
    packages = sorted({NEEDS[name] for name in lacks if name in NEEDS})
    if packages and "root" not in lacks and program("apt-get"):
        print(f"Installing {', '.join(packages)}: tests build machines as namespaces.", flush=True)
        _install(packages)
        lacks = missing()
    if lacks:
        remedy = f"; as root: apt-get install {' '.join(packages)}" if packages else ""
        print(
            f"The tests of several machines are skipped, for want of {', '.join(lacks)}{remedy}.", flush=True
        )
    return 0


def _install(packages: list[str]) -> None:
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages],
    ):
        try:
            done = subprocess.run(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=INSTALL_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            print(f"{' '.join(command[:2])}: {error}", flush=True)
            return
        if done.returncode != 0:
            print(
                f"{' '.join(command[:2])}: {(done.stderr.strip() or done.stdout.strip())[-300:]}", flush=True
            )
            return


if __name__ == "__main__":
    sys.exit(main())
