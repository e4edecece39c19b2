"""A key's pace in a file: the same answers as in memory, over several processes, whatever becomes of one."""

import logging
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.clocks import uptime
from router import shared_pace
from router.keys import Pace
from router.shared_pace import SharedPace

TAKES = """
import signal, sys
from pathlib import Path
from cluster.clocks import uptime
from router.shared_pace import SharedPace
pace, taken = SharedPace(Path(sys.argv[1]), "den", int(sys.argv[2])), 0
print("up", flush=True)
for _ in range(int(sys.argv[3])):
    taken += pace.take(uptime()) is None
print(taken, flush=True)
"""


@pytest.mark.parametrize("per_minute", [1, 2, 7, 40])
@pytest.mark.parametrize("seed", range(5))
def test_two_processes_share_what_one_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_minute: int, seed: int
) -> None:
    monkeypatch.setattr(shared_pace, "SLACK", 3)
    rng, now = random.Random(seed), 1000.0
    both = [SharedPace(tmp_path, "den", per_minute) for _ in range(2)]
    alone = Pace(per_minute)
    for _ in range(600):
        now += rng.expovariate(per_minute / 40)
        assert rng.choice(both).take(now) == alone.take(now)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size <= 8 * (2 * per_minute + 5), "the file grows for ever"


def test_keys_have_files_of_their_own_that_do_not_tell_their_names(tmp_path: Path) -> None:
    one, other = (SharedPace(tmp_path, name, 1) for name in ("den", "attic"))
    assert one.take(1.0) is other.take(1.0) is None
    assert one.take(2.0) == 59.0
    assert not [file for file in tmp_path.iterdir() if "den" in file.name or file.stat().st_mode & 0o077]


def test_another_limit_gives_nobody_a_new_minute(tmp_path: Path) -> None:
    pace = SharedPace(tmp_path, "den", 5)
    assert [pace.take(float(at)) for at in range(5)] == [None] * 5
    pace.per_minute = 2
    assert pace.take(10.0) == 53.0
    pace.per_minute = 6
    assert pace.take(10.0) is None
    assert pace.take(10.0) == 50.0


def test_real_processes_let_no_more_in_than_one(tmp_path: Path) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", TAKES, str(tmp_path), "500", "400"], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    try:
        said = [child.communicate(timeout=60)[0].split() for child in children]
    finally:
        for child in children:
            child.kill()
    assert sum(int(each[1]) for each in said) == 500


def test_who_is_killed_while_it_counts_holds_nobody_up(tmp_path: Path) -> None:
    pace = SharedPace(tmp_path, "den", 100_000)
    for _ in range(5):
        child = subprocess.Popen(
            [sys.executable, "-c", TAKES, str(tmp_path), "100000", "100000"],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert child.stdout
            assert child.stdout.readline() == "up\n"
            time.sleep(0.05)
        finally:
            child.send_signal(signal.SIGKILL)
            child.communicate()
        assert pace.take(uptime()) is None
    (file,) = tmp_path.iterdir()
    times = [at for (at,) in shared_pace.TIME.iter_unpack(file.read_bytes())]
    assert times == sorted(times)


def test_a_folder_that_is_gone_leaves_each_its_own_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pace = SharedPace(tmp_path / "gone", "den", 2)
    with caplog.at_level(logging.WARNING, "homeport.keys"):
        assert [pace.take(at) for at in (1.0, 2.0, 3.0)] == [None, None, 58.0]
    assert len(caplog.records) == 1
    assert "den" not in caplog.records[0].message.replace(str(tmp_path), "")
