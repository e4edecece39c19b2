"""`python -m tests.clients.offline COMMAND …`: runs it where there is no network but loopback.

As root on Linux that is a network namespace of its own; elsewhere it runs as it is, and says so.
"""

import os
import shutil
import sys
from collections.abc import Mapping

LOOPBACK = 'ip link set lo up && exec "$@"'


def alone(command: list[str]) -> list[str] | None:
    """The command that runs this one without a network; None where nobody may ask for that."""
    if os.geteuid() or not shutil.which("unshare") or not shutil.which("ip"):
        return None
    return ["unshare", "--net", "sh", "-c", LOOPBACK, "offline", *command]


def direct(env: Mapping[str, str]) -> dict[str, str]:
    """Without proxies: nobody is asked but who listens on loopback, where there is none."""
    return {name: value for name, value in env.items() if not name.lower().endswith("_proxy")}


def main() -> None:
    command = sys.argv[1:]
    there = alone(command)
    if there is None:
        print("The clients run with this machine's network: only root may take it from them.", flush=True)
    os.execvpe((there or command)[0], there or command, direct(os.environ))  # noqa: S606


if __name__ == "__main__":
    main()
