"""`python -m benchmarks.fit_speed [--quick]`: speeds that `homeport fit` predicts beside those of the engine.

First the machine is benched as `homeport bench machine` does it, then six shapes and the bundled model are timed, on
one core and on all: decoding at the beginning and after 2,048 tokens, and a prompt of 512. Each is the best of several
short runs. Writes the table of README.md unless --quick. Needs a quiet machine. --one: on one core only.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import fit_shapes, report
from cluster.inventory import measure_cores
from cluster.machine import CpuCore
from serving.machine_bench import time_engine
from serving.machine_figures import EngineFigures, engine_figures
from serving.model_head import read_shape
from serving.source import bundled_model
from serving.speed import speed

DECODE_TARGET = 0.15
START, DEEP, PROMPT = 32, 2048, 512
STEPS = 24
REPEATS = 3


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds a token, or of a prompt."""

    model: str
    cores: int
    what: str
    predicted: float
    measured: float

    @property
    def ratio(self) -> float:
        """Of the speed that was foretold, what was measured."""
        return self.predicted / self.measured


def models() -> Iterator[tuple[str, Path]]:
    for made, path in fit_shapes.files():
        yield made.name, path
    yield "bundled: SmolLM2-135M Q4_1", bundled_model()


def rows(figures: dict[int, EngineFigures], cores: tuple[CpuCore, ...], repeats: int) -> Iterator[Row]:
    for name, path in models():
        shape = read_shape(str(path))
        for count, found in figures.items():
            timed = _timed(path, cores[:count], repeats)
            for depth, what in ((START, "decode"), (DEEP, f"decode after {DEEP:,}")):
                told = speed(shape, found, "f16", depth)
                yield Row(name, count, what, told.decode_s, timed[f"step{depth}"])
            yield Row(
                name,
                count,
                f"prompt of {PROMPT}",
                speed(shape, found, "f16", PROMPT).prompt_s,
                timed["prompt"],
            )


def _timed(path: Path, cores: tuple[CpuCore, ...], repeats: int) -> dict[str, float]:
    given = json.dumps({"path": str(path), "cpus": [core.cpus[0] for core in cores], "repeats": repeats})
    command = [sys.executable, "-m", "benchmarks.fit_speed", "--time", given]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    found: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return found


def time_it(path: Path, cpus: list[int], repeats: int) -> None:
    """In a process of its own."""
    os.sched_setaffinity(0, cpus)
    from serving.engine_timing import TimedEngine
    from serving.llama_options import EngineOptions

    engine = TimedEngine(path, 4096, len(cpus), EngineOptions(prompt_chunk=64))
    found = {"prompt": min(engine.prompt_s(PROMPT) for _ in range(2))}
    for depth in (START, DEEP):
        found[f"step{depth}"] = min(engine.step_s(depth, STEPS) for _ in range(repeats))
    print(json.dumps(found))
    engine.close()


def table(found: list[Row]) -> str:
    lines = [
        "| model | cores | what | predicted tokens/s | measured | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in found:
        tokens = PROMPT if row.what.startswith("prompt") else 1
        speeds = f"{tokens / row.predicted:,.1f} | {tokens / row.measured:,.1f}"
        lines.append(f"| {row.model} | {row.cores} | {row.what} | {speeds} | {row.ratio:.2f} |")
    return "\n".join(lines)


def main() -> int:
    """Exit code 1 when a prediction of decoding was off by more than the target."""
    if sys.argv[1:2] == ["--time"]:
        given = json.loads(sys.argv[2])
        time_it(Path(given["path"]), given["cpus"], given["repeats"])
        return 0
    quick = "--quick" in sys.argv
    cores = measure_cores()
    counts = [1] if "--one" in sys.argv else sorted({1, len(cores)})
    with TemporaryDirectory(prefix="homeport-bench-") as folder:
        figures = {n: engine_figures(time_engine(cores[:n], quick, folder, lambda _: None)) for n in counts}
    found = []
    for row in rows(figures, cores, 1 if quick else REPEATS):
        print(f"{row.ratio:.2f}  {row.model}, {row.cores} cores, {row.what}", flush=True)
        found.append(row)
    decodes = [abs(1 / row.ratio - 1) for row in found if row.what.startswith("decode")]
    met = sum(off <= DECODE_TARGET for off in decodes)
    said = (
        f"Decoding: off by {statistics.median(decodes):.0%} in the median, {max(decodes):.0%} at most; {met} of "
        f"{len(decodes)} within {DECODE_TARGET:.0%}."
    )
    print(said)
    if not quick:
        date = datetime.now(UTC).date().isoformat()
        report.write("fit-speed", f"{report.measured_on(date)} {said}\n\n{table(found)}")
    return 0 if met == len(decodes) else 1


if __name__ == "__main__":
    sys.exit(main())
