"""Tells hosts what became of their sessions elsewhere: of newer homes, and of ends that they have not heard of.

What there is to tell says the index; which hosts there are, a keeper's report.
"""

import asyncio
import json
import logging
import ssl
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

from serving import ask_host
from serving.pin_index import PinIndex
from serving.pins import Pin

TELL_S = 5.0
"""How long a host may take to learn of a session's new home, or of its end."""
TOLD_AT_ONCE = 1000
"""Pins."""

Report = Mapping[str, Any]

log = logging.getLogger(__name__)


class Telling:
    """`token` gives the token of a machine, by its id. `tls`: whom to trust; None where hosts are asked in clear."""

    def __init__(
        self,
        index: PinIndex,
        token: Callable[[str], str],
        tls: Callable[[], ssl.SSLContext | None] = lambda: None,
    ) -> None:
        self._index = index
        self._token = token
        self._tls = tls
        self._ending: set[asyncio.Task[bool]] = set()

    async def tell(self, report: Report) -> None:
        """Let the hosts of a machine know what they are behind in, so that their old contexts go. What a host does not
        take stays to be told."""
        for replica in report["replicas"]:
            if replica["state"] == "ready":
                await self._tell_ends(report, replica)
                await self._tell_homes(report, replica)

    def end_soon(self, reports: Iterable[Report], said: Mapping[str, Pin]) -> None:
        """Let the hosts of these journals, as far as they are there, hear at once that a session was ended."""
        for report in reports:
            for replica in report["replicas"]:
                pin = said.get(replica["name"])
                if pin is not None:
                    task = asyncio.create_task(self._end_at(report, replica, pin))
                    self._ending.add(task)
                    task.add_done_callback(self._ending.discard)

    async def _tell_ends(self, report: Report, replica: Mapping[str, Any]) -> None:
        for pin in list(self._index.ends.get(replica["name"], {}).values()):
            if not self._index.is_ending(pin.session, pin.model, replica["name"]):
                continue  # Meanwhile it has heard.
            if not await self._end_at(report, replica, pin):
                return

    async def _tell_homes(self, report: Report, replica: Mapping[str, Any]) -> None:
        behind = self._index.behind.get(replica["name"], {})
        while behind:
            pins = list(behind.values())[:TOLD_AT_ONCE]
            if not await self._ask(report, replica, "POST", "/pins", {"pins": list(map(Pin.to_json, pins))}):
                return
            self._index.told(replica["name"], pins)

    async def _end_at(self, report: Report, replica: Mapping[str, Any], pin: Pin) -> bool:
        path = f"/pins/{pin.session}?{urlencode({'model': pin.model})}"
        has_heard = await self._ask(report, replica, "DELETE", path, {})
        if has_heard:
            self._index.has_heard(replica["name"], pin)
        return has_heard

    async def _ask(
        self, report: Report, replica: Mapping[str, Any], method: str, path: str, body: dict[str, Any]
    ) -> bool:
        """Whether the host has done it."""
        try:
            asking = ask_host.ask_host(
                report["address"],
                replica["port"],
                self._token(report["id"]),
                method,
                path,
                json.dumps(body).encode(),
                self._tls(),
            )
            await asyncio.wait_for(asking, TELL_S)
        except ask_host.AWAY as error:
            log.warning("%s does not take what it is told of pins: %s", replica["name"], error)
            return False
        return True
