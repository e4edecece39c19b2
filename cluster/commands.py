"""Runs the commands of set-up: the output goes to a log, one line on the terminal says how far it is.

Knows nothing of what is set up. A command gets a session of processes of its own, and all of it ends with it.
"""

import fcntl
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from cluster.llama_build import explain

TERMINAL_S = 0.5
PLAIN_S = 15.0
END_S = 5.0
KEPT_LINES = 60


class SetupError(Exception):
    """Set-up cannot go on. The message is one sentence for a person and names the remedy."""


@dataclass
class Progress:
    """The line that says what is going on: rewritten in place on a terminal, else printed every 15 s."""

    out: TextIO
    shown_at: float = field(default=0.0, init=False)

    @property
    def terminal(self) -> bool:
        return self.out.isatty()

    @property
    def interval_s(self) -> float:
        return TERMINAL_S if self.terminal else PLAIN_S

    def show(self, text: str) -> None:
        """Say how far it is, if the last word is long enough ago."""
        now = time.monotonic()
        quiet = now - self.shown_at < self.interval_s if self.shown_at else not self.terminal
        if not quiet or not self.shown_at:
            self.shown_at = now
        if quiet:
            return
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            self.out.write(f"\r\x1b[2K  {text}"[: width + len("\r\x1b[2K")])
        else:
            self.out.write(f"  {text}\n")
        self.out.flush()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self.terminal:
            self.out.write("\r\x1b[2K")
        self.out.write(f"{text}\n")
        self.out.flush()
        self.shown_at = 0.0


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    log: Path,
    progress: Progress,
    text: Callable[[float], str],
    heard: Callable[[str], None] = lambda _: None,
) -> float:
    """Run `command` to its end and return the seconds it took.

    `heard` gets each line of its output, `text` the seconds so far and returns the progress line. Raises
    SetupError if it fails: with the known cause if there is one, else the last line and where the log is. If
    anything interrupts, the command and what it started are ended first.
    """
    began = time.monotonic()
    tail: list[str] = []
    with log.open("a", encoding="utf-8", errors="replace") as record, _started(command, env, cwd) as process:
        record.write(f"$ {' '.join(command)}\n")
        try:
            progress.show(text(0.0))
            for line in _lines(process, progress.interval_s):
                if line is not None:
                    record.write(f"{line}\n")
                    tail = [*tail[-KEPT_LINES:], line]
                    heard(line)
                progress.show(text(time.monotonic() - began))
            code = process.wait()
        except BaseException:
            end(process)
            raise
    took_s = time.monotonic() - began
    if code:
        raise SetupError(explain(tail) or _unknown(text(took_s), code, tail, log))
    return took_s


def _started(command: Sequence[str], env: Mapping[str, str], cwd: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(env),
        cwd=cwd,
        start_new_session=True,
    )


@contextmanager
def alone(lock: Path, progress: Progress, waiting: str) -> Iterator[None]:
    """One set-up at a time: a second one says that it is `waiting`, and then finds its work done."""
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(waiting)
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def end(process: subprocess.Popen[bytes]) -> None:
    """End a command and everything of its session: asked first, killed after 5 s.

    The end of its output tells that all who could write there are gone. ninja gives each compiler a process
    group of its own and ends them itself when asked; if it could not, the session still names them.
    """
    session = process.pid
    _signal_group(session, signal.SIGTERM)
    assert process.stdout is not None
    deadline = time.monotonic() + END_S
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            if not os.read(process.stdout.fileno(), 65536):
                break
    _signal_group(session, signal.SIGKILL)
    for pid in _members(session):
        _signal(pid, signal.SIGKILL)
    process.wait()


def _lines(process: subprocess.Popen[bytes], every_s: float) -> Iterator[str | None]:
    """The lines of a command's output; None whenever nothing came for a while."""
    assert process.stdout is not None
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(every_s):
                yield None
                continue
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                break
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line.decode(errors="replace").rstrip()
    if rest:
        yield rest.decode(errors="replace").rstrip()


def _unknown(what: str, code: int, tail: Sequence[str], log: Path) -> str:
    said = [line for line in tail if line.strip()]
    errors = [line for line in said if "error" in line.lower()]
    last = (errors or said or ["nothing was printed"])[-1].strip()
    return f"Set-up failed while {what.partition(':')[0]} (exit code {code}): {last[:300]} (all of it is in {log})"


def _members(session: int) -> list[int]:
    """The processes of a session, where /proc tells (Linux); elsewhere none."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text(errors="replace")
        except OSError:
            continue
        # Behind the name in brackets: state, parent, group, session.
        _, _, _, its_session, *_ = text[text.rindex(")") + 1 :].split()
        if int(its_session) == session:
            found.append(int(stat.parent.name))
    return found


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return
