"""What becomes of a start that is not ready in time."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.paths import Paths, read_json, write_private
from cluster.processes import mark
from router import following, lifecycle
from router.following import follow

PARENT = """
import json, pathlib, signal, sys
run = pathlib.Path(sys.argv[1])
def released(*_):
    new = run.with_suffix(".new")
    new.write_text(json.dumps({**json.loads(run.read_text()), "owner": None}))
    new.replace(run)
signal.signal(signal.SIGUSR1, released)
print("up", flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    made = Paths(tmp_path / "home", tmp_path / "locks")
    made.make()
    write_private(made.run, f'{{"owner": {os.getpid()}, "url": "http://127.0.0.1:9"}}')
    monkeypatch.setattr(following, "READY_S", 0.1)
    return made


@pytest.fixture
def parent(paths: Paths) -> Iterator[subprocess.Popen[bytes]]:
    """One that starts nothing, and may be released."""
    command = [sys.executable, "-c", PARENT, str(paths.run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=mark(paths, "parent")) as made:
        assert made.stdout is not None
        assert made.stdout.readline() == b"up\n"
        yield made
        made.kill()


def test_what_is_not_ready_in_time_is_ended(paths: Paths, parent: subprocess.Popen[bytes]) -> None:
    assert follow(paths, parent, detach=False) == 1
    parent.wait(10)


def test_where_replicas_served_before_it_goes_on_trying(
    paths: Paths, parent: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    assert follow(paths, parent, detach=False, takes_over=True) == 1
    assert parent.poll() is None
    assert read_json(paths.run) == {"owner": None, "url": "http://127.0.0.1:9"}
    assert "It goes on by itself" in capsys.readouterr().err
    lifecycle.end_everything(paths)
