"""`homeport doctor --egress`: has every host try to get out, to where this machine listens for it, and says of each
whether it could.

Asks the hosts itself, as the router does, so that the answer is the host's own. What it means says cluster/egress.py.
"""

import asyncio
import contextlib
import json
import secrets
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cluster.doctor import Finding
from cluster.egress import verdict
from cluster.join import LOOPBACK
from cluster.network import listen
from serving.ask_host import AWAY as NO_ANSWER
from serving.ask_host import ask_host
from serving.egress import LOOKUP_S, aside, look_up
from serving.standing import AWAY

ANSWER_S = 15.0
"""A host's own limits are shorter."""
LATE_S = 0.3
"""A datagram may come after its sender has told that it sent it."""
NAME = "example.com"
"""What is looked up, where this machine can."""
DATAGRAM_MAX = 256


async def check(
    machines: Sequence[Mapping[str, Any]],
    addresses: Sequence[str],
    token: Callable[[str], str],
    tls: ssl.SSLContext | None = None,
) -> list[Finding]:
    """One finding for each replica whose host runs, or may run on a machine that is away.

    `machines`: as /api/fleet has them; `addresses`: this machine's, at which it listens meanwhile. `token` gives that
    of a machine, by its id; `tls`: whom to trust. Raises OSError where it can listen at none.
    """
    # Where this machine cannot look it up either, no host proves anything by it.
    name = NAME if await aside(lambda: look_up(NAME), LOOKUP_S, "timeout") == "ok" else None
    with _Ear(addresses) as ear:
        asked = [
            (machine, replica, secrets.token_hex(8))
            for machine in machines
            for replica in machine["replicas"]
            if replica.get("pid") is not None or machine["state"] in AWAY
        ]
        told = await asyncio.gather(
            *(
                _ask(
                    replica,
                    token(machine.get("id", "")),
                    {"targets": ear.targets, "name": name, "word": word},
                    tls,
                )
                for machine, replica, word in asked
            )
        )
        await asyncio.sleep(LATE_S)
        heard = ear.heard()
    return [
        verdict(
            machine["name"],
            replica["name"],
            answer,
            any(said.endswith(word.encode()) for said in heard),
            tuple((replica.get("limits") or {}).get("notes", ())),
        )
        for (machine, replica, word), answer in zip(asked, told, strict=True)
    ]


async def _ask(
    replica: Mapping[str, Any], token: str, body: Mapping[str, Any], tls: ssl.SSLContext | None
) -> dict[str, Any] | None:
    try:
        data = json.dumps(body).encode()
        asking = ask_host(replica["address"], replica["port"], token, "POST", "/egress", data, tls)
        return await asyncio.wait_for(asking, ANSWER_S)
    except NO_ANSWER:
        return None


class _Ear:
    """Listens for connections and datagrams, at every address that it can, loopback included."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._listeners: list[socket.socket] = []
        self._datagrams: list[socket.socket] = []
        problem: OSError | None = None
        for address in dict.fromkeys((*addresses, LOOPBACK)):
            try:
                listener = listen(address, 0)
                self._listeners.append(listener)
                datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                self._datagrams.append(datagrams)
                datagrams.bind(listener.getsockname())
                datagrams.setblocking(False)
            except OSError as error:
                problem = error
        if not self._listeners and problem is not None:
            raise problem

    @property
    def targets(self) -> list[tuple[str, int]]:
        return [listener.getsockname()[:2] for listener in self._listeners]

    def heard(self) -> list[bytes]:
        """The datagrams that came."""
        return [said for ear in self._datagrams for said in _waiting(ear)]

    def __enter__(self) -> "_Ear":
        return self

    def __exit__(self, *_: object) -> None:
        for each in (*self._listeners, *self._datagrams):
            each.close()


def _waiting(ear: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(BlockingIOError):
        while True:
            yield ear.recv(DATAGRAM_MAX)
