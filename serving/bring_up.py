"""Puts the controller into a running Ray, on this machine: `python -m serving.bring_up ADDRESS`. Ends once the
controller answers."""

import asyncio
import json
import os
import sys
from typing import Any

from cluster import ray_cluster
from cluster.paths import Paths
from serving.controller import Controller
from serving.members import RayMembers

CONTROLLER = "controller"
ANSWER_S = 30.0
AGAIN_S = 0.5


def main() -> None:
    """Connect, make the controller, wait until it answers. Exit code 1 with a sentence where Ray is away."""
    try:
        paths = Paths.from_env(os.environ)
        machine = json.loads(paths.machine.read_text())
        ray_cluster.connect(paths, sys.argv[1], ray_cluster.node_address(machine["address"]))
        here = ("machine", machine["id"])  # Its revision lies on this disk.
        controller = ray_cluster.detach(Controller, CONTROLLER, 0, 0, here, RayMembers)
        asyncio.run(_answers(controller))
    except (ray_cluster.RayFailed, TimeoutError) as error:
        sys.exit(f"The controller could not be started: {error}")
    ray_cluster.disconnect()


async def _answers(controller: Any) -> None:
    """Until it answers. Ray may have to find out first that the node it ran on is gone."""
    async with asyncio.timeout(ANSWER_S):
        while True:
            try:
                await ray_cluster.ask(controller, "ping", timeout_s=ANSWER_S)
                return
            except ray_cluster.ActorAway:
                await asyncio.sleep(AGAIN_S)


if __name__ == "__main__":
    main()
