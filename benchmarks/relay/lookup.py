"""What finding a session's pin costs in the router, with very many of them, beside a plain dict.

`python -m benchmarks.relay.lookup KIND` measures one of the two in a process that has nothing else in it, and prints
JSON; `measure` runs both.
"""

import asyncio
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import psutil

from router.decision import Ask, Routed, Send
from router.fleet import Fleet
from router.homes import Homes
from router.keys import Key
from router.peers import HostState, Peers
from router.snapshot import Model
from serving.pins import Pin

MACHINES, SESSIONS = 1000, 1_000_000
LOOKED_UP = 100_000
MODEL = "tiny"
NOW = 100.0
KINDS = ("router", "dict")


@dataclass(frozen=True, slots=True)
class LookUp:
    """Percentiles in microseconds, memory of a session, and how many pins a new machine moved."""

    p50: float
    p99: float
    session_bytes: float
    moved: int = 0

    def __str__(self) -> str:
        return f"p50 {self.p50:.1f} us, p99 {self.p99:.1f} us, {self.session_bytes:.0f} B a session"


def measure() -> dict[str, LookUp]:
    """By kind. Raises CalledProcessError."""
    found = {}
    for kind in KINDS:
        ran = subprocess.run(
            [sys.executable, "-m", "benchmarks.relay.lookup", kind],
            capture_output=True,
            text=True,
            check=True,
        )
        found[kind] = LookUp(**json.loads(ran.stdout))
    return found


class _Told(Peers):
    """A controller that lists machines, and nobody else."""

    def __init__(self) -> None:
        super().__init__(cast(Any, None), "http://127.0.0.1:1", "token")
        self.machines = 0

    async def fleet(self) -> bytes:
        listed = [
            {
                "id": f"id-{number}",
                "name": f"machine-{number}",
                "address": "127.0.0.1",
                "state": "ready",
                "replicas": [{"name": f"machine-{number}/0", "model": MODEL, "port": 1 + number}],
            }
            for number in range(self.machines)
        ]
        models = [{"name": MODEL, "context": 8192, "engine": "llama.cpp"}]
        return json.dumps({"revision": 1, "models": models, "machines": listed}).encode()


def _in_router() -> LookUp:
    """`Homes.decide` for sessions that it knows."""
    with tempfile.TemporaryDirectory(prefix="homeport-lookup-") as folder:
        peers = _Told()
        fleet = Fleet(peers, Path(folder) / "fleet.json", [Model(MODEL, 8192, "llama.cpp")], lambda: NOW)
        homes = Homes(fleet, peers, lambda: NOW, lambda: NOW)
        _list(fleet, peers, MACHINES)
        before = psutil.Process().memory_info().rss
        for number in range(SESSIONS):
            homes.told(Pin(_session(number), MODEL, f"machine-{number % MACHINES}/0", 1, NOW))
        grown = psutil.Process().memory_info().rss - before
        asks = [Ask(MODEL, _session(number), "id", None, None, "wait", Key("bench")) for number in _some()]
        times = _timed(lambda ask: _decided(homes, ask), asks)
        at = [_replica(homes, ask) for ask in asks]
        _list(fleet, peers, MACHINES + 1)
        moved = sum(_replica(homes, ask) != there for ask, there in zip(asks, at, strict=True))
    return _found(times, grown, moved)


def _in_dict() -> LookUp:
    """Session to the name of its machine."""
    names = [f"machine-{number}" for number in range(MACHINES)]
    before = psutil.Process().memory_info().rss
    pins = {_session(number): names[number % MACHINES] for number in range(SESSIONS)}
    grown = psutil.Process().memory_info().rss - before
    return _found(_timed(pins.__getitem__, [_session(number) for number in _some()]), grown)


def _list(fleet: Fleet, peers: _Told, machines: int) -> None:
    """So many are listed, and the host of each has answered."""
    peers.machines = machines
    asyncio.run(fleet.refresh_controller())
    for name, known in fleet.known.items():
        known.state, known.heard_at = HostState(name, 1, "ready", places=4), NOW


def _decided(homes: Homes, ask: Ask) -> Routed:
    """A known session's way is found without waiting for anybody."""
    deciding = homes.decide(ask, set(), NOW)
    try:
        deciding.send(None)
    except StopIteration as ended:
        return cast(Routed, ended.value)
    raise RuntimeError("a known session was asked for elsewhere")


def _replica(homes: Homes, ask: Ask) -> str:
    decided = _decided(homes, ask)
    assert isinstance(decided, Send)
    return decided.replica


def _session(number: int) -> str:
    return hashlib.sha256(b"%d" % number).hexdigest()


def _some() -> list[int]:
    return random.Random(7).sample(range(SESSIONS), LOOKED_UP)


def _timed(look: Callable[[Any], object], keys: Sequence[Any]) -> list[float]:
    """Microseconds of each."""
    clock = time.perf_counter_ns
    times = []
    for key in keys:
        began = clock()
        look(key)
        times.append((clock() - began) / 1000)
    return sorted(times)


def _found(times: list[float], grown: int, moved: int = 0) -> LookUp:
    return LookUp(times[len(times) // 2], times[len(times) * 99 // 100], grown / SESSIONS, moved)


if __name__ == "__main__":
    print(json.dumps(asdict({"router": _in_router, "dict": _in_dict}[sys.argv[1]]())))
