"""`python -m benchmarks.fit_memory [--quick]`: memory that `homeport fit` predicts beside what llama.cpp takes.

Six shapes, contexts of 512 to 32k tokens, each loaded by the engine in a process of its own: what llama.cpp says of
its buffers, and by how much the process grew. Writes the table of README.md unless --quick.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks import fit_shapes, report
from cluster.cpu import cpu_flags
from serving.engine import MemoryUse
from serving.llama_options import EngineOptions
from serving.model_head import read_shape
from serving.model_memory import Plan, llama_memory
from serving.model_shape import ModelShape

MIB = 2**20
TARGET = 0.05
FREE = 6 * 2**30
PLANS = (
    Plan(512),
    Plan(2048, 4),
    Plan(8192),
    Plan(8192, 1, EngineOptions(flash_attention=False)),
    Plan(16384, 1, EngineOptions(kv_type="q4_0")),
    Plan(32768, 1, EngineOptions(kv_type="q8_0")),
    Plan(32768, 1, EngineOptions(batch=512)),
)
QUICK = PLANS[:2]


@dataclass(frozen=True, slots=True)
class Row:
    """One load. Bytes."""

    shape: str
    plan: str
    predicted: MemoryUse
    measured: MemoryUse
    grown: int

    @property
    def ratio(self) -> float:
        return self.predicted.total / self.measured.total


def rows(plans: tuple[Plan, ...]) -> Iterator[Row]:
    flags = cpu_flags()
    for made, path in fit_shapes.files():
        shape = read_shape(str(path))
        for plan in plans:
            told = llama_memory(shape, plan, flags).told
            if told.total < FREE:
                yield _row(made.name, path, shape, plan, told)


def _row(name: str, path: Path, shape: ModelShape, plan: Plan, told: MemoryUse) -> Row:
    given = {
        "path": str(path),
        "context": plan.context,
        "sessions": plan.sessions,
        "options": asdict(plan.options),
    }
    command = [sys.executable, "-m", "benchmarks.fit_memory", "--load", json.dumps(given)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    found = json.loads(answer.stdout.splitlines()[-1])
    return Row(name, words(plan), told, MemoryUse(**found["memory"]), found["grown"])


def load(given: dict[str, Any]) -> None:
    """In the process of its own: load, say what it took, end."""
    from serving.llama_engine import LlamaEngine

    given["options"]["tensor_split"] = tuple(given["options"]["tensor_split"])
    options = EngineOptions(**given["options"])
    before = psutil.Process().memory_info().rss
    engine = LlamaEngine(Path(given["path"]), given["context"], given["sessions"], 2, options=options)
    facts = engine.load(lambda _: None)
    grown = psutil.Process().memory_info().rss - before
    print(json.dumps({"memory": asdict(facts.memory), "grown": grown}))
    engine.close()


def words(plan: Plan) -> str:
    parts = [f"{plan.sessions} x {plan.context}"]
    usual = EngineOptions()
    if plan.options.kv_type != usual.kv_type:
        parts.append(f"kv_type {plan.options.kv_type}")
    if plan.options.batch != usual.batch:
        parts.append(f"batch {plan.options.batch}")
    if not plan.options.flash:
        parts.append("no flash attention")
    return ", ".join(parts)


def table(found: list[Row]) -> str:
    lines = [
        "| model | context | weights | KV | compute | predicted | llama.cpp's own count | ratio | process grew |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found:
        use = row.predicted
        sizes = (use.weights, use.kv, use.compute, use.total, row.measured.total)
        shown = " | ".join(f"{size / MIB:,.1f}" for size in sizes)
        lines.append(f"| {row.shape} | {row.plan} | {shown} | {row.ratio:.4f} | {row.grown / MIB:,.0f} |")
    return "\n".join(lines)


def main() -> int:
    """Exit code 1 when a prediction was off by more than the target."""
    if sys.argv[1:2] == ["--load"]:
        load(json.loads(sys.argv[2]))
        return 0
    quick = "--quick" in sys.argv
    found = []
    for row in rows(QUICK if quick else PLANS):
        print(f"{row.ratio:.4f}  {row.shape}, {row.plan}", flush=True)
        found.append(row)
    worst = max(abs(row.ratio - 1) for row in found)
    print(f"{len(found)} loads, off by {worst:.2%} at most (target {TARGET:.0%})")
    if not quick:
        date = datetime.now(UTC).date().isoformat()
        report.write(
            "fit-memory",
            f"{report.measured_on(date)} Sizes in MiB; weights with the copies that llama.cpp makes for this CPU. "
            f"Off by {worst:.2%} at most, target {TARGET:.0%}.\n\n{table(found)}",
        )
    return 0 if worst <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
