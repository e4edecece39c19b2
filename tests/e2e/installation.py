"""A whole homeport on this machine, with its own state, locks and ports. Who makes one ends it: see conftest.py."""

import json
import os
import random
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any, TypeVar

from cluster.paths import Paths, read_json
from cluster.processes import ours
from router.lifecycle import end_everything
from tests.ports import is_free

T = TypeVar("T")

START_S = 120.0
MAKES_OWN = {"MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "ARGS"}
CONFIG = """\
router: {{listen: 127.0.0.1:{router}, drain: {drain}}}
network: {{control: {control}, ports: {first}-{last}}}
models:
  - name: smollm2
    source: bundled
    replicas: {replicas}
    needs: {{cores: {cores}, memory: {memory}}}
    context: {context}
    hold: {hold}
    queue: {queue}
{more}{others}"""


@dataclass
class Homeport:
    """One installation under test: its folders, its ports, its command."""

    folder: Path
    hold: str = "1s"
    queue: str = "20s"
    extra: dict[str, str] = field(default_factory=dict)
    count: str = "fill"
    """Replicas of the model."""
    cores: int = 1
    memory: str = "1GiB"
    context: int = 2048
    drain: str = "1s"
    more: tuple[str, ...] = ()
    """More keys of the model, each as YAML's `key: value`."""
    others: str = ""
    """More models, as YAML."""
    models: str = ""
    """Only these models, as YAML's list; each key of the usual model above means nothing then."""

    def __post_init__(self) -> None:
        self.ports = dict(zip(("router", "control", "first", "last"), _free_ports(), strict=True))
        self.config = self.folder / "homeport.yaml"
        self.configure()
        self.paths = Paths(self.folder / "home", self.folder / "locks")

    def configure(self, *more: str) -> None:
        """Write the config, with these keys of the model beside `more`."""
        keys = "".join(f"    {key}\n" for key in (*self.more, *more))
        shape = {"replicas": self.count, "cores": self.cores, "memory": self.memory, "more": keys}
        shape |= {"context": self.context}
        shape |= {"drain": self.drain, "others": self.others}
        text = CONFIG.format(hold=self.hold, queue=self.queue, **shape, **self.ports)
        if self.models:
            text = f"{text.partition('models:')[0]}models:\n{self.models}"
        self.config.write_text(text)

    @property
    def env(self) -> dict[str, str]:
        folders = {"HOMEPORT_HOME": str(self.paths.home), "HOMEPORT_LOCKS": str(self.paths.locks)}
        # `make test ARGS=…` would hand its arguments on to a `make up` below it.
        inherited = {name: value for name, value in os.environ.items() if name not in MAKES_OWN}
        return {**inherited, **folders, "COLUMNS": "200", **self.extra}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['router']}"

    def run(self, *args: str, timeout: float = START_S) -> subprocess.CompletedProcess[str]:
        """`homeport ARGS`, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "router.cli", *args],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def popen(self, *args: str) -> subprocess.Popen[str]:
        """`homeport ARGS` in the background."""
        return subprocess.Popen(
            [sys.executable, "-m", "router.cli", *args],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def up(self, *more: str) -> None:
        done = self.run("up", "--detach", "--config", str(self.config), *more)
        assert done.returncode == 0, done.stdout + done.stderr + self.logs()

    def get(self, path: str) -> Any:
        return get_json(self.url + path)

    def post_whole(
        self, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> tuple[int, "Message[str, str]", Any]:
        """A chat completion in one piece: its status, headers and body."""
        request = urllib.request.Request(  # noqa: S310 - our own http address
            f"{self.url}/v1/chat/completions",
            json.dumps({"model": "smollm2", "temperature": 0, **body}).encode(),
            {"content-type": "application/json", **headers},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                return answer.status, answer.headers, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, json.load(error)

    def replicas(self) -> list[dict[str, Any]]:
        return [r for machine in self.get("/api/fleet")["machines"] for r in machine["replicas"]]

    def host_state(self, replica: Mapping[str, Any]) -> dict[str, Any]:
        """The host's own word, past the router."""
        token = self.paths.machine_token.read_text().strip()
        url = f"http://{replica['address']}:{replica['port']}/state"
        found = get_json(url, {"authorization": f"Bearer {token}"})
        assert isinstance(found, dict)
        return found

    def step(self, name: str) -> dict[str, Any]:
        found = read_json(self.paths.run)["steps"][name]
        assert isinstance(found, dict)
        return found

    def logs(self) -> str:
        files = [*self.paths.logs.glob("*.log"), *self.paths.home.glob("replicas/*/host.err")]
        return "\n".join(f"--- {file}\n{file.read_text(errors='replace')[-3000:]}" for file in files)


@contextmanager
def ended_after(installed: Homeport) -> Iterator[Homeport]:
    """All of it ends with the block, whatever happens there."""
    try:
        yield installed
    finally:
        end_everything(installed.paths)
    assert ours(installed.paths) == []


def get_json(url: str, headers: Mapping[str, str] | None = None) -> Any:
    """GET; an error status raises with its body."""
    request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310 - our own http address
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise AssertionError(f"{error.code}: {error.read().decode()}") from error


def eventually(look: Callable[[], T], seconds: float = 20.0) -> T:
    """The first true value of `look`, asked again and again; it fails with the last one after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = look()
            if found:
                return found
            last: object = found
        except (OSError, AssertionError, KeyError) as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s; last seen: {last!r}")
        time.sleep(0.1)


def _free_ports() -> tuple[int, int, int, int]:
    """Router, control, and a range of ten for hosts, below the ports that the kernel gives to clients."""
    for first in random.sample(range(12000, 19000, 12), 50):
        if all(is_free(port) for port in range(first, first + 12)):
            return first, first + 1, first + 2, first + 11
    raise AssertionError("no free block of ports")
