"""Runs cluster/doctor_probe.py on every machine of a list at once, and has the machines reach for each other.

One SSH session a machine, in which the probe's own source travels: nothing is installed, and nothing stays. Each
step has its limit, so that a machine which is off, or hangs, is one that was not seen, and delays the others by
no more than that. Judges nothing.
"""

import asyncio
import contextlib
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster.doctor import Seen
from cluster.doctor_pairs import Between, PortRange, Reach

CONNECT_S = 5
FACTS_S = 45.0
"""For all that a machine is asked of itself: some programs of others are slow at their first start."""
ORDER_S = 30.0
LINE_BYTES_MAX = 2**20
ERROR_BYTES_MAX = 4096
CLOCK_ROUNDS = 3
MODULES = ("cluster.network", "cluster.doctor_probe")
FOLDER = Path(__file__).resolve().parent

# Makes modules of the sources that come on stdin, and runs the last. One line: some shells take no other argument.
RUNNER = "exec({!r})".format(
    "import sys, json, types\n"
    "sys.modules['cluster'] = types.ModuleType('cluster')\n"
    "for name, source in json.loads(sys.stdin.buffer.read(int(sys.argv[1])).decode()):\n"
    "    made = sys.modules[name] = types.ModuleType(name)\n"
    "    setattr(sys.modules['cluster'], name.split('.')[1], made)\n"
    "    exec(compile(source, name, 'exec'), made.__dict__)\n"
    "made.main()\n"
)
# For machines whose python3 is missing or too old to look around, they may have another.
SHELL = (
    "for p in python3 python3.11 python3.12 python3.13 python3.14; do "
    "if command -v $p >/dev/null 2>&1 && $p -c 'import sys; sys.exit(sys.version_info < (3, 8))'; "
    'then exec $p -u -c "$1" "$2"; fi; done; echo "no python: $(uname -sr), $(python3 -V 2>&1 | tail -n 1)"'
)


@dataclass(frozen=True, slots=True)
class Target:
    """A machine to look at. `ssh`: the command that opens a shell there; (): it is this machine."""

    address: str
    ssh: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Looked:
    """What was seen of all, in the order in which they were given."""

    machines: tuple[Seen, ...]
    between: Between


def over_ssh(address: str, user: str, key: str | None) -> Target:
    """As Ray reaches it: no host keys are checked, and nobody is asked for a password."""
    options = [
        "BatchMode=yes",
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
        f"ConnectTimeout={CONNECT_S}",
        "ServerAliveInterval=5",
        "ServerAliveCountMax=2",
    ]
    words = ["ssh", "-T"]
    for option in options:
        words += ["-o", option]
    if key is not None:
        words += ["-o", "IdentitiesOnly=yes", "-i", str(Path(key).expanduser())]
    return Target(address, (*words, "--", f"{user}@{address}"))


async def look(targets: Sequence[Target], ranges: Sequence[PortRange]) -> Looked:
    """Look at all of them. Connections are tried between each two that were seen, both ways."""
    sessions = [_Session(target) for target in targets]
    try:
        await asyncio.gather(*(session.begin() for session in sessions))
        there = [session for session in sessions if session.facts is not None]
        ports = [port for each in ranges for port in each.samples]
        listening: dict[tuple[str, int], str] = {}
        reaches: list[Reach] = []
        if len(there) > 1:
            for session, told in zip(there, await _all(there, {"listen": ports}), strict=True):
                listening |= {(session.target.address, int(p)): w for p, w in (told or {}).items()}
            orders = [_targets(there, session, ports) for session in there]
            found = await asyncio.gather(
                *(s.order({"connect": order}) for s, order in zip(there, orders, strict=True))
            )
            for session, told in zip(there, found, strict=True):
                reaches += [Reach(session.target.address, *each) for each in told or ()]
        offsets = await _offsets(there)
    finally:
        await asyncio.gather(*(session.end() for session in sessions))
    return Looked(
        _distinct([session.seen() for session in sessions]), Between(ranges, reaches, listening, offsets)
    )


def _distinct(seen: list[Seen]) -> tuple[Seen, ...]:
    """Two machines of one host name are told apart by their addresses."""
    names = [each.name for each in seen]
    return tuple(
        replace(each, name=f"{each.name} ({each.address})") if names.count(each.name) > 1 else each
        for each in seen
    )


