"""`python -m benchmarks.metrics [QUESTION ...]`: what telling Prometheus costs, and what counting for it.

With no question all are asked and the table of README.md is written. `--quick` only tries whether all of it runs.
"""

import asyncio
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from unittest import mock

import uvloop
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import controller, fifty, metrics_fleet
from benchmarks.metrics_router import BLOCK, COUNTS, TIMES, counts_in
from benchmarks.questions import ask
from benchmarks.relay import own, wire
from benchmarks.relay.load import Load
from benchmarks.relay.measure import CLIENTS, WARM_S
from benchmarks.relay.relays import Place, Relay, Start, started
from benchmarks.relay.runs import stand_ins
from benchmarks.report import Figure
from router.cells import count_in_files
from router.metrics import Metrics
from serving.counts import Counts
from tests.ports import free_port

SERIES, SCRAPE_MS = 20_000, 200.0
COST_PERCENT = 3.0
EVENT_US = 1.0
START_S = 120.0
WARM_BLOCKS = 64
"""Of the first ones nothing is told. An even number: the two of a pair lie beside each other, one of them counts."""
COUNT_NS = 2000
IN_A_ROW = 20_000
BETWEEN_S = 0.5
EVENTS = 1_000_000
Ended = Callable[[], None]
PATHS = {"all": "/metrics", "the router's own": "/metrics?role=router"}


def scrape(rounds: int) -> list[Figure]:
    """A router that has heard of 200 replicas, and has counted requests of every model on every machine."""
    models = [{"spec": model.to_json(), "digest": fifty.DIGEST} for model in metrics_fleet.models()]
    with controller.home() as paths:
        controller.write_revision(paths, fifty.CONTROL_PORT, host=fifty.ADDRESS, models=models)
        port = free_port()
        settings = controller.router_settings(paths, port, models)
        with controller.running(paths, [sys.executable, "-m", "benchmarks.metrics_fleet"]) as fleet:
            assert fleet.stdout is not None
            fleet.stdout.readline()
            command = ["-m", "benchmarks.metrics_router", "filled", "--config-json", str(settings)]
            with controller.running(paths, [sys.executable, *command]):
                _until_heard(port)
                taken: dict[str, list[float]] = {name: [] for name in PATHS}
                for _ in range(rounds):
                    for name, path in PATHS.items():
                        began = time.perf_counter()
                        _get(port, path)
                        taken[name].append((time.perf_counter() - began) * 1000)
                        time.sleep(BETWEEN_S)
                text = _get(port, "/metrics")
    series = sum(not line.startswith("#") for line in text.splitlines())
    everything, alone = (statistics.median(taken[name]) for name in PATHS)
    return [
        Figure(
            f"/metrics at {fifty.MACHINES} machines x {metrics_fleet.MODELS} models",
            f"<= {SERIES:,} series, <= {SCRAPE_MS:.0f} ms",
            f"{series:,} series ({len(text) / 1e6:.1f} MB), {everything:.0f} ms "
            f"(at most {max(taken['all']):.0f}); of the router alone {alone:.0f} ms",
            series <= SERIES and everything <= SCRAPE_MS,
            f"wall time of a scrape over loopback, median of {rounds}; one router, the real controller in another "
            "process (whose families come with it), stand-in hosts and keepers with every histogram filled",
        )
    ]


def relay(seconds: float) -> list[Figure]:
    """What a small request costs in blocks with counting and in those without, which take turns in one process."""
    figures = []
    for kind, files in (("one process", False), ("counting into files, as one of several workers", True)):
        pairs = _pairs(_switched(seconds, files))
        ratios = [counted / uncounted for counted, uncounted in pairs]
        percent = (statistics.median(ratios) - 1) * 100
        # The standard error of a median, of values that are spread as the normal distribution has them but for a few.
        low, _, high = statistics.quantiles(ratios)
        error = 1.253 * (high - low) / 1.349 / math.sqrt(len(ratios)) * 100
        counted, uncounted = (statistics.median(side) / BLOCK / 1000 for side in zip(*pairs, strict=True))
        figures.append(
            Figure(
                f"cost of metrics on the relay's path: {kind}",
                f"<= {COST_PERCENT:.0f} % of CPU per request",
                f"{percent:.1f} % +- {error:.1f} ({counted:.1f} against {uncounted:.1f} us)",
                percent <= COST_PERCENT,
                f"CPU of the router's thread per small request of {CLIENTS} clients; it counts {BLOCK} requests, and "
                f"nothing of {BLOCK} others, by turns: median of {len(pairs):,} such pairs",
            )
        )
    return figures


