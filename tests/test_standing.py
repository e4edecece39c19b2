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


@pytest.mark.parametrize(
    ("silent_s", "has_reported", "is_cordoned", "stands"),
    [
        (0.0, True, False, "yielded"),
        (0.0, True, True, "yielded"),
        (30.0, True, False, "lost"),
        (1.0, False, False, "unknown"),
    ],
)
def test_one_that_is_its_persons_stands_so_while_it_is_heard(
    silent_s: float, has_reported: bool, is_cordoned: bool, stands: str
) -> None:
    assert standing(silent_s, has_reported, is_cordoned, 30.0, is_yielded=True) == stands


@pytest.mark.parametrize(
    ("silent_s", "has_reported", "is_cordoned", "stands"),
    [
        (0.0, True, False, "draining"),
        (0.0, True, True, "draining"),
        (0.0, False, True, "unknown"),
        (30.0, True, False, "lost"),
    ],
)
def test_a_machine_that_is_drained_is_draining_while_it_is_there(
    silent_s: float, has_reported: bool, is_cordoned: bool, stands: Standing
) -> None:
    assert standing(silent_s, has_reported, is_cordoned, lost_after_s=30.0, is_draining=True) == stands
