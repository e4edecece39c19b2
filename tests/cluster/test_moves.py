"""Sessions that move with their contexts between machines, with real Ray: one by name, and all of a drained machine.

On the shared cluster: two machines in one zone, two in another. The tests go on from one another, and print what they
measured (`-s`).
"""

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.cluster.conftest import SHARED
from tests.cluster.lab import PERSON
from tests.cluster.several import CLONE, HOMEPORT, Several, wait_for
from tests.cluster.test_loss import kill
from tests.cluster.traffic import Traffic, Turn, traffic

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(700)]
READY_S = 180.0
LONG_S = 400.0
"""For 4,000 tokens that are evaluated on a core that others use too."""
MAY_SAY = {"host_stopping", "cut", "ConnectionRefusedError", "ConnectionResetError", "RemoteDisconnected"}
"""What a client is told at the deadline, or by a router that is killed; it asks again."""
OPENING = "Tell me of a harbour and the ships that come home to it. " * 285
LONG = """
import json, sys, urllib.request
messages = json.load(sys.stdin)
body = {"model": "smollm2", "temperature": 0, "max_tokens": 8, "messages": messages}
request = urllib.request.Request("http://127.0.0.1:8000/v1/chat/completions", json.dumps(body).encode(),
    {"content-type": "application/json", "x-session-id": "long"})
with urllib.request.urlopen(request, timeout=380) as answer:
    print(json.dumps([dict(answer.headers), json.load(answer)]))
"""


