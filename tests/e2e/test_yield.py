"""A machine that its person wants, on a homeport that runs: by command, by the API, by a program."""

import json
import re
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import confine
from cluster.processes import ours
from tests.e2e.installation import Homeport, eventually
from tests.e2e.talk import Conversation

STORY = "Tell me of a harbour and the ships that come home to it. " * 10
FREE_S = 5.0


@pytest.fixture
def program(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One whose name is made-up-game, from now on."""
    path = tmp_path / "made-up-game"
    path.write_bytes(Path("/bin/sleep").read_bytes())
    path.chmod(0o755)
    with subprocess.Popen([str(path), "600"]) as process:
        yield process
        process.kill()


def machine(homeport: Homeport) -> dict[str, Any]:
    (found,) = homeport.get("/api/fleet")["machines"]
    assert isinstance(found, dict)
    return found


def serves(homeport: Homeport) -> bool:
    told = machine(homeport)
    replicas = [(each["state"], each["reach"]) for each in told["replicas"]]
    return told["state"] == "ready" and set(replicas) == {("ready", "up")}


def yield_machine(homeport: Homeport, body: dict[str, Any]) -> dict[str, Any]:
    url = f"{homeport.url}/api/machines/{machine(homeport)['name']}/yield"
    request = urllib.request.Request(  # noqa: S310 - our own http address
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        told: dict[str, Any] = json.load(answer)
        return told


def test_the_person_of_a_machine_comes_first(fresh: Homeport, program: subprocess.Popen[bytes]) -> None:
    fresh.count, fresh.hold = "1", "15s"
    fresh.configure("sessions: 2")
    fresh.up()
    limits = machine(fresh)["limits"]
    assert limits["enforced"]
    assert {*limits["enforced"], *limits["watched"]} == {"cores", "gpus", "memory", "network", "threads"}
    tea = Conversation(fresh.url, "tea")
    home = tea.say(STORY).headers["x-homeport-replica"]
    by_command(fresh, tea, home)
    outlives_homeport(fresh)
    assert yield_machine(fresh, {"end": True})["yielded"] is None
    eventually(lambda: serves(fresh), 30)
    is_resumed(tea, "Which of them came first?", home)
    for_some_seconds(fresh)
    by_a_program(fresh, program)
    is_resumed(tea, "And what did it bring?", home)
    assert machine(fresh)["yielded"] is None


def by_command(fresh: Homeport, tea: Conversation, home: str) -> None:
    """On the machine itself, with a turn running."""
    events: list[str] = []
    turn = threading.Thread(target=endless, args=(fresh, events))
    turn.start()
    eventually(lambda: len(events) > 5)
    done = fresh.run("yield", "--for", "10m")
    assert done.returncode == 0, done.stdout + done.stderr
    freed = re.search(r"1 replica has ended, memory free after (\d+\.\d) s", done.stdout)
    assert freed is not None, done.stdout
    print(f"yield: memory free {freed[1]} s after the order")
    assert float(freed[1]) <= FREE_S
    assert not ours(fresh.paths, "host")
    assert not confine.records(fresh.paths.locks, fresh.paths.run_id)
    turn.join(20)
    assert "[DONE]" not in events
    assert json.loads(events[-1])["error"]["code"] == "host_stopping"
    eventually(lambda: machine(fresh)["state"] == "yielded")
    assert "yielded to its person until" in fresh.run("status").stdout
    status, headers, body = fresh.post_whole({"messages": tea.history}, {"x-session-id": "tea"})
    assert (status, body["error"]["code"]) == (503, "machine_yielded")
    assert 500 < int(headers["retry-after"]) <= 600
    assert headers["x-homeport-replica"] == home


def endless(fresh: Homeport, events: list[str]) -> None:
    """Puts there the events of a stream that has no way to end by itself: both of the model's last tokens are out."""
    asked = [{"role": "user", "content": STORY}]
    body = {"model": "smollm2", "stream": True, "max_tokens": 1700, "messages": asked}
    request = urllib.request.Request(  # noqa: S310 - our own http address
        f"{fresh.url}/v1/chat/completions",
        json.dumps({**body, "logit_bias": {"0": -100, "2": -100}}).encode(),
        {"content-type": "application/json", "x-session-id": "long"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        events.extend(line[6:].decode().strip() for line in answer if line.startswith(b"data: "))


def outlives_homeport(fresh: Homeport) -> None:
    assert fresh.run("down").returncode == 0
    fresh.up()
    assert machine(fresh)["state"] == "yielded"
    assert not ours(fresh.paths, "host")
    assert "nothing is to be changed" in fresh.run("apply", "--config", str(fresh.config)).stdout


def for_some_seconds(fresh: Homeport) -> None:
    """By the API; after that it serves by itself."""
    began = time.monotonic()
    assert yield_machine(fresh, {"for_s": 4})["yielded"]["by"] == "person"
    eventually(lambda: not ours(fresh.paths, "host"), FREE_S)
    eventually(lambda: serves(fresh), 30)
    assert time.monotonic() - began >= 4.0


def by_a_program(fresh: Homeport, program: subprocess.Popen[bytes]) -> None:
    """That runs already when the config names it."""
    name = machine(fresh)["name"]
    with fresh.config.open("a") as config:
        config.write(f"machines:\n  - {{name: {name}, yield_to: [made-up-game]}}\n")
    applied = fresh.run("apply", "--yes", "--config", str(fresh.config))
    assert applied.returncode == 0, applied.stdout + applied.stderr
    began = time.monotonic()
    eventually(lambda: not ours(fresh.paths, "host"))
    print(f"yield_to: hosts gone {time.monotonic() - began:.1f} s after the config said so")
    eventually(lambda: machine(fresh)["state"] == "yielded")
    assert "yielded to made-up-game" in fresh.run("status").stdout
    program.kill()
    program.wait()
    eventually(lambda: serves(fresh), 40)


def is_resumed(tea: Conversation, words: str, home: str) -> None:
    answer = tea.say(words)
    assert (answer.headers["x-homeport-pin"], answer.headers["x-homeport-replica"]) == ("kept", home)
    told = answer.homeport
    assert told["context"] == "resumed"
    assert told["evaluated_tokens"] < 60 < told["reused_tokens"], told
