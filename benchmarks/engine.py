"""`python -m benchmarks.engine [QUESTION ...]`: the engine beside bare llama.cpp and llama.cpp's own server.

With no question all are asked and the table of README.md is written. `--quick` only tries whether all of it runs.
"""

import argparse
import sys
from collections.abc import Callable
from datetime import UTC, datetime

from benchmarks import engine_chats, engine_decode, engine_gaps, engine_memory, engine_parked, report
from benchmarks.cores import Cores, share_out
from benchmarks.report import Figure

QUESTIONS: dict[str, Callable[[Cores, bool], list[Figure]]] = {
    "decode": lambda cores, quick: engine_decode.decode(cores, 2 if quick else 3, 24 if quick else 128),
    "chats": lambda cores, quick: engine_chats.measure(cores, 1 if quick else 3, 8 if quick else 64),
    "prefill": lambda cores, quick: engine_decode.prefill(cores, 1 if quick else 3),
    "parked": lambda cores, quick: engine_parked.measure(cores, 1 if quick else 3),
    "gaps": lambda cores, quick: engine_gaps.measure(cores, 1 if quick else 3, 100 if quick else 600),
    "memory": lambda cores, quick: engine_memory.measure(cores, 150 if quick else 1000),
}


def main() -> int:
    """Exit code 1 when a target was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"of: {', '.join(QUESTIONS)}")
    parser.add_argument("--threads", type=int, help="of each engine; all CPUs but one if left out")
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.questions if name not in QUESTIONS]:
        parser.error(f"no such question: {', '.join(unknown)}")
    cores = share_out(chosen.threads)
    figures: list[Figure] = []
    for name in chosen.questions or QUESTIONS:
        for figure in QUESTIONS[name](cores, chosen.quick):
            verdict = "met   " if figure.met else "MISSED"
            print(f"{verdict}  {figure.question}: {figure.measured}; {figure.how}", flush=True)
            figures.append(figure)
    if not chosen.questions and not chosen.quick:
        text = report.table(figures, datetime.now(UTC).date().isoformat())
        report.write("engine", f"{text}\n\nEach engine had {cores.threads} thread(s) on CPU(s) of its own.")
    return 0 if all(figure.met for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
