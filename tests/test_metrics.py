"""What is counted in files is the same as what one process counts, whichever worker is asked and whoever dies."""

import math
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, mmap_dict
from prometheus_client.exposition import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from router.cells import DOUBLE_BYTES, ROOM_BYTES, cell_of, count_in_memory
from router.metrics import Metrics

COUNTS = """
import os, sys
from pathlib import Path
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from router.cells import count_in_files
from router.metrics import Metrics

folder, registry = Path(sys.argv[1]), CollectorRegistry()
count_in_files(folder, int(sys.argv[2]))
metrics = Metrics(registry, "1.2", folder)
print("up", flush=True)
for line in sys.stdin:
    if line == "tell\\n":
        print(generate_latest(registry).decode() + "#", flush=True)
    else:
        model, replica, status, first_s, pin = line.split()
        first_s = float(first_s)
        metrics.ended(model, replica, status, None if pin == "?" else pin, True, first_s + 1.0, first_s)
        metrics.refused("invalid_api_key")
        print("counted", flush=True)
"""
TURNS = (
    ("tiny", "den/0", "ok", 0.2, "new"),
    ("tiny", "den/0", "ok", 3.0, "kept"),
    ("tiny", "attic/1", "client_gone", 700.0, "kept"),
    ("big", "den/0", "queue_timeout", 0.001, "none"),
    ("tiny", "den/0", "ok", 0.2, "moved"),
    ("tiny", "attic/1", "machine_lost", 0.3, "?"),
)


