"""`homeport bench machine`: measures what this machine does with models. Takes a minute or more, by its last cache.

Memory: threads that each search bytes of their own, together four times the last cache or more, for one that is not
there (the C library's memchr, which reads as fast as the CPU can). Disk: a file of random bytes, written, dropped from
the page cache, read. The engine: llama.cpp itself, in a process of its own on cores of its own, on models with random
weights of every usual kind (serving/bench_gguf.py). Each time is the best of several. What the times mean says
serving/machine_figures.py.
"""

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from cluster.machine import CpuCore
from cluster.processes import clean_environment
from serving.bench_gguf import FACTORS, BenchShape, bench_sizes, write_model
from serving.machine_figures import (
    KIND_FORWARD,
    KIND_HEADS,
    KIND_KV_HEADS,
    KIND_VOCABULARY,
    KIND_WIDTH,
    Timing,
    Timings,
)

KINDS = ("F16", *(kind for kind in FACTORS if kind != "Q5_1"))
PIECE_BYTES = 64 * 2**20
DISK_BYTES = 256 * 2**20
CACHES = 2
"""A model of the bench is so many times as large as the last cache, so that its weights come from memory."""
MODEL_BYTES_MAX = 512 * 2**20
LARGE_BYTES = 256 * 2**20
"""A quarter of the tokens of such a model takes long enough to be timed."""
ENGINE_S = 300.0
CACHES_OF_CPU = Path("/sys/devices/system/cpu/cpu0/cache")
DEEP_CONTEXT = 8192
"""More than is looked back on: a large block of memory is in large pages, as a real model's contexts are."""
SMALL = ("few", "many", "words")
"""Models whose step is a fraction of a millisecond, timed more often."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done: of each thing the best of `rounds`. All of it is timed once in a round, since a machine that is
    slow for some seconds would else be slow at one thing in all of its repeats."""

    rounds: int
    kinds: Sequence[str]
    prompt: int
    deep: int
    step_tokens: int
    layers: int | None = None
    """Of the models of a kind; None: by the cache."""


FULL = Effort(2, KINDS, 256, 1024, 32)
QUICK = Effort(1, ("Q4_0", "Q8_0"), 64, 256, 4, layers=1)


class BenchFailed(Exception):
    """The engine could not be timed. The message says why."""


def memory_rate(cores: Sequence[CpuCore], repeats: int) -> float:
    """Bytes a second that these cores read together."""
    size = max(PIECE_BYTES, 4 * last_cache_bytes() // len(cores))
    with ThreadPoolExecutor(len(cores)) as pool:
        readers = list(pool.map(lambda core: _Reader(core, size), cores))
        best: float = max(_read_together(pool, readers) for _ in range(repeats))
    return len(cores) * size * best


def _read_together(pool: ThreadPoolExecutor, readers: "Sequence[_Reader]") -> float:
    """How often a second all of them read all of theirs. Each looks at the clock itself: nobody else may get a core."""
    ready = threading.Barrier(len(readers))
    times = list(pool.map(lambda reader: reader.read(ready), readers))
    took: float = max(ended for _, ended in times) - min(begun for begun, _ in times)
    return 1 / took


class _Reader:
    """Bytes that one core searches."""

    def __init__(self, core: CpuCore, size: int) -> None:
        self._core = core
        self._bytes = (ctypes.c_char * size)()
        ctypes.memset(self._bytes, 1, size)
        self._search = ctypes.CDLL(None).memchr
        self._search.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)

    def read(self, ready: threading.Barrier) -> tuple[float, float]:
        """When it began and when it ended."""
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self._core.cpus[:1])  # of this thread
        ready.wait()
        begun = time.perf_counter()
        self._search(self._bytes, 2, len(self._bytes))
        return begun, time.perf_counter()


