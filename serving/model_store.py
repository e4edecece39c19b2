"""A keeper's part in models from Hugging Face: what is whole on this machine, what is on its way, what is told of it.

What to bring from where, the controller says (serving/model_giving.py); bringing it is a process of its own
(serving/bring_model.py). The orders lie on disk: a keeper goes on without a controller.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from cluster import machine_tls, tls
from cluster.paths import Paths, read_json, write_private
from cluster.processes import clean_environment, mark
from serving.bring_order import Giver, Order
from serving.file_server import FileServer
from serving.model_files import HUB, Content
from serving.model_folder import Held, ModelFolder
from serving.model_room import words
from serving.model_trouble import LASTING, WASTED, pause_s

ROLE = "models"
END_S = 5.0
LINE_BYTES_MAX = 2**20
"""Of what a process says that brings a model: its longest line names 300 parts, each by up to 300 letters."""
ALONE = "127.0.0.1"
"""The address of a machine that nobody else reaches: nobody copies from it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """How often in a row it could not be brought, why last, and when that is tried again (monotonic)."""

    count: int
    trouble: Mapping[str, str]
    again_at: float


@dataclass(slots=True)
class Under:
    """What is being brought."""

    source: str
    order: Mapping[str, Any]
    process: asyncio.subprocess.Process | None = None
    told: Mapping[str, Any] | None = None
    content: Mapping[str, Any] | None = None


