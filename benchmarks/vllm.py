"""`python -m benchmarks.vllm`: what a host in front of vLLM takes of its tokens a second, and writes the table.

One vLLM is asked in turns: past its host, over its own socket and its own chat endpoint, and through the host. On one
core both share it; with a core of its own the host has the CPU of the client. `--quick` only tries whether all of it
runs.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

from benchmarks import report
from benchmarks.answers import Client, Server, user
from benchmarks.cores import Cores, share_out
from benchmarks.one_host import MeasuredHost, name
from benchmarks.pace import pace
from benchmarks.report import Figure
from cluster.vllm_env import bundled_folder, vllm_env
from serving.vllm_command import NAME
from tests.vllm.processes import door, server

CONTEXT = 1024
PLACES = 8
ABOUT = ("a ship", "bees", "rain", "a king", "tea", "snow", "a dog", "Rome")
PROMPTS = tuple(f"Tell a story about {what}." for what in ABOUT)
START_S = 200.0


def direct(host: MeasuredHost) -> Server:
    """vLLM itself, past its host."""
    assert host.process is not None
    behind = door(server(host.process.pid))
    headers = {"authorization": f"Bearer {behind.key}"}
    return Server("http://vllm", headers, model=NAME, socket=str(behind.socket))


async def speed(served: Server, sessions: int, tokens: int) -> float:
    """Tokens a second of all together."""
    async with Client(served) as client:
        asks = [client.ask([user(PROMPTS[at])], tokens, name(at)) for at in range(sessions)]
        answers = await asyncio.gather(*asks)
    return pace([answer.stream for answer in answers])


def ratios(host: MeasuredHost, sessions: int, rounds: int, tokens: int) -> tuple[float, list[float]]:
    """vLLM's own speed, and in each round the host's against it."""
    alone, found = [], []
    for _ in range(rounds):
        before = asyncio.run(speed(direct(host), sessions, tokens))
        through = asyncio.run(speed(host.server, sessions, tokens))
        after = asyncio.run(speed(direct(host), sessions, tokens))
        alone += [before, after]
        found.append(through / statistics.mean((before, after)))
    return statistics.median(alone), found


def move(host: MeasuredHost, cpus: Sequence[int]) -> None:
    """Let the host, and not its vLLM, run there."""
    assert host.process is not None
    for thread in psutil.Process(host.process.pid).threads():
        os.sched_setaffinity(thread.id, cpus)


def measure(cores: Cores, rounds: int, tokens: int, say: Callable[[Figure], None]) -> list[Figure]:
    figures = []
    with tempfile.TemporaryDirectory(prefix="homeport-bench-") as folder:
        host = make_host(Path(folder) / "0", cores)
        try:
            host.begin()
            for where, least in (("on one core with it", 0.95), ("with a core of its own", 0.98)):
                if least > 0.95:
                    move(host, cores.rest)
                for sessions in (1, PLACES):
                    alone, found = ratios(host, sessions, rounds, tokens)
                    ratio = statistics.median(found)
                    figures.append(
                        Figure(
                            f"tokens/s through the host {where}, {sessions} at once, against vLLM alone",
                            f">= {least} x",
                            f"{ratio:.3f} x ({min(found):.3f} to {max(found):.3f}; vLLM alone {alone:.0f} tokens/s)",
                            ratio >= least,
                            f"{tokens} tokens an answer, greedy, median of {rounds} rounds alone / through it / alone",
                        )
                    )
                    say(figures[-1])
        finally:
            host.kill()
    return figures


def make_host(folder: Path, cores: Cores) -> MeasuredHost:
    python = str(vllm_env(os.environ, "cpu").python)
    options = (("python", python),)
    source = bundled_folder(os.environ)
    host = MeasuredHost(folder, cores, CONTEXT, PLACES, source, engine="vllm", options=options)
    host.start_s = START_S
    return host


def main() -> int:
    """Exit code 1 when a target was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick

    def say(figure: Figure) -> None:
        print(f"{'met   ' if figure.met else 'MISSED'}  {figure.question}: {figure.measured}", flush=True)

    figures = measure(share_out(1), 1 if quick else 5, 16 if quick else 128, say)
    if not quick:
        report.write("vllm", report.table(figures, datetime.now(UTC).date().isoformat()))
    return 0 if all(figure.met for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
