"""The keeper: owns one machine's hardware; carves slots, starts, watches, adopts and stops hosts.

A plain class; serving/members.py makes it an actor. It loads no engine. Hosts are nobody's children: the keeper
may die at any moment, and the next one finds them by their records. What is wanted lies in `slots.json`, so that a
keeper needs no controller to keep its hosts alive.
"""

import asyncio
import contextlib
import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, assert_never

from cluster import confine, machine_tls, magic_packet, tls
from cluster.inventory import measure
from cluster.offline import offline
from cluster.paths import Paths, read_json, secret, write_private
from cluster.processes import ROLE, RUN, clean_environment, mark
from cluster.record import boot_id
from cluster.slices import overlap
from serving.before_sleep import BeforeSleep
from serving.gpu_watch import GpuLook
from serving.host_watch import HostWatch
from serving.journal_file import NOTHING, JournalNews, Mark, entries_since
from serving.keeper_figures import figures
from serving.model_store import ModelStore
from serving.owner_watch import ForeignLook, OwnerWatch
from serving.reconcile import Drain, Seen, Start, Stop, plan
from serving.settings import settings_of
from serving.slot_book import SlotBook
from serving.slots import Slot, digest_here
from serving.source import SourceError, model_path

TICK_S = 5.0
BUSY_TICK_S = 0.5
"""While a host is on its way. The death of one is told by its pidfd, between ticks too."""
STOP_GRACE_S = 5.0
ORDER_S = 3.0
"""By then the loop has taken an order."""
ANSWERED_S = 0.5
"""By then a controller has the answer to its order to leave."""
QUIET_DEATH = {"GGML_NO_BACKTRACE": "1"}
"""llama.cpp would let a debugger write pages of frames behind the sentence that says which assertion failed."""
DRAINS = "finishing its turns before it restarts with the new configuration"

log = logging.getLogger(__name__)


