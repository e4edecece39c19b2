"""Machines that sleep, with real Ray, real packets on the wires and a stand-in for logind: three machines, two zones.

`tower` sleeps as a laptop does: logind says so, then nothing in it runs; a magic packet on its wire lets it go on.
`rack` loses its power; a command, which stands for a switchable plug, gives it back. The tests go on from one another.
"""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.kernel import run
from tests.cluster.lab import LabMachine, until
from tests.cluster.several import CLONE, HOMEPORT, Several, several, wait_for
from tests.cluster.wire import Packet, Wires, wires
from tests.fake_logind import CONFIG, is_missing

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(500),
    pytest.mark.skipif(is_missing(), reason="needs D-Bus's daemon: apt-get install dbus-daemon"),
]
NAMES = {"den-pc": "home", "rack": "office", "tower": "office"}
"""The head, alone in its zone; who is awake beside tower; who sleeps."""
READY_S = 120.0
COMMENTS_S = 6.0
"""A stream is told that it waits after 5 s."""
PLUG = "plug-of-rack"
STREAM = """
import http.client, json, sys, time
session, words = sys.argv[1:]
body = {"model": "smollm2", "stream": True, "temperature": 0, "max_tokens": 8,
    "messages": [{"role": "user", "content": words}]}
connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=150)
connection.request("POST", "/v1/chat/completions", json.dumps(body),
    {"content-type": "application/json", "x-session-id": session})
answer, comments, text, last = connection.getresponse(), [], "", {}
for line in answer:
    line = line.decode().strip()
    if line.startswith(": "):
        comments.append(line[2:])
    elif line == "data: [DONE]":
        last["done"] = True
    elif line.startswith("data: "):
        event = json.loads(line[6:])
        text += "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))
        last.update(event.get("homeport") or {}, **({"error": event["error"]} if "error" in event else {}))
print(json.dumps({"status": answer.status, "comments": comments, "text": text, **last}))
"""
LOGIND = f"""
mkdir -p /run/dbus
printf '%s' '{CONFIG.format(socket="/run/dbus/system_bus_socket")}' > /run/dbus/bus.conf
dbus-daemon --config-file=/run/dbus/bus.conf --fork
mkfifo /run/orders
cd {CLONE}
(cat <> /run/orders | .venv/bin/python -m tests.fake_logind) > /run/told 2>&1 < /dev/null &
"""


@dataclass
class Sleepers:
    """A cluster that is up, with a session on each machine, and who listens on its wires."""

    several: Several
    wires: Wires
    sessions: dict[str, str]
    """By machine."""

    def machine(self, name: str) -> LabMachine:
        return self.several.lab.machines[name]

    def state(self, name: str) -> str:
        return str(self.several.fleet().get(name, {}).get("state"))

    def becomes(self, name: str, state: str, seconds: float) -> float:
        return wait_for(lambda: self.state(name) == state, f"{name} is {state}", seconds, self.several.logs)

    def sleeps(self) -> None:
        """logind says to tower that it sleeps; once nobody puts it off, nothing in it runs."""
        tower = self.machine("tower")
        began = time.monotonic()
        tower.ssh("echo sleep > /run/orders")
        until(lambda: held(tower) == [], "nobody puts the sleep of tower off")
        print(f"  tower sleeps {time.monotonic() - began:.1f} s after logind said so")
        tower.freeze()

    def wakes(self) -> None:
        tower = self.machine("tower")
        tower.freeze(frozen=False)
        tower.ssh("echo wake > /run/orders")

    def ask(self, session: str, words: str) -> dict[str, Any]:
        """One streamed turn, to its end."""
        command = f"{CLONE}/.venv/bin/python stream.py {session} '{words}'"
        answer: dict[str, Any] = json.loads(self.several.head.ssh(command, timeout=180).stdout)
        return answer


class Turn(threading.Thread):
    """A streamed turn that goes on meanwhile."""

    def __init__(self, sleepers: Sleepers, session: str, words: str) -> None:
        super().__init__(daemon=True)
        self.answer: dict[str, Any] = {}
        self._sleepers, self._session, self._words = sleepers, session, words
        self.start()

    def run(self) -> None:
        self.answer = self._sleepers.ask(self._session, self._words)