def count(repeats: int) -> list[Figure]:
    """What the counting of one request takes by itself, and how much of it the files are."""
    with tempfile.TemporaryDirectory(prefix="homeport-metrics-") as name, mock.patch.dict(os.environ):
        in_memory = _counting(None)
        count_in_files(Path(name), 1)
        takes = {"in memory": in_memory, "in files": _counting(Path(name))}
        taken: dict[str, list[float]] = {kind: [] for kind in takes}
        for _ in range(repeats):
            for kind, ended in takes.items():
                taken[kind].append(_in_a_row(ended))
    nanos = {kind: statistics.median(found) for kind, found in taken.items()}
    return [
        Figure(
            "the router counts one request",
            f"<= {COUNT_NS:,} ns",
            ", ".join(f"{found:.0f} ns {kind}" for kind, found in nanos.items()),
            max(nanos.values()) <= COUNT_NS,
            f"CPU time, {IN_A_ROW:,} streams of a session in a row, the loop around them included; "
            f"median of {repeats} by turns",
        )
    ]


def event(count: int) -> list[Figure]:
    """What a host takes to count one event with text."""
    counts = Counts()
    began = time.process_time()
    for _ in range(count):
        counts.text(1, 0.0123)
    micros = (time.process_time() - began) / count * 1e6
    return [
        Figure(
            "a host counts one event of text, with the time since the one before",
            f"<= {EVENT_US:.0f} us",
            f"{micros:.2f} us",
            micros <= EVENT_US,
            f"CPU time, {count:,} in a row, the loop around them included",
        )
    ]


QUESTIONS: dict[str, Callable[[bool], list[Figure]]] = {
    "scrape": lambda quick: scrape(2 if quick else 20),
    "relay": lambda quick: relay(2.0 if quick else 60.0),
    "count": lambda quick: count(2 if quick else 100),
    "event": lambda quick: event(EVENTS // 100 if quick else EVENTS),
}


def _switched(seconds: float, files: bool) -> list[int]:
    """CPU time of the router's thread, in ns, when each block began, while clients ask it for so long."""
    with stand_ins() as beside:
        folder = beside.folder / "switched"
        (folder / "counts").mkdir(parents=True)
        place = Place(folder, free_port(), beside.hosts, beside.control_port, "hp-bench")
        kind = Relay("switched", "", partial(_start, files=files))
        with (
            started(kind, place, beside.relay_cpus),
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            runner.run(_ask(kind, place, seconds))
        told: list[int] = json.loads((folder / TIMES).read_text())
    return told


def _start(place: Place, files: bool) -> Start:
    arguments = own.HOMEPORT.start(place).command[3:]
    env = [(TIMES, str(place.folder / TIMES))]
    if files:
        env.append((COUNTS, str(place.folder / "counts")))
    return Start([sys.executable, "-m", "benchmarks.metrics_router", "switched", *arguments], tuple(env))


async def _ask(kind: Relay, place: Place, seconds: float) -> None:
    names = [kind.headers(f"metrics-{number}", place.key) for number in range(CLIENTS)]
    load = Load(place.port)
    try:
        await load.start_asking([wire.request(headers, tokens=None) for headers in names])
        await asyncio.sleep(WARM_S + seconds)
        load.check()
    finally:
        load.close()


def _pairs(began_ns: list[int]) -> list[tuple[int, int]]:
    """What blocks took, one with counting and the one beside it without."""
    took_ns = [end - begin for begin, end in itertools.pairwise(began_ns)]
    pairs = []
    for block in range(WARM_BLOCKS, len(took_ns) - 1, 2):
        two = took_ns[block], took_ns[block + 1]
        pairs.append(two if counts_in(block) else (two[1], two[0]))
    return pairs


def _counting(folder: Path | None) -> Ended:
    """A stream of a session that has ended, counted once already. Where: as this process counts now."""
    metrics = Metrics(CollectorRegistry(), "1", folder)
    ended = partial(metrics.ended, "tiny", "den/0", "ok", "kept", True, 2.5, 0.3)
    ended()
    return ended


def _in_a_row(ended: Ended) -> float:
    """Nanoseconds of CPU for each."""
    began = time.process_time_ns()
    for _ in range(IN_A_ROW):
        ended()
    return (time.process_time_ns() - began) / IN_A_ROW


def _until_heard(port: int) -> None:
    """Until all replicas, machines and keepers are told of."""
    until = time.monotonic() + START_S
    replicas, machines = fifty.MACHINES * metrics_fleet.MODELS, fifty.MACHINES
    wanted = {
        "homeport_places": replicas,
        "homeport_machine_up": machines,
        "homeport_host_restarts_total": replicas,
    }
    found: dict[str, int] = {}
    while found != wanted:
        if time.monotonic() > until:
            raise RuntimeError(f"not all are told of: {found} instead of {wanted}")
        time.sleep(1.0)
        with suppress(urllib.error.URLError, ConnectionError):
            families = text_string_to_metric_families(_get(port, "/metrics"))
            samples = [sample.name for family in families for sample in family.samples if sample.value]
            found = {name: samples.count(name) for name in wanted}


def _get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        told: bytes = answer.read()
    return told.decode()


if __name__ == "__main__":
    sys.exit(ask("metrics", __doc__, QUESTIONS))
