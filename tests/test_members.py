"""A keeper as an actor of Ray's."""

import inspect
from typing import Any

import pytest

from cluster import ray_cluster
from serving.members import KeeperActor, RayMembers


def test_ray_finds_no_coroutine_in_a_keeper() -> None:
    """With one, Ray would run one call at a time: an order would wait until a controller has its news."""
    assert inspect.getmembers(KeeperActor, inspect.iscoroutinefunction) == []
    assert {"report", "apply", "pins", "leave"} <= set(dir(KeeperActor))


class Actors:
    """Ray's actors by name. None of them is placed where a machine has fewer CPUs than the actor was made for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: dict[str, float] = {}
        self.cpus = 8.0
        for name in ("members", "kill_others", "detach", "ask"):
            monkeypatch.setattr(ray_cluster, name, getattr(self, name))

    def members(self) -> list[dict[str, str]]:
        return [{"machine": "ab", "keeper-cpus": str(self.cpus), "keeper-gpus": "0"}]

    def kill_others(self, prefix: str, name: str) -> None:
        self.made = {n: cpus for n, cpus in self.made.items() if n == name or not n.startswith(prefix)}

    def detach(self, _cls: type, name: str, cpus: float, *_: Any, **__: Any) -> str:
        self.made.setdefault(name, cpus)
        return name

    async def ask(self, actor: str, method: str, *_: Any, timeout_s: float) -> dict[str, Any]:
        if self.made[actor] > self.cpus:
            raise TimeoutError
        return {"asked": method}


async def test_a_machine_that_became_smaller_has_a_keeper_of_its_new_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actors = Actors(monkeypatch)
    members = RayMembers()
    for cpus in (8.0, 4.0, 8.0):
        actors.cpus = cpus
        assert members.machines() == ["ab"]
        assert await members.report("ab", -1, 0.0) == {"asked": "report"}
        assert actors.made == {f"keeper:ab:{cpus}:0": cpus}
