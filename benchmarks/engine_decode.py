"""Decode and prefill of the engine, at its queue and over HTTP, against the bare loop of bare_loop.py."""

import asyncio
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import one_host
from benchmarks.answers import Answer, Client, together, user
from benchmarks.cores import Cores
from benchmarks.pace import pace
from benchmarks.report import Figure
from benchmarks.worker import Worker
from serving.source import bundled_model

BATCHES = (1, 4, 8, 16)
CONTEXT = 1024
SHORT = 32
QUICK = 8
"""Smaller batches have as many more rounds, as they are over so much sooner and one slow moment would count more."""
QUEUE_TARGET, HTTP_TARGET, PREFILL_TARGET = 0.97, 0.92, 0.98
LONG_CONTEXT = 4096
LONG = 2048


def decode(cores: Cores, rounds: int, tokens: int) -> list[Figure]:
    """Tokens a second of all sequences together while all decode; each round asks all three, in turning order."""
    at_queue: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    over_http: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    bare_rates: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    most = max(BATCHES)
    with (
        Worker(cores, *_bare(cores, CONTEXT, most)) as bare,
        Worker(cores, *_queue(cores, CONTEXT, most)) as queue,
        one_host.running(cores, CONTEXT, most) as host,
    ):
        for batch in BATCHES:
            shape = {"sequences": batch, "prompt": SHORT, "tokens": tokens}
            asks: list[Callable[[], float]] = [
                lambda shape=shape: float(bare.tell(**shape)["decode_per_s"]),  # type: ignore[misc]
                lambda shape=shape: float(queue.tell(**shape)["decode_per_s"]),  # type: ignore[misc]
                lambda batch=batch: asyncio.run(_streams(host, batch, tokens)),  # type: ignore[misc]
            ]
            # The first turns evaluate the prompts, which stay.
            queue.tell(**{**shape, "tokens": 1})
            asyncio.run(_answers(host, batch, 1))
            for found in _rounds(asks, rounds * max(1, QUICK // batch)):
                bare_rates[batch].append(found[0])
                at_queue[batch].append(found[1] / found[0])
                over_http[batch].append(found[2] / found[0])
    how = f"{tokens} tokens a sequence, greedy, median of {rounds} alternating rounds or more"
    return [
        _figure("at the engine's queue", QUEUE_TARGET, at_queue, bare_rates, how),
        _figure("over HTTP", HTTP_TARGET, over_http, bare_rates, how),
    ]


def prefill(cores: Cores, rounds: int) -> list[Figure]:
    """Time from a prompt of 2,048 tokens to its first token: the bare loop's divided by the engine's."""
    shape = {"sequences": 1, "prompt": LONG, "tokens": 0}
    with (
        Worker(cores, *_bare(cores, LONG_CONTEXT, 1)) as bare,
        Worker(cores, *_queue(cores, LONG_CONTEXT, 1)) as queue,
    ):
        found = _rounds(
            [lambda: float(bare.tell(**shape)["first_s"]), lambda: float(queue.tell(**shape)["first_s"])],
            rounds,
        )
    ratio = statistics.median(bare_s / engine_s for bare_s, engine_s in found)
    seconds = statistics.median(engine_s for _, engine_s in found)
    return [
        Figure(
            f"prefill of {LONG:,} tokens against the bare loop",
            f">= {PREFILL_TARGET} x",
            f"{ratio:.3f} x ({LONG / seconds:.0f} tokens/s)",
            ratio >= PREFILL_TARGET,
            f"time to the first token, median of {rounds} alternating rounds",
        )
    ]


async def _streams(host: one_host.MeasuredHost, batch: int, tokens: int) -> float:
    return pace([answer.stream for answer in await _answers(host, batch, tokens)])


async def _answers(host: one_host.MeasuredHost, batch: int, tokens: int) -> list[Answer]:
    async with Client(host.server) as client:
        stories = [[user(f"Tell me a long story about harbour number {n}.")] for n in range(batch)]
        asks = (client.ask(story, tokens, one_host.name(n)) for n, story in enumerate(stories))
        return await together(*asks)


def _rounds(asks: list[Callable[[], float]], rounds: int) -> list[list[float]]:
    """For each round what each said; the order turns, so that none always comes first."""
    found = []
    for number in range(rounds):
        said: dict[int, float] = {}
        for step in range(len(asks)):
            which = (number + step) % len(asks)
            said[which] = asks[which]()
        found.append([said[which] for which in range(len(asks))])
    return found


def _figure(
    where: str,
    target: float,
    ratios: dict[int, list[float]],
    bare: dict[int, list[float]],
    how: str,
) -> Figure:
    medians = {batch: statistics.median(found) for batch, found in ratios.items()}
    speeds = ", ".join(f"{statistics.median(found):.0f}" for found in bare.values())
    return Figure(
        f"decode at batch {', '.join(map(str, ratios))} {where}, against the bare loop",
        f">= {target} x",
        f"{', '.join(f'{median:.2f}' for median in medians.values())} x (the loop: {speeds} tokens/s)",
        min(medians.values()) >= target,
        how,
    )


def _bare(cores: Cores, context: int, sequences: int) -> tuple[str, ...]:
    script = str(Path(__file__).with_name("bare_loop.py"))
    return (script, str(bundled_model()), "--commands", *_sizes(cores, context, sequences))


def _queue(cores: Cores, context: int, sequences: int) -> tuple[str, ...]:
    return ("-m", "benchmarks.engine_queue", str(bundled_model()), *_sizes(cores, context, sequences))


def _sizes(cores: Cores, context: int, sequences: int) -> tuple[str, ...]:
    sizes: dict[str, Any] = {"--threads": cores.threads, "--context": context, "--sequences": sequences}
    return tuple(part for name, value in sizes.items() for part in (name, str(value)))
