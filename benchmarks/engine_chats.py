"""Four growing chats on our host, and on llama.cpp's own C++ server: the same model file, threads and context."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

from benchmarks import one_host
from benchmarks.answers import Answer, Client, Server, assistant, together, user
from benchmarks.cores import Cores
from benchmarks.report import Figure
from benchmarks.words import words
from benchmarks.worker import Worker
from serving.source import bundled_model

SESSIONS, TURNS = 4, 3
CONTEXT = 2048
TARGET, MOONSHOT = 0.95, 0.8
OPENING = 240
"""Words of a chat's first message; the later ones have a tenth."""

Way = Callable[[Client, int, int], Awaitable[None]]


def measure(cores: Cores, rounds: int, tokens: int) -> list[Figure]:
    """Wall time of 4 sessions x 3 turns, ours divided by that server's, one session at a time and all at once."""
    sizes = ("--context", str(CONTEXT), "--slots", str(SESSIONS), "--threads", str(cores.threads))
    with (
        Worker(cores, "-m", "benchmarks.rival", str(bundled_model()), *sizes) as rival,
        one_host.running(cores, CONTEXT, SESSIONS) as host,
    ):
        servers = (host.server, Server(rival.ready["url"]))
        return [
            _figure("interleaved", _interleaved, servers, rounds, tokens),
            _figure("concurrent", _concurrent, servers, rounds, tokens),
        ]


def _figure(how: str, way: Way, servers: tuple[Server, Server], rounds: int, tokens: int) -> Figure:
    times: list[list[float]] = [[], []]
    for number in range(rounds):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            times[which].append(asyncio.run(_timed(servers[which], way, number, tokens)))
    ratio = statistics.median(ours / theirs for ours, theirs in zip(*times, strict=True))
    ours_s, theirs_s = map(statistics.median, times)
    return Figure(
        f"{SESSIONS} sessions x {TURNS} turns of a growing chat, {how}, wall time against llama.cpp's C++ server",
        f"<= {TARGET} x (moonshot {MOONSHOT} x)",
        f"{ratio:.2f} x ({ours_s:.1f} s against {theirs_s:.1f} s)",
        ratio <= TARGET,
        f"{tokens} tokens an answer, {SESSIONS} places on each, median of {rounds} alternating rounds",
    )


async def _timed(server: Server, way: Way, number: int, tokens: int) -> float:
    async with Client(server) as client:
        await client.ask([user("Hello")], 4)
        began = time.perf_counter()
        await way(client, number, tokens)
        return time.perf_counter() - began


async def _interleaved(client: Client, number: int, tokens: int) -> None:
    chats = [_Chat(client, number, session, tokens) for session in range(SESSIONS)]
    for _ in range(TURNS):
        for chat in chats:
            await chat.turn()


async def _concurrent(client: Client, number: int, tokens: int) -> None:
    async def talk(chat: _Chat) -> None:
        for _ in range(TURNS):
            await chat.turn()

    await together(*(talk(_Chat(client, -1 - number, session, tokens)) for session in range(SESSIONS)))


class _Chat:
    """A session whose every turn sends all that was said. `number` makes its words its own."""

    def __init__(self, client: Client, number: int, session: int, tokens: int) -> None:
        self._client = client
        self._name = one_host.name(session)
        self._seed = f"{number} {session}"
        self._tokens = tokens
        self._messages: list[dict[str, str]] = []

    async def turn(self) -> None:
        length = OPENING // 10 if self._messages else OPENING
        self._messages.append(user(words(f"{self._seed} {len(self._messages)}", length)))
        answer: Answer = await self._client.ask(self._messages, self._tokens, self._name)
        self._messages.append(assistant(answer.text))
