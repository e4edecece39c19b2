"""Debian's Prometheus as a process of a test: with configs/prometheus.yml, but before this router, and faster."""

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.ports import free_port
from tests.prometheus.queries import CONFIGS

READY_S = 20.0
EVERY = "1s"


@dataclass(frozen=True, slots=True)
class Series:
    labels: dict[str, str]
    points: list[tuple[float, float]]
    """Seconds since the epoch, value."""


@dataclass(frozen=True, slots=True)
class Prometheus:
    url: str

    def now(self, expr: str) -> list[Series]:
        """What the query returns now; a point each. A query that is refused raises AssertionError."""
        found = self._ask("query", query=expr)["result"]
        return [Series(one["metric"], [_point(one["value"])]) for one in found]

    def over(self, expr: str, start: float, end: float, step_s: float) -> list[Series]:
        found = self._ask("query_range", query=expr, start=start, end=end, step=step_s)["result"]
        return [Series(one["metric"], [_point(point) for point in one["values"]]) for one in found]

    def targets(self) -> list[dict[str, Any]]:
        targets: list[dict[str, Any]] = self._ask("targets")["activeTargets"]
        return targets

    def _ask(self, path: str, **fields: object) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(fields)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - our own http address
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{fields}: {error.read().decode()}") from error


def _point(told: list[Any]) -> tuple[float, float]:
    return float(told[0]), float(told[1])


def text(key: Path | None = None) -> str:
    """configs/prometheus.yml; with a file that holds a key, its lines for one are in force."""
    told = (CONFIGS / "prometheus.yml").read_text()
    if key is not None:
        told = told.replace("# authorization:", "authorization:")
        told = told.replace("/etc/prometheus/homeport.key", str(key))
    return told


def config(router: str, key: Path | None = None) -> dict[str, Any]:
    """The same, for this router's address (host:port) and asking every second."""
    told: dict[str, Any] = yaml.safe_load(text(key))
    told["global"] = {"scrape_interval": EVERY, "evaluation_interval": EVERY}
    told["rule_files"] = [str(CONFIGS / "rules" / "*.yml")]
    (job,) = told["scrape_configs"]
    (found,) = job["http_sd_configs"]
    found["url"] = f"http://{router}/sd"
    found["refresh_interval"] = EVERY
    return told


@contextmanager
def running(folder: Path, router: str, key: Path | None = None) -> Iterator[Prometheus]:
    """One that scrapes, for as long as the block lasts."""
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config(router, key)))
    address = f"127.0.0.1:{free_port()}"
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    log = folder / "prometheus.log"
    with log.open("wb") as errors, subprocess.Popen(command, stdout=errors, stderr=errors) as process:
        try:
            _wait(process, f"http://{address}/-/ready", log)
            yield Prometheus(f"http://{address}")
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310
                return
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
