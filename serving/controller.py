"""The controller: compares what the config wants with what keepers report, carries out the difference, indexes pins.

A plain class; cluster/ray_cluster.py makes it the one detached actor of the cluster. It asks for no CPU, keeps no
truth of its own (the revision lies on disk, the pins in the hosts' journals) and may die at any moment. Routers reach
it over HTTP, since they never import Ray.
"""

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from urllib.parse import urlencode

import uvicorn

from cluster.fit import fit_each
from cluster.machine import Machine
from cluster.paths import Paths, read_json, secret
from cluster.ray_cluster import RayFailed
from serving import ask_host
from serving.controller_app import ControllerApp
from serving.join_routes import JoinRoutes
from serving.journal_file import JournalNews, Mark
from serving.machine_book import MachineBook, NotForgotten
from serving.model import ModelSpec
from serving.pin_index import PinIndex
from serving.pins import Pin, pin_from_json

TICK_S = 2.0
"""How often it looks for new machines."""
NEWS_S = 10.0
"""How long it waits for news of a machine in one question."""
HEARD_S = 15.0
"""How long what a keeper reported counts: it is asked again and again, for NEWS_S each time."""
TELL_S = 5.0
"""How long a host may take to learn of a session's new home, or of its end."""
TOLD_AT_ONCE = 1000
"""Pins."""
LEARN_S = 20.0
"""How long new sessions wait for the journals of a machine that Ray counts as alive and whose keeper is silent."""

AWAY = (RayFailed, TimeoutError, OSError)
"""How a keeper that cannot be asked shows itself."""

log = logging.getLogger(__name__)


class Members(Protocol):
    """The machines that joined, and their keepers. Ray's side of it is in serving/members.py."""

    def machines(self) -> list[str]:
        """Ids of the machines that are there now. Blocks a little."""
        ...

    async def report(self, machine: str, known: int, wait_s: float) -> dict[str, Any]:
        """The keeper's report, at once or when it is no longer version `known`, at the latest after `wait_s`.

        Makes the keeper where there is none. Raises TimeoutError, OSError or RayFailed.
        """
        ...

    async def pins(self, machine: str, known: dict[int, Mark]) -> dict[int, JournalNews]:
        """By slot, what its journal says beyond what is known of it. Raises as `report`."""
        ...

    async def apply(
        self, machine: str, revision: int, wishes: list[dict[str, Any]], head: str
    ) -> dict[str, Any]:
        """Give a keeper its share of a revision of `head`, a machine's id. Raises as `report`."""
        ...

    async def leave(self, machine: str) -> None:
        """Let a machine end its part, as `homeport down` there would. Raises as `report`."""
        ...


