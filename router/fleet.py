"""The router's latest picture of machines and replicas: polled, kept on disk, and handed out as snapshots.

Decides no routes (see `choose`). A host that does not answer delays nobody: each has a task of its own.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import msgspec

from cluster.paths import write_private
from router.host_http import Place, place_of
from router.peers import (
    ForgottenMachine,
    HostState,
    ListedFleet,
    ListedMachine,
    ListedReplica,
    Peers,
    Unreachable,
    read_fleet,
)
from router.snapshot import OUT_S, SUSPECT_S, Machine, Model, Replica, Snapshot
from router.tally import Tally
from router.waking import Woken
from serving.standing import AWAY

POLL_S = 1.0
SILENT_S = 15.0
"""A host that has been silent this long has lost the turns that it was answering."""

log = logging.getLogger("homeport.router")


@dataclass(slots=True)
class Known:
    """One replica: what the controller says of it and what its host says."""

    machine: ListedMachine
    listed: ListedReplica
    base: str
    known_at: float = 0.0
    is_listed: bool = True
    state: HostState | None = None
    heard_at: float | None = None
    refused: bool = False
    untrusted: str | None = None
    """Why it is not known to be the host that it should be."""
    place: Place = field(init=False)
    """Its base, for turns."""
    _made: Replica | None = None
    _made_of: tuple[object, ...] = ()

    def __post_init__(self) -> None:
        self.place = place_of(self.base)

    def replica(self) -> Replica:
        """As a snapshot has it: the one of before where nothing of it has changed, since there may be hundreds."""
        made_of = (
            self.state,
            self.heard_at,
            self.refused,
            self.untrusted,
            self.known_at,
            self.listed,
            self.machine,
        )
        if self._made is None or self._made_of != made_of:
            self._made, self._made_of = self._make(), made_of
        return self._made

    def _make(self) -> Replica:
        host = None if self.refused else self.state
        listed = self.listed
        return Replica(
            name=listed.name,
            machine=self.machine.name,
            model=listed.model,
            address=listed.address or self.machine.address,
            port=listed.port,
            state=host.state if host else listed.state,
            progress=host.progress if host else listed.progress,
            detail=self.untrusted or (host.detail if host else listed.detail or ""),
            incarnation=host.incarnation if host else listed.incarnation or 0,
            places=host.places if host else 1,
            running=host.running if host else 0,
            waiting=host.waiting if host else 0,
            residents=host.residents if host else (),
            abilities=host.abilities if host else None,
            heard_at=self.heard_at,
            refused=self.refused,
            known_at=self.known_at,
        )


class Fleet:
    """Polls while `run` runs. Between two awaits nothing in it changes, so a snapshot is of one moment."""

    def __init__(
        self,
        peers: Peers,
        saved: Path,
        models: Sequence[Model],
        clock: Callable[[], float],
        on_lost: Callable[[str], None] = lambda replica: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`models` hold until the controller tells others. `on_lost`: the turns of this replica are lost."""
        self.on_lost = on_lost
        self.controller_reachable: bool | None = None
        """None until the first poll has ended."""
        self.has_heard_controller = False
        """Whether it has answered since this router began."""
        self.listed = ListedFleet()
        self.known: dict[str, Known] = {}
        self.woken: dict[str, Woken] = {}
        """By machine, when this router tried to wake it; until it is heard."""
        self._peers = peers
        self._saved = saved
        self._clock = clock
        self._wall = wall
        self._models = {model.name: model for model in models}
        self._text = b""
        self._membership: object = None
        self._open: Tally[str] = Tally()
        self._zones: dict[str, str] = {}
        """Of every machine that was ever listed, forgotten ones too."""
        self._snapshot: Snapshot | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._load()

    async def run(self) -> None:
        """Poll until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._follow(self.known)
            while True:
                started = self._clock()
                await self.refresh_controller()
                await asyncio.sleep(max(0.0, started + POLL_S - self._clock()))

    @property
    def models(self) -> Mapping[str, Model]:
        """By name."""
        return self._models

    def snapshot(self) -> Snapshot:
        if self._snapshot is None:
            machines = {known.machine.name: known.machine for known in self.known.values()}
            machines |= {machine.name: machine for machine in self.listed.machines}
            self._snapshot = Snapshot(
                models=dict(self._models),
                machines={name: self._machine(machine) for name, machine in machines.items()},
                replicas={name: known.replica() for name, known in self.known.items()},
                open_turns=MappingProxyType(self._open),
                is_current=self.controller_reachable is True,
                forgotten={each.name: self._zones.get(each.name, each.zone) for each in self._forgotten()},
                lost_after_s=self.listed.lost_after_s,
                woken=MappingProxyType(self.woken),
            )
        return self._snapshot

    def _machine(self, told: ListedMachine) -> Machine:
        until = None if told.yielded is None else told.yielded.until
        free_at = None if until is None else self._clock() + until - self._wall()
        yielded = told.yielded is not None
        return Machine(told.name, told.state, told.zone, told.cordoned, free_at, told.wakes, yielded)

    def turn_begins(self, replica: str) -> None:
        """One turn of this router is there until `turn_ends`."""
        self._open.up(replica)

    def turn_ends(self, replica: str) -> None:
        self._open.down(replica)

    def now(self) -> float:
        """The clock by which replicas of a snapshot are up or out."""
        return self._clock()

    def base(self, replica: str) -> str | None:
        """`http://address:port` (or https) of its host; None for one that is not known."""
        known = self.known.get(replica)
        return None if known is None else known.base

    def place(self, replica: str) -> Place | None:
        """The same, for a turn."""
        known = self.known.get(replica)
        return None if known is None else known.place

    def bearer(self, replica: str) -> str:
        """What opens its host; nothing for one that is not known."""
        known = self.known.get(replica)
        return "" if known is None else self._peers.bearers.of(known.base)

    def reachable(self) -> list[str]:
        """Replicas whose hosts answered of late."""
        now = self._clock()
        replicas = self.snapshot().replicas
        return [name for name, replica in replicas.items() if replica.reach(now) in ("up", "suspect")]

    def saw_refused(self, replica: str) -> None:
        """A connection to its host was refused: out of routing until it answers again."""
        if known := self.known.get(replica):
            known.refused = True
            self._changed()

    def saw_silent(self, replica: str) -> None:
        """Its host did not answer in time: suspect until it answers again."""
        known = self.known.get(replica)
        if known is not None and known.heard_at is not None:
            known.heard_at = min(known.heard_at, self._clock() - SUSPECT_S)
            self._changed()

    async def refresh(self, replica: str) -> None:
        """Ask its host anew; on return the picture holds its answer or its silence."""
        known = self.known.get(replica)
        if known is None:
            return
        try:
            state = await self._peers.state(known.base)
        except Unreachable as error:
            if error.untrusted != known.untrusted:
                known.untrusted = error.untrusted
                log.warning("%s: %s", replica, error)
                self._changed()
            if error.refused:
                known.refused = True
                self._changed()
            return
        known.untrusted = None
        known.heard_at = self._clock()
        known.refused = state.replica != replica
        known.state = None if known.refused else state
        self._changed()

    async def refresh_controller(self) -> None:
        """Ask the controller anew. While it does not answer, the last picture holds."""
        try:
            text = await self._peers.fleet()
            listed = self.listed if text == self._text else read_fleet(text)
        except (Unreachable, msgspec.DecodeError) as error:
            if self.controller_reachable is not False:
                log.warning("controller not reachable (%s); serving from the last picture", error)
                self.controller_reachable = False
                self._changed()
            return
        if self.controller_reachable is False:
            log.info("controller reachable again")
        if not self.controller_reachable:
            self.controller_reachable = self.has_heard_controller = True
            self._changed()
        if text != self._text:
            self._text = text
            self._follow(self._take(listed))
            self._save()

    async def changed(self, timeout_s: float) -> None:
        """Return when the picture may have changed, or after `timeout_s`."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            pass
        finally:
            self._waiters.discard(waiter)

    def _changed(self) -> None:
        self._snapshot = None
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _take(self, listed: ListedFleet) -> list[str]:
        """Take the controller's list, and return the replicas that are new in it.

        What the list leaves out is unknown, not absent, for as long as its host answers.
        """
        new = []
        listed = self._filled(listed)
        self.listed = listed
        if listed.models:
            self._models = {m.name: Model(m.name, m.context, m.engine, m.when_lost) for m in listed.models}
        for known in self.known.values():
            known.is_listed = False
        self._zones |= {
            machine.name: machine.zone for machine in listed.forgotten if machine.zone is not None
        }
        # A machine that is here has the address of one that was there before.
        for machine in sorted(listed.machines, key=lambda machine: machine.state not in AWAY):
            for replica in machine.replicas:
                self._peers.bearers.belongs(self._base(machine, replica), machine.id)
        for machine in listed.machines:
            self._zones[machine.name] = machine.zone
            if machine.state not in AWAY:
                self.woken.pop(machine.name, None)
            for replica in machine.replicas:
                base = self._base(machine, replica)
                before = self.known.get(replica.name)
                if before is None:
                    new.append(replica.name)
                if before is None or before.base != base:
                    self.known[replica.name] = Known(machine, replica, base, self._clock())
                else:
                    before.machine, before.listed, before.is_listed = machine, replica, True
        self._changed()
        return new

    def _base(self, machine: ListedMachine, replica: ListedReplica) -> str:
        return self._peers.bearers.base(replica.address or machine.address, replica.port)

    def _filled(self, listed: ListedFleet) -> ListedFleet:
        """With the replicas that a machine had which is away, where the controller does not know them."""
        last: dict[str, tuple[ListedReplica, ...]] = {}
        for known in self.known.values():
            last[known.machine.name] = (*last.get(known.machine.name, ()), known.listed)
        machines = (
            msgspec.structs.replace(machine, replicas=last.get(machine.name, ()))
            if machine.state in AWAY and not machine.replicas
            else machine
            for machine in listed.machines
        )
        return msgspec.structs.replace(listed, machines=tuple(machines))

    def _follow(self, names: Iterable[str]) -> None:
        if self._group is not None:
            for name in names:
                self._group.create_task(self._watch(name))

    def _forgotten(self) -> list[ForgottenMachine]:
        there = {machine.name for machine in self.listed.machines}
        return [machine for machine in self.listed.forgotten if machine.name not in there]

    def _is_absent(self, known: Known) -> bool:
        """Whether the list says that it is gone; of a machine that the list leaves out it says nothing."""
        if known.is_listed:
            return False
        told = {machine.name for machine in self.listed.machines}
        return known.machine.name in told | {machine.name for machine in self.listed.forgotten}

    async def _watch(self, name: str) -> None:
        """Poll one host until it is neither listed nor answering."""
        lost = False
        while True:
            started = self._clock()
            await self.refresh(name)
            known, now = self.known[name], self._clock()
            silent_s = now - known.heard_at if known.heard_at is not None else OUT_S
            if silent_s >= SILENT_S and not lost:
                self.on_lost(name)
            lost = silent_s >= SILENT_S
            if self._is_absent(known) and (known.refused or silent_s >= OUT_S):
                del self.known[name]
                self._changed()
                return
            await asyncio.sleep(max(0.0, started + POLL_S - self._clock()))

    def _load(self) -> None:
        try:
            self._take(read_fleet(self._saved.read_bytes()))
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            log.warning("the saved fleet is not usable (%s); starting without it", error)
            return
        self._membership = _membership(self.listed)

    def _save(self) -> None:
        """Keep the list on disk when who belongs to it has changed, without what ages within seconds."""
        membership = _membership(self.listed)
        if membership == self._membership or not self.listed.machines:
            return
        plain = msgspec.structs.replace(
            self.listed,
            forgotten=tuple(
                msgspec.structs.replace(machine, zone=self._zones.get(machine.name))
                for machine in self.listed.forgotten
            ),
            machines=tuple(
                msgspec.structs.replace(
                    machine,
                    state="unknown",
                    heard_s=None,
                    yielded=None,
                    replicas=tuple(
                        msgspec.structs.replace(
                            replica,
                            stderr=(),
                            state="unknown",
                            progress=0.0,
                            detail="",
                            foreign=(),
                            foreign_gpu=(),
                        )
                        for replica in machine.replicas
                    ),
                )
                for machine in self.listed.machines
            ),
        )
        try:
            self._saved.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self._saved, msgspec.json.encode(plain).decode())
        except OSError as error:
            log.warning("the fleet could not be saved: %s", error)
            return
        self._membership = membership


def _membership(listed: ListedFleet) -> object:
    return (
        listed.revision,
        listed.lost_after_s,
        tuple(listed.models),
        tuple(
            (
                (machine.id, machine.name, machine.address, machine.zone, machine.cordoned),
                tuple((each.name, each.model, each.address, each.port) for each in machine.replicas),
            )
            for machine in listed.machines
        ),
        listed.forgotten,
    )
