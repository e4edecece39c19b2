"""`python -m tests.schedules`: run many random schedules, or one again with its trace."""

import argparse
import gc
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter

from tests.schedules.world import Outcome, run


def attempt(seed: int) -> Outcome:
    logging.disable(logging.CRITICAL)
    gc.disable()  # what a schedule leaves behind is collected after it
    outcome = run(seed)
    if seed % 10 == 0:
        gc.collect()
    outcome.trace = []
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.schedules")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="run this one only, and print its trace")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    told = parser.parse_args()
    if told.seed is not None:
        logging.disable(logging.CRITICAL)
        outcome = run(told.seed)
        print(*outcome.trace, *outcome.problems, sep="\n")
        print(outcome.seen)
        return bool(outcome.problems)
    seeds = range(told.first, told.first + told.count)
    started = time.monotonic()
    seen: Counter[str] = Counter()
    failed = []
    with multiprocessing.Pool(told.jobs) as pool:
        for outcome in pool.imap_unordered(attempt, seeds, chunksize=20):
            seen.update(outcome.seen)
            if outcome.problems:
                failed.append(outcome.seed)
                print(f"seed {outcome.seed}:", *outcome.problems, sep="\n  ", flush=True)
    took_s = time.monotonic() - started
    print(
        f"{told.count} schedules from seed {told.first} on, {took_s:.0f} s, {told.count / took_s:.0f} a second"
    )
    print(*(f"  {name}: {count}" for name, count in sorted(seen.items())), sep="\n")
    print(f"{len(failed)} failed" + (f": make test-schedules ARGS='--seed {failed[0]}'" if failed else ""))
    return bool(failed)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of texts are in the same order every time
        again = [sys.executable, "-m", "tests.schedules", *sys.argv[1:]]
        os.execve(sys.executable, again, {**os.environ, "PYTHONHASHSEED": "0"})  # noqa: S606 no shell is wanted
    sys.exit(main())
