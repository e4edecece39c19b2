"""The controller: compares what the config wants with what keepers report, carries out the difference, indexes pins.

A plain class; cluster/ray_cluster.py makes it the one detached actor of the cluster. It asks for no CPU, keeps no
truth of its own (the revision lies on disk, the pins in the hosts' journals) and may die at any moment. Routers reach
it over HTTP, since they never import Ray.
"""

import asyncio
import hmac
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cluster.fit import Assignment, fit
from cluster.machine import Machine
from cluster.paths import Paths, read_json, secret
from cluster.ray_cluster import RayFailed
from serving.model import ModelSpec
from serving.pin_index import Candidate, PinIndex
from serving.pins import pin_from_json

TICK_S = 2.0
"""How often it looks for new machines."""
NEWS_S = 10.0
"""How long it waits for news of a machine in one question."""
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

    async def pins(
        self, machine: str, written: dict[int, int]
    ) -> dict[int, tuple[list[dict[str, Any]], int]]:
        """By slot, the pins that its journal holds beyond what is known, and a number for the next call.

        Raises as `report`.
        """
        ...

    async def apply(self, machine: str, revision: int, wishes: list[dict[str, Any]]) -> dict[str, Any]:
        """Give a keeper its share of a revision. Raises as `report`."""
        ...


class Controller:
    """`members` is called once, on the controller's own thread."""

    def __init__(self, members: Callable[[], Members]) -> None:
        self.paths = Paths.from_env(os.environ)
        self.token = secret(self.paths.cluster_token)
        self.index = PinIndex()
        self.reports: dict[str, dict[str, Any]] = {}
        self.problems: dict[str, dict[str, str]] = {}
        self.revision: dict[str, Any] = {"revision": 0, "models": [], "control": {}}
        self._fleet_text: bytes | None = None
        self._make_members = members
        self._unread: dict[str, float] = {}
        """By machine: until when a claim waits for its journals; 0 once they were read. Empty before it looked."""
        self._written: dict[str, dict[int, int]] = {}
        """By machine and slot: the number of the last pin that was read from the journal."""
        self._counts: dict[str, tuple[int, ...]] = {}
        """By machine: its replicas' numbers of pins when they were read last."""
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
                self.app(),
                host=control["host"],
                port=control["port"],
                log_level="warning",
                access_log=False,
                lifespan="off",
            )
        )
        await asyncio.gather(self._work(), server.serve())

    async def _work(self) -> None:
        members = self._make_members()
        following: dict[str, asyncio.Task[None]] = {}
        while True:
            for machine in await asyncio.to_thread(members.machines):
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
                if wanted is not None and self.reports[machine]["revision"] < self.revision["revision"]:
                    self._heard(machine, await members.apply(machine, self.revision["revision"], wanted))
                await self._learn(members, machine)
                version = self.reports[machine]["version"]
            except AWAY as error:
                log.warning("machine %s cannot be asked: %s", machine, error)
                await asyncio.sleep(TICK_S)
            except Exception:
                log.exception("machine %s: a step failed; the controller goes on", machine)
                await asyncio.sleep(TICK_S)

    async def _learn(self, members: Members, machine: str) -> None:
        """Read what is new in the journals of a machine: those of hosts that are dead or no longer wanted too."""
        counts = tuple(replica.get("pins", 0) for replica in self.reports[machine]["replicas"])
        if self._counts.get(machine) == counts:
            return
        written = self._written.setdefault(machine, {})
        for slot, (pins, last) in (await members.pins(machine, written)).items():
            self.index.confirm(pin_from_json(pin) for pin in pins)
            written[slot] = last
        self._counts[machine] = counts
        self._unread[machine] = 0.0

    def _has_learned(self) -> bool:
        """Whether a session that the index does not know is new: every machine's journals were read, or given up."""
        now = time.monotonic()
        return bool(self._unread) and all(until < now for until in self._unread.values())

    def _heard(self, machine: str, report: dict[str, Any]) -> None:
        self.reports[machine] = report
        self._fleet_text = None

    def _assign(self) -> dict[str, list[dict[str, Any]]]:
        """By machine id: what it is to serve. Empty while no machine reported or the wishes do not fit."""
        machines = [Machine.from_json(report) for report in self.reports.values()]
        models = {m["spec"]["name"]: m for m in self.revision["models"]}
        self._fleet_text = None
        specs = [ModelSpec.from_json(m["spec"]) for m in models.values()]
        fitted = fit([spec.wish() for spec in specs], machines)
        if not isinstance(fitted, Assignment):
            self.problems = {model: dict(reasons) for model, reasons in fitted.reasons.items()}
            return {}
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

    def app(self) -> Starlette:
        """GET /fleet, POST /claim, GET /pins/{session}; each with the cluster's token."""
        return Starlette(
            routes=[
                Route("/fleet", self._guard(self._fleet)),
                Route("/claim", self._guard(self._claim), methods=["POST"]),
                Route("/pins/{session}", self._guard(self._pin)),
            ]
        )

    def _guard(self, handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        expected = f"Bearer {self.token}".encode()

        async def guarded(request: Request) -> Response:
            given = request.headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, expected):
                return JSONResponse({"error": {"message": "The cluster's token is needed."}}, status_code=401)
            answer: Response = await handler(request)
            return answer

        return guarded

    async def _fleet(self, _request: Request) -> Response:
        if self._fleet_text is None:
            models = [m["spec"] for m in self.revision["models"]]
            fleet = {
                "revision": self.revision["revision"],
                "models": [{key: m[key] for key in ("name", "context", "engine")} for m in models],
                "problems": self._all_problems(),
                "machines": list(self.reports.values()),
            }
            self._fleet_text = json.dumps(fleet).encode()
        return Response(self._fleet_text, media_type="application/json")

    async def _claim(self, request: Request) -> Response:
        try:
            body = await request.json()
            ranked = [Candidate(c["replica"], c["free"]) for c in body["ranked"]]
            session, model, refused = body["session"], body["model"], frozenset(body.get("refused", ()))
        except (ValueError, KeyError, TypeError) as error:
            return JSONResponse({"error": {"message": f"Not a claim: {error}"}}, status_code=400)
        if not ranked:
            return JSONResponse({"error": {"message": "A claim needs a candidate."}}, status_code=400)
        if not self._has_learned():
            return _not_yet()
        pin, known = self.index.claim(session, model, ranked, refused, time.time())
        return JSONResponse({"pin": pin.to_json(), "known": known})

    async def _pin(self, request: Request) -> Response:
        pin = self.index.get(request.path_params["session"], request.query_params.get("model", ""))
        if pin is None and not self._has_learned():
            return _not_yet()
        if pin is None:
            return JSONResponse({"error": {"message": "No such pin."}}, status_code=404)
        return JSONResponse(pin.to_json())


def _not_yet() -> Response:
    message = "The controller has not read all journals yet. Ask again in a second."
    return JSONResponse({"error": {"message": message}}, status_code=503, headers={"retry-after": "1"})


class _QuietServer(uvicorn.Server):
    """uvicorn without its ten wakes a second: this one runs until its process is killed."""

    async def main_loop(self) -> None:
        await asyncio.Event().wait()
