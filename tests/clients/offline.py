"""`python -m tests.clients.offline COMMAND …`: runs it where there is no network but loopback.

As root on Linux that is a network namespace of its own; elsewhere it runs as it is, and says so.
"""

import os
import shutil
import sys

LOOPBACK = 'ip link set lo up && exec "$@"'


def alone(command: list[str]) -> list[str] | None:
    """The command that runs this one without a network; None where nobody may ask for that."""
    if os.geteuid() or not shutil.which("unshare") or not shutil.which("ip"):
        return None
    return ["unshare", "--net", "sh", "-c", LOOPBACK, "offline", *command]


def main() -> None:
    command = sys.argv[1:]
    there = alone(command)
    if there is None:
        print("The clients run with this machine's network: only root may take it from them.", flush=True)
    os.execvp((there or command)[0], there or command)  # noqa: S606


if __name__ == "__main__":
    main()