def told(machine: LabMachine) -> list[str]:
    """What the stand-in for logind there told."""
    return machine.ssh("cat /run/told").stdout.split()


def held(machine: LabMachine) -> list[str]:
    """Which locks its logind has given out and not got back."""
    found: list[str] = []
    for word in told(machine):
        if word.startswith("+"):
            found.append(word[1:])
        elif word.startswith("-"):
            found.remove(word[1:])
    return found


def mac_of(machine: LabMachine) -> str:
    return machine.ssh("cat /sys/class/net/eth0/address").stdout.strip()


@pytest.fixture(scope="module")
def sleepers(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sleepers]:
    with several(tmp_path_factory.mktemp("wake") / "lab", prepared, NAMES) as made:
        for machine in made.members:
            run("rm", "-rf", str(machine.home / "homeport"))
            run("cp", "-al", str(prepared), str(machine.home / "homeport"))
            machine.boot()
        tower = made.workers[1]
        tower.ssh(LOGIND)
        until(lambda: told(tower) == ["ready"], "a stand-in for logind on tower")
        wakes = {
            "rack": f"{{command: [touch, /home/person/{PLUG}]}}",
            "tower": f'{{mac: "{mac_of(tower)}"}}',
        }
        text = made.config.read_text().replace("queue: 60s", "queue: 120s")
        text = text.replace("  private: true", "  private: true\n  lost_after: 10s")
        for name, wake in wakes.items():
            text = text.replace(f"name: {name},", f"name: {name}, wake: {wake},")
        text += "  - {name: shed, zone: home}\n"
        (made.head.home / "homeport.yaml").write_text(text)
        (made.head.home / "stream.py").write_text(STREAM)
        up = made.head.ssh(f"{HOMEPORT} up --detach --config homeport.yaml", check=False, timeout=200)
        assert up.returncode == 0, up.stdout + up.stderr + made.logs()
        for worker in made.workers:
            token = made.head.ssh(f"{HOMEPORT} join-token").stdout.strip()
            join(made, worker, f"--token {token}")
        wait_for(lambda: made.ready() == set(NAMES), "every machine ready", READY_S, made.logs)
        answers = made.ask(*((f"wake-{number}", "Name a river.") for number in range(len(NAMES))))
        assert [answer.status for answer in answers] == [200] * len(NAMES), answers
        homes = {answer.machine: f"wake-{number}" for number, answer in enumerate(answers)}
        assert set(homes) == set(NAMES)
        with wires(f"{made.lab.prefix}-net", ["br1", "br2"]) as heard:
            yield Sleepers(made, heard, homes)