def _targets(there: Sequence["_Session"], own: "_Session", ports: Sequence[int]) -> list[tuple[str, int]]:
    return [(each.target.address, port) for each in there if each is not own for port in ports]


async def _all(sessions: Sequence["_Session"], order: Mapping[str, Any]) -> list[Any]:
    return await asyncio.gather(*(session.order(order) for session in sessions))


async def _offsets(sessions: Sequence["_Session"]) -> dict[str, float]:
    """Seconds that each clock is ahead of this one: of some rounds, that with the shortest way."""
    best: dict[str, tuple[float, float]] = {}
    for _ in range(CLOCK_ROUNDS):
        for session, found in zip(
            sessions, await asyncio.gather(*(session.clock() for session in sessions)), strict=True
        ):
            if found is not None and found < best.get(session.target.address, (float("inf"), 0.0)):
                best[session.target.address] = found
    return {address: offset for address, (_, offset) in best.items()}


@dataclass
class _Session:
    """One machine's probe, for as long as it runs."""

    target: Target
    facts: dict[str, Any] | None = None
    away: str = ""
    _process: asyncio.subprocess.Process | None = None
    _errors: "asyncio.Task[bytes] | None" = field(default=None)

    async def begin(self) -> None:
        """Start it and hear its facts, or why there are none."""
        payload = json.dumps([(name, _source(name)) for name in MODULES]).encode()
        words = [RUNNER, str(len(payload))]
        if self.target.ssh:
            command = [*self.target.ssh, shlex.join(["sh", "-c", SHELL, "sh", *words])]
        else:
            command = [sys.executable, "-u", "-c", *words]
        pipe = asyncio.subprocess.PIPE
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, stderr=pipe, limit=LINE_BYTES_MAX, start_new_session=True
            )
        except OSError as error:
            self.away = f"{command[0]}: {error.strerror}"
            return
        assert self._process.stderr is not None
        self._errors = asyncio.create_task(_last_of(self._process.stderr))
        told = await self._say_and_hear(payload, FACTS_S)
        if isinstance(told, dict) and isinstance(told.get("facts"), dict):
            self.facts = told["facts"]

    async def order(self, order: Mapping[str, Any]) -> Any:
        """The answer; None where none came in time."""
        (name,) = order
        told = await self._say_and_hear(json.dumps(order).encode() + b"\n", ORDER_S)
        return told.get(name) if isinstance(told, dict) else None

    async def clock(self) -> tuple[float, float] | None:
        """(how long the question took, how far the clock there is ahead), in seconds."""
        began, at = time.monotonic(), time.time()
        told = await self.order({"clock": None})
        took = time.monotonic() - began
        return None if told is None else (took, float(told) - at - took / 2)

    def seen(self) -> Seen:
        name = str(self.facts["hostname"]) if self.facts else self.target.address
        return Seen(name, self.target.address, self.facts, self.away)

    async def end(self) -> None:
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 1.0)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if self._errors is not None:
            self._errors.cancel()

    async def _say_and_hear(self, words: bytes, limit_s: float) -> Any:
        """One answer as JSON; None, and `away` says why, where there is none."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        line = b""
        try:
            async with asyncio.timeout(limit_s):
                with contextlib.suppress(OSError):  # One that ended unread may have said why.
                    process.stdin.write(words)
                    await process.stdin.drain()
                line = await process.stdout.readline()
                return json.loads(line)
        except TimeoutError:
            self.away = f"timed out: no answer within {limit_s:.0f} s"
        except ValueError:
            self.away = await self._last_words(line)
        return None

    async def _last_words(self, line: bytes) -> str:
        assert self._process is not None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), 2.0)
        said = line.decode(errors="replace").strip()
        if not said and self._errors is not None:
            with contextlib.suppress(TimeoutError):
                errors = await asyncio.wait_for(asyncio.shield(self._errors), 2.0)
                said = errors.decode(errors="replace").strip().rpartition("\n")[2].strip()
        return said or f"ended with code {self._process.returncode}"


async def _last_of(stream: asyncio.StreamReader) -> bytes:
    """The end of it, once it has ended; what comes before is read away."""
    kept = b""
    while part := await stream.read(4096):
        kept = (kept + part)[-ERROR_BYTES_MAX:]
    return kept


def _source(module: str) -> str:
    return (FOLDER / f"{module.partition('.')[2]}.py").read_text(encoding="utf-8")