@dataclass
class Moves:
    several: Several

    def homeport(self, *words: str, timeout: float = 120.0) -> tuple[int, str]:
        """A command on the head: its exit code, and what it said."""
        done = self.several.head.ssh(f"{HOMEPORT} {' '.join(words)}", check=False, timeout=timeout)
        return done.returncode, done.stdout + done.stderr

    def say(self, messages: Sequence[dict[str, str]]) -> tuple[str, dict[str, str], dict[str, Any]]:
        """A turn of the long session: its text, its headers, and what it says of homeport."""
        lab, head = self.several.lab, self.several.head
        done = subprocess.run(
            [*lab.ssh, f"{PERSON}@{head.address}", f"{CLONE}/.venv/bin/python long.py"],
            input=json.dumps(messages),
            capture_output=True,
            text=True,
            timeout=LONG_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr + self.several.logs()
        headers, body = json.loads(done.stdout)
        text = str(body["choices"][0]["message"]["content"])
        return text, {name.lower(): value for name, value in headers.items()}, body["homeport"]

    def draining(self, name: str) -> dict[str, Any]:
        return self.several.fleet().get(name, {}).get("draining") or {}


@pytest.fixture
def moves(shared: Several) -> Moves:
    (shared.head.home / "long.py").write_text(LONG)
    return Moves(shared)


def test_a_session_of_4000_tokens_moves_and_only_what_is_new_is_evaluated(moves: Moves) -> None:
    for name in (name for name, zone in SHARED.items() if zone != "home"):
        assert moves.homeport("cordon", name)[0] == 0
    asked = [{"role": "user", "content": OPENING}]
    began = time.monotonic()
    text, headers, told = moves.say(asked)
    print(f"  {told['evaluated_tokens']} tokens evaluated in {time.monotonic() - began:.1f} s")
    assert told["evaluated_tokens"] > 4000
    asked += [{"role": "assistant", "content": text}, {"role": "user", "content": "Which came first?"}]
    moves.say(asked)
    stayed, _, there = moves.say(asked)  # once more, so that as little is evaluated as after the move
    assert (there["context"], there["evaluated_tokens"]) == ("resident", 1)
    old, session = headers["x-homeport-machine"], headers["x-homeport-session"]
    new = next(name for name, zone in SHARED.items() if zone == "home" and name != old)
    code, said = moves.homeport("move", session, "rack")
    assert (code, "belongs to the zone home" in said) == (1, True), said
    code, said = moves.homeport("move", session, new)
    print(f"  {said.strip()}")
    assert code == 0, said
    assert "its context went along" in said
    # The same question again: what followed from it at the old home must follow here.
    moved, headers, told = moves.say(asked)
    assert (headers["x-homeport-machine"], headers["x-homeport-pin"]) == (new, "moved")
    assert (told["context"], moved) == ("resumed", stayed)
    assert told["evaluated_tokens"] == 1
    asked += [{"role": "assistant", "content": moved}, {"role": "user", "content": "And then?"}]
    _, headers, told = moves.say(asked)
    assert (headers["x-homeport-pin"], told["context"], told["cause"]) == ("kept", "resident", None)
    print(f"  then {told['evaluated_tokens']} new tokens evaluated, {told['reused_tokens']} were there")
    assert moves.homeport("end", session)[0] == 0


@pytest.fixture(scope="module")
def flowing(brought_up: Several) -> Iterator[Traffic]:
    """One session a machine, each with turns without end."""
    brought_up.becomes_whole()
    names = [f"moves-{number}" for number in range(len(SHARED))]
    with traffic(brought_up.head.namespace, names) as made:
        wait_for(
            lambda: all(len(made.whole(name, 0.0)) > 1 for name in names),
            "turns of each session",
            READY_S,
            brought_up.logs,
        )
        homes = {name: made.whole(name, 0.0)[0].machine for name in names}
        assert sorted(homes.values()) == sorted(SHARED), homes
        yield made
    for name in names:
        brought_up.head.ssh(f"{HOMEPORT} end {name}", check=False)


def lives(flowing: Traffic, machine: str) -> str:
    """The session whose last whole turn was there."""
    last = {turn.session: turn.machine for turn in list(flowing.turns) if turn.error is None}
    return next(session for session, at in last.items() if at == machine)


def whole(flowing: Traffic, session: str, since: float, moves: Moves) -> Turn:
    wait_for(lambda: bool(flowing.whole(session, since)), f"an answer of {session}", 60.0, moves.several.logs)
    return flowing.whole(session, since)[0]


def test_a_machine_is_drained_while_turns_go_on_and_the_router_dies(moves: Moves, flowing: Traffic) -> None:
    session, head = lives(flowing, "tower"), moves.several.head
    rests = lives(flowing, "den-pc")  # the only other machine of the zone: two that talk do not share a place
    flowing.rest(rests)
    began, ended = time.time(), list[tuple[int, str]]()
    command = threading.Thread(
        target=lambda: ended.append(moves.homeport("drain", "tower", "--deadline", "8s", timeout=200))
    )
    command.start()
    wait_for(
        lambda: moves.draining("tower").get("left") == 1, "the drain has begun", 30.0, moves.several.logs
    )
    kill(head, "router.app")
    command.join(180)
    (code, said) = ended[0]
    print("  " + said.strip().replace("\n", "\n  "))
    assert code == 0, said + moves.several.logs()
    assert "drained; its hosts can be stopped" in said
    turn = whole(flowing, session, time.time(), moves)
    turns = flowing.whole(session, began)
    first = next(turn for turn in turns if turn.machine != "tower")
    print(
        f"  moved {first.began - began:.1f} s after the command, to {first.machine}: {first.pin}, {first.context}, "
        f"{first.reused} tokens were there; told meanwhile: "
        f"{dict(Counter(t.error for t in flowing.of(session, began) if t.error))}"
    )
    assert SHARED[first.machine] == SHARED[turn.machine] == "home"
    assert (first.pin, first.context) == ("moved", "resumed")
    assert first.began - began > 7.0, "served there until the deadline"
    by_session = {name: flowing.of(name, began) for name in {turn.session for turn in flowing.turns}}
    for name, of_it in by_session.items():
        assert {turn.error for turn in of_it if turn.error} <= MAY_SAY, of_it
        numbers = [turn.number for turn in of_it if turn.error is None]
        assert numbers or name == rests
        first_one = numbers[0] if numbers else 0
        assert numbers == list(range(first_one, first_one + len(numbers))), (
            f"{name}: a turn was lost or ran twice"
        )
    assert lives(flowing, "rack"), "nobody crossed the zone"
    assert moves.homeport("uncordon", "tower")[0] == 0


def test_the_last_machine_of_a_zone_keeps_its_sessions_and_says_why(moves: Moves, flowing: Traffic) -> None:
    session, began = lives(flowing, "rack"), time.time()
    assert moves.homeport("cordon", "attic")[0] == 0
    code, said = moves.homeport("drain", "rack", "--deadline", "0", timeout=200)
    print("  " + said.strip().replace("\n", "\n  "))
    assert code == 1
    assert "1 stays: no machine in zone office takes them" in said
    turn = whole(flowing, session, time.time(), moves)
    assert (turn.machine, turn.pin) == ("rack", "kept")
    assert {turn.machine for turn in flowing.whole(session, began)} == {"rack"}
