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
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import uvicorn

from cluster.machine import Machine
from cluster.paths import Paths, read_json, secret
from cluster.ray_cluster import RayFailed
from serving.controller_app import Acts, ControllerApp
from serving.giving import Giving
from serving.join_routes import JoinRoutes
from serving.journal_file import JournalNews, Mark
from serving.known_pins import KnownPins
from serving.machine_book import MachineBook, NotForgotten
from serving.machine_roll import MachineRoll
from serving.pin_index import PinIndex
from serving.pins import Pin, pin_from_json
from serving.plan import shares
from serving.standing import LOST_AFTER_S
from serving.telling import Telling

TICK_S = 2.0
"""How often it looks for new machines."""
NEWS_S, NEWS_PART = 10.0, 1 / 3
"""How long it waits for news of a machine in one question: at most, and of the time after which that one is lost."""
HEARD_S, HEARD_PART = 15.0, 1 / 2
"""How long what a keeper reported counts, likewise."""
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
        self.known = KnownPins(self.paths.known_pins)
        names = (each.name for each in self.book.remembered().values())
        self.roll = MachineRoll(self.book, self.known.read(self.index, names))
        self.problems: dict[str, dict[str, str]] = {}
        self.revision: dict[str, Any] = {"revision": 0, "models": [], "control": {}}
        self._fleet_text: bytes | None = None
        self._passing: dict[str, Any] = {}
        """What that text says of who is away and whose turn it is: nobody tells of a change of that."""
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
        self._deaf: set[str] = set()
        """Ids of machines whose keeper did not take its share, until it is heard of again."""
        self._telling = Telling(self.index, self.token)
        self._giving = Giving(lambda: self.roll.reports, self._heard_of, self.ping, self._give, self._head)
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
        giving = asyncio.create_task(self._giving.run())
        while not giving.done():
            self._here = set(await asyncio.to_thread(members.machines))
            for machine in self._here:
                if machine not in following or following[machine].done():
                    following[machine] = asyncio.create_task(self._follow(members, machine))
                    self._unread.setdefault(machine, time.monotonic() + LEARN_S)
            self._read_revision()
            await self.known.save(self.index, self.roll)
            await asyncio.sleep(TICK_S)

    async def _follow(self, members: Members, machine: str) -> None:
        """Hear of every change on a machine as it happens."""
        version = -1
        while True:
            try:
                news_s = min(NEWS_S, self.roll.lost_after_s * NEWS_PART)
                self._heard(machine, await members.report(machine, version, news_s))
                await self._learn(members, machine)
                await self._telling.tell(self.roll.reports[machine])
                version = self.roll.reports[machine]["version"]
            except AWAY as error:
                log.warning("machine %s cannot be asked: %s", machine, error)
                await asyncio.sleep(TICK_S)
            except Exception:
                log.exception("machine %s: a step failed; the controller goes on", machine)
                await asyncio.sleep(TICK_S)

    async def _give(self, machine: str) -> None:
        """Give a keeper its share of the revision; one that does not take it is away until it is heard of again."""
        wanted = self._assign().get(machine)
        if wanted is None or self._members is None:
            return
        number = self.revision["revision"]
        try:
            self._heard(machine, await self._members.apply(machine, number, wanted, self._head()))
        except AWAY as error:
            log.warning("machine %s does not take its share: %s", machine, error)
            self._deaf.add(machine)

    def _heard_of(self) -> set[str]:
        """Ids of the machines that are here, by Ray's word and by their keepers'."""
        heard_s = min(HEARD_S, self.roll.lost_after_s * HEARD_PART)
        reported = (self._here or set()) & self.roll.reports.keys() - self._deaf
        return {machine for machine in reported if self.roll.silent_s(machine) < heard_s}

    async def _learn(self, members: Members, machine: str) -> None:
        """Read what is new in the journals of a machine: those of hosts that are dead or no longer wanted too."""
        report = self.roll.reports[machine]
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
        await self.known.save(self.index, self.roll)

    def _ended(self, said: Mapping[str, Pin]) -> Awaitable[None]:
        """Let the hosts of these journals drop what they have of a session that was ended; those that are away, once
        they are back. That is on disk when it returns."""
        for journal, pin in said.items():
            self.index.is_to_hear(journal, pin)
        self._telling.end_soon(self.roll.reports.values(), said)
        return self.known.save(self.index, self.roll)

    def _forget(self, name: str) -> None:
        if self._here is None:
            raise NotForgotten(
                "The controller has not looked yet who is here. Ask again in a second.", known=True
            )
        for machine in self.book.forget(name, self._here):
            self.roll.forget(machine)
            self._unread.pop(machine, None)
            self._changes.pop(machine, None)  # Its journals are read again, should it come back.
        self.known.drop(name)
        self._assign()

    def _cordon(self, name: str, is_cordoned: bool) -> None:
        self.book.cordon(name, is_cordoned)
        self._fleet_text = None

    def _takes_new(self, replica: str) -> bool:
        """Whether sessions may get a home there: not on a machine that is cordoned."""
        name = replica.rpartition("/")[0]
        return all(known.name != name for id_, known in self.book.known.items() if id_ in self.book.cordoned)

    async def _leave(self) -> dict[str, Any]:
        """Ask every machine but the head to end its part: by name, those that do, with their hosts, and the others."""
        head = self._head()
        names = {id_: known.name for id_, known in self.book.remembered().items() if id_ != head}
        names |= {id_: self.roll.reports[id_]["name"] for id_ in self.roll.reports if id_ != head}
        members, here = self._members, self._here or set()
        asked = [id_ for id_ in names if members is not None and id_ in here]
        answers = await asyncio.gather(*(self._leaves(members, id_) for id_ in asked if members is not None))
        left = [id_ for id_, leaves in zip(asked, answers, strict=True) if leaves]
        hosts = {
            names[id_]: [
                f"{r['address']}:{r['port']}" for r in self.roll.reports.get(id_, {}).get("replicas", ())
            ]
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
        return any(
            each["name"] == replica and each["state"] == "ready"
            for machine in self._heard_of()
            for each in self.roll.reports[machine]["replicas"]
        )

    def _head(self) -> str:
        """The id of this machine, whose revisions they are."""
        return str((read_json(self.paths.machine) or {}).get("id", ""))

    def _heard(self, machine: str, report: dict[str, Any]) -> None:
        if report.get("head", "") != self._head() or report["revision"] > self.ping():
            report = {**report, "revision": 0}  # another head numbered it, or this one before it lost its own
        self.roll.heard(machine, report)
        self._deaf.discard(machine)
        try:
            if self.book.here(machine, report["name"], report["zone"], report["address"]):
                self.index.save_again(report["name"])  # It may have been forgotten.
        except OSError as error:
            log.warning("machine %s is not written down: %s", machine, error)
        self._assign()
        self._giving.heard()

    def _assign(self) -> dict[str, list[dict[str, Any]]]:
        """By machine id: what it is to serve, as far as it fits there."""
        self._fleet_text = None
        told = shares(
            self.revision["models"], [Machine.from_json(report) for report in self.roll.reports.values()]
        )
        self.problems = {model: dict(reasons) for model, reasons in told.left_out.items()}
        return dict(told.machines)

    def _read_revision(self) -> None:
        revision = read_json(self.paths.revision)
        if revision and revision["revision"] != self.revision["revision"]:
            self.revision = revision
            self.roll.lost_after_s = float(revision["control"].get("lost_after_s", LOST_AFTER_S))
            self._assign()
            self._giving.heard()

    def _all_problems(self) -> dict[str, dict[str, str]]:
        """By model and machine: why it does not run there, as the fit said and as the keepers found."""
        found = {model: dict(reasons) for model, reasons in self.problems.items()}
        for report in self.roll.reports.values():
            for model, reasons in report.get("refused", {}).items():
                found.setdefault(model, {})[report["name"]] = "; ".join(reasons)
        return found

    # what routers ask

    def app(self) -> ControllerApp:
        acts = Acts(
            self._fleet,
            self._has_learned,
            self._forget,
            self._cordon,
            self._ended,
            self._is_there,
            self._takes_new,
        )
        joining = JoinRoutes(self.paths, self.token, self.book, lambda: self.revision, self._leave)
        return ControllerApp(self.token, self.index, acts, joining)

    def _fleet(self) -> bytes:
        passing = {"standings": self.roll.standings(), "giving": self._giving.told()}
        if self._fleet_text is None or passing != self._passing:
            models = [m["spec"] for m in self.revision["models"]]
            fleet = {
                "revision": self.revision["revision"],
                "lost_after_s": self.roll.lost_after_s,
                "models": [{key: m[key] for key in ("name", "context", "engine")} for m in models],
                "problems": self._all_problems(),
                "machines": self.roll.list(),
                "giving": passing["giving"],
                "forgotten": self.book.list_forgotten(),
            }
            self._fleet_text, self._passing = json.dumps(fleet).encode(), passing
        return self._fleet_text


class _QuietServer(uvicorn.Server):
    """uvicorn without its ten wakes a second: this one runs until its process is killed."""

    async def main_loop(self) -> None:
        await asyncio.Event().wait()
