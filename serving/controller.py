"""The controller: compares what the config wants with what keepers report, carries out the difference, indexes pins.

A plain class; cluster/ray_cluster.py makes it the one detached actor of the cluster. It asks for no CPU, keeps no
truth of its own (the revision lies on disk, the pins in the hosts' journals) and may die at any moment. Routers reach
it over HTTP, since they never import Ray.
"""

import asyncio
import logging
import os
import ssl
import threading
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import aiohttp
import msgspec

from cluster import machine_tls, magic_packet, tls
from cluster.clocks import AwakeClock, DayClock
from cluster.paths import Paths, read_json, secret
from cluster.proof import machine_token
from serving.announcing import Announcing
from serving.bearers import Bearers
from serving.controller_app import Acts, ControllerApp, MachineAway
from serving.draining import Draining
from serving.giving import Giving
from serving.join_routes import JoinRoutes
from serving.known_pins import KnownPins
from serving.learning import Learning
from serving.leaving import leave_all
from serving.listing import Listing
from serving.machine_book import MachineBook, NotForgotten
from serving.machine_roll import STEP_S, MachineRoll
from serving.membership import AWAY, Members
from serving.metrics_routes import MetricsRoutes
from serving.model_giving import ModelGiving
from serving.pin_index import PinIndex
from serving.pins import Pin
from serving.quiet_server import quiet_server
from serving.sharing import Sharing
from serving.standing import AWAY as UNHEARD
from serving.standing import LOST_AFTER_S
from serving.telling import Telling
from serving.wake_machine import Cluster, Waker, sleepers
from serving.waking import Awake, entries

TICK_S = 2.0
"""How often it looks for new machines."""
LISTED = ("name", "context", "engine", "when_lost")
"""What routers are told of a model."""
NEWS_S, NEWS_PART = 10.0, 1 / 3
"""How long it waits for news of a machine in one question: at most, and of the time after which that one is lost."""
HEARD_S, HEARD_PART = 15.0, 1 / 2
"""How long what a keeper reported counts, likewise."""

log = logging.getLogger(__name__)


