"""One conversation of a client program: a home folder of its own, and an address behind which everything is recorded.

Knows no program; those are in the modules of tests.
"""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

from router.connect_settings import KEY_VARIABLE
from tests.clients.recorder import Exchange, Recorder
from tests.e2e.installation import eventually

TURN_S = 120.0
SHORT_TOKENS = 40
KEYS_S = 0.5
KEPT_ENV = ("PATH", "LANG")
QUIET = {"DO_NOT_TRACK": "1", "NO_COLOR": "1", "TERM": "dumb", "LANG": "C.UTF-8"}


class Chat:
    """Made by `chat`. Its programs see nothing of the environment that the tests run in."""

    def __init__(self, folder: Path, temporary: str, recorder: Recorder, model: str) -> None:
        self.folder, self.recorder, self.model = folder, recorder, model
        self._temporary = {"TMPDIR": temporary, "CLAUDE_CODE_TMPDIR": temporary}
        self.work = folder / "work"
        self.max_tokens = SHORT_TOKENS
        """Of an answer, for a program that can be told."""
        self.key: str | None = None
        """Which the program is given; None: there are no keys. A homeport that has none takes any."""
        self.work.mkdir(parents=True)
        self._started: list[subprocess.Popen[str]] = []

    @property
    def url(self) -> str:
        return f"{self.recorder.url}/v1"

    @property
    def turns(self) -> list[Exchange]:
        return self.recorder.turns()

    def start(
        self, command: Sequence[str | Path], env: Mapping[str, str], terminal: int | None = None
    ) -> subprocess.Popen[str]:
        """A program in a group of its own; what it says is in `said`, unless it has a terminal."""
        kept = {name: os.environ[name] for name in KEPT_ENV if name in os.environ}
        if self.key is not None:
            kept[KEY_VARIABLE] = self.key
        with self._log.open("a") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=self.work,
                env={**kept, **QUIET, **self._temporary, "HOME": str(self.folder), **env},
                stdin=subprocess.DEVNULL if terminal is None else terminal,
                stdout=log if terminal is None else terminal,
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

    @contextmanager
    def terminal(
        self, command: Sequence[str | Path], env: Mapping[str, str]
    ) -> Iterator[Callable[[str], None]]:
        """A program as in a terminal, until the block ends; gives what types there."""
        ours, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        try:
            self.start(command, {"TERM": "xterm-256color", **env}, its)
        finally:
            os.close(its)
        with self._log.open("ab") as log:
            reading = threading.Thread(target=_drain, args=(ours, log))
            reading.start()
            try:
                yield lambda words: _type(ours, words)
            finally:
                self.end()
                reading.join()
                os.close(ours)

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


def _drain(terminal: int, log: IO[bytes]) -> None:
    """What is shown, until nobody has the other end any more."""
    with suppress(OSError):
        while shown := os.read(terminal, 65536):
            log.write(shown)
            log.flush()


def _type(terminal: int, words: str) -> None:
    os.write(terminal, words.encode())
    time.sleep(KEYS_S)  # what comes at once is taken for a paste, and its newline for a part of it
    os.write(terminal, b"\r")


@contextmanager
def chat(folder: Path, port: int, model: str) -> Iterator[Chat]:
    """A conversation with the homeport at `port`; when it ends, so do its programs and what they left in a temporary
    folder, whose name is short: sockets stand in it."""
    with Recorder(port) as recorder, tempfile.TemporaryDirectory(prefix="chat-") as temporary:
        made = Chat(folder, temporary, recorder, model)
        try:
            yield made
        finally:
            made.end()
