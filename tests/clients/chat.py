"""One conversation of a client program: a home folder of its own, and an address behind which everything is recorded.

Knows no program; those are in the modules of tests.
"""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.clients.recorder import Exchange, Recorder
from tests.e2e.installation import eventually

TURN_S = 120.0
SHORT_TOKENS = 40
KEPT_ENV = ("PATH", "LANG", "TMPDIR")
QUIET = {"DO_NOT_TRACK": "1", "NO_COLOR": "1", "TERM": "dumb", "LANG": "C.UTF-8"}


class Chat:
    """Made by `chat`. Its programs see nothing of the environment that the tests run in."""

    def __init__(self, folder: Path, recorder: Recorder, model: str) -> None:
        self.folder, self.recorder, self.model = folder, recorder, model
        self.work = folder / "work"
        self.max_tokens = SHORT_TOKENS
        """Of an answer, for a program that can be told."""
        self.work.mkdir(parents=True)
        self._started: list[subprocess.Popen[str]] = []

    @property
    def url(self) -> str:
        return f"{self.recorder.url}/v1"

    @property
    def turns(self) -> list[Exchange]:
        return self.recorder.turns()

    def start(self, command: Sequence[str | Path], env: Mapping[str, str]) -> subprocess.Popen[str]:
        """A program in a group of its own; what it says is in `said`."""
        kept = {name: os.environ[name] for name in KEPT_ENV if name in os.environ}
        with self._log.open("a") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=self.work,
                env={**kept, **QUIET, "HOME": str(self.folder), **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def run(self, command: Sequence[str | Path], env: Mapping[str, str]) -> None:
        """A program to its end, which must be a good one."""
        process = self.start(command, env)
        code = process.wait(TURN_S)
        assert code == 0, f"exit code {code}: {self.said[-3000:]}\n{self.recorder.exchanges()[-3:]}"

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def _log(self) -> Path:
        return self.folder / "said.log"

    def end(self) -> None:
        """Everything ends that was started here, what has left its group included."""
        for process in self._started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
        for stray in self.strays():
            with suppress(psutil.NoSuchProcess):
                stray.kill()
        eventually(lambda: not self.strays())

    def strays(self) -> list[psutil.Process]:
        """Processes with this home."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return (
                process.environ().get("HOME") == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE
            )
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False


@contextmanager
def chat(folder: Path, port: int, model: str) -> Iterator[Chat]:
    """A conversation with the homeport at `port`; when it ends, so do its programs."""
    with Recorder(port) as recorder:
        made = Chat(folder, recorder, model)
        try:
            yield made
        finally:
            made.end()
