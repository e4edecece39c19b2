"""The controller's `/metrics`: its own families, those of all keepers with them, or one keeper's, asked anew."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from prometheus_client import Metric
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.exposition import CONTENT_TYPE, build_info, text, version
from serving.machine_metrics import keeper_families, machine_families
from serving.machine_roll import MachineRoll
from serving.membership import AWAY
from serving.standing import AWAY as UNHEARD

ANSWER_S = 2.0
"""Who asks a keeper for its figures waits no longer."""

log = logging.getLogger(__name__)


class MetricsRoutes:
    """`machines`: as the fleet lists them. `ask`: a keeper, by its machine's id, for its report of now; raises AWAY."""

    def __init__(
        self,
        roll: MachineRoll,
        machines: Callable[[], list[dict[str, Any]]],
        ask: Callable[[str], Awaitable[Mapping[str, Any]]],
    ) -> None:
        self._roll = roll
        self._machines = machines
        self._ask = ask

    def routes(self, guard: Callable[[Callable[[Request], Any]], Any]) -> list[Route]:
        return [Route("/metrics", guard(self._get))]

    async def _get(self, request: Request) -> Response:
        """`?keeper=MACHINE`: that one's alone; `?keepers`: also what all keepers told last."""
        asked = request.query_params
        if (name := asked.get("keeper")) is not None:
            return await self._keeper(name)
        families = self._of_machines()
        if "keepers" in asked:
            return await _answer([*families, *keeper_families(self._figures())])
        return await _answer([build_info(version()), *families])

    def _of_machines(self) -> list[Metric]:
        machines = self._machines()
        return machine_families(machines, {each["id"]: self._roll.silent_s(each["id"]) for each in machines})

    def _figures(self) -> dict[str, Mapping[str, Any]]:
        """By machine's name, of those that are heard."""
        names = {id_: report["name"] for id_, report in self._roll.reports.items()}
        stand = self._roll.standings()
        return {
            names[id_]: told
            for id_, told in self._roll.figures.items()
            if id_ in names and stand.get(id_) not in UNHEARD
        }

    async def _keeper(self, name: str) -> Response:
        found = next((id_ for id_, report in self._roll.reports.items() if report["name"] == name), None)
        if found is None:
            return _error(404, "No keeper of that name has reported; `homeport status` lists the machines.")
        try:
            async with asyncio.timeout(ANSWER_S):
                figures = (await self._ask(found)).get("figures")
        except AWAY as error:
            log.info("the keeper of %s tells no metrics: %s", name, error)
            figures = None
        if figures is None:
            return _error(503, f"The keeper of {name} does not answer. Ask again in a moment.")
        return await _answer([build_info(figures["version"]), *keeper_families({name: figures})])


async def _answer(families: list[Metric]) -> Response:
    return Response(await asyncio.to_thread(text, families), media_type=CONTENT_TYPE)


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message}}, status_code=status)