class Keeper:
    """Its public methods are called by Ray, several at once; the work goes on in a loop of its own thread.

    Which machine this is, it reads from `machine.json`, as cluster/join.py wrote it.
    """

    def __init__(self) -> None:
        self.paths = Paths.from_env(os.environ)
        self.machine = json.loads(self.paths.machine.read_text())
        self.book = SlotBook(self.paths, self.machine, measure(os.environ))
        self._boot = boot_id()
        self._trust = tls.client_context(self.paths.ca) if self.machine.get("tls") else None
        self.watches: dict[int, HostWatch] = {}
        self.owner = OwnerWatch(self.paths, self.watches, self._heard)
        self._foreign = ForeignLook(self._served, self.watches, self._publish)
        self._gpus = GpuLook(self._with_gpus, self.watches, self._publish)
        self._news = threading.Condition()
        self._version = self._told = 0
        self._report: dict[str, Any] = {}
        self._loop = asyncio.new_event_loop()
        self.sleep = BeforeSleep(
            self._loop, lambda: list(self.watches.values()), self._publish, self._wait_told
        )
        self._wake = asyncio.Event()
        self.models = ModelStore(self.paths, self.machine, secret(self.paths.files_token), self._wake_up)
        self._publish()
        self._living: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()
        self.sleep.start()

    def report(self, known: int = -1, wait_s: float = 0.0) -> dict[str, Any]:
        """The machine and its replicas as JSON, from memory; at once, or when it is no longer version `known`.

        Blocks for up to `wait_s`, then answers with what there is. `figures` are those of now, and make no version.
        """
        with self._news:
            if known <= self._version:  # Else the keeper before this one told it.
                self._told = max(self._told, known)
            self._news.notify_all()
            self._news.wait_for(lambda: self._version != known, wait_s)
            return {**self._report, "figures": self._figures()}

    def _figures(self) -> dict[str, Any]:
        return figures(
            self.machine["name"], self.book.slots, self.watches, self._foreign.spent_s, self._gpus.figures
        )

    def _wait_told(self, version: int, wait_s: float) -> bool:
        """Blocks until a controller has taken that version, for up to `wait_s`; whether it has."""
        with self._news:
            return self._news.wait_for(lambda: self._told >= version, wait_s)

    def apply(self, revision: int, wishes: list[dict[str, Any]], head: str) -> dict[str, Any]:
        """Take a revision of what this machine is to serve; the one that it has already is ignored. Returns `report()`.

        `wishes`: [{"model": ModelSpec as JSON, "digest": str, "count": int}]. `head`: id of the machine that numbers
        these revisions.
        """
        if self.book.take(revision, wishes, head):
            self._publish()
            self._wake_up()
        return self.report()

    def bring(self, orders: dict[str, Any]) -> dict[str, Any]:
        """Take from where this machine is to get which models (serving/model_store.py). Returns `report()`."""
        self.models.give(orders)
        self._publish()
        return self.report()

    def pins(self, known: dict[int, Mark]) -> dict[int, JournalNews]:
        """What is new in the journals of all slots that this machine ever had, their hosts alive or not, by slot.

        `known`: how far each was read, as the last answer said. A journal that cannot be read is left out.
        """
        found = {}
        for file in self.paths.home.glob("replicas/*/journal.sqlite"):
            try:
                slot = int(file.parent.name)
                entries, mark, whole = entries_since(file, known.get(slot, NOTHING))
            except (sqlite3.Error, ValueError):
                log.exception("the journal of slot %s cannot be read", file.parent.name)
                continue
            found[slot] = JournalNews([entry.to_json() for entry in entries], mark, whole)
        return found

    def yield_machine(self, for_s: float | None, ends: bool) -> dict[str, Any]:
        """The machine's person wants it for themselves, for so long or until it `ends`. Returns `report()` at once; the
        hosts are gone within 5 s. Raises OSError where the end cannot be written down."""
        asyncio.run_coroutine_threadsafe(self.owner.order(for_s, ends), self._loop).result(ORDER_S)
        return self.report()

    def wake(self, mac: str, networks: list[str]) -> int:
        """Send a magic packet on those of these networks that are this machine's: on how many. Raises ValueError for
        `mac`."""
        try:
            return len(magic_packet.send(mac, networks))
        except OSError:
            log.exception("no magic packet was sent")
            return 0

    def close(self) -> None:
        """End its threads; its hosts live on, and what was being brought goes on with the next keeper.

        Blocks until what it has begun is done. Orders after it are written down, and nobody follows them.
        """
        self.sleep.stop()
        with contextlib.suppress(RuntimeError):  # its loop has ended
            self._loop.call_soon_threadsafe(self._end_living)
        self._thread.join()
        self.models.close()

    def leave(self) -> None:
        """End this machine's part, this keeper too, as `homeport down` does: once this answer is out."""
        threading.Timer(ANSWERED_S, self._end_everything).start()

    def _end_everything(self) -> None:
        """Who ends it is nobody's child: it spares itself and all that it descends from."""
        env = {
            name: value for name, value in clean_environment(os.environ).items() if name not in (RUN, ROLE)
        }
        with (self.paths.logs / "ending.log").open("ab") as told:
            subprocess.run(
                [sys.executable, "-m", "cluster.ending", "--apart"],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=told,
                stderr=told,
                check=True,
            )

    def _wake_up(self) -> None:
        with contextlib.suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(self._wake.set)

    def _publish(self) -> int:
        """Make a new version of the report where it says something new. Returns the version that holds."""
        carved, slots = (
            self.book.report(),
            self.book.slots,
        )  # in this order, as `take` writes them in the other
        report = {
            **{key: self.machine[key] for key in ("id", "name", "zone", "address")},
            "state": "ready",
            "yielded": self.owner.to_json(),
            "yield_to": self.owner.programs,
            "boot": self._boot,
            **carved,
            "gpus": self._gpus.ill,
            "networks": list(magic_packet.networks()),
            "sleeping": self.sleep.going,
            "power": self.sleep.detail(),
            "ending": [n for n, watch in list(self.watches.items()) if n not in slots and watch.lives],
            "models": self.models.report(),
            "bench": read_json(self.paths.bench),
            "replicas": [self._replica(slot) for slot in slots.values()],
        }
        with self._news:
            if {**report, "version": self._version} != self._report:
                self._version += 1
                self._report = {**report, "version": self._version}
                self._news.notify_all()
            return self._version

    # the keeper's own loop

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._living = self._loop.create_task(self._live())
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._living)
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    async def _live(self) -> None:
        try:
            await asyncio.gather(self._keep(), self.owner.run(), self._foreign.run(), self._gpus.run())
        finally:
            await self.models.end()
            for watch in self.watches.values():
                watch.close()

    def _end_living(self) -> None:
        if self._living is not None:
            self._living.cancel()

    def _heard(self) -> None:
        """Something of a host, or of this machine's person, is another than before."""
        self._publish()
        self._wake.set()

    def _served(self) -> Mapping[int, Slot]:
        """The slots, while this machine is not its person's: then nobody is foreign there."""
        return {} if self.owner.yielded else self.book.slots

    def _with_gpus(self) -> Mapping[int, Slot]:
        """None where the GPUs are made up: the driver does not know them."""
        return {} if self.book.hardware.simulated else self._served()

    async def _keep(self) -> None:
        while True:
            try:
                await self._step()
            except Exception:
                log.exception("the keeper's step failed; it goes on")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), TICK_S if self._settled() else BUSY_TICK_S)
            self._wake.clear()

    async def _step(self) -> None:
        self.owner.mind()
        for number in self._known_slots():
            if number not in self.watches:
                self.watches[number] = self._adopt(number)
        await asyncio.gather(*(watch.look() for watch in self.watches.values()))
        slots = self.book.slots  # replaced whole by `apply`, on another thread
        needed = {slot.model.source for slot in slots.values()}
        await self.models.step(needed, is_paused=self.owner.yielded is not None)
        await asyncio.gather(
            *(
                self.watches[n].adjust(settings_of(slot.model))
                for n, slot in slots.items()
                if n in self.watches
            )
        )
        yielded = self.owner.yielded is not None
        wanted = {} if yielded else {number: slot.digest for number, slot in slots.items()}
        for number, watch in self.watches.items():
            if number in wanted:
                watch.wants(wanted[number])
        seen = {number: self._seen(number, slots.get(number)) for number in self.watches}
        for number in [n for n in wanted if not self.models.is_whole(slots[n].model.source)]:
            wanted.pop(number)  # Nothing is started on it yet, and what runs there goes on until then.
            seen.pop(number, None)
        actions = plan(wanted, seen, time.monotonic())
        await asyncio.gather(*(self._carry_out(action, slots) for action in actions))
        for number in [n for n, watch in self.watches.items() if n not in slots and watch.life == "absent"]:
            del self.watches[number]
        self._publish()

    def _seen(self, number: int, slot: Slot | None) -> Seen:
        """The host in this slot; one in a slice that was carved anew since counts as outdated."""
        watch = self.watches[number]
        seen, record = watch.seen(), watch.record
        if seen.digest is None or record is None:
            return seen
        return replace(seen, digest=digest_here(slot, seen.digest, record.slice, record.port))

    def _settled(self) -> bool:
        """Whether every wanted host is ready, and nothing else runs."""
        if self.owner.yielded:
            return not any(watch.lives for watch in self.watches.values())
        is_carved = self.watches.keys() == self.book.slots.keys()
        return is_carved and all(w.ready for w in self.watches.values()) and not self.models.is_busy

    async def _carry_out(self, action: Start | Stop | Drain, slots: Mapping[int, Slot]) -> None:
        match action:
            case Start(number):
                await self._start(slots[number])
            case Stop(number, reason):
                log.info("slot %d: stopping, %s", number, reason)
                watch = self.watches[number]
                await (watch.free() if self.owner.yielded else watch.stop(STOP_GRACE_S))
            case Drain(number):
                self.watches[number].detail = DRAINS
            case _:
                assert_never(action)

    async def _start(self, slot: Slot) -> None:
        watch = self.watches[slot.number]
        if holder := self._holder(slot):
            watch.detail = f"waits until {self.machine['name']}/{holder} has ended, which still has its cores"
            return
        folder = self.paths.replica(slot.number)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.models.used(slot.model.source)
        try:
            spec = self._spec(slot)
            write_private(folder / "spec.json", json.dumps(spec))
            record = await asyncio.to_thread(
                confine.launch,
                confine.Launch(
                    replica=spec["replica"],
                    slice=slot.slice,
                    command=(sys.executable, "-m", "serving.host", str(folder / "spec.json")),
                    env={
                        **offline(clean_environment(os.environ)),
                        **QUIET_DEATH,
                        **mark(self.paths, "host"),
                    },
                    folder=folder,
                    record=self.paths.record(slot.number),
                    locks=self.paths.locks,
                    port=slot.port,
                    config_digest=slot.digest,
                    address=spec["address"],
                    isolate=slot.model.isolate,
                ),
            )
        except (confine.LockTaken, confine.LaunchFailed, SourceError, OSError) as error:
            watch.find()  # somebody may have started it meanwhile
            if watch.life != "alive":
                watch.failed_to_start(str(error), time.monotonic())
        else:
            watch.started(record)
            if self.owner.yielded:  # meanwhile
                await watch.free()

    def _holder(self, slot: Slot) -> str | None:
        """Which other slot's host still holds some of this slice, as one that drains does: no death of this one."""
        for number, watch in self.watches.items():
            held = watch.record.slice if watch.lives and watch.record is not None else None
            if number != slot.number and held is not None and overlap(held, slot.slice):
                return str(number)
        return None

    def _spec(self, slot: Slot) -> dict[str, Any]:
        """What the host is told: serving/host.py reads it."""
        return {
            "replica": f"{self.machine['name']}/{slot.number}",
            "machine": self.machine["name"],
            "slot": slot.number,
            "address": self.machine["address"],
            "port": slot.port,
            "model": slot.model.to_json(),
            "model_path": str(model_path(slot.model.source, self.paths.home, slot.model.engine)),
            "token_file": str(self.paths.machine_token),
            "tls": machine_tls.own_files(self.paths).to_json() if self._trust else None,
            "folder": str(self.paths.replica(slot.number)),
            "slice": slot.slice.to_json(),
            "config_digest": slot.digest,
        }

    def _adopt(self, slot: int) -> HostWatch:
        watch = HostWatch(
            record_path=self.paths.record(slot),
            folder=self.paths.replica(slot),
            address=self.machine["address"],
            token=secret(self.paths.machine_token),
            on_death=self._wake.set,
            tls=self._trust,
        )
        watch.find()
        return watch

    # what lies on disk

    def _known_slots(self) -> set[int]:
        recorded = {
            int(path.stem.rpartition("-")[2])
            for path in self.paths.locks.glob(f"{self.paths.run_id}-*.json")
            if path.stem.rpartition("-")[2].isdigit()
        }
        return recorded | set(self.book.slots)

    def _replica(self, slot: Slot) -> dict[str, Any]:
        watch = self.watches.get(slot.number)
        told = (
            watch.report(time.monotonic()) if watch else {"state": "starting", "detail": "", "progress": 0.0}
        )
        if not (watch and watch.lives):
            is_yielded = {"state": "yielded", "detail": "", "progress": 0.0, "stderr": []}
            told |= is_yielded if self.owner.yielded else self.models.stands(slot.model.source)
        return {
            "name": f"{self.machine['name']}/{slot.number}",
            "slot": slot.number,
            "model": slot.model.name,
            "address": self.machine["address"],
            "port": slot.port,
            "slice": slot.slice.to_json(),
            "config_digest": slot.digest,
            "running_digest": self._seen(slot.number, slot).digest
            if watch and watch.life == "alive"
            else None,
            "foreign": self._foreign.of(slot.number),
            "foreign_gpu": self._gpus.of(slot.number),
            **told,
        }
