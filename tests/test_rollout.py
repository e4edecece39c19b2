"""Whose turn it is to take a new revision, and the shell that gives it."""

import asyncio
from typing import Any

from serving.giving import Giving
from serving.rollout import LIMIT_S, Progress, Turn, failed, next_turn, unready

NOW = 1000.0


def machine(name: str, revision: int = 1, *, here: bool = True, empty: bool = False, **more: Any) -> Progress:
    return Progress(f"id-{name}", name, revision, here, empty, **more)


def test_one_machine_at_a_time_in_the_given_order() -> None:
    turn = next_turn(2, [machine("den"), machine("attic")], NOW)
    assert (turn.give, turn.waiting) == (("id-den",), ("attic",))


def test_the_next_goes_when_the_last_one_is_ready() -> None:
    busy = machine("den", 2, unready=("den/0 restarts",), given_at=NOW - 1)
    turn = next_turn(2, [busy, machine("attic")], NOW)
    assert turn == Turn((), {"den": ("den/0 restarts",)}, ("attic",), {})
    assert next_turn(2, [machine("den", 2), machine("attic")], NOW).give == ("id-attic",)


def test_the_next_goes_after_a_limit_and_the_reason_is_told() -> None:
    late = machine("den", 2, unready=("den/0 failed (no file)",), given_at=NOW - LIMIT_S)
    turn = next_turn(2, [late, machine("attic")], NOW)
    assert (turn.give, turn.busy) == (("id-attic",), {})
    assert turn.passed == {"den": "not ready after 180 s: den/0 failed (no file)"}


def test_a_machine_that_is_away_holds_nobody_up_and_has_its_turn_later() -> None:
    away = machine("den", 2, here=False, unready=("den/0 restarts",), given_at=NOW)
    assert next_turn(2, [away, machine("attic"), machine("shed", here=False)], NOW).give == ("id-attic",)
    back = machine("shed", 1)
    assert next_turn(2, [machine("attic", 2), back], NOW).give == ("id-shed",)


def test_machines_on_which_nothing_runs_go_at_once() -> None:
    busy = machine("den", 2, unready=("den/0 is loading",), given_at=NOW)
    fresh = [machine("attic", 0, empty=True), machine("shed", 0, empty=True)]
    assert next_turn(2, [busy, *fresh, machine("rack")], NOW) == Turn(
        ("id-attic", "id-shed"), {"den": ("den/0 is loading",)}, ("rack",), {}
    )


def test_nothing_is_given_once_all_have_it() -> None:
    assert next_turn(2, [machine("den", 2), machine("attic", 3)], NOW) == Turn()
    assert next_turn(2, [], NOW) == Turn()


def replica(number: int = 0, **more: Any) -> dict[str, Any]:
    name = f"den/{number}"
    return {"name": name, "state": "ready", "config_digest": "a", "running_digest": "a", "pid": 1, **more}


def test_what_is_not_ready_with_what_is_wanted() -> None:
    report = {
        "replicas": [
            replica(0),
            replica(1, running_digest="old"),
            replica(2, state="loading"),
            replica(3, state="failed", detail="no file"),
            {"name": "den/4", "state": "ready", "config_digest": "a"},
        ]
    }
    assert unready(report) == ("den/1 restarts", "den/2 is loading", "den/3 failed (no file)")
    assert unready(report, failed(report)) == ("den/1 restarts", "den/2 is loading")


def test_nobody_waits_for_a_machine_that_its_person_has() -> None:
    replicas = [replica(0, state="yielded", pid=None, running_digest=None), replica(1, state="failed")]
    assert unready({"replicas": replicas, "yielded": {"by": "steam", "until": None}}) == ()
    assert unready({"replicas": replicas, "yielded": None}) != ()


class Cluster:
    """Machines that take what they are given; how far their replicas are is up to the test."""

    def __init__(self, *names: str) -> None:
        self.reports = {f"id-{name}": self._report(name, 1) for name in names}
        self.here = set(self.reports)
        self.wanted, self.now, self.given = 1, NOW, list[str]()
        self.giving = Giving(
            lambda: self.reports,
            lambda: self.here,
            lambda: self.wanted,
            self.give,
            lambda: "id-den",
            lambda: self.now,
        )

    def _report(self, name: str, revision: int) -> dict[str, Any]:
        return {"name": name, "revision": revision, "replicas": [replica()]}

    async def give(self, machine: str) -> None:
        self.given.append(machine)
        report = self.reports[machine]
        self.reports[machine] = {**report, "revision": self.wanted, "replicas": [replica(config_digest="b")]}

    def ready(self, machine: str) -> None:
        self.reports[machine]["replicas"] = [replica(config_digest="b", running_digest="b")]

    async def steps(self) -> list[str]:
        """Whom it gave the revision since."""
        before = len(self.given)
        for _ in range(3):
            await self.giving.step()
        return self.given[before:]


async def test_the_head_goes_first_then_the_others_by_name() -> None:
    cluster = Cluster("rack", "den", "attic")
    assert await cluster.steps() == []
    cluster.wanted = 2
    for name in ("id-den", "id-attic", "id-rack"):
        assert await cluster.steps() == [name]
        cluster.ready(name)
    assert await cluster.steps() == []
    assert cluster.giving.told() == {"busy": {}, "waiting": [], "passed": {}}


async def test_a_machine_that_does_not_get_ready_is_waited_for_until_the_limit() -> None:
    cluster = Cluster("den", "attic")
    cluster.wanted = 2
    assert await cluster.steps() == ["id-den"]
    assert cluster.giving.told()["busy"] == {"den": ["den/0 restarts"]}
    cluster.now += LIMIT_S
    assert await cluster.steps() == ["id-attic"]
    assert cluster.giving.told()["passed"] == {"den": "not ready after 180 s: den/0 restarts"}


async def test_what_had_failed_before_is_not_waited_for() -> None:
    cluster = Cluster("den", "attic")
    cluster.reports["id-den"]["replicas"] = [replica(), replica(1, state="failed", config_digest="x")]
    cluster.wanted = 2

    async def give(machine: str) -> None:
        cluster.given.append(machine)
        cluster.reports[machine] = {**cluster.reports[machine], "revision": 2}

    cluster.giving._give = give
    assert await cluster.steps() == ["id-den", "id-attic"]


async def test_a_controller_that_starts_anew_goes_on_where_it_was() -> None:
    cluster = Cluster("den", "attic")
    cluster.wanted = 2
    await cluster.steps()
    again = Cluster("den", "attic")
    again.reports, again.wanted = cluster.reports, 2
    assert await again.steps() == [], "den is still at it"
    again.ready("id-den")
    assert await again.steps() == ["id-attic"]


async def test_it_runs_on_after_a_step_that_failed_and_looks_at_once_when_something_changed() -> None:
    cluster = Cluster("den")

    async def fails(machine: str) -> None:
        cluster.given.append(machine)
        raise ValueError(machine)

    cluster.giving._give = fails
    cluster.wanted = 2
    running = asyncio.create_task(cluster.giving.run())
    await asyncio.sleep(0.05)
    assert cluster.given == ["id-den"]
    cluster.giving._give = cluster.give
    cluster.giving.heard()
    await asyncio.sleep(0.05)
    assert cluster.reports["id-den"]["revision"] == 2
    running.cancel()