class Worker:
    """A process that counts as a worker of this number."""

    def __init__(self, folder: Path, number: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", COUNTS, str(folder), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.hears() == "up\n"

    def hears(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()

    def says(self, words: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()

    def count(self, turn: tuple[object, ...]) -> None:
        self.says(" ".join(map(str, turn)))
        assert self.hears() == "counted\n"

    def tells(self) -> str:
        self.says("tell")
        return "".join(iter(self.hears, "#\n"))

    def end(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[list[Worker]]:
    made: list[Worker] = []
    try:
        made += [Worker(tmp_path, 1), Worker(tmp_path, 2)]
        yield made
    finally:
        for each in made:
            each.end()


def alone(turns: tuple[tuple[str, str, str, float, str], ...]) -> str:
    registry = CollectorRegistry()
    metrics = Metrics(registry, "1.2")
    for model, replica, status, first_s, pin in turns:
        metrics.ended(model, replica, status, None if pin == "?" else pin, True, first_s + 1.0, first_s)
        metrics.refused("invalid_api_key")
    return generate_latest(registry).decode()


def samples(text: str) -> dict[str, dict[tuple[str, str], float]]:
    """By family: its values. When a process began to count tells nothing where there are several."""
    return {
        family.name: {(s.name, str(sorted(s.labels.items()))): round(s.value, 6) for s in family.samples}
        for family in text_string_to_metric_families(text)
        if not family.name.endswith("_created")
    }


def heads(text: str) -> set[str]:
    return {line for line in text.splitlines() if line.startswith("#") and "_created" not in line}


def insides(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """What counting uses of the library that its documentation does not promise: its name, and whether it is there."""
    library: Any = mmap_dict
    series: Any = Histogram("homeport_x", "X.", ["model"], buckets=(1.0, 2.0), registry=None).labels("tiny")
    counter: Any = Counter("homeport_y", "Y.", ["model"], registry=None).labels("tiny")
    key = library.mmap_key("homeport_y", "homeport_y_total", ["model"], ["tiny"], "Y.")
    path = str(folder / "counter_1.db")

    def is_in_the_file() -> bool:
        with closing(library.MmapedDict(path)) as file:
            file.read_value(key)
            at = file._positions[key]
            file._m[at : at + DOUBLE_BYTES] = struct.pack("d", 7.0)
            every = library.MmapedDict.read_all_values_from_file(path)
            found = [value for name, value, *_ in every if name == key]
        return at % DOUBLE_BYTES == 0 and found == [7.0]

    yield "values.ValueClass, of which series are made", lambda: cell_of(counter._value)
    yield "Counter._value", lambda: counter._value.get() == 0.0
    yield "Histogram._sum", lambda: cell_of(series._sum)
    yield "Histogram._buckets", lambda: [cell_of(each) for each in series._buckets][2]
    yield "Histogram._upper_bounds, to infinity", lambda: list(series._upper_bounds) == [1.0, 2.0, math.inf]
    yield (
        "MmapedDict._m and _positions, by which a value is written that its collector reads",
        is_in_the_file,
    )


def test_the_library_is_inside_as_counting_needs_it(tmp_path: Path) -> None:
    count_in_memory()
    for name, holds in insides(tmp_path):
        try:
            is_there = bool(holds())
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            is_there = False
        assert is_there, (
            f"prometheus-client {version('prometheus-client')} has no {name}. router/cells.py and router/metrics.py "
            "count with it: adapt them, or keep to the version before."
        )


def test_each_worker_tells_the_sum_of_all(workers: list[Worker]) -> None:
    for number, turn in enumerate(TURNS):
        workers[number % 2].count(turn)
    told = [each.tells() for each in workers]
    assert samples(told[0]) == samples(told[1]) == samples(alone(TURNS))
    assert heads(told[0]) == heads(alone(TURNS))
    assert "_created" not in told[0]
    assert "pid=" not in told[0]


def test_a_worker_that_dies_takes_no_count_along_and_its_next_process_doubles_none(
    tmp_path: Path, workers: list[Worker]
) -> None:
    for _ in range(3):
        workers[0].count(TURNS[0])
        workers[1].count(TURNS[1])
        workers[0].end()
        workers[0] = Worker(tmp_path, 1)
    want = samples(alone((TURNS[0], TURNS[1]) * 3))
    assert [samples(each.tells()) for each in workers] == [want, want]
    assert len(list(tmp_path.iterdir())) == 6, "the files are the workers', however often one dies"


def test_files_of_counts_have_no_holes(tmp_path: Path, workers: list[Worker]) -> None:
    for file in tmp_path.iterdir():
        assert file.stat().st_blocks * 512 >= file.stat().st_size == ROOM_BYTES


FULL = """
import resource, sys
from pathlib import Path
from router.cells import count_in_files

_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, most))
count_in_files(Path(sys.argv[1]), 1)
"""
"""Its disk has room for 4 KiB."""


def test_a_file_that_a_full_disk_cut_short_is_made_anew(tmp_path: Path, workers: list[Worker]) -> None:
    workers[0].end()
    for file in tmp_path.glob("*_1.db"):
        file.unlink()
    full = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert full.returncode == 1
    assert "OSError: [Errno 27]" in full.stderr
    workers[1].count(TURNS[0])
    assert samples(workers[1].tells()) == samples(alone(TURNS[:1])), "the others are not told half a file"
    workers[0] = Worker(tmp_path, 1)
    assert {file.stat().st_size for file in tmp_path.iterdir()} == {ROOM_BYTES}


GROWS = """
import sys
from pathlib import Path
from router.cells import values_in

folder = Path(sys.argv[1])
value = values_in(folder, 1)

def made(name):
    return value("counter", "homeport_x", "homeport_x_total", ["model"], [name], "x" * 500)

first = made("first")
first.inc(1.0)
others = [made(f"m{number}") for number in range(50)]
first.inc(2.0)
for each in others:
    each.inc(1.0)
"""
"""Its first value lies in a file that has to grow for the others."""


def test_a_file_that_grows_keeps_what_was_counted_before_and_after(tmp_path: Path) -> None:
    file = tmp_path / "counter_1.db"
    file.write_bytes(bytes(4096))
    for times in (1, 2):
        subprocess.run([sys.executable, "-c", GROWS, str(tmp_path)], check=True)
        assert file.stat().st_size > 4096
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(tmp_path))  # type: ignore[no-untyped-call]
        found = samples(generate_latest(registry).decode())["homeport_x"]
        assert sorted(found.values()) == [1.0 * times] * 50 + [3.0 * times]