class Controller:
    """`members` is called once, on the controller's own thread."""

    def __init__(self, members: Callable[[], Members]) -> None:
        self.paths = Paths.from_env(os.environ)
        self.token = secret(self.paths.cluster_token)
        self.index = PinIndex()
        self.book = MachineBook(self.paths.revision.with_name("machines.json"))
        self.reports: dict[str, dict[str, Any]] = {}
        self._heard_at: dict[str, float] = {}
        """By machine: when its keeper reported last."""
        self.problems: dict[str, dict[str, str]] = {}
        self.revision: dict[str, Any] = {"revision": 0, "models": [], "control": {}}
        self._fleet_text: bytes | None = None
        self._make_members = members
        self._members: Members | None = None
        self._unread: dict[str, float] = {}
        """By machine: until when a claim waits for its journals; 0 once they were read. Empty before it looked."""
        self._marks: dict[str, dict[int, Mark]] = {}
        """By machine and slot: how far the journal was read."""
        self._changes: dict[str, tuple[tuple[int, str], ...]] = {}
        """By machine: what its replicas said of their journals when these were read last."""
        self._here: set[str] | None = None
        """Ids of the machines that are there now; None before it looked."""
        self._telling: set[asyncio.Task[None]] = set()
        threading.Thread(target=self._run, name="controller", daemon=True).start()

    def ping(self) -> int:
        """The revision that it works on: a sign of life for who started it."""
        return int(self.revision["revision"])

    # its loop

    def _run(self) -> None:
        """An actor that is alive and does nothing would never be restarted: it ends with its work."""
        try:
            asyncio.run(self._main())
        except BaseException:
            log.exception("the controller ends, to be started anew")
        os._exit(1)

    async def _main(self) -> None:
        self._read_revision()
        control = self.revision["control"]
        server = _QuietServer(
            uvicorn.Config(
                self.app().asgi(),
                host=control["host"],
                port=control["port"],
                log_level="warning",
                access_log=False,
                lifespan="off",
            )
        )
        await asyncio.gather(self._work(), server.serve())

    async def _work(self) -> None:
        members = self._members = self._make_members()
        following: dict[str, asyncio.Task[None]] = {}
        while True:
            self._here = set(await asyncio.to_thread(members.machines))
            for machine in self._here:
                if machine not in following or following[machine].done():
                    following[machine] = asyncio.create_task(self._follow(members, machine))
                    self._unread.setdefault(machine, time.monotonic() + LEARN_S)
            self._read_revision()
            await asyncio.sleep(TICK_S)

    async def _follow(self, members: Members, machine: str) -> None:
        """Hear of every change on a machine as it happens, and give it what it is to serve."""
        version = -1
        while True:
            try:
                self._heard(machine, await members.report(machine, version, NEWS_S))
                wanted = self._assign().get(machine)
                number = self.revision["revision"]
                if wanted is not None and self.reports[machine]["revision"] != number:
                    self._heard(machine, await members.apply(machine, number, wanted, self._head()))
                await self._learn(members, machine)
                await self._tell(machine)
                version = self.reports[machine]["version"]
            except AWAY as error:
                log.warning("machine %s cannot be asked: %s", machine, error)
                await asyncio.sleep(TICK_S)
            except Exception:
                log.exception("machine %s: a step failed; the controller goes on", machine)
                await asyncio.sleep(TICK_S)

    async def _learn(self, members: Members, machine: str) -> None:
        """Read what is new in the journals of a machine: those of hosts that are dead or no longer wanted too."""
        report = self.reports[machine]
        changes = tuple((r.get("pins", 0), r.get("journal", "")) for r in report["replicas"])
        if self._changes.get(machine) == changes:
            return
        marks = self._marks.setdefault(machine, {})
        told = await members.pins(machine, marks)
        for slot, news in told.items():
            pins = map(pin_from_json, news.pins)
            self.index.confirm(pins, f"{report['name']}/{slot}", news.whole, time.time())
            for pin in news.pins:
                self.index.describe(pin["session"], pin.get("public", ""), pin.get("scope"))
            marks[slot] = news.mark
        if silent := sorted(r["name"] for r in report["replicas"] if r.get("pins") and r["slot"] not in told):
            log.warning("pins of %s are not known: the journal could not be read", ", ".join(silent))
            return
        self._changes[machine] = changes
        self._unread[machine] = 0.0

    async def _tell(self, machine: str) -> None:
        """Let its hosts know of sessions that have a newer home, so that their old contexts go."""
        report = self.reports[machine]
        for replica in report["replicas"]:
            behind = self.index.behind.get(replica["name"], {})
            while behind and replica["state"] == "ready":
                pins = list(behind.values())[:TOLD_AT_ONCE]
                if not await self._ask(
                    report, replica, "POST", "/pins", {"pins": list(map(Pin.to_json, pins))}
                ):
                    break
                self.index.told(replica["name"], pins)

    def _ended(self, session: str, model: str, replicas: Sequence[str]) -> None:
        """Let these hosts drop what they have of a session that was ended, if they can be asked."""
        path = f"/pins/{session}?{urlencode({'model': model})}"
        for report in self.reports.values():
            for replica in report["replicas"]:
                if replica["name"] in replicas:
                    telling = asyncio.create_task(self._end_at(report, replica, path))
                    self._telling.add(telling)
                    telling.add_done_callback(self._telling.discard)

    async def _end_at(self, report: dict[str, Any], replica: dict[str, Any], path: str) -> None:
        await self._ask(report, replica, "DELETE", path, {})

    async def _ask(
        self, report: dict[str, Any], replica: dict[str, Any], method: str, path: str, body: dict[str, Any]
    ) -> bool:
        """Whether the host has done it."""
        try:
            asking = ask_host.ask_host(
                report["address"], replica["port"], self.token, method, path, json.dumps(body).encode()
            )
            await asyncio.wait_for(asking, TELL_S)
        except ask_host.AWAY as error:
            log.warning("%s does not take what it is told of pins: %s", replica["name"], error)
            return False
        return True

    def _forget(self, name: str) -> None:
        if self._here is None:
            raise NotForgotten(
                "The controller has not looked yet who is here. Ask again in a second.", known=True
            )
        for machine in self.book.forget(name, self._here):
            self.reports.pop(machine, None)
            self._heard_at.pop(machine, None)
            self._unread.pop(machine, None)
            self._changes.pop(machine, None)  # Its journals are read again, should it come back.
        self._assign()

    async def _leave(self) -> dict[str, Any]:
        """Ask every machine but the head to end its part: by name, those that do, with their hosts, and the others."""
        head = self._head()
        names = {id_: known.name for id_, known in self.book.remembered().items() if id_ != head}
        names |= {id_: self.reports[id_]["name"] for id_ in self.reports if id_ != head}
        members, here = self._members, self._here or set()
        asked = [id_ for id_ in names if members is not None and id_ in here]
        answers = await asyncio.gather(*(self._leaves(members, id_) for id_ in asked if members is not None))
        left = [id_ for id_, leaves in zip(asked, answers, strict=True) if leaves]
        hosts = {
            names[id_]: [f"{r['address']}:{r['port']}" for r in self.reports.get(id_, {}).get("replicas", ())]
            for id_ in left
        }
        away = sorted(names[id_] for id_ in names if id_ not in left)
        return {"left": sorted(hosts), "away": away, "hosts": hosts}

    async def _leaves(self, members: Members, machine: str) -> bool:
        try:
            await members.leave(machine)
        except AWAY as error:
            log.warning("machine %s cannot be asked to leave: %s", machine, error)
            return False
        return True

    def _has_learned(self) -> bool:
        """Whether a session that the index does not know is new: every machine's journals were read, or given up."""
        now = time.monotonic()
        return bool(self._unread) and all(until < now for until in self._unread.values())

    def _is_there(self, replica: str) -> bool:
        """Whether its machine is there, and the keeper said of late that it is ready."""
        since = time.monotonic() - HEARD_S
        return any(
            each["name"] == replica and each["state"] == "ready"
            for machine in self._here or ()
            if self._heard_at.get(machine, 0.0) > since
            for each in self.reports[machine]["replicas"]
        )

    def _head(self) -> str:
        """The id of this machine, whose revisions they are."""
        return str((read_json(self.paths.machine) or {}).get("id", ""))

    def _heard(self, machine: str, report: dict[str, Any]) -> None:
        if report.get("head", "") != self._head():
            report = {**report, "revision": 0}  # another head numbered it: of ours it has none yet
        self.reports[machine] = report
        self._heard_at[machine] = time.monotonic()
        try:
            self.book.here(machine, report["name"], report["zone"], report["address"])
        except OSError as error:
            log.warning("machine %s is not written down: %s", machine, error)
        self._fleet_text = None

    def _assign(self) -> dict[str, list[dict[str, Any]]]:
        """By machine id: what it is to serve, as far as it fits there."""
        machines = [Machine.from_json(report) for report in self.reports.values()]
        models = {m["spec"]["name"]: m for m in self.revision["models"]}
        self._fleet_text = None
        specs = [ModelSpec.from_json(m["spec"]) for m in models.values()]
        fitted = fit_each([spec.wish() for spec in specs], machines)
        self.problems = {model: dict(reasons) for model, reasons in fitted.left_out.items()}
        return {
            machine.id: [
                {"model": models[name]["spec"], "digest": models[name]["digest"], "count": count}
                for name, count in fitted.machines[machine.name]
            ]
            for machine in machines
        }

    def _read_revision(self) -> None:
        revision = read_json(self.paths.revision)
        if revision and revision["revision"] != self.revision["revision"]:
            self.revision = revision
            self._fleet_text = None

    def _all_problems(self) -> dict[str, dict[str, str]]:
        """By model and machine: why it does not run there, as the fit said and as the keepers found."""
        found = {model: dict(reasons) for model, reasons in self.problems.items()}
        for report in self.reports.values():
            for model, reasons in report.get("refused", {}).items():
                found.setdefault(model, {})[report["name"]] = "; ".join(reasons)
        return found

    # what routers ask

    def app(self) -> ControllerApp:
        return ControllerApp(
            self.token,
            self.index,
            self._fleet,
            self._has_learned,
            self._forget,
            self._ended,
            self._is_there,
            JoinRoutes(self.paths, self.token, self.book, lambda: self.revision, self._leave),
        )

    def _fleet(self) -> bytes:
        if self._fleet_text is None:
            models = [m["spec"] for m in self.revision["models"]]
            fleet = {
                "revision": self.revision["revision"],
                "models": [{key: m[key] for key in ("name", "context", "engine")} for m in models],
                "problems": self._all_problems(),
                "machines": list(self.reports.values()),
                "forgotten": self.book.list_forgotten(),
            }
            self._fleet_text = json.dumps(fleet).encode()
        return self._fleet_text


class _QuietServer(uvicorn.Server):
    """uvicorn without its ten wakes a second: this one runs until its process is killed."""

    async def main_loop(self) -> None:
        await asyncio.Event().wait()
