"""A head under systemd: `python -m router.head_service CONFIG`. Does what `homeport up` does, then becomes the parent.

Waits while another homeport runs on its state folder. What systemd is told is in configs/systemd/homeport.service.
"""

import os
import sys
from functools import partial
from pathlib import Path

from cluster.paths import Paths
from cluster.processes import clean_environment, mark
from cluster.restarting import UP_LOCK_FD, wait_up_lock
from router import lifecycle
from router.join_head import read_list
from serving.config import ConfigError


def main() -> None:
    """Exit code 1, with a sentence for the journal, where the config or this machine does not allow it."""
    paths = Paths.from_env(os.environ)
    try:
        lock = wait_up_lock(paths)
        machines = list_of(paths)
        address = None if machines is None else read_list(machines).head
        prepared = lifecycle.prepare(paths, Path(sys.argv[1]), os.environ, address)
        lifecycle.settle(paths, prepared, None, machines, partial(print, flush=True))
    except (ConfigError, lifecycle.UpRefused, OSError) as refused:
        sys.exit(str(refused))
    os.set_inheritable(lock, True)
    env = {**clean_environment(os.environ), **mark(paths, "parent"), UP_LOCK_FD: str(lock)}
    os.execve(sys.executable, [sys.executable, "-m", "router.parent"], env)  # noqa: S606


def list_of(paths: Paths) -> Path | None:
    """Ray's list of machines, where this head was given one."""
    try:
        return Path(paths.machine_list.read_text().strip())
    except OSError:
        return None


if __name__ == "__main__":
    main()
