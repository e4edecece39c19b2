"""What Ray is to controller and keepers in a fleet below Ray: calls of a keeper's methods, over a socket of its own.

`python -m tests.fleet.calls keeper ADDRESS PORT BEHAVIOUR.json` is a keeper, whose hosts have a FakeEngine that behaves
so; `… controller KEEPERS.json` is the controller of those keepers. Both run until they are killed, as Ray's actors do.
"""

import asyncio
import json
import logging
import pickle
import signal
import socket
import socketserver
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster import confine
from cluster.confine import Launch, Record
from cluster.ray_cluster import RayFailed
from serving.journal_file import JournalNews, Mark

ANSWER_S = 5.0
CONNECT_S = 0.5
KEEPER_PORT = 18090
"""At each machine's own address."""


class SocketMembers:
    """serving.controller.Members. A machine is there while its keeper listens."""

    def __init__(self, addresses: dict[str, str]) -> None:
        """By machine's id: where its keeper listens."""
        self._addresses = addresses

    def machines(self) -> list[str]:
        return [machine for machine, address in self._addresses.items() if _listens(address)]

    async def report(self, machine: str, known: int, wait_s: float) -> dict[str, Any]:
        report: dict[str, Any] = await self._ask(machine, wait_s + ANSWER_S, "report", known, wait_s)
        return report

    async def pins(self, machine: str, known: dict[int, Mark]) -> dict[int, JournalNews]:
        found: dict[int, JournalNews] = await self._ask(machine, ANSWER_S, "pins", known)
        return found

    async def apply(
        self, machine: str, revision: int, wishes: list[dict[str, Any]], head: str
    ) -> dict[str, Any]:
        report: dict[str, Any] = await self._ask(machine, ANSWER_S, "apply", revision, wishes, head)
        return report

    async def leave(self, machine: str) -> None:
        await self._ask(machine, ANSWER_S, "leave")

    async def yield_machine(self, machine: str, for_s: float | None, ends: bool) -> dict[str, Any]:
        told: dict[str, Any] = await self._ask(machine, ANSWER_S, "yield_machine", for_s, ends)
        return told

    async def bring(self, machine: str, orders: dict[str, Any]) -> dict[str, Any]:
        told: dict[str, Any] = await self._ask(machine, ANSWER_S, "bring", orders)
        return told

    async def wake(self, machine: str, mac: str, networks: list[str]) -> int:
        return int(await self._ask(machine, ANSWER_S, "wake", mac, networks))

    async def _ask(self, machine: str, timeout_s: float, method: str, *args: Any) -> Any:
        asked = pickle.dumps((method, args))
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(self._addresses[machine], KEEPER_PORT)
            try:
                writer.write(asked)
                writer.write_eof()
                told = await reader.read(-1)
            finally:
                writer.close()
        if not told:
            raise RayFailed(f"{method}: the keeper died")
        is_done, answer = pickle.loads(told)  # noqa: S301 from a process of this test
        if not is_done:
            raise RayFailed(f"{method}: {answer}")
        return answer


def _listens(address: str) -> bool:
    try:
        with socket.create_connection((address, KEEPER_PORT), CONNECT_S):
            return True
    except OSError:
        return False


def keep(address: str, port: int, behaviour: str) -> None:
    """Be a machine's keeper. Who it is lies in its HOMEPORT_HOME."""
    from serving.keeper import Keeper

    real = confine.launch

    def launch(order: Launch) -> Record:
        python, *_, spec = order.command
        return real(replace(order, command=(python, "-m", "tests.fakes", spec, behaviour)))

    confine.launch = launch
    keeper = Keeper()

    class Call(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            try:
                method, args = pickle.load(self.rfile)  # noqa: S301 from a process of this test
            except EOFError:
                return  # somebody looked whether it is there
            try:
                answer: tuple[bool, Any] = (True, getattr(keeper, method)(*args))
            except Exception as error:  # noqa: BLE001 as Ray hands it to who asked
                answer = (False, repr(error))
            self.wfile.write(pickle.dumps(answer))

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        request_queue_size = 64

    with Server((address, port), Call) as server:
        server.serve_forever()


def control(keepers: Path) -> None:
    """Be the controller."""
    from serving.controller import Controller

    Controller(lambda: SocketMembers(json.loads(keepers.read_text())))
    signal.pause()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    match sys.argv[1:]:
        case ["keeper", at, on, how]:
            keep(at, int(on), how)
        case ["controller", of]:
            control(Path(of))
        case words:
            sys.exit(f"neither keeper nor controller: {words}")
