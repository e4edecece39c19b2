"""Figures with their targets, and the table of benchmarks/README.md."""

import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

README = Path(__file__).with_name("README.md")


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure. `met` says whether the target holds, `how` what was done to measure it."""

    question: str
    target: str
    measured: str
    met: bool
    how: str


def table(figures: Sequence[Figure], date: str) -> str:
    """Markdown: the machine in a line, then a row for each figure."""
    rows = [
        f"| {f.question} | {f.target} | {f.measured} | {'met' if f.met else '**missed**'} | {f.how} |"
        for f in figures
    ]
    head = ["| figure | target | measured | | how |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([measured_on(date), "", *head, *rows])


def measured_on(date: str) -> str:
    """The machine in a line."""
    memory_gib = psutil.virtual_memory().total / 1024**3
    machine = (
        f"{psutil.cpu_count()} CPUs, {memory_gib:.0f} GiB, {platform.system()} {platform.machine()}, no GPU"
    )
    return f"Measured on {date}, on {machine}, Python {platform.python_version()}."


def write(name: str, text: str) -> None:
    """Put `text` between the markers `<!-- name -->` and `<!-- /name -->` of the README, which must be there."""
    page = README.read_text()
    marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not marked.search(page):
        raise ValueError(f"benchmarks/README.md has no place for {name}")
    README.write_text(marked.sub(lambda m: f"{m[1]}{text}\n{m[2]}", page))
