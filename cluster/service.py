"""A worker's part of the cluster, kept alive: `python -m cluster.service`, started by `homeport join` or by systemd.

Runs Ray's node on this machine and, whenever that is gone or this machine has another address, asks the head anew where
its Ray is and starts it again. It serves nothing and knows nothing of hosts: a keeper starts them, and they live on
while Ray is away. SIGTERM ends this process alone; `homeport down` ends what it started.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

from cluster import join, machine_tls, ray_cluster
from cluster.build import build_id
from cluster.machine import Machine
from cluster.paths import Paths, read_json
from cluster.processes import end_all
from cluster.restarting import (
    BACKOFF_S,
    HEALTHY_S,
    Run,
    backoff_s,
    essential,
    gone,
    inherited_up_lock,
    take_up_lock,
    wait_up_lock,
)

ANSWER_S = 10.0
LOOK_S = 5.0
"""How often this machine's address is looked at: what it costs is one route looked up in the kernel."""
ASK_S = 15.0
"""How often the head is asked where its Ray is, since for one that has moved the node here would wait ten minutes, and
whether its config says otherwise of this machine."""
RENEW_S = 3600.0
"""How often a certificate that is to be renewed is asked for, where the head's is no better."""
RAYLET = ("raylet",)
WAIT = "--wait"

log = logging.getLogger(__name__)


