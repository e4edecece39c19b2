"""The small parent that `homeport up` leaves behind: starts Ray, the controller and the router, and restarts what dies.

Ray restarts the controller and the keepers; keepers restart hosts; this restarts the router, and Ray's head where it
is gone. It serves nothing and decides nothing about sessions. `homeport down` ends it first. Under a foreground
`homeport up` it also sees to it that everything ends when that process is gone, however it went.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from typing import Any, Literal

import psutil

from cluster import ray_cluster
from cluster.join import books
from cluster.machine import Machine
from cluster.paths import Paths, read_json, write_private
from cluster.processes import clean_environment, end_all, mark, ours
from router.lifecycle import UP_LOCK_FD, end_everything

Step = Literal["starting", "ready", "failed"]
BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
HEALTHY_S = 30.0
"""What lived this long is started again at once."""
RAY_ESSENTIAL = ("gcs_server", "raylet")

log = logging.getLogger(__name__)


class Parent:
    """Reads `run.json` once, then owns it: each step's state stands there for who looks on."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.run: dict[str, Any] = read_json(paths.run) or {}
        self.run |= {"parent": os.getpid(), "steps": {}}
        self._stopping = asyncio.Event()

    async def main(self) -> None:
        """Until SIGTERM, which ends this process alone, or until the owner is gone: then everything is ended."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGUSR1, self._disown)
        tasks = [asyncio.create_task(self._keep_router()), asyncio.create_task(self._keep_ray())]
        owner_gone = await self._owner_gone()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if owner_gone:
            await asyncio.to_thread(end_everything, self.paths)

    async def _owner_gone(self) -> bool:
        """Wait for the end; True when the owner went without a word. `up --detach` takes its leave by SIGUSR1."""
        stopping = asyncio.create_task(self._stopping.wait())
        owner = asyncio.create_task(_gone(self.run["owner"]))
        await asyncio.wait({owner, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if owner.done() and self.run["owner"] is not None:
            return True
        await stopping
        return False

    def _disown(self) -> None:
        self.run["owner"] = None
        self._write()

    # the router

    async def _keep_router(self) -> None:
        failures = 0
        command = [sys.executable, "-m", "router.app", "--config-json", str(self.paths.router_settings)]
        environment = {**clean_environment(os.environ), **mark(self.paths, "router")}
        while True:
            began = time.monotonic()
            with (self.paths.logs / "router.log").open("ab") as out:
                router = await asyncio.create_subprocess_exec(
                    *command,
                    env=environment,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            self._step("router", "ready", pid=router.pid)
            code = await router.wait()
            failures = 0 if time.monotonic() - began > HEALTHY_S else failures + 1
            self._step("router", "failed", f"it ended with code {code}; see {self.paths.logs / 'router.log'}")
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])

    # Ray and the controller

    async def _keep_ray(self) -> None:
        failures = 0
        while True:
            try:
                await self._start_ray()
                await self._start_controller()
                failures = 0
                await self._ray_gone()
                self._step("ray", "failed", "it is gone and will be started again")
            except (ray_cluster.RayFailed, OSError) as error:
                failures += 1
                self._step("ray", "failed", str(error))
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])

    async def _start_ray(self) -> None:
        self._step("ray", "starting")
        began = time.monotonic()
        machine = Machine.from_json(self.run["machine"])
        offered = books(machine)
        await asyncio.to_thread(end_all, self.paths, "ray")
        self.run["ray"] = await asyncio.to_thread(
            ray_cluster.start_head,
            self.paths,
            os.environ,
            offered.cpus,
            offered.gpus,
            offered.labels(machine),
        )
        self._step("ray", "ready", seconds=time.monotonic() - began)

    async def _start_controller(self) -> None:
        self._step("controller", "starting")
        began = time.monotonic()
        driver = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "serving.bring_up",
            self.run["ray"],
            env=ray_cluster.environment(self.paths, os.environ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        _, err = await driver.communicate()
        if driver.returncode != 0:
            words = err.decode(errors="replace").strip().splitlines()
            raise ray_cluster.RayFailed(words[-1] if words else f"exit code {driver.returncode}")
        self._step("controller", "ready", seconds=time.monotonic() - began)

    async def _ray_gone(self) -> None:
        """Until one of the two processes without which there is no Ray is gone."""
        essential = [p.pid for p in ours(self.paths, "ray") if p.name in RAY_ESSENTIAL]
        if len(essential) < len(RAY_ESSENTIAL):
            return
        waits = [asyncio.create_task(_gone(pid)) for pid in essential]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _step(self, name: str, state: Step, detail: str = "", **more: Any) -> None:
        log.info("%s: %s %s", name, state, detail)
        self.run["steps"][name] = {"state": state, "detail": detail, **more}
        self._write()

    def _write(self) -> None:
        try:
            write_private(self.paths.run, json.dumps(self.run, indent=1))
        except OSError as error:
            log.warning("%s cannot be written: %s", self.paths.run, error)


async def _gone(pid: int) -> None:
    """Until the process has ended, as a zombie too."""
    if hasattr(os, "pidfd_open"):
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
    else:
        with contextlib.suppress(psutil.NoSuchProcess):
            await asyncio.to_thread(psutil.Process(pid).wait)


def main() -> None:
    """`python -m router.parent`, started by router/lifecycle.py in a session of its own."""
    paths = Paths.from_env(os.environ)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    # Held for as long as this process lives; what it starts does not inherit it.
    os.set_inheritable(int(os.environ.pop(UP_LOCK_FD)), False)
    asyncio.run(Parent(paths).main())


if __name__ == "__main__":
    main()
