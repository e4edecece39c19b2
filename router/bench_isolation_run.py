"""Measures what a session notices of its neighbours, for `homeport bench isolation`: the rounds, and what is asked.

The regimes take turns, so that a slow moment of the machine hits all of them. Within a round hosts are started once a
regime, and the watched session is asked beside each number of neighbours. What follows from it says
serving/isolation.py.
"""

import contextlib
import json
import os
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from cluster.slices import Slice
from router.bench_isolation_hosts import LOOPBACK, MODEL, ROLE, Engine, Stage
from serving.isolation import TITLES, Cell, Regime, in_turns, neighbours_home, place
from serving.machine_bench import BenchFailed

ANSWER_S = 120.0
"""A first token takes longest where many engines share all cores."""
END_TOKENS = {"0": -100, "2": -100, "4": -100}
"""SmolLM2 would end its answer at these."""
PIECE = re.compile(rb'"delta": ?\{"content": ?"')
"""An event with text in it."""
STORY = "Tell me a long story about a harbour, its boats and the people who live there. " * 4
TIMESTAMP = 35
"""SO_TIMESTAMPNS, and what it tells: a struct timespec (Linux, asm-generic/socket.h). Python has no name for it."""
READ_S = 0.1
MOST_TOKENS = 1500
NEIGHBOURS_TOKENS = 300
AGENT_MORE_S = 300.0
"""After so long an agent's task ends by itself, should this process have been killed."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done."""

    rounds: int
    watched_s: float
    """How long the watched session's tokens are looked at beside each number of neighbours."""
    least: int
    """So many tokens are waited for, however long that takes."""


FULL = Effort(4, 2.5, 20)
QUICK = Effort(1, 0.5, 5)


