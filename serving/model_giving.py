"""The controller's part in models from Hugging Face: says to each machine from where it is to get which.

The shell around serving/model_orders.py. On disk it keeps what the sources turned out to be, so that all machines take
the same, and what `homeport pull` asked for. No byte of a file passes here.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from cluster.paths import read_json, write_private
from serving.model_files import Content, fetched_names
from serving.model_orders import Seat, key_of, orders

LOOK_S = 2.0
AGAIN_S = 5.0
"""A machine that was told and does not say so is told again after this."""
PULL_S = 86400.0
"""What was asked for by a pull is no longer brought after this."""

Report = Mapping[str, Any]

log = logging.getLogger(__name__)


class Cluster(Protocol):
    """What the controller knows and does."""

    def reports(self) -> Mapping[str, Report]:
        """The machines' last reports, by id."""
        ...

    def here(self) -> Collection[str]:
        """Ids of those that were heard of late."""
        ...

    def shares(self) -> Mapping[str, list[dict[str, Any]]]:
        """By id, what each is to serve."""
        ...

    def revision(self) -> Mapping[str, Any]:
        """What is wanted."""
        ...

    async def give(self, machine: str, message: dict[str, Any]) -> None:
        """Tell a keeper; raises nothing."""
        ...


class ModelGiving:
    """`path`: the file of what is known."""

    def __init__(
        self,
        path: Path,
        cluster: Cluster,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._cluster = cluster
        self._clock = clock
        self._wall = wall
        self._changed = asyncio.Event()
        self._given: dict[str, tuple[str, float]] = {}
        """By machine: the key of what it was told last, and when."""
        self.known: dict[str, Content] = {}
        self.pulls: dict[str, dict[str, Any]] = {}
        """By source: {"machines": all | names | {"zone"}, "since": seconds since the epoch}."""
        kept = read_json(path)
        try:
            self.known = {str(name): Content.from_json(told) for name, told in kept["known"].items()}
            self.pulls = {str(name): dict(told) for name, told in kept["pulls"].items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            log.info("no model was fetched for this cluster before")

    def heard(self) -> None:
        """A report came, or a revision."""
        self._changed.set()

    def pull(self, source: str, machines: Any) -> list[str]:
        """Let these machines get a model ahead. On disk when it returns: the names of those that are here. Raises
        OSError."""
        self.pulls[source] = {"machines": machines, "since": self._wall()}
        self._write()
        self.heard()
        here = self._cluster.here()
        reports = self._cluster.reports()
        return sorted(reports[id_]["name"] for id_ in here if _includes(machines, reports[id_]))

    async def run(self) -> None:
        """For ever."""
        while True:
            self._changed.clear()
            try:
                await self.step()
            except Exception:
                log.exception("models could not be ordered; the controller goes on")
            try:
                await asyncio.wait_for(self._changed.wait(), LOOK_S)
            except TimeoutError:
                continue

    async def step(self) -> None:
        """Tell every machine that is here what it is not told yet."""
        reports = self._cluster.reports()
        here = {id_: reports[id_] for id_ in self._cluster.here() if reports[id_].get("models")}
        revision = self._cluster.revision()
        wanted = fetched_names([m["spec"] for m in revision["models"]])
        if not (wanted or self.pulls or any(_has_any(report["models"]) for report in here.values())):
            return
        needs = self._needs(here)
        self._learn(here, {*wanted, *self.pulls})
        told = orders(needs, [_seat(id_, report) for id_, report in here.items()], self.known)
        named = sorted({*wanted, *self.pulls})
        files = revision.get("files", {})
        messages = {
            id_: {
                "sources": {source: order.to_json() for source, order in told[id_].items()},
                "named": named,
                "port": files.get("port"),
                "rate": files.get("rate"),
                "budget": files.get("budget"),
            }
            for id_ in here
        }
        now = self._clock()
        for id_, message in messages.items():
            message["key"] = key_of(message)
            key, at = self._given.get(id_, ("", 0.0))
            has = here[id_]["models"].get("orders")
            if has != message["key"] and (key != message["key"] or now - at >= AGAIN_S):
                self._given[id_] = message["key"], now
                await self._cluster.give(id_, message)

    def _needs(self, here: Mapping[str, Report]) -> dict[str, list[str]]:
        shares, now = self._cluster.shares(), self._wall()
        over = [source for source, pull in self.pulls.items() if now - pull["since"] > PULL_S]
        for source, pull in self.pulls.items():
            asked = [report for report in here.values() if _includes(pull["machines"], report)]
            if asked and all(source in report["models"]["held"] for report in asked):
                over.append(source)
        if over:
            self.pulls = {source: pull for source, pull in self.pulls.items() if source not in over}
            self._write()
        return {
            id_: [
                *fetched_names([share["model"] for share in shares.get(id_, ())]),
                *(source for source, pull in self.pulls.items() if _includes(pull["machines"], report)),
            ]
            for id_, report in here.items()
        }

    def _learn(self, here: Mapping[str, Report], wanted: Collection[str]) -> None:
        """What sources turned out to be: the first word holds, for as long as somebody names it or has it."""
        before = dict(self.known)
        told: dict[str, Content] = {}
        for report in sorted(here.values(), key=lambda each: str(each["name"])):
            models = report["models"]
            contents = {**{s: b.get("content") for s, b in models["bringing"].items()}, **models["held"]}
            for source, content in contents.items():
                if content and (source not in told or not told[source].is_known):
                    told[source] = Content.from_json(content)
        for source, content in told.items():
            if source not in self.known or not self.known[source].is_known:
                self.known[source] = content
        used = {*wanted, *told}
        self.known = {source: content for source, content in self.known.items() if source in used}
        if self.known != before:
            self._write()

    def _write(self) -> None:
        known = {source: content.to_json() for source, content in self.known.items()}
        write_private(self._path, json.dumps({"known": known, "pulls": self.pulls}, indent=1))


def _seat(id_: str, report: Report) -> Seat:
    models = report["models"]
    bringing: Mapping[str, Mapping[str, Any]] = models["bringing"]
    return Seat(
        id_,
        report["name"],
        report["zone"],
        models.get("url"),
        models.get("problem") is not None,
        {source: Content.from_json(told) for source, told in models["held"].items()},
        {source: int(told.get("got", 0)) for source, told in bringing.items()},
        frozenset(models.get("fetches", ())),
        {source: int(told.get("failures", 0)) for source, told in bringing.items()},
        {source: told["trouble"] for source, told in bringing.items() if told.get("trouble")},
    )


def _has_any(models: Mapping[str, Any]) -> bool:
    return bool(models["held"] or models["bringing"] or models.get("orders"))


def _includes(machines: Any, report: Report) -> bool:
    """Whether a pull for these machines is for this one: `all`, names, or {"zone"}."""
    if isinstance(machines, Mapping):
        return bool(report["zone"] == machines.get("zone"))
    return machines == "all" or report["name"] in machines


def is_place(machines: Any) -> bool:
    """Whether a request may name machines so."""
    if isinstance(machines, Mapping):
        return machines.keys() == {"zone"} and isinstance(machines["zone"], str)
    names = isinstance(machines, list) and bool(machines) and all(isinstance(name, str) for name in machines)
    return machines == "all" or names
