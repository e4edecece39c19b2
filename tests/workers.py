"""A machine that joins a head by the command line, for tests: with a stand-in for the service that would start Ray."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.ending import end_everything
from cluster.paths import Paths
from cluster.processes import ours
from router import cli, join_worker
from tests.heads import Head

SERVICE = """
import json, os, pathlib, sys, time
file = pathlib.Path(os.environ["HOMEPORT_HOME"]) / "run.json"
state, detail = sys.argv[1:]
told = {"state": state, "detail": detail}
file.write_text(json.dumps({**json.loads(file.read_text()), "parent": os.getpid(), "steps": {"ray": told}}))
time.sleep(0 if state == "gone" else 600)
"""


class Worker:
    """A machine that joins, by the command line."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths = Paths(folder / "worker", folder / "locks")
        self._script = folder / "service.py"
        self._script.write_text(SERVICE)
        self._monkeypatch = monkeypatch
        self.use(self.paths)
        self.service_says("ready")

    def use(self, paths: Paths) -> None:
        """Be the machine with these folders."""
        self._monkeypatch.setenv("HOMEPORT_HOME", str(paths.home))
        self._monkeypatch.setenv("HOMEPORT_LOCKS", str(paths.locks))

    def service_says(self, state: str, detail: str = "") -> None:
        self._monkeypatch.setattr(join_worker, "SERVICE", (str(self._script), state, detail))

    def services(self) -> list[int]:
        return [process.pid for process in ours(self.paths, "parent")]


@contextlib.contextmanager
def worker_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """Impatient; nothing of it runs at the end."""
    monkeypatch.setattr(join_worker, "PATIENCE_S", 0.0)
    monkeypatch.setattr(join_worker, "READY_S", 3.0)
    monkeypatch.setattr(join_worker, "AGAIN_S", 0.1)
    monkeypatch.setattr(join_worker, "LOOK_S", 0.05)
    made = Worker(folder, monkeypatch)
    yield made
    end_everything(made.paths)


def run(*words: str, stdin: str | None = None) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, list(words), input=stdin)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, " ".join(done.output.split())


def at(head: Head) -> str:
    return f"127.0.0.1:{head.port}"
