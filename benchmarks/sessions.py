"""`python -m benchmarks.sessions [QUESTION ...]`: sessions and their pins on real processes, killed and hurried.

With no question all are asked and the table of README.md is written. `--quick` only tries whether all of it runs.
"""

import sys
from collections.abc import Callable

from benchmarks import (
    pins,
    sessions_causes,
    sessions_fairness,
    sessions_family,
    sessions_head,
    sessions_kills,
    sessions_new_pin,
    sessions_simultaneous,
)
from benchmarks.questions import ask
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


if __name__ == "__main__":
    sys.exit(ask("sessions", __doc__, QUESTIONS))
