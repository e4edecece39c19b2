"""The roll of machines: who stands how, and what is told of those that are away."""

from pathlib import Path
from typing import Any

import pytest

from cluster.clocks import AwakeClock
from serving.machine_book import MachineBook
from serving.machine_roll import STEP_S, MachineRoll


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + 1e9


@pytest.fixture
def book(tmp_path: Path) -> MachineBook:
    book = MachineBook(tmp_path / "machines.json")
    book.here("id-1", "den", "home", "10.0.0.1")
    book.here("id-2", "attic", "home", "10.0.0.2")
    return book


def report(name: str = "den", id_: str = "id-1", address: str = "10.0.0.1") -> dict[str, Any]:
    replica = {"name": f"{name}/0", "slot": 0, "model": "m", "address": address, "port": 8100}
    return {
        "id": id_,
        "name": name,
        "zone": "home",
        "address": address,
        "state": "ready",
        "version": 7,
        "revision": 3,
        "hardware": {"cores": []},
        "reserve": {},
        "refused": {},
        "replicas": [{**replica, "state": "ready", "progress": 1.0, "incarnation": 4}],
    }


def roll(book: MachineBook, time: Time, **last: dict[str, Any]) -> MachineRoll:
    return MachineRoll(book, {id_.replace("_", "-"): each for id_, each in last.items()}, time, time.wall)


def told(roll: MachineRoll) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in roll.list()}


def test_a_machine_that_has_not_reported_is_unknown_and_then_lost_and_never_absent(book: MachineBook) -> None:
    time = Time()
    seen = roll(book, time)
    seen.heard("id-1", report())
    time.now += 29.0
    assert seen.standings() == {"id-1": "ready", "id-2": "unknown"}
    attic = told(seen)["attic"]
    assert (attic["address"], attic["zone"], attic["replicas"], attic["heard_s"]) == (
        "10.0.0.2",
        "home",
        [],
        None,
    )
    time.now += 1.0
    assert seen.standings() == {"id-1": "lost", "id-2": "lost"}


def test_a_lost_machine_tells_when_it_was_heard_and_nothing_of_its_replicas(book: MachineBook) -> None:
    time = Time()
    seen = roll(book, time)
    seen.heard("id-1", report())
    assert told(seen)["den"]["heard_s"] is None
    assert told(seen)["den"]["replicas"][0]["state"] == "ready"
    time.now += 60.0
    den = told(seen)["den"]
    assert (den["state"], den["heard_s"]) == ("lost", 1e9 + 100.0)
    assert [(each["name"], each["state"]) for each in den["replicas"]] == [("den/0", "unknown")]
    seen.heard("id-1", report())
    assert told(seen)["den"]["state"] == "ready"


def test_lost_after_is_what_the_config_says(book: MachineBook) -> None:
    time = Time()
    seen = roll(book, time)
    seen.lost_after_s = 5.0
    seen.heard("id-1", report())
    time.now += 5.0
    assert seen.standings()["id-1"] == "lost"


def test_what_it_had_before_the_controller_began_is_told_at_its_new_address(book: MachineBook) -> None:
    before = roll(book, Time())
    before.heard("id-1", report())
    assert before.unsaved == {"id-1"}
    book.here("id-1", "den", "home", "10.0.0.9")
    den = told(roll(book, Time(), id_1=before.kept["id-1"]))["den"]
    assert (den["state"], den["revision"], den["hardware"]) == ("unknown", 0, {"cores": []})
    (replica,) = den["replicas"]
    assert (replica["name"], replica["address"], replica["port"], replica["state"]) == (
        "den/0",
        "10.0.0.9",
        8100,
        "unknown",
    )


def test_a_machine_that_has_another_name_by_now_has_other_replicas(book: MachineBook) -> None:
    before = roll(book, Time())
    before.heard("id-1", report())
    book.here("id-1", "loft", "home", "10.0.0.1")
    assert told(roll(book, Time(), id_1=before.kept["id-1"]))["loft"]["replicas"] == []


def test_what_ages_within_seconds_is_not_kept(book: MachineBook) -> None:
    seen = roll(book, Time())
    seen.heard("id-1", report())
    seen.unsaved.clear()
    again = report()
    again["version"], again["replicas"][0]["progress"], again["replicas"][0]["incarnation"] = 8, 0.5, 5
    seen.heard("id-1", again)
    assert seen.unsaved == set()


def test_a_new_controller_knows_whose_a_machine_was_that_sleeps(book: MachineBook) -> None:
    before = roll(book, Time())
    person = {"by": "person", "until": None}
    before.heard("id-1", {**report(), "yielded": person})
    assert before.unsaved == {"id-1"}
    book.asleep.add("id-1")
    den = told(roll(book, Time(), id_1=before.kept["id-1"]))["den"]
    assert (den["state"], den["yielded"]) == ("asleep", person)


def test_a_cordon_is_told_whether_the_machine_is_there_or_not(book: MachineBook) -> None:
    time = Time()
    seen = roll(book, time)
    book.cordon("den", True)
    book.cordon("attic", True)
    seen.heard("id-1", report())
    assert {name: (each["state"], each["cordoned"]) for name, each in told(seen).items()} == {
        "den": ("cordoned", True),
        "attic": ("unknown", True),
    }
    time.now += 30.0
    assert (told(seen)["den"]["state"], told(seen)["den"]["cordoned"]) == ("lost", True)


def test_a_drain_is_told_with_its_deadline_and_takes_no_new_pins(book: MachineBook) -> None:
    time = Time()
    seen = roll(book, time)
    seen.heard("id-1", report())
    book.drain("den", 1e9 + 700.0)
    den = told(seen)["den"]
    assert (den["state"], den["cordoned"], den["draining"]) == ("draining", True, {"deadline_s": 1e9 + 700.0})
    assert told(seen)["attic"]["draining"] is None
    time.now += 30.0
    assert (told(seen)["den"]["state"], told(seen)["den"]["cordoned"]) == ("lost", True)


def test_forgotten_machines_and_former_owners_of_a_name_are_not_in_it(book: MachineBook) -> None:
    seen = roll(book, Time(), id_2=report("attic", "id-2"))
    seen.heard("id-3", report("den", "id-3"))
    assert list(seen.standings()) == ["id-3", "id-2"]
    book.forget("attic", ())
    seen.forget("id-2")
    assert list(seen.standings()) == ["id-3"]
    assert seen.unsaved == {"id-3", "id-2"}
    assert "id-2" not in seen.kept


def test_a_controller_that_stood_still_takes_nobody_for_lost(book: MachineBook) -> None:
    hands = Time()
    seen = MachineRoll(book, {}, AwakeClock(STEP_S, hands), hands.wall)
    seen.heard("id-1", report())
    hands.now += 3600.0
    assert seen.standings()["id-1"] == "ready"
    for _ in range(6):
        hands.now += 5.0
        told(seen)
    assert seen.standings()["id-1"] == "lost"
