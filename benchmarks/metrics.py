"""`python -m benchmarks.metrics [QUESTION ...]`: what telling Prometheus costs, and what counting for it.

With no question all are asked and the table of README.md is written. `--quick` only tries whether all of it runs.
"""

import asyncio
import math
import statistics
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import uvloop
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import controller, fifty, metrics_fleet
from benchmarks.metrics_router import COUNTS, WINDOW_S, counts_at
from benchmarks.questions import ask
from benchmarks.relay import own, wire
from benchmarks.relay.load import Load
from benchmarks.relay.measure import CLIENTS, WARM_S
from benchmarks.relay.process import Watched
from benchmarks.relay.relays import Place, Relay, Start, started
from benchmarks.relay.runs import stand_ins
from benchmarks.report import Figure
from serving.counts import Counts
from tests.host_process import free_port

SERIES, SCRAPE_MS = 20_000, 200.0
COST_PERCENT = 3.0
EVENT_US = 1.0
START_S = 120.0
EDGE_S = 0.02
"""So near to a switch nothing is measured."""
BETWEEN_S = 0.5
EVENTS = 1_000_000
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


@dataclass(frozen=True, slots=True)
class Pair:
    """Microseconds of CPU a request, with counting and without, in two windows one after the other."""

    counted: float
    uncounted: float
    done: int
    """Requests in both."""


def relay(pairs: int) -> list[Figure]:
    """What a small request costs in windows with counting and in those without, which take turns in one process."""
    figures = []
    for kind, files in (("one process", False), ("counting into files, as one of several workers", True)):
        found = _windows(pairs, files)
        ratios = [pair.counted / pair.uncounted for pair in found]
        percent = (statistics.median(ratios) - 1) * 100
        # The standard error of a median, of values that are spread as the normal distribution has them.
        error = 1.253 * statistics.stdev(ratios) / math.sqrt(len(ratios)) * 100
        counted = statistics.median(pair.counted for pair in found)
        uncounted = statistics.median(pair.uncounted for pair in found)
        figures.append(
            Figure(
                f"cost of metrics on the relay's path: {kind}",
                f"<= {COST_PERCENT:.0f} % of CPU per request",
                f"{percent:.1f} % +- {error:.1f} ({counted:.1f} against {uncounted:.1f} us)",
                percent <= COST_PERCENT,
                f"CPU of the router's process per small request of {CLIENTS} clients; half of the time it counts "
                f"nothing: median of {len(found)} pairs of windows of {WINDOW_S:g} s, "
                f"{sum(pair.done for pair in found):,} requests",
            )
        )
    return figures


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
    "relay": lambda quick: relay(2 if quick else 60),
    "event": lambda quick: event(EVENTS // 100 if quick else EVENTS),
}


def _windows(pairs: int, files: bool) -> list[Pair]:
    with stand_ins() as beside:
        folder = beside.folder / "switched"
        (folder / "counts").mkdir(parents=True)
        place = Place(folder, free_port(), beside.hosts, beside.control_port, "hp-bench")
        kind = Relay("switched", "", partial(_switched, files=files))
        with (
            started(kind, place, beside.relay_cpus) as process,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            return runner.run(_watch(kind, place, process, pairs))


def _switched(place: Place, files: bool) -> Start:
    arguments = own.HOMEPORT.start(place).command[3:]
    env = ((COUNTS, str(place.folder / "counts")),) if files else ()
    return Start([sys.executable, "-m", "benchmarks.metrics_router", "switched", *arguments], env)


async def _watch(kind: Relay, place: Place, process: Watched, pairs: int) -> list[Pair]:
    names = [kind.headers(f"metrics-{number}", place.key) for number in range(CLIENTS)]
    load, found = Load(place.port), []
    try:
        await load.start_asking([wire.request(headers, tokens=None) for headers in names])
        await asyncio.sleep(WARM_S)
        for _ in range(pairs):
            first = (time.monotonic() // (2 * WINDOW_S) + 1) * 2 * WINDOW_S
            micros: dict[bool, float] = {}
            before = load.done
            for began in (first, first + WINDOW_S):
                await asyncio.sleep(began + EDGE_S - time.monotonic())
                cpu_s, done = process.first_thread_s(), load.done
                await asyncio.sleep(began + WINDOW_S - EDGE_S - time.monotonic())
                cpu_s, done = process.first_thread_s() - cpu_s, load.done - done
                if done:
                    micros[counts_at(began + EDGE_S)] = cpu_s / done * 1e6
            load.check()
            if len(micros) == 2:  # else others had the cores all the while
                found.append(Pair(micros[True], micros[False], load.done - before))
    finally:
        load.close()
    return found


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
