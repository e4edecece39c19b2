"""Commands of set-up: their line on the terminal, their failure, their end."""

import io
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from cluster import commands
from cluster.commands import Progress, SetupError, run


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def python(code: str, tmp_path: Path, out: io.StringIO, **more: object) -> float:
    options: dict[str, object] = {"text": lambda seconds: "working", **more}
    return run(
        [sys.executable, "-c", code],
        env=os.environ,
        cwd=tmp_path,
        log=tmp_path / "log",
        progress=Progress(out),
        **options,  # type: ignore[arg-type]
    )


def test_every_line_is_heard_and_kept_in_the_log(tmp_path: Path) -> None:
    heard: list[str] = []
    python("print('one'); print('two', end='')", tmp_path, io.StringIO(), heard=heard.append)
    assert heard == ["one", "two"]
    assert (tmp_path / "log").read_text().endswith("one\ntwo\n")


def test_without_a_terminal_the_line_comes_only_while_something_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter([100.0, 101.0, 114.0, 115.5, 116.0, 131.0])
    monkeypatch.setattr(commands, "time", SimpleNamespace(monotonic=lambda: next(now)))
    out = io.StringIO()
    progress = Progress(out)
    for number in range(6):
        progress.show(f"line {number}")
    assert out.getvalue() == "  line 3\n  line 5\n"


def test_on_a_terminal_the_line_is_rewritten_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    out = Terminal()
    progress = Progress(out)
    progress.show("x" * 50)
    progress.say("done")
    assert out.getvalue() == "\r\x1b[2K  " + "x" * 17 + "\r\x1b[2Kdone\n"


def test_a_known_failure_is_explained(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="The disk is full"):
        python("raise SystemExit('[Errno 28] No space left on device')", tmp_path, io.StringIO())


def test_an_unknown_failure_shows_its_last_error_and_the_log(tmp_path: Path) -> None:
    code = "print('Error: the gremlin'); print('bye'); raise SystemExit(3)"
    with pytest.raises(SetupError) as caught:
        python(code, tmp_path, io.StringIO())
    said = str(caught.value)
    assert "exit code 3" in said
    assert "Error: the gremlin" in said
    assert str(tmp_path / "log") in said


FAMILY = """
import os, signal, subprocess
child = subprocess.Popen(["sleep", "600"], process_group=0)
print(os.getpid(), child.pid, flush=True)
signal.pause()
"""


def test_an_interrupt_ends_the_command_and_those_it_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(commands, "END_S", 0.2)
    pids: list[int] = []

    def heard(line: str) -> None:
        pids.extend(map(int, line.split()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        python(FAMILY, tmp_path, io.StringIO(), heard=heard)
    assert len(pids) == 2
    assert not any(running(pid) for pid in pids)


def running(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        process.wait(timeout=5)
    except psutil.NoSuchProcess:
        return False
    except psutil.TimeoutExpired:
        os.kill(pid, signal.SIGKILL)
        return True
    return False
