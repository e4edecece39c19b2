"""The figures of `homeport bench machine`: taken, and kept in this machine's state folder."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from tempfile import TemporaryDirectory

from cluster.cpu import cpu_model
from cluster.gpus import measure_gpus
from cluster.inventory import measure_cores
from cluster.paths import Paths, read_json, write_private
from serving.machine_bench import (
    DISK_BYTES,
    FULL,
    QUICK,
    Say,
    core_counts,
    disk_rate,
    memory_rate,
    time_engine,
)
from serving.machine_figures import GpuFigures, MachineFigures, engine_figures

QUICK_DISK_BYTES = 8 * 2**20


def take(paths: Paths, quick: bool, say: Say) -> MachineFigures:
    """Measure this machine, and keep what was found; `say` hears how far it is. `quick`: tries whether all of it runs,
    and the figures are worth little. Raises BenchFailed, and OSError of the disk."""
    paths.make()
    cores = measure_cores()
    effort = QUICK if quick else FULL
    say("memory")
    memory = {count: memory_rate(cores[:count], effort.rounds + 1) for count in core_counts(len(cores))}
    say("disk")
    disk = disk_rate(paths.home, QUICK_DISK_BYTES if quick else DISK_BYTES)
    with TemporaryDirectory(prefix="homeport-bench-") as folder:
        timings = [time_engine(cores[:count], quick, folder, say) for count in sorted({1, len(cores)})]
    found = measure_gpus()
    figures = MachineFigures(
        taken_at=datetime.now(UTC).isoformat(timespec="seconds"),
        version=_version(),
        cpu=cpu_model(),
        memory_bytes_s=memory,
        disk_bytes_s=disk,
        engine=tuple(engine_figures(each) for each in timings),
        gpus=tuple(
            GpuFigures(g.uuid, g.name, g.memory_bytes, found.bytes_s.get(g.uuid))
            for g in found.gpus
            if g.usable
        ),
    )
    write_private(paths.bench, json.dumps(figures.to_json(), indent=1))
    return figures


def kept(paths: Paths) -> MachineFigures | None:
    """What was measured here last; None: never, or by a homeport that kept it in another way."""
    return figures_of(read_json(paths.bench))


def figures_of(data: Mapping[str, object] | None) -> MachineFigures | None:
    """From JSON; None where it is none."""
    try:
        return None if data is None else MachineFigures.from_json(data)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _version() -> str:
    try:
        return version("homeport")
    except PackageNotFoundError:
        return ""
