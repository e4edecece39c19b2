"""How a keeper sees one host: by its record, its pidfd and its own word over HTTP. Starts and decides nothing."""

import asyncio
import json
import logging
import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import confine
from cluster.clocks import AwakeClock
from cluster.confine import Record
from cluster.paths import read_json
from serving.ask_host import AWAY, OtherToken, ask_host
from serving.reconcile import Life, Seen, given_up
from serving.settings import Settings

ANSWER_S = 3.0
"""A host answers its state within this, or is counted as silent for that look."""
ANSWER_LATE_S = 0.5
"""What an answer may take beside the time that a host was given."""
MOVE_GRACE_S = 5.0
"""For a host that serves, and is to serve otherwise: its contexts are written to disk."""
SILENT_S = 60.0
"""A host that has not answered for this long is ended and started anew."""
LOOK_S = 10.0
"""What at most counts of the time between two looks: a keeper that stood still itself has not waited for its host."""
LOAD_FAILED = "homeport: load failed: "
"""How the last line of a host begins that cannot ever load its model."""
STDERR_LINES = 12
FORMER_TOKEN = "cluster_token"  # noqa: S105 - a file's name
"""The file with the token of all hosts, before each machine had its own."""

log = logging.getLogger(__name__)


class HostWatch:
    """The host in one slot. `life` is what reconcile.py calls it."""

    def __init__(
        self,
        record_path: Path,
        folder: Path,
        address: str,
        token: str,
        on_death: Callable[[], None],
        clock: Callable[[], float] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`tls`: whom to trust; None where hosts serve plain HTTP."""
        self.record_path = record_path
        self.folder = folder
        self.address = address
        self.token = token
        self.tls = tls
        self.on_death = on_death
        self.life: Life = "unknown"
        self.detail = ""
        self.deaths: tuple[float, ...] = ()
        self.permanent: str | None = None
        self.refused: str | None = None
        """Why it could not be started when that was tried last."""
        self.state: dict[str, Any] = {}
        self.record: Record | None = None
        self._clock = clock or AwakeClock(LOOK_S)
        self._answered_at = self._clock()
        self._elsewhere: str | None = None
        """Why a host that was adopted cannot be reached as this machine's hosts are."""
        self._pidfd: int | None = None
        self._wanted: str | None = None

    @property
    def lives(self) -> bool:
        """Whether its process is there, also one that is being ended."""
        return self.life in ("alive", "stopping")

    @property
    def ready(self) -> bool:
        """Whether the host said, when asked last, that it serves."""
        return self.life == "alive" and self.state.get("state") == "ready"

    def find(self) -> None:
        """Adopt what the record names, if it lives: no process is started or ended."""
        record = confine.read_record(self.record_path)
        if record is not None and confine.alive(record):
            self.started(record)
            self.detail = "ran already: adopted"
            self._elsewhere = self._was_told()
        else:
            self.record = record
            self.life = "absent"
            if record is not None:
                confine.lift(record)

    def wants(self, digest: str) -> None:
        """What its slot is to run: how often another configuration died says nothing of this one."""
        if self._wanted not in (None, digest):
            self.deaths, self.permanent, self.refused = (), None, None
        self._wanted = digest

    def started(self, record: Record) -> None:
        """A host runs under this record."""
        self.record, self.life, self.state, self._elsewhere = record, "alive", {}, None
        self.detail, self.permanent, self.refused, self._answered_at = "", None, None, self._clock()
        self._watch(record)

    def failed_to_start(self, reason: str, now: float) -> None:
        """The host did not come to life; counts as a death."""
        self.life, self.detail, self.refused = "absent", reason, reason
        self.deaths = (*self.deaths[-10:], now)

    async def look(self) -> None:
        """Ask the host how it is; notice that it died. End one that listens where this machine is no longer."""
        if self.life != "alive" or self.record is None:
            return
        if not confine.alive(self.record):
            self._died(time.monotonic())
            return
        if self._elsewhere is not None:
            why = self._elsewhere
            log.info("ending the host of %s: %s", self.folder.name, why)
            await self.stop(MOVE_GRACE_S)
            self.detail = why
            return
        try:
            self.state = await asyncio.wait_for(self._ask(self.record.port, "GET", "/state"), ANSWER_S)
            self._answered_at = self._clock()
        except OtherToken:
            self._elsewhere = "its machine has another token since"  # it reads its own once, when it starts
        except AWAY:
            if self._clock() - self._answered_at > SILENT_S:
                self.detail = f"it has not answered for {SILENT_S:.0f} s"
                await self.stop(grace_s=1.0)

    async def adjust(self, settings: Settings) -> None:
        """Have a host that serves take these settings, where it said that it has others. It is tried again at the next
        look if it does not take them."""
        has = self.state.get("settings")
        if not self.ready or self.record is None or has is None:
            return
        wanted = {
            key: value for key, value in settings.to_json().items() if key in has
        }  # it may be an older one
        if has == wanted:
            return
        try:
            ask = self._ask(self.record.port, "POST", "/settings", json.dumps(wanted).encode())
            self.state["settings"] = await asyncio.wait_for(ask, ANSWER_S)
        except AWAY:
            log.warning("the host on port %d did not take its new settings", self.record.port)

    async def park(self, within_s: float) -> int:
        """Have the host write to disk what that lacks of its sessions: how many it could not within that time."""
        if self.record is None:
            return 0
        body = json.dumps({"seconds": max(0.1, within_s - ANSWER_LATE_S)}).encode()
        try:
            asking = self._ask(self.record.port, "POST", "/park", body)
            return int((await asyncio.wait_for(asking, within_s))["left"])
        except (*AWAY, KeyError, TypeError):
            log.warning("the host on port %d did not write its sessions to disk", self.record.port)
            return int(self.state.get("pins", 0))

    async def stop(self, grace_s: float) -> None:
        """End the host's group; its journal stays."""
        await self._end(lambda record: confine.end_group(record, grace_s))

    async def free(self) -> None:
        """The same for the machine's person: within 5 s, its contexts saved as far as that allows."""
        await self._end(confine.free)

    async def _end(self, end: Callable[[Record], bool]) -> None:
        record, self.life = self.record, "stopping"
        if record is not None:
            self.close()
            await asyncio.to_thread(end, record)
        self.life, self.state = "absent", {}

    def excuse(self, since: float) -> None:
        """Whatever died from then on (on the monotonic clock) was ended for the machine's person."""
        if (left := tuple(death for death in self.deaths if death < since)) != self.deaths:
            self.deaths, self.permanent, self.detail = left, None, ""

    def seen(self) -> Seen:
        return Seen(
            life=self.life,
            digest=self.record.config_digest if self.record else None,
            deaths=self.deaths,
            permanent=self.permanent,
            busy=bool(self.state.get("running")),
        )

    def report(self, now: float) -> dict[str, Any]:
        """What `status` shows: state starting | loading | ready | draining | failed | stopping, and why. `pid`: for as
        long as its process is there, also while it ends."""
        record, alive = self.record, self.life == "alive"
        died = self.life == "absent" and bool(self.deaths or self.permanent)
        reason = given_up(self.seen(), now) if died else None
        if reason is not None and self.refused is not None:
            reason = f"{reason}: {self.refused}"
        state = self.state.get("state", "starting") if alive else "starting"
        if self.life == "stopping":
            state = "stopping"
        elif reason is not None:
            state = "failed"
        return {
            "state": state,
            "progress": float(self.state.get("progress", 0.0)),
            "detail": reason or self.state.get("detail") or self.detail,
            "stderr": list(self._last_lines()) if died and self.refused is None else [],
            "deaths": len(self.deaths),
            "pid": record.pid if record and self.lives else None,
            "incarnation": record.incarnation if record else 0,
            "pins": self.state.get("pins", 0),
            "journal": self.state.get("journal", ""),
            "limits": {
                "enforced": list(record.limits.enforced) if record else [],
                "watched": list(record.limits.watched) if record else [],
                "notes": list(record.limits.notes) if record else [],
            },
        }

    def _was_told(self) -> str | None:
        """What its host was told when it started that holds no longer; None: all of it holds."""
        spec = read_json(self.folder / "spec.json")
        if not isinstance(spec, dict):
            return None
        address, token_file = spec.get("address"), spec.get("token_file")
        if isinstance(address, str) and address != self.address:
            return f"this machine's address is {self.address} and no longer {address}"
        if bool(spec.get("tls")) != (self.tls is not None):
            return "machines speak TLS now" if self.tls else "the network is declared private now: no TLS"
        if isinstance(token_file, str) and Path(token_file).name == FORMER_TOKEN:
            return "each machine has a token of its own now"
        return None

    def _died(self, now: float) -> None:
        self.close()
        self.life, self.state = "absent", {}
        if self.record is not None:
            confine.lift(self.record)
        self.deaths = (*self.deaths[-10:], now)
        failures = [line for line in self._last_lines() if line.startswith(LOAD_FAILED)]
        self.permanent = failures[-1].removeprefix(LOAD_FAILED) if failures else None
        self.detail = self.permanent or "the host died and is started again; its last lines are below"

    def _last_lines(self) -> tuple[str, ...]:
        """What the host that ran last said at its end."""
        return confine.tail(self.folder / "host.err", STDERR_LINES)

    def _watch(self, record: Record) -> None:
        self.close()
        if not hasattr(os, "pidfd_open"):
            return
        try:
            self._pidfd = os.pidfd_open(record.pid)
        except OSError:
            return
        asyncio.get_running_loop().add_reader(self._pidfd, self._gone)

    def _gone(self) -> None:
        if self.life == "alive":
            self._died(time.monotonic())
        self.on_death()

    def close(self) -> None:
        """Notice its end no longer."""
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    async def _ask(self, port: int, method: str, path: str, body: bytes = b"") -> dict[str, Any]:
        return await ask_host(self.address, port, self.token, method, path, body, self.tls)
