"""The command line of a benchmark that asks several questions: measure, print, and write its table."""

import argparse
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from benchmarks import report
from benchmarks.report import Figure


def ask(name: str, about: str | None, questions: Mapping[str, Callable[[bool], list[Figure]]]) -> int:
    """`questions`: by name, what measures its figures; True: quickly. The table `name` of README.md is written once all
    were asked, and not quickly. Exit code 1 when a target was missed."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"of: {', '.join(questions)}")
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    if unknown := [each for each in chosen.questions if each not in questions]:
        parser.error(f"no such question: {', '.join(unknown)}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # so that what was started is ended on the way out
    figures: list[Figure] = []
    for each in chosen.questions or questions:
        for figure in questions[each](chosen.quick):
            verdict = "met   " if figure.met else "MISSED"
            print(f"{verdict}  {figure.question}: {figure.measured}; {figure.how}", flush=True)
            figures.append(figure)
    if not chosen.questions and not chosen.quick:
        report.write(name, report.table(figures, datetime.now(UTC).date().isoformat()))
    return 0 if all(figure.met for figure in figures) else 1
