"""`make up` with everything installed: how long until the first token of an answer?"""

import os
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.report import Figure
from benchmarks.streams import stream
from router import api_client
from router.lifecycle import end_everything
from tests.e2e.installation import Homeport

RUNS = 3
TARGET_S = 20.0
ROOT = Path(__file__).resolve().parent.parent


def measure() -> list[Figure]:
    """The median of three starts, each on an empty state folder."""
    times = [_once() for _ in range(RUNS)]
    median = statistics.median(times)
    return [
        Figure(
            "`make up`, everything installed, to the first token",
            f"<= {TARGET_S:.0f} s",
            f"{median:.1f} s ({min(times):.1f} to {max(times):.1f})",
            median <= TARGET_S,
            f"median of {RUNS} starts on an empty state folder",
        )
    ]


def _once() -> float:
    with tempfile.TemporaryDirectory(prefix="homeport-bench-") as folder:
        installed = Homeport(Path(folder))
        began = time.perf_counter()
        process = subprocess.Popen(
            ["make", "up", f"ARGS=--config {installed.config}"],
            cwd=ROOT,
            env=installed.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            while not api_client.answered(installed.url):
                if process.poll() is not None or time.perf_counter() - began > 120:
                    raise RuntimeError(f"make up did not come up\n{installed.logs()}")
                time.sleep(0.1)
            stream(installed.ports["router"], "start", 4)
            return time.perf_counter() - began
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            end_everything(installed.paths)
