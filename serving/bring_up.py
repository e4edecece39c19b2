"""Puts the controller into a running Ray: `python -m serving.bring_up ADDRESS`. Ends once the controller answers."""

import asyncio
import os
import sys

from cluster import ray_cluster
from cluster.paths import Paths
from serving.controller import Controller
from serving.members import RayMembers

CONTROLLER = "controller"
ANSWER_S = 30.0


def main() -> None:
    """Connect, make the controller, wait until it answers. Exit code 1 with a sentence where Ray is away."""
    try:
        ray_cluster.connect(Paths.from_env(os.environ), sys.argv[1])
        controller = ray_cluster.detach(Controller, CONTROLLER, 0, 0, None, RayMembers)
        asyncio.run(ray_cluster.ask(controller, "ping", timeout_s=ANSWER_S))
    except (ray_cluster.RayFailed, TimeoutError) as error:
        sys.exit(f"The controller could not be started: {error}")
    ray_cluster.disconnect()


if __name__ == "__main__":
    main()
