"""`python -m benchmarks.pins [COUNT]`: a journal with very many pins: its size, and how long opening and look-ups take.

Half of the sessions are named, half are guessed ones of a family, which take the most room.
"""

import hashlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import Figure
from serving.journal import NOTHING, Facts, Journal, entries_since
from serving.pins import Pin

COUNT = 100_000
MODEL = "assistant"
REPLICA = "a-machine-with-a-long-name/0"
AT_ONCE = 10_000
LOOKED_UP = 2000
TARGET_MIB = 30.0
TARGET_OPEN_S = 2.0
TARGET_LOOK_UP_MS = 1.0
MIB = 2**20


def measure(count: int = COUNT) -> list[Figure]:
    """Figures of one journal of `count` pins, written as a host writes them."""
    with tempfile.TemporaryDirectory(prefix="homeport-bench-") as folder:
        path = Path(folder) / "journal.sqlite"
        journal = Journal(path)
        for start in range(0, count, AT_ONCE):
            journal.learn(map(_pin, range(start, min(start + AT_ONCE, count))))
        for number in range(0, count, max(1, count // 100)):
            journal.touch(_digest(number), MODEL, 2e9)
        size = sum(file.stat().st_size for file in path.parent.iterdir())
        journal.close()
        begun = time.perf_counter()
        journal = Journal(path)
        open_s = time.perf_counter() - begun
        picked = [number * 7919 % count for number in range(LOOKED_UP)]
        ways: dict[str, Callable[[int], object]] = {
            "by session": lambda n: journal.entry(_digest(n), MODEL),
            "by public id": lambda n: journal.by_public(_public(n)),
            "by history": lambda n: journal.find(
                (_digest(n, "said"),), MODEL, _digest(n % 3, "key"), REPLICA
            ),
            "unknown": lambda n: journal.entry(_digest(n, "nobody"), MODEL),
        }
        slowest = {way: _p99_ms(look_up, picked) for way, look_up in ways.items()}
        begun = time.perf_counter()
        told, _, _ = entries_since(path, NOTHING)
        read_s = time.perf_counter() - begun
        journal.close()
    assert len(told) == count
    worst_ms = max(slowest.values())
    return [
        Figure(
            f"{count:,} pins on one host: the journal",
            f"<= {TARGET_MIB:.0f} MiB",
            f"{size / MIB:.1f} MiB",
            size <= TARGET_MIB * MIB,
            "with its write-ahead log; half of the sessions guessed and of a family",
        ),
        Figure(
            f"{count:,} pins on one host: opening it",
            f"<= {TARGET_OPEN_S:.0f} s",
            f"{open_s:.2f} s",
            open_s <= TARGET_OPEN_S,
            f"its check included; reading all of it for the index takes {read_s:.2f} s",
        ),
        Figure(
            f"{count:,} pins on one host: a look-up",
            f"<= {TARGET_LOOK_UP_MS:.0f} ms",
            "; ".join(f"{way} {ms:.3f} ms" for way, ms in slowest.items()),
            worst_ms <= TARGET_LOOK_UP_MS,
            f"p99 of {LOOKED_UP} each",
        ),
    ]


def _pin(number: int) -> tuple[Pin, Facts]:
    pin = Pin(_digest(number), MODEL, REPLICA, 1, 1.7e9 + number)
    scope = _digest(number % 3, "key")
    if number % 2:
        return pin, Facts(_public(number), scope, _digest(number, "parent"), True, _digest(number, "said"))
    return pin, Facts(_public(number), scope)


def _digest(number: int, of: str = "session") -> str:
    return hashlib.sha256(f"{of} {number}".encode()).hexdigest()


def _public(number: int) -> str:
    return f"hp_{_digest(number, 'public')[:24]}"


def _p99_ms(look_up: Callable[[int], object], numbers: list[int]) -> float:
    took = []
    for number in numbers:
        begun = time.perf_counter()
        look_up(number)
        took.append((time.perf_counter() - begun) * 1000)
    return sorted(took)[len(took) * 99 // 100]


def main() -> int:
    """Exit code 1 when a target was missed."""
    figures = measure(int(sys.argv[1]) if len(sys.argv) > 1 else COUNT)
    for figure in figures:
        print(f"{'met   ' if figure.met else 'MISSED'}  {figure.question}: {figure.measured}; {figure.how}")
    return 0 if all(figure.met for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
