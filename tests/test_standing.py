"""How machines stand: what the controller says of one that is silent."""

import pytest

from serving.standing import Standing, standing


@pytest.mark.parametrize(
    ("silent_s", "has_reported", "is_cordoned", "stands"),
    [
        (0.0, True, False, "ready"),
        (29.9, True, False, "ready"),
        (30.0, True, False, "lost"),
        (0.0, False, False, "unknown"),
        (30.0, False, False, "lost"),
        (0.0, True, True, "cordoned"),
        (0.0, False, True, "unknown"),
        (30.0, True, True, "lost"),
    ],
)
def test_silence_makes_lost_and_a_machine_that_has_not_reported_is_unknown_till_then(
    silent_s: float, has_reported: bool, is_cordoned: bool, stands: Standing
) -> None:
    assert standing(silent_s, has_reported, is_cordoned, lost_after_s=30.0) == stands
