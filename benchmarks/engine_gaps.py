"""What a neighbour notices while a prompt of 2,048 tokens is evaluated beside it."""

import asyncio
import itertools
import statistics

from benchmarks import one_host
from benchmarks.answers import Answer, Client, user
from benchmarks.cores import Cores
from benchmarks.report import Figure
from benchmarks.words import words
from serving.isolation import percentile

CONTEXT = 8192
LONG = 1990
"""Words; with the template some 2,048 tokens."""
TARGET = 3.0
WARM = 20
"""Tokens of the neighbour before its gaps count."""
MOST = 6000
"""Tokens of the neighbour; it leaves long before."""


def measure(cores: Cores, rounds: int, tokens: int) -> list[Figure]:
    """The p99 of a stream's gaps while the prompt is evaluated, divided by that of the same stream alone."""
    ratios, alone_ms, beside_ms, counted = [], [], [], 0
    with one_host.running(cores, CONTEXT, 2) as host:
        chunk = host.state().get("prompt_chunk", "unknown")
        for number in range(rounds):
            alone, beside = asyncio.run(_round(host, number, tokens))
            alone_ms.append(percentile(alone, 0.99) * 1000)
            beside_ms.append(percentile(beside, 0.99) * 1000)
            ratios.append(beside_ms[-1] / alone_ms[-1])
            counted += len(beside)
    ratio = statistics.median(ratios)
    return [
        Figure(
            "a neighbour's p99 gap while a prompt of 2,048 tokens is evaluated beside it",
            f"<= {TARGET:.0f} x its p99 without",
            f"{ratio:.2f} x ({statistics.median(beside_ms):.0f} ms against {statistics.median(alone_ms):.0f} ms)",
            ratio <= TARGET,
            f"chunk of {chunk} tokens; {counted} gaps, median of {rounds} rounds",
        )
    ]


async def _round(host: one_host.MeasuredHost, number: int, tokens: int) -> tuple[list[float], list[float]]:
    """The neighbour's gaps alone, and while the prompt was evaluated."""
    neighbour, guest = one_host.name(0), one_host.name(1)
    story = [user("Tell me a long story about a harbour.")]
    going, over = asyncio.Event(), asyncio.Event()

    def heard(pieces: int) -> bool:
        if pieces >= WARM:
            going.set()
        return not over.is_set()

    async with Client(host.server) as client:
        alone: Answer = await client.ask(story, tokens, neighbour)
        stream = asyncio.create_task(client.ask(story, MOST, neighbour, heard))
        await going.wait()
        asked = await client.ask([user(words(f"gap {number}", LONG))], 1, guest)
        over.set()
        beside: Answer = await stream
    begin, end = asked.began, asked.stream.times[0]
    times = [at for at in beside.stream.times if begin <= at <= end]
    return alone.stream.gaps[WARM:], [later - earlier for earlier, later in itertools.pairwise(times)]
