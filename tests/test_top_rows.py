"""What `homeport top` says of a fleet and its sessions."""

from typing import Any

from cluster.machine import CpuCore, Gpu, Hardware, Reserve
from router.top_rows import Act, Look, cells, picture, said, silent, tokens_per_s

ID = "hp_4c999fe24e7fc3a31c65df9a"


def replica(name: str, cores: list[int], **more: Any) -> dict[str, Any]:
    carved = {"cores": cores, "gpus": [], "memory_bytes": 2**30}
    told = {"name": name, "model": "smollm2", "state": "ready", "reach": "up", "slice": carved}
    return {**told, "incarnation": 1, "running": 0, "waiting": 0, "tokens_generated": 0, **more}


def machine(name: str, replicas: list[dict[str, Any]], cores: int = 4, **more: Any) -> dict[str, Any]:
    hardware = Hardware(tuple(CpuCore(n, (n,), "unknown", 0) for n in range(cores)), 2**34, ())
    told = {"name": name, "state": "ready", "zone": "home", "hardware": hardware.to_json()}
    return {**told, "reserve": Reserve(1, 0).to_json(), "replicas": replicas, **more}


def session(state: str = "resident", **more: Any) -> dict[str, Any]:
    told = {"id": ID, "model": "smollm2", "machine": "den", "replica": "den/0", "state": state}
    return {**told, "context_tokens": 57, "age_s": 4.0, "turns": 1, "line": None, **more}


def look(*machines: dict[str, Any], at_s: float = 0.0, sessions: tuple[Any, ...] = (), **more: Any) -> Look:
    return Look(at_s, {"machines": list(machines), "controller": {"reachable": True}, **more}, sessions)


def shown(*looks: Look) -> Any:
    return picture(looks, "http://x", lambda told: str(told["state"]), lambda seconds: f"{seconds:.0f} s")


def test_each_core_is_a_sign_and_none_needs_a_colour() -> None:
    told = machine("den", [replica("den/0", [0]), replica("den/1", [1], running=1)])
    assert cells(told) == "aB·-"


def test_a_replica_that_does_not_serve_is_marked_on_its_cores() -> None:
    failed, silent_ = replica("den/0", [0], state="failed"), replica("den/1", [1], reach="out")
    assert cells(machine("den", [failed, silent_])) == "!!·-"


def test_gpus_stand_behind_a_bar() -> None:
    gpus = (Gpu("GPU-1", "a card", 2**34), Gpu("GPU-2", "a card", 2**34))
    hardware = Hardware((CpuCore(0, (0,), "unknown", 0),), 2**34, gpus)
    held = replica("den/0", [0], running=1)
    held["slice"]["gpus"] = ["GPU-1"]
    assert cells(machine("den", [held], hardware=hardware.to_json(), reserve=None)) == "A | A·"


def test_many_cores_are_told_by_their_number() -> None:
    told = machine("den", [replica("den/0", list(range(40)))], cores=64)
    assert cells(told) == "a40 ·23 -1"


def test_a_machine_that_was_never_heard_has_no_cells() -> None:
    assert cells({"name": "den", "state": "unknown", "hardware": None, "replicas": []}) == "?"


def test_tokens_a_second_are_what_came_between_looks_of_one_process() -> None:
    def at(at_s: float, tokens: int, incarnation: int = 1) -> Look:
        told = replica("den/0", [0], tokens_generated=tokens, incarnation=incarnation)
        return look(machine("den", [told]), at_s=at_s)

    assert tokens_per_s([at(0.0, 100), at(1.0, 130), at(2.0, 160)]) == {"den/0": 30.0}
    assert tokens_per_s([at(0.0, 900), at(1.0, 0, 2), at(2.0, 20, 2)]) == {"den/0": 20.0}
    assert tokens_per_s([at(0.0, 100)]) == {}


def test_a_row_has_sign_and_word_models_speed_and_sessions() -> None:
    before = look(machine("den", [replica("den/0", [0], tokens_generated=0)]))
    now = look(
        machine("den", [replica("den/0", [0], tokens_generated=20, running=1, waiting=2)]),
        at_s=2.0,
        sessions=(session(), session("waiting", line={"position": 2, "waited_s": 3.0, "about_s": 5.0})),
    )
    made = shown(before, now)
    (row,) = made.machines
    assert (row.state, row.cells, row.models, row.tokens_per_s, row.sessions) == (
        "● ready",
        "A··-",
        "smollm2",
        "10.0",
        "2",
    )
    assert row.about == (
        "den: ready; zone home",
        "a den/0 smollm2 ready, core 0, 1 runs, 2 wait, 10.0 tokens/s",
    )
    assert made.head == "http://x   1 machine   2 sessions   10.0 tokens/s"
    assert [each.state for each in made.sessions] == ["resident", "waiting, place 2"]
    assert made.sessions[1].about[1] == (
        "57 tokens of context, 1 turns, 4 s old, waits at place 2 of the line for 3 s, about 5 s more"
    )


def test_a_lost_machine_says_so_and_what_becomes_of_its_sessions() -> None:
    lost = machine("den", [replica("den/0", [0])], state="lost")
    made = shown(look(lost, sessions=(session(),)))
    assert (made.machines[0].state, made.machines[0].cells) == ("✗ lost", "?")
    assert "when_lost" in made.machines[0].about[1]
    assert "1 machine, 1 lost" in made.head


def test_an_old_picture_is_called_one() -> None:
    assert "controller does not answer" in shown(look(controller={"reachable": False})).trouble
    assert shown(look()).trouble == ""
    assert "12 s ago" in silent("http://x", "refused", 12.0)
    assert "nothing is known yet" in silent("http://x", "refused", None)


def test_what_came_of_an_act_is_the_routers_word_where_it_says_more() -> None:
    act = Act("POST", "/x", None, "Sure?", "It is done.")
    moved = {"model": "m", "replica": "den/1", "context": "kept"}
    assert said(act, {"machine": "den"}) == "It is done."
    assert said(act, {"id": ID, "moved": [moved]}) == f"{ID} has its home at den/1 now."
