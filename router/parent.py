"""The small parent that `homeport up` leaves behind: starts Ray, the controller and the router, and restarts what dies.

Ray restarts the controller and the keepers; keepers restart hosts; this restarts the router (router/workers.py), and
Ray's head where it is gone. It serves nothing and decides nothing about sessions. `homeport down` ends it first. Under
a foreground `homeport up` it also sees to it that everything ends when that process is gone, however it went.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
import sys
import time
from pathlib import Path

from cluster import machine_tls, ray_cluster
from cluster.ending import end_everything
from cluster.join import LOOPBACK, books
from cluster.machine import Machine
from cluster.paths import Paths
from cluster.processes import end_all, port_is_free
from cluster.restarting import HEALTHY_S, Run, backoff_s, essential, first_gone, gone, inherited_up_lock
from router.workers import Workers

RAY_ESSENTIAL = ("gcs_server", "raylet")
DOUBTFUL = 3
"""After so many starts in a row that failed, the controller's too, the state that Ray kept may be what is broken."""
LIST_S = 5.0
"""How often it is looked whether Ray's list of machines has changed: Ray's monitor would not see a new one."""
DUE_S = 60.0
"""How often it is looked whether the head's certificate is to be renewed."""
RENEW_S = 3600.0
"""How often it is made anew where the new one is to be renewed as well, since the CA ends too."""

log = logging.getLogger(__name__)