class Turn:
    """One open answer. Its bytes are told as they are, with when they came: the host ended no event in the middle."""

    def __init__(self, engine: Engine, session: str, tokens: int) -> None:
        self.asked_s = time.time()
        self._socket = socket.create_connection((LOOPBACK, engine.record.port), timeout=ANSWER_S)
        self._socket.setsockopt(socket.SOL_SOCKET, TIMESTAMP, 1)
        body = _body(session, tokens)
        named = {"host": ROLE, "content-length": str(len(body)), **engine.headers(session)}
        lines = ["POST /v1/chat/completions HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    def read(self) -> tuple[bytes, float]:
        """What came next, b"" at the end; and when, in seconds since the epoch, by the kernel: how late this process
        itself gets its turn is no matter of the host's. Raises OSError."""
        data, told, _, _ = self._socket.recvmsg(65536, 64)
        for level, kind, value in told:
            if (level, kind) == (socket.SOL_SOCKET, TIMESTAMP):
                seconds, nanoseconds = struct.unpack("@qq", value[:16])
                return data, seconds + nanoseconds / 1e9
        return data, time.time()

    def leave(self) -> None:
        """Break it off, also while another thread reads."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


class Neighbour(threading.Thread):
    """Another session: one long answer after another on its host, until it is to stop. Looks for what came a few times
    a second only, so that its reading takes no time that its answers do not."""

    def __init__(self, engine: Engine, number: int) -> None:
        super().__init__(daemon=True)
        self.speaks = threading.Event()
        """Its first text came."""
        self._engine = engine
        self._number = number
        self._stopped = threading.Event()
        self._turn: Turn | None = None

    def run(self) -> None:
        count = 0
        while not self._stopped.wait(READ_S):
            count += 1
            with contextlib.suppress(OSError):
                self._ask(f"neighbour {self._number} {count}")

    def stop(self) -> None:
        """Leave, in the middle of an answer or of the line."""
        self._stopped.set()
        if self._turn is not None:
            self._turn.leave()
        self.join()

    def _ask(self, session: str) -> None:
        self._turn = turn = Turn(self._engine, session, NEIGHBOURS_TOKENS)
        try:
            # `stop` may have come while this one was not there to be left.
            data = b"" if self._stopped.is_set() else turn.read()[0]
            while data and b"[DONE]" not in data and not self._stopped.is_set():
                if PIECE.search(data):
                    self.speaks.set()
                self._stopped.wait(READ_S if self.speaks.is_set() else 0.0)
                data, _ = turn.read()
        finally:
            turn.close()


def watch(engine: Engine, session: str, seconds: float, least: int) -> tuple[float, list[float]]:
    """Ask for an answer: when it was asked for, and when each piece of text came, for so many seconds from the first,
    and at least so many of them. Then leave. Raises BenchFailed."""
    times: list[float] = []
    seen = b""
    try:
        turn = Turn(engine, session, MOST_TOKENS)
        try:
            while len(times) < least or times[-1] - times[0] < seconds:
                data, at = turn.read()
                seen = data or seen
                if not data or b"[DONE]" in data:
                    break
                times += [at] * len(PIECE.findall(data))
        finally:
            turn.close()
    except OSError as error:
        raise BenchFailed(f"a host broke off its answer ({error})") from error
    if len(times) < least:
        said = seen.decode(errors="replace").strip()[-200:]
        raise BenchFailed(f"an answer ended after {len(times)} tokens: {said}")
    return turn.asked_s, times


@contextmanager
def keeping_off(carved: Slice) -> Iterator[None]:
    """This thread, and those that it starts, stay off these CPUs where there are others: who looks on takes no time
    from what is looked at."""
    if sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before - set(carved.cpus) or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure(
    stage: Stage, regimes: Sequence[Regime], counts: Sequence[int], agent: bool, effort: Effort, say: Say
) -> list[Cell]:
    """All rounds, a cell for each regime and number of neighbours. `agent`: neighbours are CPU-heavy tasks, not
    sessions. Raises BenchFailed; ends what it started in any case."""
    cells = []
    own = place("dedicated", stage.cores, 1, 0)[0]
    turns = [(number, regime) for number in range(effort.rounds) for regime in in_turns(regimes, number)]
    with keeping_off(own):
        for number, regime in turns:
            say(f"round {number + 1} of {effort.rounds}: {TITLES[regime]}")
            with stage.engines(regime, 1 if agent else max(counts) + 1) as engines:
                with ThreadPoolExecutor(len(engines)) as threads:
                    list(threads.map(lambda engine: watch(engine, "warm", 0.0, 2), engines))
                for count in counts:
                    for engine in engines:
                        engine.wait_quiet()
                    with _beside(stage, engines, regime, count, agent):
                        session = f"watched {count}"
                        asked, times = watch(engines[0], session, effort.watched_s, effort.least)
                    cells.append(Cell(regime, count, number, asked, tuple(times)))
    return cells


@contextmanager
def _beside(
    stage: Stage, engines: Sequence[Engine], regime: Regime, count: int, agent: bool
) -> Iterator[None]:
    """Neighbours that are at work when this yields, as far as there is room for them."""
    if agent:
        with stage.agents(regime, count, AGENT_MORE_S):
            yield
        return
    neighbours = [
        Neighbour(engines[neighbours_home(number, len(engines))], number) for number in range(1, count + 1)
    ]
    try:
        for neighbour in neighbours:
            neighbour.start()
        for neighbour in neighbours[: len(engines) - 1]:
            if not neighbour.speaks.wait(ANSWER_S):
                raise BenchFailed("a neighbour got no answer")
        yield
    finally:
        for neighbour in neighbours:
            neighbour.stop()


def _body(session: str, tokens: int) -> bytes:
    """A long answer to a prompt of some 80 tokens that is new to the host."""
    asked = {
        "model": MODEL,
        "stream": True,
        "max_tokens": tokens,
        "temperature": 0,
        "logit_bias": END_TOKENS,
        "messages": [{"role": "user", "content": f"{session}. {STORY}"}],
    }
    return json.dumps(asked).encode()