class Service:
    """Heals until it is told to end. Its state stands in `run.json` under the step `ray`."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.run = Run(paths, role="worker", owner=None, build=build_id())
        self.run.data.setdefault("since", time.time())

    async def main(self) -> None:
        """Until SIGTERM, which leaves Ray running: the next service takes it over."""
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        healing = asyncio.create_task(self._heal())
        ended = asyncio.create_task(stopping.wait())
        await asyncio.wait({healing, ended}, return_when=asyncio.FIRST_COMPLETED)
        for task in (healing, ended):
            task.cancel()
        for outcome in await asyncio.gather(healing, ended, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    async def _heal(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            try:
                why = await self._live()
            except join.JoinRefused as refused:
                failures, why = len(BACKOFF_S), str(refused)  # A person has to do something first.
            except (join.HeadAway, ray_cluster.RayFailed, OSError) as error:
                failures, why = failures + 1, str(error)
            except Exception as error:
                log.exception("this life of Ray's node failed; it goes on")
                failures, why = failures + 1, f"{type(error).__name__}: {error}"
            else:
                failures = 0 if time.monotonic() - began > HEALTHY_S else failures + 1
            self.run.step("ray", "failed", why)
            await asyncio.sleep(backoff_s(failures))

    async def _live(self) -> str:
        """One life of Ray's node here. Returns why it ended; raises where it did not begin."""
        known = join.joined(self.paths)
        if known is None:
            raise join.JoinRefused(
                "This machine has joined no head yet: `homeport join ADDRESS`.", "not_joined"
            )
        node, address = self._running_node()
        if node is None:
            node, address = await self._start(known)
        self.run.step("ray", "ready", raylet=node, address=address)
        ended = asyncio.create_task(gone(node))
        misplaced = asyncio.create_task(self._misplaced(known.head, address))
        try:
            await asyncio.wait({ended, misplaced}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            misplaced.cancel()
        if misplaced.done() and not misplaced.cancelled():
            await asyncio.to_thread(end_all, self.paths, "ray")  # else it would be found again
            return misplaced.result()
        return "it is gone and will be started again"

    async def _misplaced(self, head: str, address: str) -> str:
        """Until this machine has another address or certificate, or the head's Ray another address. A silent head is
        away: it comes back."""
        ray, ask_at = self.run.data.get("ray"), time.monotonic() + ASK_S
        renew_at = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_S)
            now = join.local_address(head)
            if now not in (None, address):  # None: without a network it has none; the cable may come back.
                return f"this machine's address is {now} and no longer {address}: it joins anew"
            if time.monotonic() > ask_at:
                told = await asyncio.to_thread(self._ask_ray, head)
                ask_at = time.monotonic() + ASK_S
                if told is None:
                    continue
                ray = ray or told.ray
                if told.ray != ray:
                    return f"the head's Ray is at {told.ray} now: it joins anew"
                if await asyncio.to_thread(self._is_another, head, told.machine):
                    return "the head's config says otherwise of this machine now: it joins anew"
                if time.monotonic() > renew_at and machine_tls.is_due(self.paths, time.time()):
                    renew_at = time.monotonic() + RENEW_S
                    if await asyncio.to_thread(self._is_renewed, head):
                        return "its certificate was about to end and is renewed: Ray begins anew with it"

    def _ask_ray(self, head: str) -> join.RayIs | None:
        """Where the head says that its Ray is, and what this machine is to be."""
        token, machine = join.own_token(self.paths), join.machine_id(self.paths)
        return join.ray_of(head, token, machine, LOOK_S, self.paths)

    def _is_another(self, head: str, told: Mapping[str, Any] | None) -> bool:
        """Take in what the head says otherwise of this machine than before. Whether Ray's part has to begin anew for
        it: the rest is in `machine.json`, where the keeper looks."""
        known = join.joined(self.paths)
        if told is None or known is None or known.told in (None, told):
            return False
        before = join.lasting(self.paths)
        self._take_in(head, known.name)
        return join.lasting(self.paths) != before

    def _is_renewed(self, head: str) -> bool:
        """Get another certificate, which hosts and file servers take while they run. Whether it is one that lasts."""
        known = join.joined(self.paths)
        if known is not None:
            self._take_in(head, known.name)
        return not machine_tls.is_due(self.paths, time.time())

    def _take_in(self, head: str, name: str | None) -> None:
        """Keep what the head says of this machine by now, if it can be asked."""
        try:
            join.settle(self.paths, join.ask(head, join.own_token(self.paths), self.paths, name, ANSWER_S))
        except (join.JoinRefused, join.HeadAway, OSError) as why:
            log.warning("what the head says of this machine by now is not taken yet: %s", why)

    def _running_node(self) -> tuple[int | None, str]:
        """The node that an earlier service left, and its address, if it is still where this machine is."""
        running = essential(self.paths, RAYLET)
        address = (read_json(self.paths.machine) or {}).get("address", "")
        return (running[0] if running else None), address

    async def _start(self, known: join.Joined) -> tuple[int, str]:
        self.run.step("ray", "starting")
        began = time.monotonic()
        token = join.own_token(self.paths)
        answer = await asyncio.to_thread(join.ask, known.head, token, self.paths, known.name, ANSWER_S)
        await asyncio.to_thread(end_all, self.paths, "ray")
        machine: Machine = await asyncio.to_thread(join.settle, self.paths, answer)
        offered = join.books(machine)
        self.run.data |= {"machine": machine.to_json(), "address": machine.address, "ray": answer.ray}
        await asyncio.to_thread(
            ray_cluster.start_worker,
            self.paths,
            os.environ,
            answer.ray,
            machine.address,
            offered.cpus,
            offered.gpus,
            offered.labels(machine),
        )
        running = await asyncio.to_thread(essential, self.paths, RAYLET)
        if not running:
            raise ray_cluster.RayFailed(f"Ray ended as soon as it had started; see {self.paths.ray_folder}.")
        log.info("joined %s as %s in %.1f s", known.head, machine.name, time.monotonic() - began)
        return running[0], machine.address


def main() -> None:
    """Holds `up.lock` for as long as this process lives: handed down, or taken here; with `--wait` (systemd) once it is
    free."""
    paths = Paths.from_env(os.environ)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if WAIT in sys.argv[1:]:
        wait_up_lock(paths)
    elif inherited_up_lock() is None and take_up_lock(paths) is None:
        sys.exit(f"A homeport runs on {paths.home} already; `homeport down` ends it.")
    asyncio.run(Service(paths).main())


if __name__ == "__main__":
    main()
