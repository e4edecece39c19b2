"""What boards are shown and what changed in it, without a clock, a router or a host."""

import json
from typing import Any

import pytest
from hypothesis import given

from router.watching import NOTHING, Picture, Speed, change, name_of, picture, steady, whole
from tests.watched import lay, pictures


def replica(**more: Any) -> dict[str, Any]:
    told = {"name": "den/0", "state": "ready", "reach": "up", "silent_s": 0.3, "tokens_generated": 0}
    residents = [{"session": "hp_a", "quiet_s": 4.0, "busy": False, "tokens": 12}]
    return {**told, "residents": residents, "memory": {"rss_bytes": 300 << 20}, **more}


def machine(*replicas: dict[str, Any], away_s: float | None = None) -> dict[str, Any]:
    return {"name": "den", "state": "ready", "away_s": away_s, "replicas": list(replicas)}


def session(**more: Any) -> dict[str, Any]:
    told = {"id": "hp_a", "model": "tiny", "state": "resident", "age_s": 10.0, "turns": 3, "line": None}
    told |= {"created_s": 990.0}
    return {**told, "context_tokens": 12, **more}


def seen(
    *machines: dict[str, Any], sessions: Any = (), wall_s: float = 1000.0, old: Picture = NOTHING
) -> Picture:
    told = {name_of(each): steady(each, old.sessions.get(name_of(each), {}), wall_s) for each in sessions}
    return picture({"revision": 1, "machines": list(machines)}, told, {}, wall_s, old)


def test_time_that_passes_is_no_change() -> None:
    line = {"position": 1, "waited_s": 5.0, "about_s": 20.0}
    waiting = session(id="hp_b", state="waiting", line=line)
    first = seen(machine(replica()), sessions=[session(), waiting])
    later = {"position": 1, "waited_s": 6.4, "about_s": 18.8}
    busy = replica(silent_s=0.9, memory={"rss_bytes": 301 << 20})
    busy["residents"][0]["quiet_s"] = 5.0
    second = seen(
        machine(busy),
        sessions=[session(age_s=11.0, turns=4), session(id="hp_b", state="waiting", age_s=11.1, line=later)],
        wall_s=1001.0,
        old=first,
    )
    assert change(first, second) is None
    (told,) = [each for each in whole(second)["sessions"] if each["id"] == "hp_b"]
    assert told["line"] == {"position": 1, "since_s": 995.0, "until_s": 1020.0}


def test_a_host_falls_silent_and_the_time_of_its_last_word_stays() -> None:
    up = seen(machine(replica()))
    silent = seen(machine(replica(reach="suspect", silent_s=3.5)), wall_s=1004.0, old=up)
    told = change(up, silent)
    assert told is not None
    assert told["machines"]["den"]["replicas"]["den/0"]["set"]["heard_s"] == 1000.5
    out = seen(machine(replica(reach="out", silent_s=9.6)), wall_s=1010.0, old=silent)
    assert out.machines["den"]["replicas"][0]["heard_s"] == 1000.5
    assert change(out, seen(machine(replica(reach="out", silent_s=10.6)), wall_s=1011.0, old=out)) is None


def test_a_machine_that_is_away_tells_since_when() -> None:
    lost = seen(machine(away_s=60.0))
    assert lost.machines["den"]["heard_s"] == 940.0
    assert change(lost, seen(machine(away_s=61.1), wall_s=1001.0, old=lost)) is None
    assert seen(machine(away_s=None)).machines["den"]["heard_s"] is None


def test_what_comes_goes_and_changes_is_told_and_nothing_else() -> None:
    den, attic = machine(replica()), {**machine(replica(name="attic/0")), "name": "attic"}
    first = seen(den, attic, sessions=[session(), session(id="hp_b")])
    second = seen(
        machine(replica(state="draining")),
        {**machine(replica(name="attic/0")), "name": "attic"},
        sessions=[session(), session(id="hp_c")],
        old=first,
    )
    told = change(first, second)
    assert told is not None
    assert list(told["machines"]) == ["den"]
    assert told["sessions"]["hp_b tiny"] is None
    assert set(told["sessions"]) == {"hp_b tiny", "hp_c tiny"}
    assert told["fleet"] == {}


@pytest.mark.parametrize("field", ["revision", "role", "problems"])
def test_the_rest_of_the_fleet_is_told_by_what_differs(field: str) -> None:
    old, new = Picture({"models": [], field: 1}, {}, {}), Picture({"models": [], field: 2}, {}, {})
    assert change(old, new) == {"machines": {}, "sessions": {}, "fleet": {"set": {field: 2}}}


def test_of_a_machine_whose_replica_makes_tokens_nothing_else_is_told() -> None:
    busy, idle = replica(tokens_generated=20), replica(name="den/1")
    first = seen(machine(busy, idle), sessions=[session()])
    busy = replica(tokens_generated=40, detail="loads")
    second = seen(machine(busy, replica(name="den/1")), sessions=[session(context_tokens=32)], old=first)
    assert change(first, second) == {
        "machines": {"den": {"replicas": {"den/0": {"set": {"tokens_generated": 40, "detail": "loads"}}}}},
        "sessions": {"hp_a tiny": {"set": {"context_tokens": 32}}},
        "fleet": {},
    }
    third = seen(machine(replica(name="den/1"), replica(tokens_generated=40)), sessions=(), old=second)
    assert change(second, third) == {
        "machines": {
            "den": {"replicas": {"den/0": {"unset": ["detail"]}}, "order": ["den/1", "den/0"]},
        },
        "sessions": {"hp_a tiny": None},
        "fleet": {},
    }


@given(pictures, pictures)
def test_a_change_laid_over_the_old_picture_gives_the_new_one(old: Picture, new: Picture) -> None:
    told = change(old, new)
    if told is None:
        assert old == new
        return
    laid = lay(old, "change", json.loads(json.dumps(told)))
    assert laid == new
    assert order_of(laid) == order_of(new)


def order_of(shown: Picture) -> dict[str, list[str]]:
    """Of the replicas of each machine."""
    return {name: [each["name"] for each in told["replicas"]] for name, told in shown.machines.items()}


def test_tokens_a_second_are_those_of_the_last_seconds() -> None:
    speed = Speed()
    speed.heard(1, 10.0, 100)
    assert speed.per_s(10.0) is None
    speed.heard(1, 10.0, 100)
    assert speed.per_s(10.0) is None
    for second in range(1, 6):
        speed.heard(1, 10.0 + second, 100 + 40 * second)
    assert speed.per_s(15.0) == 40.0
    for second in range(6, 10):
        speed.heard(1, 10.0 + second, 300)
    assert speed.per_s(19.0) == 0.0
    assert speed.per_s(30.0) is None


def test_a_host_that_begins_anew_makes_no_negative_speed() -> None:
    speed = Speed()
    for at_s, incarnation, tokens in ((1.0, 1, 500), (2.0, 1, 540), (3.0, 2, 5), (4.0, 2, 25)):
        speed.heard(incarnation, at_s, tokens)
    assert speed.per_s(4.0) == 20.0
    speed.heard(2, 5.0, 3)
    assert speed.per_s(5.0) is None