class Controller:
    """`members` is called once, on the controller's own thread."""

    def __init__(self, members: Callable[[], Members]) -> None:
        self.paths = Paths.from_env(os.environ)
        self.token = secret(self.paths.cluster_token)
        self.index = PinIndex()
        self.index_clock = DayClock()
        self.book = MachineBook(self.paths.revision.with_name("machines.json"))
        self.listing = Listing(self.paths)
        self.known = KnownPins(self.paths.known_pins)
        names = (each.name for each in self.book.remembered().values())
        self._awake = AwakeClock(STEP_S)
        self.roll = MachineRoll(self.book, self.known.read(self.index, names), self._awake)
        self.problems: dict[str, dict[str, str]] = {}
        self.revision: dict[str, Any] = {"revision": 0, "models": [], "control": {}}
        self._fleet_text: bytes | None = None
        self._passing: dict[str, Any] = {}
        """What that text says of who is away and whose turn it is: nobody tells of a change of that."""
        self._make_members = members
        self._members: Members | None = None
        self._learning = Learning(self.index, self._awake, self.index_clock.steady)
        self._here: set[str] | None = None
        """Ids of the machines that are there now; None before it looked."""
        self._deaf: set[str] = set()
        """Ids of machines whose keeper did not take its share, until it is heard of again."""
        self._sharing = Sharing()
        self._trust: ssl.SSLContext | None = None
        self._bearers = Bearers(self.token)
        self._telling = Telling(self.index, lambda id_: machine_token(self.token, id_), lambda: self._trust)
        self._waker = Waker(self._who_is_there, self._order_wake, AWAY)
        self._giving = Giving(lambda: self.roll.reports, self._heard_of, self.ping, self._give, self._head)
        self._models = ModelGiving(self.paths.known_models, _ForModels(self))
        self._announcing = Announcing(self.paths, lambda: self.revision["control"])
        self._draining = Draining(
            self.book,
            self.index,
            self._bearers,
            lambda: self.roll.reports,
            self._heard_of,
            self._takes_new,
            self.index_clock,
            lambda: aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self._trust or True)),
        )
        self._end: Callable[[], object] | None = None
        self._has_ended = False
        self._thread = threading.Thread(target=self._run, name="controller", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """For a process that goes on without it. From another thread; returns once nothing of it works, or in 10 s."""
        self._has_ended = True
        if self._end:
            self._end()
        self._thread.join(10.0)

    def ping(self) -> int:
        """The revision that it works on: a sign of life for who started it."""
        return int(self.revision["revision"])

    # its loop

    def _run(self) -> None:
        """An actor that is alive and does nothing would never be restarted: it ends with its work."""
        try:
            asyncio.run(self._main())
        except BaseException:
            if self._has_ended:
                return
            log.exception("the controller ends, to be started anew")
        os._exit(1)

    async def _main(self) -> None:
        work = asyncio.current_task()
        assert work is not None
        self._end = partial(asyncio.get_running_loop().call_soon_threadsafe, work.cancel)
        self._read_revision()
        control = self.revision["control"]
        shown = None
        if control.get("tls"):
            self._trust, self._bearers.speaks_tls = tls.client_context(self.paths.ca), True
            shown = tls.ServerTls(machine_tls.own_files(self.paths)).context
        server = quiet_server(self.app().asgi(), control["host"], control["port"], shown)
        try:
            await asyncio.gather(self._work(), server.serve())
        finally:
            for each in server.servers:
                each.close()

    async def _work(self) -> None:
        members = self._members = self._make_members()
        following: dict[str, asyncio.Task[None]] = {}
        works = (self._giving, self._models, self._draining, self._announcing)
        tasks = [asyncio.create_task(each.run()) for each in works]
        while not any(task.done() for task in tasks):
            self._here = set(await asyncio.to_thread(members.machines))
            for machine in self._here:
                if machine not in following or following[machine].done():
                    following[machine] = asyncio.create_task(self._follow(members, machine))
                    self._learning.expect(machine)
            self._awake()  # it has to be read now and then
            self._read_revision()
            if self.listing.look(self.book.remembered()):
                self._fleet_text = None
            await self.known.save(self.index, self.roll)
            await asyncio.sleep(TICK_S)

    async def _follow(self, members: Members, machine: str) -> None:
        """Hear of every change on a machine as it happens, for as long as that is there."""
        version = -1
        while True:
            try:
                news_s = min(NEWS_S, self.roll.lost_after_s * NEWS_PART)
                self._heard(machine, await members.report(machine, version, news_s))
                if await self._learning.read(members, machine, self.roll.reports[machine]):
                    await self.known.save(self.index, self.roll)
                await self._telling.tell(self.roll.reports[machine])
                version = self.roll.reports[machine]["version"]
            except AWAY as error:
                log.warning("machine %s cannot be asked: %s", machine, error)
                if machine not in (self._here or ()):
                    return  # A keeper would be made for it again and again; it is followed once it is back.
                await asyncio.sleep(TICK_S)
            except Exception:
                log.exception("machine %s: a step failed; the controller goes on", machine)
                await asyncio.sleep(TICK_S)

    async def _give(self, machine: str) -> None:
        """Give a keeper its share of the revision; one that does not take it is away until it is heard of again."""
        wanted = self._shares().get(machine)
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
        reported = (self._here or set()) & self.roll.reports.keys() - self._deaf - self.book.asleep
        return {machine for machine in reported if self.roll.silent_s(machine) < heard_s}

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
            self._learning.forget(machine)
        self.known.drop(name)
        self._assign()

    def _cordon(self, name: str, is_cordoned: bool) -> None:
        self.book.cordon(name, is_cordoned)
        if not is_cordoned:
            self.listing.keep(name, self.book.remembered())
        self._fleet_text = None
        self._draining.changed()

    def _drain(self, name: str, within_s: float) -> None:
        self.book.drain(name, self.index_clock.steady() + within_s)
        self._fleet_text = None
        self._draining.changed()

    def _takes_new(self, replica: str) -> bool:
        """Whether sessions may get a home there: not on a machine that is cordoned, drained, off the list, or its
        person's at present."""
        name, known = replica.rpartition("/")[0], self.book.known
        if self.roll.is_yielded(replica):
            return False
        barred = self.book.cordoned | self.book.draining.keys() | self.listing.off
        return all(known[id_].name != name for id_ in barred if id_ in known)

    def _who_is_there(self) -> Cluster:
        """For who wakes a machine."""
        config, head = self.revision.get("machines", ()), self._head()
        heard = sorted(self._heard_of(), key=lambda each: (each != head, self.roll.reports[each]["name"]))
        reports = [self.roll.reports[machine] for machine in heard]
        here = Awake(head, "the head", "", magic_packet.networks())
        others = [Awake(r["id"], r["name"], r["zone"], tuple(r.get("networks", ()))) for r in reports]
        if not any(each.id == head for each in others):
            others.insert(0, here)  # its keeper is away; it can send all the same
        known = ((each.name, each.zone, each.address) for each in self.book.remembered().values())
        names = frozenset(report["name"] for report in reports)
        return Cluster(entries(config), sleepers(known, config), names, tuple(others), head)

    async def _order_wake(self, machine: str, mac: str, networks: list[str]) -> int:
        return 0 if self._members is None else await self._members.wake(machine, mac, networks)

    async def _leave(self) -> dict[str, Any]:
        gone = ("asleep", "lost")
        late = {machine for machine, stands in self.roll.standings().items() if stands not in gone}
        known, reports = self.book.remembered(), self.roll.reports
        return await leave_all(self._members, lambda: self._here or set(), late, self._head(), known, reports)

    async def _yield(self, name: str, for_s: float | None, ends: bool) -> dict[str, Any]:
        """Let a machine be its person's, or end that. Returns how it stands then, as its keeper says."""
        here = self._heard_of()
        machine = next((id_ for id_ in here if self.roll.reports[id_]["name"] == name), None)
        if machine is None or self._members is None:
            raise self.book.not_known(name) or MachineAway(
                f"{name} is away and cannot be asked. Its person says it there: `homeport yield`."
            )
        try:
            self._heard(machine, await self._members.yield_machine(machine, for_s, ends))
        except AWAY as error:
            log.warning("machine %s cannot be yielded: %s", machine, error)
            raise MachineAway(
                f"The keeper of {name} did not take it ({error}). Ask again in a moment, or say it there: "
                "`homeport yield`."
            ) from None
        told: dict[str, Any] = self.roll.reports[machine]
        return {"machine": name, "yielded": told.get("yielded")}

    def _is_there(self, replica: str) -> bool:
        """Whether its machine is there, and the keeper said of late that it is ready, or will be when the machine's
        person no longer wants that: it is no lost home."""
        return any(
            each["name"] == replica and each["state"] in ("ready", "yielded")
            for machine in self._heard_of()
            for each in self.roll.reports[machine]["replicas"]
        )

    def _boots(self) -> dict[str, str]:
        """By machine, of those that are heard: which boot of it its keeper runs in; empty where it did not say."""
        standings = self.roll.standings()
        return {
            machine: str(report.get("boot", ""))
            for machine, report in self.roll.reports.items()
            if standings[machine] not in UNHEARD
        }

    def _head(self) -> str:
        """The id of this machine, whose revisions they are."""
        return str((read_json(self.paths.machine) or {}).get("id", ""))

    def _heard(self, machine: str, report: dict[str, Any]) -> None:
        report = dict(report)
        if (figures := report.pop("figures", None)) is not None:
            self.roll.figures[machine] = figures
        if report.get("head", "") != self._head() or report["revision"] > self.ping():
            report = {**report, "revision": 0}  # another head numbered it, or this one before it lost its own
        is_new = report != self.roll.reports.get(machine) or machine in self._deaf
        self.roll.heard(machine, report)
        self._deaf.discard(machine)
        try:
            if self.book.here(machine, report["name"], report["zone"], report["address"]):
                self.index.save_again(report["name"])  # It may have been forgotten.
            self.book.sleeps(machine, bool(report.get("sleeping")))
        except OSError as error:
            log.warning("machine %s is not written down: %s", machine, error)
        if is_new:
            self._assign()
            self._giving.heard()
            self._models.heard()

    def _shares(self) -> Mapping[str, list[dict[str, Any]]]:
        """By machine id: what it is to serve, as far as it fits there."""
        return self._sharing.shares(self.revision["models"], self.roll.reports).machines

    def _assign(self) -> None:
        """Something is new: what there is to tell, and what does not fit."""
        self._fleet_text = None
        left_out = self._sharing.shares(self.revision["models"], self.roll.reports).left_out
        self.problems = {model: dict(reasons) for model, reasons in left_out.items()}

    def _read_revision(self) -> None:
        revision = read_json(self.paths.revision)
        if revision and revision["revision"] != self.revision["revision"]:
            self.revision = revision
            self.roll.lost_after_s = float(revision["control"].get("lost_after_s", LOST_AFTER_S))
            self.roll.wakes = entries(revision.get("machines", ())).keys()
            self._assign()
            self._giving.heard()
            self._models.heard()

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
            self._learning.has_all,
            self._forget,
            self._cordon,
            self._yield,
            self._ended,
            self._is_there,
            self._takes_new,
            self._models.pull,
            self._waker.wake,
            self._boots,
            self.book.zone_of,
            self._drain,
        )
        joining = JoinRoutes(self.paths, self.token, self.book, lambda: self.revision, self._leave)
        metrics = MetricsRoutes(self.roll, self._all_told, self._ask_report)
        return ControllerApp(self.token, self.index, acts, joining, self.index_clock, metrics)

    def _fleet(self) -> bytes:
        draining = self._draining.told()
        passing = {"standings": self.roll.standings(), "giving": self._giving.told(), "draining": draining}
        if self._fleet_text is None or passing != self._passing:
            models = [m["spec"] for m in self.revision["models"]]
            fleet = {
                "revision": self.revision["revision"],
                "lost_after_s": self.roll.lost_after_s,
                "models": [{key: m[key] for key in LISTED} for m in models],
                "problems": self._all_problems(),
                "machines": self._all_told(),
                "giving": passing["giving"],
                "forgotten": self.book.list_forgotten(),
            }
            self._fleet_text, self._passing = msgspec.json.encode(fleet), passing
        return self._fleet_text

    def _all_told(self) -> list[dict[str, Any]]:
        draining = self._draining.told()
        return [self._told(machine, draining) for machine in self.roll.list()]

    async def _ask_report(self, machine: str) -> Mapping[str, Any]:
        if self._members is None:
            raise TimeoutError("the controller has not looked yet who is here")
        return await self._members.report(machine, -1, 0.0)

    def _told(self, machine: dict[str, Any], draining: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """With whether Ray's list has it no longer, and how far it is drained."""
        is_off, drain = machine["id"] in self.listing.off, machine["draining"]
        drain = drain and {**drain, **draining.get(machine["id"], {})}
        return {
            **machine,
            "unlisted": is_off,
            "cordoned": machine["cordoned"] or is_off,
            "draining": drain,
        }


class _ForModels:
    """What serving/model_giving.py asks of it."""

    def __init__(self, controller: Controller) -> None:
        self._of = controller

    def reports(self) -> Mapping[str, Any]:
        return self._of.roll.reports

    def here(self) -> set[str]:
        return self._of._heard_of()

    def shares(self) -> Mapping[str, list[dict[str, Any]]]:
        return self._of._shares()

    def revision(self) -> Mapping[str, Any]:
        return self._of.revision

    async def give(self, machine: str, message: dict[str, Any]) -> None:
        members = self._of._members
        if members is None:
            return
        try:
            self._of._heard(machine, await members.bring(machine, message))
        except AWAY as error:
            log.warning("machine %s cannot be told of models: %s", machine, error)
