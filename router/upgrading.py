"""Another version of homeport takes over from the one that runs: its restarter, router, Ray, controller and keeper end,
replicas go on, and the next keeper adopts them.

Ends the restarter and the router; the rest ends, and the new one starts, in router/lifecycle.py, or
router/join_worker.py on a machine that joined.
"""

import time
from collections.abc import Mapping
from typing import Any

from cluster.build import build_id
from cluster.paths import Paths
from cluster.processes import end, ours
from cluster.router_end import Say, end_routers
from router import lifecycle
from router.lifecycle import UpRefused

GRACE_S = 1.0
PATIENCE_S = 10.0
"""How long the lock of a restarter that was ended is waited for."""
LOOK_S = 0.05


def is_due(run: Mapping[str, Any]) -> bool:
    """Whether what runs, as its `run.json` says, is of another build than these files."""
    return bool(run.get("build") != build_id())


def words(run: Mapping[str, Any]) -> str:
    """What is about to happen, for a person."""
    return (
        f"Another version of homeport runs here ({run.get('build', 'an older one')}); this one ({build_id()}) takes "
        "over. The replicas go on as they are: each takes the new version when it starts anew."
    )


def take_over(paths: Paths, say: Say) -> int:
    """End the restarter that runs and its router, and return the lock, as `lifecycle.take_up_lock` does. Raises
    UpRefused.

    Under systemd the restarter is started again, and waits for what holds the lock by then.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        end(ours(paths, "parent"), GRACE_S)
        if (lock := lifecycle.take_up_lock(paths)) is not None:
            end_routers(paths, say)
            return lock
        if time.monotonic() > deadline:
            raise UpRefused(
                "What runs here does not end. `homeport down` ends it, with its replicas; then try again.", 1
            )
        time.sleep(LOOK_S)