class ModelStore:
    """`wake` is called, from any thread, when there is something to do or to tell."""

    def __init__(
        self, paths: Paths, machine: Mapping[str, Any], token: str, wake: Callable[[], None]
    ) -> None:
        self._paths = paths
        self._machine = machine
        self._wake = wake
        self._folder = ModelFolder(paths.fetched)
        self._orders: dict[str, Any] = read_json(paths.model_orders) or {}
        self._held: dict[str, Held] = self._folder.held()
        self._failures: dict[str, Failure] = {}
        self._wasted: dict[str, int] = {}
        """By source: how often all of it came and was thrown away. Another order does not make that forgotten, or the
        machines of a zone would take turns at it for ever."""
        self._under: Under | None = None
        self._task: asyncio.Task[None] | None = None
        self._speaks_tls = bool(machine.get("tls"))
        shown = tls.ServerTls(machine_tls.own_files(paths)) if self._speaks_tls else None
        self._server = FileServer(token, machine["zone"], self._folder.find, shown)

    @property
    def is_busy(self) -> bool:
        """Whether something is being brought."""
        return self._under is not None

    def give(self, orders: dict[str, Any]) -> None:
        """Take what the controller says. Raises OSError where it cannot be kept."""
        before = self._sources()
        if orders != self._orders:
            write_private(self._paths.model_orders, json.dumps(orders, indent=1))
            self._orders = orders
            for source in [s for s in list(self._failures) if self._sources().get(s) != before.get(s)]:
                self._failures.pop(source, None)
        self._wake()

    def is_whole(self, source: str) -> bool:
        """Whether a host may be started on it, as far as files from Hugging Face are concerned."""
        return not source.startswith(HUB) or source in self._held

    def used(self, source: str) -> None:
        """A host is started on it."""
        if source in self._held:
            self._folder.used(source)

    async def step(self, needed: Collection[str], *, is_paused: bool = False) -> None:
        """Look what is there, and go on with what is to be brought; `needed`: what hosts wait for comes first.

        `is_paused`: this machine is its person's: nothing is brought meanwhile.
        """
        self._held = self._folder.held()
        self._listen()
        for source in list(self._failures):  # orders come on another thread
            if source in self._held or source not in self._sources():
                self._failures.pop(source, None)
        wanted = self._wanted(needed)
        if self._under is not None:
            order = self._sources().get(self._under.source)
            if order is not None and order["do"] == self._under.order["do"] and not is_paused:
                return
            await self.end()
        if is_paused:
            return
        now = time.monotonic()
        for source in wanted:
            failure = self._failures.get(source)
            if failure is None or failure.again_at <= now:
                self._under = Under(source, self._sources()[source])
                self._task = asyncio.create_task(self._bring(self._under))
                return

    async def end(self) -> None:
        """End what is being brought; what is there of it stays."""
        under, task = self._under, self._task
        if under is not None and under.process is not None:
            _kill(under.process)
        if task is not None:
            await task
        if under is not None:
            self._failures.pop(under.source, None)  # It was ended, it did not fail.

    def close(self) -> None:
        """Give files to nobody any more."""
        self._server.close()

    def stands(self, source: str) -> dict[str, Any]:
        """What a replica's report says while its files are not whole; {} where they are."""
        if self.is_whole(source):
            return {}
        state, progress = "starting", 0.0
        under, failure, order = self._under, self._failures.get(source), self._sources().get(source)
        if under is not None and under.source == source:
            told = under.told or {"doing": "asking", "from": "hf", "got": 0, "size": 0}
            detail = words(told["doing"], told["got"], told["size"], told["from"])
            progress = told["got"] / told["size"] if told["size"] else 0.0
        elif failure is not None:
            trouble = failure.trouble
            state = "failed" if trouble["code"] in LASTING else "starting"
            detail = f"{trouble['message']}. {trouble['remedy']}"
        elif order is None:
            detail = "waits until the controller says from where its model comes"
        elif order["do"] == "wait" and order.get("trouble"):
            trouble = order["trouble"]
            state = "failed" if trouble["code"] in LASTING else "starting"
            detail = f"on {order['who']}: {trouble['message']}. {trouble['remedy']}"
        elif order["do"] == "wait":
            detail = f"waits until {order['who']} has its model"
        else:
            detail = "waits until another model is fetched"
        return {"state": state, "detail": detail, "progress": round(progress, 2)}

    def report(self) -> dict[str, Any]:
        """For the controller: which orders it has, where it gives files, what it has, what is on its way."""
        bringing: dict[str, dict[str, Any]] = {}
        for source, failure in list(self._failures.items()):  # this is asked from other threads too
            bringing[source] = {"failures": failure.count, "trouble": dict(failure.trouble)}
        if (under := self._under) is not None:
            told = dict(under.told or {})
            if told.get("size"):
                step = max(1, told["size"] // 100)
                told["got"] = told["got"] // step * step if told["got"] < told["size"] else told["size"]
            bringing.setdefault(under.source, {"failures": 0, "trouble": None})
            bringing[under.source] |= {**told, "content": under.content}
        address, port = self._machine["address"], self._server.port
        return {
            "orders": self._orders.get("key", ""),
            "url": None if port is None else tls.url(address, port, self._speaks_tls),
            "problem": self._server.problem,
            "fetches": sorted(source for source, order in self._sources().items() if order["do"] == "fetch"),
            "held": {source: held.content.to_json() for source, held in sorted(self._held.items())},
            "bringing": bringing,
        }

    # what is being brought

    async def _bring(self, under: Under) -> None:
        trouble: Mapping[str, str] | None = {
            "code": "ended",
            "message": "fetching was ended",
            "remedy": "It goes on",
        }
        try:
            trouble = await self._run(under)
        except OSError as error:
            words_ = f"it could not be begun: {error.strerror or error}"
            trouble = {
                "code": "disk",
                "message": words_,
                "remedy": f"Look at {self._paths.logs / 'models.log'}",
            }
        except Exception:
            log.exception("a model could not be brought")
        finally:
            self._held = self._folder.held()
            before = self._failures.get(under.source)
            self._failures.pop(under.source, None)
            if trouble is None:
                self._wasted.pop(under.source, None)
            else:
                log.warning("%s: %s", under.source, trouble["message"])
                count = 1 + (before.count if before else 0)
                wasted = self._wasted.get(under.source, 0) + (trouble["code"] in WASTED)
                self._wasted[under.source] = wasted
                pause = pause_s(trouble["code"], wasted if trouble["code"] in WASTED else count)
                self._failures[under.source] = Failure(count, trouble, time.monotonic() + pause)
                asyncio.get_running_loop().call_later(pause, self._wake)
            self._under = self._task = None
            self._wake()

    async def _run(self, under: Under) -> Mapping[str, str] | None:
        """Why it failed; None where it is whole now."""
        with (self._paths.logs / "models.log").open("wb") as told:
            process = under.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "serving.bring_model",
                env={**clean_environment(os.environ), **mark(self._paths, ROLE)},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=told,
                start_new_session=True,
                limit=LINE_BYTES_MAX,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(self._order(under).to_json()).encode() + b"\n")
            while line := await process.stdout.readline():
                told_now = json.loads(line)
                if "whole" in told_now:
                    return None
                if "trouble" in told_now:
                    trouble: Mapping[str, str] = told_now["trouble"]
                    return trouble
                if "content" in told_now:
                    under.content = told_now["content"]
                else:
                    under.told = told_now
                self._wake()
        finally:
            process.stdin.close()  # that ends it
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), END_S)
            _kill(process)
            await process.wait()
        return {"code": "ended", "message": "fetching it broke off", "remedy": "It goes on from there"}

    def _order(self, under: Under) -> Order:
        order, told = under.order, self._orders
        content = order.get("content")
        return Order(
            under.source,
            str(self._folder.folder),
            "fetch" if order["do"] == "fetch" else "copy",
            Content.from_json(content) if content else None,
            tuple(Giver(name, url) for name, url in order.get("givers", ())),
            str(self._machine["zone"]),
            str(self._paths.files_token),
            str(self._paths.ca) if self._speaks_tls else "",
            told.get("rate"),
            told.get("budget"),
            tuple(told.get("named", ())),
        )

    def _wanted(self, needed: Collection[str]) -> list[str]:
        """What is to be brought here, what hosts wait for first."""
        lacking = [s for s, o in self._sources().items() if o["do"] != "wait" and s not in self._held]
        return sorted(lacking, key=lambda source: (source not in needed, source))

    def _sources(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = self._orders.get("sources", {})
        return found

    def _listen(self) -> None:
        port = self._orders.get("port")
        if port and self._machine["address"] != ALONE:
            self._server.limit(self._orders.get("rate"))
            self._server.listen(self._machine["address"], port)


def _kill(process: asyncio.subprocess.Process) -> None:
    """Without asyncio, which would take its exit code away from who waits for it."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
