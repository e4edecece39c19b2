"""`homeport drain`: what is said while a machine is emptied, and with which exit code it ends."""

from collections.abc import Iterator
from typing import Any

import pytest

from router import moves_words
from router.command_line import FAILED
from router.drain_commands import SILENT_S, follow, seconds
from router.live import standing_text

NO_MORE = "drained; its hosts can be stopped"


def machine(left: int | None, moved: int = 0, is_over: bool = False, **more: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"deadline_s": 900.0, "is_over": is_over, "moved": moved, "left": left}
    told |= {"anew": {}, "stay": {}, "waits": ""} | more
    return {"name": "den", "state": "draining", "draining": told}


def followed(*seen: dict[str, Any] | None) -> tuple[int, list[str]]:
    """Until it ends by itself: what the router tells at each look; None: nothing."""
    looks: Iterator[Any] = iter(seen)
    said: list[str] = []
    now = [0.0]

    def sleep(seconds_: float) -> None:
        now[0] += max(seconds_, SILENT_S / 2)

    def fleet() -> dict[str, Any] | None:
        told = next(looks)
        return None if told is None else {"machines": [told]}

    return follow(fleet, "den", said.append, sleep, lambda: now[0]), said


def test_each_change_is_said_once_and_the_end_says_what_to_do_next() -> None:
    code, said = followed(
        machine(None),
        machine(40),
        machine(28, 12, anew={"the engine's build differs": 3}),
        machine(28, 12, anew={"the engine's build differs": 3}),
        machine(0, 40, anew={"the engine's build differs": 3}),
    )
    assert code == 0
    assert said == [
        "den: looks which sessions it has",
        "den: moved 0 of 40 sessions",
        "den: moved 12 of 40 sessions, 3 evaluated anew: the engine's build differs",
        f"den: moved 40 of 40 sessions, 3 evaluated anew: the engine's build differs; {NO_MORE}",
        f"den is {NO_MORE}: `homeport down` there. It takes no new sessions until `homeport uncordon den`.",
    ]


def test_those_that_nobody_takes_are_waited_for_until_the_deadline_and_then_named() -> None:
    stay = {"their key names the machine": 2}
    early = machine(2, 5, stay=stay)
    code, said = followed(early, early, machine(2, 5, True, stay=stay))
    assert code == FAILED
    assert said[0] == "den: moved 5 of 7 sessions; 2 stay: their key names the machine"
    assert "`homeport uncordon den`" in said[1]


def test_one_whose_host_does_not_serve_is_waited_for_beyond_the_deadline() -> None:
    silent = {"den/0 does not serve": 2}
    code, said = followed(machine(2, 5, True, silent=silent), machine(0, 7, True))
    assert code == 0
    assert said[0] == "den: moved 5 of 7 sessions; 2 wait: den/0 does not serve"


def test_one_that_stays_is_said_as_one() -> None:
    stay = {"no machine in zone office takes them": 1}
    words = moves_words.drained(machine(1, 0, stay=stay))
    assert words == "moved 0 of 1 session; 1 stays: no machine in zone office takes them"


def test_a_machine_that_is_away_is_not_called_empty() -> None:
    code, said = followed(machine(0, 3, waits="it is away"), machine(0, 3))
    assert (code, said[0]) == (0, "den: waits: it is away")


def test_a_router_that_dies_is_waited_for_and_then_given_up() -> None:
    assert followed(machine(1), None, machine(0, 1))[0] == 0
    code, said = followed(machine(1), None, None, None, None)
    assert code == FAILED
    assert "goes on without it" in said[-1]


def test_an_uncordon_elsewhere_ends_it() -> None:
    code, said = followed(machine(1), {"name": "den", "state": "ready", "draining": None})
    assert (code, said[-1]) == (FAILED, "The drain of den was ended by `homeport uncordon`.")


def test_status_says_how_far_it_is() -> None:
    assert standing_text(machine(1, 2)) == "draining: moved 2 of 3 sessions"
    lost = {**machine(1, 2), "state": "lost", "away_s": 5.0, "cordoned": True}
    assert standing_text(lost) == "lost, last heard 5 s ago, draining"


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0.0), ("10m", 600.0), ("90s", 90.0), ("1.5h", 5400.0), ("ten", None), ("10", None), ("-1m", None)],
)
def test_deadlines(text: str, value: float | None) -> None:
    assert seconds(text) == value
