"""What `homeport down` does: end all that this installation started, in any state. Needs neither Ray nor keeper nor
parent, and nothing of what they import.

`python -m cluster.ending` does it too; with `--apart` as nobody's child, so that who started it may be among the ended.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable

from cluster import confine, service_unit
from cluster.paths import Paths
from cluster.processes import end, end_all, ours
from cluster.router_end import Say, end_routers

HOST_GRACE_S = 3.0


def end_router(paths: Paths, say: Say = lambda _: None, hurried: Callable[[], bool] | None = None) -> None:
    """The restarters at once, then the router, as `end_routers` does; hosts and Ray live on, for what is open in it."""
    service_unit.stop(paths)
    if found := ours(paths, "parent"):
        say("ending the parent")
        end(found, 0.0)
    end_routers(paths, say, hurried)


def end_everything(
    paths: Paths, say: Say = lambda _: None, hurried: Callable[[], bool] | None = None
) -> list[str]:
    """End all that this installation started, in any state: restarters first, then the router, Ray, the hosts. Within
    some 8 s where nothing is open in the router, which may take as long as `router.drain` or until `hurried` else.

    Returns the names of processes that could not be ended (none, but for a process in uninterruptible sleep).
    """
    end_router(paths, say, hurried)
    if ours(paths, "ray"):
        say("ending Ray, the controller and the keeper")
        end_all(paths, "ray")
    if hosts := ours(paths, "host"):
        say("ending the hosts")
        end(hosts, HOST_GRACE_S)
    left = end_all(paths)
    for record_path in paths.locks.glob(f"{paths.run_id}-*.json"):
        record = confine.read_record(record_path)
        if record is not None:
            confine.end_group(record, 0.0)  # also of one that died: its control group is there still
    paths.ray_processes.unlink(missing_ok=True)
    for folder in (paths.ray_folder, paths.workers):
        shutil.rmtree(folder, ignore_errors=True)
    return [f"{process.name} (pid {process.pid})" for process in left]


def main() -> None:
    """Exit code 1, and their names on stderr, where processes are left."""
    if "--apart" in sys.argv[1:]:
        starter = os.getpid()
        if os.fork():
            os._exit(0)
        os.setsid()
        while os.getppid() == starter:  # else those above it would be spared
            time.sleep(0.01)
    if left := end_everything(Paths.from_env(os.environ)):
        sys.exit(f"Still there: {', '.join(left)}.")


if __name__ == "__main__":
    main()
