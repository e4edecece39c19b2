"""`python -m benchmarks.sessions [QUESTION ...]`: sessions and their pins on real processes, killed and hurried.

With no question all are asked and the table of README.md is written. `--quick` only tries whether all of it runs.
"""

import argparse
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime

from benchmarks import (
    pins,
    report,
    sessions_causes,
    sessions_fairness,
    sessions_family,
    sessions_head,
    sessions_kills,
    sessions_new_pin,
    sessions_simultaneous,
)
from benchmarks.report import Figure

QUESTIONS: dict[str, Callable[[bool], list[Figure]]] = {
    "kills": lambda quick: sessions_kills.measure(16 if quick else 200, not quick),
    "head": lambda quick: sessions_head.measure(1 if quick else 3, 1000 if quick else 10_000),
    "new_pin": lambda quick: sessions_new_pin.measure(30 if quick else 500),
    "simultaneous": lambda quick: sessions_simultaneous.measure(3 if quick else 50),
    "fairness": lambda quick: sessions_fairness.measure(1 if quick else 5),
    "family": lambda quick: sessions_family.measure(2 if quick else 10),
    "causes": lambda quick: sessions_causes.measure(4 if quick else 100),
    "pins": lambda quick: pins.measure(5_000 if quick else 100_000),
}


def main() -> int:
    """Exit code 1 when a target was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"of: {', '.join(QUESTIONS)}")
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.questions if name not in QUESTIONS]:
        parser.error(f"no such question: {', '.join(unknown)}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # so that what was started is ended on the way out
    figures: list[Figure] = []
    for name in chosen.questions or QUESTIONS:
        for figure in QUESTIONS[name](chosen.quick):
            verdict = "met   " if figure.met else "MISSED"
            print(f"{verdict}  {figure.question}: {figure.measured}; {figure.how}", flush=True)
            figures.append(figure)
    if not chosen.questions and not chosen.quick:
        report.write("sessions", report.table(figures, datetime.now(UTC).date().isoformat()))
    return 0 if all(figure.met for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
