"""A keeper as an actor of Ray's."""

import inspect

from serving.members import KeeperActor


def test_ray_finds_no_coroutine_in_a_keeper() -> None:
    """With one, Ray would run one call at a time: an order would wait until a controller has its news."""
    assert inspect.getmembers(KeeperActor, inspect.iscoroutinefunction) == []
    assert {"report", "apply", "pins", "leave"} <= set(dir(KeeperActor))
