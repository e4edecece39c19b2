"""Does a host's memory grow with the requests that it has answered?"""

import asyncio

from benchmarks import one_host
from benchmarks.answers import Client, user
from benchmarks.cores import Cores
from benchmarks.report import Figure

CONTEXT = 1024
SESSIONS, PLACES = 6, 4
BEFORE = 100
TARGET = 0.02


def measure(cores: Cores, requests: int) -> list[Figure]:
    """Growth of the host's memory from the hundredth request to the last, as a share of what it was."""
    with one_host.running(cores, CONTEXT, PLACES) as host:
        asyncio.run(_ask(host, range(BEFORE)))
        before = host.memory_bytes()
        asyncio.run(_ask(host, range(BEFORE, requests)))
        after = host.memory_bytes()
    grown = after / before - 1
    return [
        Figure(
            f"{requests:,} short requests in a row: growth of the host's memory after the first {BEFORE}",
            f"< {TARGET:.0%}",
            f"{grown:.1%} ({before / 2**20:.0f} to {after / 2**20:.0f} MiB)",
            grown < TARGET,
            f"4 tokens an answer, {SESSIONS} sessions in turn on {PLACES} places, so that all park and resume",
        )
    ]


async def _ask(host: one_host.MeasuredHost, numbers: range) -> None:
    async with Client(host.server) as client:
        for number in numbers:
            await client.ask([user(f"What is {number} and one?")], 4, one_host.name(number % SESSIONS))
