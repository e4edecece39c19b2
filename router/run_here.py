"""The homeport that runs on this machine, for commands that ask its router. Asks nothing itself."""

import os
from typing import Any

from cluster.paths import Paths, read_json
from cluster.processes import ours
from router import following, lifecycle
from router.command_line import FAILED, NOT_RUNNING, refuse


def known_run(paths: Paths) -> dict[str, Any] | None:
    """What the parent of the router here wrote down, also where only the router is left; None: neither runs."""
    return lifecycle.running(paths) or (read_json(paths.run) if ours(paths, "router") else None)


def run_here() -> dict[str, Any]:
    """What its parent wrote down, `url` among it. Ends the command where none runs here, or one of a head elsewhere."""
    paths = Paths.from_env(os.environ)
    run = known_run(paths)
    if run is None:
        refuse("homeport does not run here. `homeport up` starts it.", NOT_RUNNING)
    if following.is_worker(run):
        refuse(following.worker_line(paths, run), FAILED)
    return run