class Parent:
    """Owns `run.json`, where each step's state stands for who looks on."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self._written = Run(paths)
        self.run = self._written.data
        self._step = self._written.step
        self._stopping = asyncio.Event()
        self._ray_runs = asyncio.Event()
        self._bad_starts = 0

    async def main(self) -> None:
        """Until SIGTERM, which ends this process alone, or until the owner is gone: then everything is ended, and
        SIGINT leaves what is open no more time. SIGTERM means nothing more then: who takes over sends it."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGUSR1, self._disown)
        kept = [Workers(self.paths, self._step).keep(), self._keep_ray(), self._keep_monitor()]
        tasks = [asyncio.create_task(each) for each in kept]
        owner_gone = await self._owner_gone()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if owner_gone:
            hurried = asyncio.Event()
            loop.add_signal_handler(signal.SIGTERM, lambda: None)
            loop.add_signal_handler(signal.SIGINT, hurried.set)
            await asyncio.to_thread(end_everything, self.paths, hurried=hurried.is_set)

    async def _owner_gone(self) -> bool:
        """Wait for the end; True when the owner went without a word. `up --detach` takes its leave by SIGUSR1."""
        stopping = asyncio.create_task(self._stopping.wait())
        owner = asyncio.create_task(
            self._no_owner() if self.run["owner"] is None else gone(self.run["owner"])
        )
        await asyncio.wait({owner, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if owner.done() and self.run["owner"] is not None:
            return True
        await stopping
        return False

    async def _no_owner(self) -> None:
        """Under systemd there is none."""
        await self._stopping.wait()

    def _disown(self) -> None:
        self.run["owner"] = None
        self._written.write()

    # Ray and the controller

    async def _keep_ray(self) -> None:
        failures = 0
        while True:
            try:
                await self._start_ray()
                self._ray_runs.set()
                await self._start_controller()
                failures = self._bad_starts = 0
                self._step("ray", "failed", await self._ray_ends())
            except ray_cluster.RayFailed as error:
                failures += 1
                # Without its network no Ray starts, whatever state it kept.
                self._bad_starts += port_is_free(self.run["machine"]["address"], 0)
                self._step("ray", "failed", str(error))
            except OSError as error:
                failures += 1
                self._step("ray", "failed", str(error))
            self._ray_runs.clear()
            await asyncio.sleep(backoff_s(failures))

    async def _start_ray(self) -> None:
        self._step("ray", "starting")
        began = time.monotonic()
        machine = Machine.from_json(self.run["machine"])
        offered = books(machine)
        await asyncio.to_thread(end_all, self.paths, "ray")
        if self._bad_starts >= DOUBTFUL:
            log.warning("Ray does not start on the state that it kept: it begins without")
            ray_cluster.forget_state(self.paths)
            self._bad_starts = 0
        self.run["ray"] = await asyncio.to_thread(
            ray_cluster.start_head,
            self.paths,
            os.environ,
            offered.cpus,
            offered.gpus,
            offered.labels(machine),
            ray_cluster.node_address(machine.address),
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

    async def _ray_ends(self) -> str:
        """Until Ray is gone, or has to begin anew; why."""
        ends = [asyncio.create_task(each) for each in (self._ray_gone(), self._renewed())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in ends:
                each.cancel()
        if ends[0].done():
            return "it is gone and will be started again"
        return "the head's certificate was about to end and is renewed: Ray begins anew with it"

    async def _renewed(self) -> None:
        """Until the head has got another certificate since its own was about to end. Ray reads it when it starts."""
        machine = self.run["machine"]
        while True:
            await asyncio.sleep(DUE_S)
            try:
                if not machine_tls.is_due(self.paths, time.time()):
                    continue
                machine_tls.certify_head(self.paths, machine["id"], machine["address"], time.time())
                if not machine_tls.is_due(self.paths, time.time()):
                    return
                log.warning("the head's certificate is to be renewed, and its CA ends as well")
            except Exception:
                log.exception("the head's certificate is to be renewed, and cannot be")
            await asyncio.sleep(RENEW_S)

    async def _ray_gone(self) -> None:
        """Until one of the two processes without which there is no Ray is gone."""
        running = essential(self.paths, RAY_ESSENTIAL)
        if len(running) == len(RAY_ESSENTIAL):
            await first_gone(running)

    # Ray's list of machines

    async def _keep_monitor(self) -> None:
        """Where there is a list: Ray's monitor, which sets its machines up over SSH. A head for others only."""
        if self.run["machine"]["address"] == LOOPBACK:
            return
        failures = 0
        while True:
            await self._ray_runs.wait()
            machines, content = self._list()
            if machines is None:
                await asyncio.sleep(LIST_S)
                continue
            began = time.monotonic()
            try:
                why = await self._run_monitor(machines, content)
            except OSError as error:
                why = str(error)
            if why is None:  # It would not see machines that are new in its list.
                self._step("machines", "starting", "the list of machines has changed")
                continue
            failures = 0 if time.monotonic() - began > HEALTHY_S else failures + 1
            self._step("machines", "failed", why)
            await asyncio.sleep(backoff_s(failures))

    async def _run_monitor(self, machines: Path, content: str) -> str | None:
        """Ray's monitor, with all that it starts, until it ends, which is told, or its list is another: None."""
        with (self.paths.logs / "machines.log").open("wb") as out:
            monitor = await asyncio.create_subprocess_exec(
                *ray_cluster.monitor_command(self.paths, self.run["ray"], machines),
                env=ray_cluster.environment(self.paths, os.environ, cluster=True),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._step("machines", "ready", pid=monitor.pid)
        ended = asyncio.create_task(monitor.wait())
        while not (await asyncio.wait({ended}, timeout=LIST_S))[0]:
            if self._list() != (machines, content):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(monitor.pid, signal.SIGKILL)  # its session: ssh and rsync too
                await ended
                return None
        return f"it ended; see {self.paths.logs / 'machines.log'}"

    def _list(self) -> tuple[Path | None, str]:
        """Where Ray's list of machines lies, and a digest of it; (None, "") where there is none."""
        try:
            machines = Path(self.paths.machine_list.read_text().strip())
            return machines, hashlib.sha256(machines.read_bytes()).hexdigest()
        except OSError:
            return None, ""


def main() -> None:
    """`python -m router.parent`, started by router/lifecycle.py in a session of its own."""
    paths = Paths.from_env(os.environ)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    inherited_up_lock()  # Held for as long as this process lives.
    asyncio.run(Parent(paths).main())


if __name__ == "__main__":
    main()
