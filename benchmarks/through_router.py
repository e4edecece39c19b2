"""Decode through the router against the bare llama.cpp loop on the same core."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.report import Figure
from benchmarks.streams import model_path, running, stream

ROUNDS = 5
TOKENS = 200
TARGET = 0.9


def measure() -> list[Figure]:
    """Median over rounds of (tokens/s through the router) / (tokens/s of the loop), one after the other."""
    ratios, through, bare = [], [], []
    with running() as homeport:
        port = homeport.ports["router"]
        home = stream(port, "one", 8).replica
        cpus = next(r["slice"]["cpus"] for r in homeport.replicas() if r["name"] == home)
        for _ in range(ROUNDS):
            through.append(stream(port, "one", TOKENS).tokens_per_s)
            bare.append(_bare(cpus))
            ratios.append(through[-1] / bare[-1])
    median = statistics.median(ratios)
    return [
        Figure(
            "decode through the router against the bare llama.cpp loop on the same core",
            f">= {TARGET} x",
            f"{median:.2f} x ({statistics.median(through):.0f} against {statistics.median(bare):.0f} tokens/s)",
            median >= TARGET,
            f"{TOKENS} tokens after a short prompt, greedy, median of {ROUNDS} alternating rounds",
        )
    ]


def _bare(cpus: list[int]) -> float:
    script = Path(__file__).with_name("bare_loop.py")
    done = subprocess.run(
        [
            sys.executable,
            str(script),
            str(model_path()),
            "--threads",
            "1",
            "--tokens",
            str(TOKENS),
            "--prompt",
            "40",
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, cpus),
        capture_output=True,
        check=True,
        text=True,
    )
    return float(json.loads(done.stdout)["decode_per_s"])
