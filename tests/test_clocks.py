"""What is told of the time where a process stands still or somebody sets the clock."""

import os
import signal
import subprocess
import sys

import pytest

from cluster.clocks import AwakeClock, DayClock

HOUR = 3600.0


class Hands:
    """A clock that a test moves."""

    def __init__(self, at: float = 1_000.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


def test_time_in_which_a_process_does_not_run_does_not_count() -> None:
    hands = Hands()
    clock = AwakeClock(3.0, hands)
    began = clock()
    hands.at += 1
    assert clock() - began == 1
    hands.at += 90
    assert clock() - began == 4
    hands.at += 2
    assert clock() - began == 6


@pytest.mark.parametrize("jump_s", [HOUR, -HOUR, 0.0])
def test_a_clock_that_is_set_makes_nothing_old_at_once_and_nothing_new_older(jump_s: float) -> None:
    wall, steady = Hands(1e9), Hands()
    day = DayClock(wall, steady)
    before = (day.steady(), day.earliest(), day.latest())
    assert before == (1e9, 1e9, 1e9)
    wall.at += 5 + jump_s
    steady.at += 5
    assert day.steady() == 1e9 + 5
    assert day.earliest() == 1e9 + 5 + min(0.0, jump_s)
    assert day.latest() == 1e9 + 5 + max(0.0, jump_s)


def test_a_stopped_process_has_not_waited() -> None:
    said = (
        "from cluster.clocks import AwakeClock; c = AwakeClock(0.3); print(flush=True); input(); print(c())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", said], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.7)
        os.kill(process.pid, signal.SIGCONT)
        process.stdin.write("\n")
        process.stdin.flush()
        assert float(process.stdout.readline()) == pytest.approx(0.3)