def join(made: Several, worker: LabMachine, words: str = "") -> None:
    """As the unit of `homeport service install` does at boot, once a token is used."""
    done = worker.ssh(f"{HOMEPORT} join {made.head.address} {words}", check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr + made.logs()


def test_the_next_turn_of_a_session_whose_home_sleeps_wakes_it_and_waits_with_comments(
    sleepers: Sleepers,
) -> None:
    tower = sleepers.machine("tower")
    mac = mac_of(tower)
    heard = threading.Event()
    sleepers.wires.on_packet = lambda packet: heard.set() if packet.mac == mac else None
    until(lambda: held(tower) == ["sleep/delay"], "tower puts its sleep off")
    parked = tower.home / ".local" / "state" / "homeport" / "replicas" / "0" / "parked"
    sleepers.sleeps()
    assert list(parked.iterdir()), "its session is on disk"
    print(f"  the head says so {sleepers.becomes('tower', 'asleep', 10.0):.1f} s later")
    began = time.monotonic()
    turn = Turn(sleepers, sleepers.sessions["tower"], "And another one?")
    assert heard.wait(30.0), sleepers.several.logs()
    print(f"  packet {time.monotonic() - began:.1f} s after the turn came")
    time.sleep(COMMENTS_S)
    assert turn.is_alive(), turn.answer
    woken = time.monotonic()
    sleepers.wakes()
    turn.join(60.0)
    print(f"  answered {time.monotonic() - woken:.1f} s after it was awake")
    answer = turn.answer
    assert (answer["status"], answer.get("done"), answer["machine"]) == (200, True, "tower"), answer
    assert answer["pin"] == "kept"
    assert answer["text"]
    assert answer["comments"][0].startswith("waiting for tower/0, ")
    packets = sleepers.wires.of(mac)
    assert {packet.bridge for packet in packets} == {"br2"}, "on its own wire alone"
    assert {(packet.to, packet.size) for packet in packets} == {(broadcast(tower), 102)}
    assert {packet.source for packet in packets} == {sleepers.machine("rack").address}
    orders = 1 + int((time.monotonic() - began) / 30.0)
    assert len(packets) in range(3, 3 * orders + 1), "one order in 30 s, each three packets"
    sleepers.becomes("tower", "ready", 20.0)


def test_a_person_wakes_it_and_sees_it_come(sleepers: Sleepers) -> None:
    tower, head = sleepers.machine("tower"), sleepers.several.head
    mac = mac_of(tower)
    until(lambda: held(tower) == ["sleep/delay"], "tower puts its sleep off again")
    before = len(sleepers.wires.packets)
    sleepers.sleeps()
    sleepers.becomes("tower", "asleep", 10.0)
    status = head.ssh(f"{HOMEPORT} status").stdout
    assert "asleep, last heard" in status
    assert "woken by its next turn" in status

    def wake(packet: Packet) -> None:
        if packet.mac == mac and not waking.is_set():
            waking.set()
            threading.Thread(target=sleepers.wakes, daemon=True).start()

    waking = threading.Event()
    sleepers.wires.on_packet = wake
    done = head.ssh(f"{HOMEPORT} wake tower", check=False)
    assert done.returncode == 0, done.stdout + done.stderr + sleepers.several.logs()
    assert "tower: its magic packet is out, sent by rack." in done.stdout
    assert "tower is awake, after" in done.stdout
    print(f"  {done.stdout.splitlines()[-1]}")
    assert {packet.bridge for packet in sleepers.wires.packets[before:]} == {"br2"}
    sleepers.wires.on_packet = lambda _: None


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("shack", 1, "There is no machine shack; known: den-pc, rack, shed, tower."),
        ("shed", 1, "The config does not say how shed is woken."),
        ("rack", 0, "rack is awake."),
    ],
)
def test_what_homeport_wake_says_of_others(sleepers: Sleepers, name: str, code: int, says: str) -> None:
    done = sleepers.several.head.ssh(f"{HOMEPORT} wake {name}", check=False)
    assert (done.returncode, says in done.stdout + done.stderr) == (code, True), done


def test_a_command_gives_a_machine_its_power_back_and_its_session_is_answered(sleepers: Sleepers) -> None:
    rack, head = sleepers.machine("rack"), sleepers.several.head
    assert not (head.home / PLUG).exists()
    rack.kill()
    print(f"  lost after {sleepers.becomes('rack', 'lost', 30.0):.0f} s")
    began = time.monotonic()
    turn = Turn(sleepers, sleepers.sessions["rack"], "And another one?")
    until((head.home / PLUG).exists, "the command ran")
    print(f"  command {time.monotonic() - began:.1f} s after the turn came")
    rack.boot()
    join(sleepers.several, rack)
    turn.join(120.0)
    print(f"  answered {time.monotonic() - began:.0f} s after the turn came")
    answer = turn.answer
    assert (answer.get("status"), answer.get("done")) == (200, True), (answer, sleepers.several.logs())
    assert (answer["machine"], answer["pin"]) == ("rack", "kept")
    assert answer["comments"][0].startswith("waiting for rack/0, ")


def test_down_leaves_nothing(sleepers: Sleepers) -> None:
    # Each in this machine alone; the brackets keep a pattern from naming its own shell.
    sleepers.machine("tower").ssh("pkill -f [t]ests.fake_logind; pkill cat; pkill dbus-daemon", check=False)
    for machine in (*sleepers.several.workers, sleepers.several.head):
        machine.ssh(f"{HOMEPORT} down")
        until(lambda machine=machine: not machine.commands(), f"the end of all on {machine.name}")  # type: ignore[misc]


def broadcast(machine: LabMachine) -> str:
    return f"{machine.address.rpartition('.')[0]}.255"
