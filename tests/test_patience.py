"""How long a session that nobody knows is not taken for a new one."""

import pytest

from router.patience import patience_s


@pytest.mark.parametrize(
    ("queue_s", "has_heard", "expected"),
    [
        (60.0, True, 3.0),
        (60.0, False, 30.0),
        (600.0, False, 30.0),
        (20.0, False, 10.0),
        (4.0, True, 2.0),
        (0.0, False, 0.0),
    ],
)
def test_a_router_that_has_heard_no_controller_yet_is_more_patient(
    queue_s: float, has_heard: bool, expected: float
) -> None:
    assert patience_s(queue_s, has_heard) == expected
