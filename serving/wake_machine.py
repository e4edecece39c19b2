"""Wakes a machine: has magic packets sent by machines on its wire, or runs the command that the config names.

Who sends is decided in serving/waking.py. Whether the machine comes is for whoever asked to see.
"""

import asyncio
import contextlib
import logging
import os
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from cluster import magic_packet
from cluster.processes import clean_environment
from serving.waking import Awake, Sender, Sleeper, Wake, senders

COMMAND_S = 30.0
"""How long a command may take."""
LAST_LINES, LAST_BYTES = 5, 2000
"""What is told of the output of one that failed."""

log = logging.getLogger(__name__)


class NotWoken(Exception):
    """Nothing was done that could wake it. The message names the remedy; `status` is HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Cluster:
    """Who there is when somebody is to be woken."""

    entries: Mapping[str, Wake]
    """By name, how machines are woken."""
    sleepers: Mapping[str, Sleeper]
    """By name: every machine that is known."""
    heard: frozenset[str]
    """Names of those that are here."""
    awake: tuple[Awake, ...]
    """Those that could send, the head first."""
    head: str
    """The id of this machine."""


class Waker:
    """`look` says who there is; `order` has the keeper of a machine send, and returns on how many networks it did."""

    def __init__(
        self,
        look: Callable[[], Cluster],
        order: Callable[[str, str, list[str]], Awaitable[int]],
        away: tuple[type[Exception], ...],
    ) -> None:
        """`away`: how a keeper that cannot be asked shows itself."""
        self._look = look
        self._order = order
        self._away: tuple[type[Exception], ...] = (*away, OSError)
        self._running: dict[str, asyncio.Task[None]] = {}
        """By machine, the command that runs: twice at once it might switch a machine on and off again."""

    async def wake(self, name: str) -> dict[str, Any]:
        """Once the packets are out, or the command has ended well: `machine`, `awake` (it was: nothing was done),
        `how` (packet or command) and `by`, the machines that sent. Raises NotWoken."""
        cluster = self._look()
        sleeper, entry = cluster.sleepers.get(name), cluster.entries.get(name)
        if sleeper is None:
            known = ", ".join(sorted(cluster.sleepers)) or "none"
            raise NotWoken(f"There is no machine {name}; known: {known}.", 404)
        if name in cluster.heard:
            return {"machine": name, "awake": True, "how": None, "by": []}
        if entry is None:
            raise NotWoken(
                f"The config does not say how {name} is woken. Below `machines`, give it its network card's address "
                f'(`wake: {{mac: "aa:bb:cc:dd:ee:ff"}}`) or a command of the head (`wake: {{command: …}}`), and run '
                "`homeport apply`.",
                409,
            )
        if entry.mac is None:
            await self._command(name, entry.command)
            return {"machine": name, "awake": False, "how": "command", "by": []}
        found = senders(sleeper, cluster.awake)
        if not found:
            where = f"in the network of {name}" + (f" ({sleeper.address})" if sleeper.address else "")
            raise NotWoken(
                f"No machine {where} is awake to send its magic packet, and it goes through no router. Switch one on "
                "there, or have a command do it (`wake: {command: …}`).",
                503,
            )
        sent = await asyncio.gather(*(self._send(each, entry.mac, cluster.head) for each in found))
        by = [each.name for each, out in zip(found, sent, strict=True) if out]
        if not by:
            names = ", ".join(each.name for each in found)
            raise NotWoken(f"{names} could not send the magic packet of {name}; the logs there say why.", 502)
        log.info("the magic packet of %s was sent by %s", name, ", ".join(by))
        return {"machine": name, "awake": False, "how": "packet", "by": by}

    async def _send(self, sender: Sender, mac: str, head: str) -> bool:
        try:
            if sender.id == head:
                return bool(magic_packet.send(mac, sender.networks))
            return await self._order(sender.id, mac, list(sender.networks)) > 0
        except self._away as error:
            log.warning("%s does not send a magic packet: %s", sender.name, error)
            return False

    async def _command(self, name: str, command: tuple[str, ...]) -> None:
        if name not in self._running:
            task = self._running[name] = asyncio.create_task(_run(name, command))
            task.add_done_callback(lambda _: self._running.pop(name, None))
        await asyncio.shield(self._running[name])


async def _run(name: str, command: tuple[str, ...]) -> None:
    """A command, to its end, without a shell. Raises NotWoken with its last lines."""
    with tempfile.TemporaryFile() as told:  # not a pipe: what it leaves running may hold that open
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=clean_environment(os.environ),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=told,
                stderr=told,
                start_new_session=True,
            )
        except OSError as error:
            message = f"The command that wakes {name} cannot be started: {command[0]}: {error.strerror}."
            raise NotWoken(message, 502) from None
        try:
            code = await asyncio.wait_for(process.wait(), COMMAND_S)
        except TimeoutError:
            raise NotWoken(
                f"The command that wakes {name} had not ended after {COMMAND_S:.0f} s and was killed{_last(told)}",
                502,
            ) from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if code != 0:
            raise NotWoken(f"The command that wakes {name} ended with code {code}{_last(told)}", 502)
    log.info("the command that wakes %s has run", name)


def _last(told: BinaryIO) -> str:
    told.seek(max(0, told.seek(0, os.SEEK_END) - LAST_BYTES))
    lines = [line.strip() for line in told.read().decode(errors="replace").splitlines() if line.strip()]
    return f": {' / '.join(lines[-LAST_LINES:])}" if lines else " and said nothing."


def sleepers(
    known: Iterable[tuple[str, str, str]], config: Iterable[Mapping[str, Any]]
) -> dict[str, Sleeper]:
    """By name: machines that were ever here (name, zone, address), and those that only the config names."""
    found = {
        str(each["name"]): Sleeper(
            str(each["name"]), str(each.get("zone", "")), str(each.get("address") or "")
        )
        for each in config
    }
    for name, zone, address in known:
        told = found.get(name)
        found[name] = Sleeper(name, zone, address or (told.address if told else ""))
    return found
