"""`python -m benchmarks [QUESTION ...]`: measure, print, and with no argument write the tables of README.md."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime

from benchmarks import beside, idle, report, start, through_router
from benchmarks.report import Figure

QUESTIONS: dict[str, Callable[[], list[Figure]]] = {
    "start": start.measure,
    "beside": beside.measure,
    "through_router": through_router.measure,
    "idle": idle.measure,
}


def main(names: list[str]) -> int:
    """Exit code 1 when a target was missed."""
    unknown = [name for name in names if name not in QUESTIONS]
    if unknown:
        print(f"No such benchmark: {', '.join(unknown)}. There are: {', '.join(QUESTIONS)}.", file=sys.stderr)
        return 2
    figures: list[Figure] = []
    for name in names or QUESTIONS:
        for figure in QUESTIONS[name]():
            print(f"{'met   ' if figure.met else 'MISSED'}  {figure.question}: {figure.measured}", flush=True)
            figures.append(figure)
    if not names:
        report.write("one-machine", report.table(figures, datetime.now(UTC).date().isoformat()))
    return 0 if all(figure.met for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
