"""One replica's host without a keeper, on the cores of the measured engines."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.answers import Server
from benchmarks.cores import Cores, starting_on
from cluster.slices import Slice
from serving.source import bundled_model
from tests.host_process import TOKEN, HostProcess, model_spec, session

SLICE_BYTES = 8 * 2**30
SHORT_HOLD_S = 0.0
"""A quiet session gives way at once: a measurement does not wait for it."""


class MeasuredHost(HostProcess):
    """Started again by `start` after `stop`."""

    def __init__(
        self, folder: Path, cores: Cores, context: int, sessions: int, source: Path | None = None, **more: Any
    ) -> None:
        """`source`: the model; None: the bundled one."""
        fields = {"sessions": sessions, "hold_s": SHORT_HOLD_S, **more}
        model = replace(model_spec(context=context), **fields)
        super().__init__(folder, model, str(source or bundled_model()), None)
        self._cores = cores
        told = folder / "spec.json"
        spec = json.loads(told.read_text())
        numbers = tuple(range(cores.threads))
        spec["slice"] = Slice(numbers, cores.engines, (), SLICE_BYTES).to_json()
        told.write_text(json.dumps(spec))

    def begin(self) -> None:
        """Start it and wait until it serves."""
        with starting_on(self._cores.engines) as env:
            before = dict(os.environ)
            os.environ.update(env)
            try:
                self.start()
            finally:
                os.environ.clear()
                os.environ.update(before)

    @property
    def server(self) -> Server:
        headers = {"authorization": f"Bearer {TOKEN}"}
        return Server(f"http://127.0.0.1:{self.port}", headers, "x-homeport-session-key")

    def memory_bytes(self) -> int:
        """What it has to itself: proportional set size."""
        assert self.process is not None
        return int(psutil.Process(self.process.pid).memory_full_info().pss)


@contextmanager
def running(cores: Cores, context: int, sessions: int, **more: Any) -> Iterator[MeasuredHost]:
    """A host that serves, ended afterwards. `more`: fields of its ModelSpec."""
    with tempfile.TemporaryDirectory(prefix="homeport-bench-") as folder:
        host = MeasuredHost(Path(folder) / "0", cores, context, sessions, **more)
        try:
            host.begin()
            yield host
        finally:
            host.kill()


def name(number: int) -> str:
    """A session's digest as the router would give it."""
    return session(f"bench{number}")