def disk_rate(folder: Path, size: int = DISK_BYTES) -> float | None:
    """Bytes a second read from the disk below `folder`; None where the page cache cannot be left out."""
    if sys.platform != "linux":
        return None
    with TemporaryDirectory(prefix="bench-", dir=folder) as made:
        path = Path(made) / "read"
        piece = os.urandom(2**20)
        with path.open("wb") as file:
            for _ in range(size // len(piece)):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        begun = time.perf_counter()
        with path.open("rb", buffering=0) as raw:
            while raw.read(8 * 2**20):
                pass
        return size / (time.perf_counter() - begun)


def core_counts(count: int) -> list[int]:
    """One, two, four … and all."""
    return sorted({count, *(2**power for power in range(count.bit_length()) if 2**power < count)})


def time_engine(cores: Sequence[CpuCore], quick: bool, folder: str, say: Say) -> Timings:
    """llama.cpp on these cores, a thread each, in a process of its own. `folder` is for its models. Raises
    BenchFailed."""
    cpus = [core.cpus[0] for core in cores]
    command = [
        sys.executable,
        "-m",
        "serving.machine_bench",
        json.dumps({"cpus": cpus, "quick": quick, "folder": folder}),
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment(os.environ)
    )
    timings: dict[str, Timing] = {}
    late = threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    over = threading.Timer(ENGINE_S, give_up)
    over.start()
    try:
        with process:
            assert process.stdout is not None
            assert process.stderr is not None
            for line in process.stdout:
                timing = Timing(**json.loads(line))
                if timing.name not in timings:
                    say(f"{timing.name} on {len(cores)} core{'s' if len(cores) > 1 else ''}")
                timings[timing.name] = best(timing, timings.get(timing.name, timing))
            errors = process.stderr.read()
    finally:
        over.cancel()
        process.kill()
    if late.is_set():
        raise BenchFailed(f"the engine took longer than {ENGINE_S:.0f} s: something else uses these cores")
    if process.returncode != 0:
        raise BenchFailed(
            f"the engine could not be timed: {(errors.strip().splitlines() or ['it said nothing'])[-1]}"
        )
    return Timings(len(cores), tuple(timings.values()))


def best(one: Timing, other: Timing) -> Timing:
    """The shorter of both times of each thing."""
    times = ("step_s", "prompt_s", "deep_step_s", "deep_prompt_s")
    return replace(one, **{name: min(getattr(one, name), getattr(other, name)) for name in times})


def models(effort: Effort, cache_bytes: int) -> Iterator[tuple[str, str, BenchShape]]:
    """Name, kv_type and shape of each model that is timed."""
    yield "few", "f16", BenchShape("Q8_0", 64, 4, 2, 2, 128, 512)
    yield "many", "f16", BenchShape("Q8_0", 64, 64, 2, 2, 128, 512)
    yield "words", "f16", BenchShape("Q8_0", 32, 4, 1, 1, 32, 131072)
    for heads in (KIND_HEADS, KIND_HEADS // 2):
        looking = BenchShape("Q8_0", KIND_WIDTH, 6, heads, heads // 4, 256, 512)
        yield f"f16/{KIND_WIDTH // heads}", "f16", looking
    yield "f16/far", "f16", BenchShape("Q8_0", 2 * KIND_WIDTH, 4, 2 * KIND_HEADS, 2 * KIND_KV_HEADS, 256, 512)
    for kv_type in ("q8_0", "q4_0"):
        looking = BenchShape("Q8_0", KIND_WIDTH, 6, KIND_HEADS, KIND_KV_HEADS, 256, 512)
        yield f"{kv_type}/{KIND_WIDTH // KIND_HEADS}", kv_type, looking
    for kind in effort.kinds:
        shape = BenchShape(kind, KIND_WIDTH, 1, KIND_HEADS, KIND_KV_HEADS, KIND_FORWARD, KIND_VOCABULARY)
        layer = bench_sizes(replace(shape, layers=2))[1] - bench_sizes(shape)[1]
        wanted = effort.layers or min(max(8, -(-CACHES * cache_bytes // layer)), MODEL_BYTES_MAX // layer)
        yield kind, "f16", replace(shape, layers=max(1, wanted))


def last_cache_bytes(sysfs: Path = CACHES_OF_CPU) -> int:
    """Of the largest cache; 32 MiB where the machine does not say."""
    sizes = []
    for file in sysfs.glob("index*/size"):
        text = file.read_text().strip()
        unit = {"K": 2**10, "M": 2**20}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KM")) * unit)
    return max(sizes, default=32 * 2**20)


def main() -> None:
    """In the process of its own: a line of JSON for every model."""
    given = json.loads(sys.argv[1])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, given["cpus"])
    import logging

    logging.disable(logging.CRITICAL)
    effort = QUICK if given["quick"] else FULL
    folder = Path(given["folder"])
    for name, kv_type, shape in [*models(effort, last_cache_bytes())] * effort.rounds:
        path = folder / f"{shape.kind}-{shape.width}-{shape.layers}-{shape.heads}-{shape.vocabulary}.gguf"
        if not path.exists():
            write_model(path, shape)
        print(json.dumps(asdict(_timed(name, kv_type, shape, path, len(given["cpus"]), effort))), flush=True)


def _timed(name: str, kv_type: str, shape: BenchShape, path: Path, threads: int, effort: Effort) -> Timing:
    from serving.engine_timing import TimedEngine
    from serving.llama_options import EngineOptions

    depth, is_deep = 16, "/" in name
    options = EngineOptions(prompt_chunk=64, kv_type=kv_type)  # type: ignore[arg-type]  # one of its own
    engine = TimedEngine(path, DEEP_CONTEXT if is_deep else 512, threads, options)
    weights, weight_bytes = bench_sizes(shape)
    try:
        is_small = name in SMALL
        share = 4 if is_small else 0.25 if weight_bytes > LARGE_BYTES else 1
        prompt, tokens = int(effort.prompt * min(share, 1)), int(effort.step_tokens * share)
        engine.prompt_s(depth)  # What is read first comes from the disk.
        prompt_s = 0.0 if is_small else engine.prompt_s(prompt)
        step_s = engine.step_s(depth, tokens)
        deep_prompt_s = engine.prompt_s(effort.deep) if is_deep else 0.0
        deep_step_s = engine.step_s(effort.deep, effort.step_tokens) if is_deep else 0.0
    finally:
        engine.close()
    head = shape.width // shape.heads
    return Timing(
        name, shape.layers, weight_bytes, weights, shape.heads, head, shape.vocabulary, step_s, depth, prompt_s,
        prompt, deep_step_s, effort.deep if is_deep else 0, deep_prompt_s,
    )  # fmt: skip


if __name__ == "__main__":
    main()
