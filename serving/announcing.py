"""The head says in its network where it is, for as long as a token of `homeport join-token` can be used, and no longer.

Nothing depends on it: a machine joins by the head's address as well. So what goes wrong here is told once, and no more.
"""

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Callable, Mapping
from typing import Any

from cluster import mdns, tls
from cluster.announced import Announced
from cluster.join import LOOPBACK
from cluster.paths import Paths, read_json
from serving.join_tokens import Now, OpenTokens

LOOK_S = 1.0
"""How often it looks for a new token. Less than a machine that joins searches for."""

log = logging.getLogger(__name__)


class Announcing:
    """`control`: where the controller is, as the revision at present says."""

    def __init__(self, paths: Paths, control: Callable[[], Mapping[str, Any]]) -> None:
        self._paths = paths
        self._control = control
        self._tokens = OpenTokens(paths)
        self._tried: Announced | None = None
        """What is announced, or could not be: that is not tried again before the next token."""
        self._entered = contextlib.AsyncExitStack()
        self._told: set[str] = set()

    async def run(self) -> None:
        """Never ends by itself; what is announced is taken back when it is cancelled."""
        try:
            while True:
                try:
                    await self._look()
                except Exception as error:  # noqa: BLE001 - no fault of a network may reach the controller
                    self._tell(error)
                await asyncio.sleep(LOOK_S)
        finally:
            await self._entered.aclose()

    async def _look(self) -> None:
        head = self._head() if self._tokens.any(Now.here()) else None
        if head == self._tried:
            return
        self._tried = head
        await self._entered.aclose()
        if head is not None:
            await self._entered.enter_async_context(mdns.announced(head))
            log.info("this head is announced while a token to join by is open")

    def _head(self) -> Announced | None:
        """None: it serves this machine alone."""
        control = self._control()
        address = str(control.get("host", LOOPBACK))
        if ipaddress.ip_address(address).is_loopback:
            return None
        name = str((read_json(self._paths.machine) or {}).get("name", ""))
        fingerprint = tls.fingerprint(self._paths.ca.read_text()) if control.get("tls") else None
        return Announced(address, int(control["port"]), name, fingerprint)

    def _tell(self, error: Exception) -> None:
        words = f"{type(error).__name__}: {error}"
        if words not in self._told:
            self._told.add(words)
            log.warning("this head cannot be announced, machines join by its address all the same: %s", words)
