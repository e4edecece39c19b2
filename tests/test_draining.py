"""What the controller makes of a drained machine's hosts' words. The drain itself: tests/test_moves.py."""

import pytest

from serving.carrying import Fits
from serving.drain_plan import QUIET_S
from serving.draining import _Home, _resting
from serving.side import scratch_of

ANN = "a" * 64
PIN = {"session": ANN, "model": "small", "replica": "den/0", "generation": 1, "created_s": 1.0}


@pytest.mark.parametrize(
    ("residents", "quiet_s"),
    [
        ({ANN: 40.0}, 40.0),
        ({scratch_of(ANN): 40.0}, 40.0),  # a title was made aside, and the session itself is parked
        ({ANN: 40.0, scratch_of(ANN): 2.0}, 2.0),
        ({}, 0.0),  # it came between the two questions
    ],
)
def test_a_session_is_as_quiet_as_what_it_has_in_the_engine(
    residents: dict[str, float], quiet_s: float
) -> None:
    home = _Home("http://den", Fits("f", "l", 1), [{**PIN, "state": "resident"}], residents)
    (found,) = _resting("den/0", home)
    assert found.quiet_s == quiet_s
    assert (found.quiet_s >= QUIET_S) == (quiet_s == 40.0)


def test_one_that_is_parked_has_no_time_and_one_that_runs_is_busy() -> None:
    pins = [{**PIN, "state": "parked"}, {**PIN, "state": "running"}]
    parked, runs = _resting("den/0", _Home("http://den", Fits("f", "l", 1), pins, {}))
    assert (parked.quiet_s, parked.busy) == (None, False)
    assert (runs.quiet_s, runs.busy) == (0.0, True)
