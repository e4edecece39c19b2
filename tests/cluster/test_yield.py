"""Machines that their persons want, with real Ray and turns going on: two machines, one session on each.

The tests go on from one another. Each prints what it measured (`-s`).
"""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.lab import HOME, LabMachine, until
from tests.cluster.several import HOMEPORT, Several, processes, several, wait_for
from tests.cluster.traffic import Traffic, Turn, traffic

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(500)]
NAMES = {"den-pc": "home", "tower": "home"}
PROGRAM = "made-up-game"
READY_S = 90.0
FREE_S = 5.0
BACK_S = 15.0
"""A session answers again so soon after the machine is homeport's."""
LOOK_S = 0.2
MAY_SAY = {"host_stopping", "host_lost", "machine_unavailable", "machine_yielded"}
"""What a session is told whose machine is its person's."""


@dataclass
class Yield:
    """A cluster that is up, and its traffic. `homes`: the replica of each machine's session."""

    several: Several
    traffic: Traffic
    sessions: dict[str, str]
    homes: dict[str, str]

    @property
    def tower(self) -> LabMachine:
        return self.several.workers[0]

    def hosts(self) -> list[int]:
        return processes(self.tower, "serving.host")

    def is_free(self, since: float) -> float:
        """Until no replica's process is on the tower; seconds from `since`."""
        until(lambda: not self.hosts(), "tower is free", FREE_S + 3.0)
        return time.time() - since

    def is_told(self, since: float, code: str = "machine_yielded") -> None:
        """Until its session is told so."""

        def told() -> bool:
            turns = self.traffic.of(self.sessions["tower"], since)
            return any(turn.error == code for turn in turns)

        wait_for(told, f"a turn that is told {code}", 20.0, self.last)

    def answers(self, since: float) -> Turn:
        """The first whole turn of the tower's session that began after `since`."""

        def found() -> list[Turn]:
            return self.traffic.whole(self.sessions["tower"], since)

        wait_for(lambda: bool(found()), "an answer of tower", BACK_S + 10.0, self.last)
        return found()[0]

    def is_unharmed(self, since: float) -> int:
        """No turn of the other machine's session failed or moved. How many there were."""
        turns = self.traffic.of(self.sessions["den-pc"], since)
        assert turns
        bad = [
            turn for turn in turns if turn.error or (turn.replica, turn.pin) != (self.homes["den-pc"], "kept")
        ]
        assert not bad, bad
        return len(turns)

    def nobody_moved(self) -> None:
        for name, session in self.sessions.items():
            turns = self.traffic.whole(session, 0.0)
            assert {turn.replica for turn in turns} == {self.homes[name]}
            assert [turn.pin for turn in turns] == ["new"] + ["kept"] * (len(turns) - 1)
        told = {turn.error for turn in self.traffic.of(self.sessions["tower"], 0.0)} - {None}
        assert told <= MAY_SAY, told

    def last(self) -> str:
        return "\n".join(map(str, self.traffic.turns[-15:])) + self.several.logs()


@pytest.fixture(scope="module")
def made(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yield]:
    with several(tmp_path_factory.mktemp("yield") / "lab", prepared, NAMES) as cluster:
        text = cluster.config.read_text()
        zone = f"address: {cluster.workers[0].address}, zone: home"
        assert text.count(zone) == 1
        cluster.config.write_text(text.replace(zone, f"{zone}, yield_to: [{PROGRAM}]"))
        for machine in cluster.members:
            machine.boot()
        up = cluster.ray("up")
        assert up.returncode == 0, up.stdout
        wait_for(lambda: cluster.ready() == set(NAMES), "both machines ready", READY_S, cluster.logs)
        sessions = ["yield-0", "yield-1"]
        with traffic(cluster.head.namespace, sessions) as flowing:
            wait_for(
                lambda: all(flowing.whole(session, 0.0) for session in sessions),
                "a first turn of each session",
                READY_S,
                cluster.logs,
            )
            first = {session: flowing.whole(session, 0.0)[0] for session in sessions}
            assert sorted(turn.machine for turn in first.values()) == sorted(NAMES)
            yield Yield(
                cluster,
                flowing,
                {turn.machine: session for session, turn in first.items()},
                {turn.machine: turn.replica for turn in first.values()},
            )


def test_by_command_on_the_head_a_machine_is_free_and_comes_back_with_its_sessions(made: Yield) -> None:
    began = time.time()
    held = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in made.hosts()) * 4096
    assert held > 0
    given = made.several.head.ssh(f"{HOMEPORT} yield tower --for 1h")
    freed = re.search(r"1 replica has ended, memory free after (\d+\.\d) s", given.stdout)
    assert freed is not None, given.stdout
    assert float(freed[1]) <= FREE_S
    assert not made.hosts()
    made.is_told(began)
    assert "yielded to its person until" in made.several.head.ssh(f"{HOMEPORT} status").stdout
    assert processes(made.tower, "raylet/raylet", "ray::Keeper"), "Ray and the keeper stay"
    ended = time.time()
    assert "its replicas start now" in made.several.head.ssh(f"{HOMEPORT} yield tower --end").stdout
    turn = made.answers(ended)
    back_s = turn.ended - ended
    others = made.is_unharmed(began)
    print(
        f"  by command: {held / 2**20:.0f} MiB free {freed[1]} s after the order; {others} turns of the other machine, "
        f"none failed; answered {back_s:.1f} s after the end, {turn.context}"
    )
    assert back_s <= BACK_S
    assert turn.context == "resumed", turn
    made.nobody_moved()


def test_a_program_of_its_person_has_the_machine_while_it_runs(made: Yield) -> None:
    made.answers(time.time() - 1.0)
    before = made.hosts()
    began = time.time()
    made.tower.ssh(f"cp /bin/sleep {PROGRAM} && (setsid {HOME}/{PROGRAM} 600 >/dev/null 2>&1 </dev/null &)")
    until(lambda: processes(made.tower, PROGRAM), "its program")
    free_s = made.is_free(began)
    made.is_told(began)
    assert f"yielded to {PROGRAM}" in made.several.head.ssh(f"{HOMEPORT} status").stdout
    ended = time.time()
    made.tower.ssh(f"kill {' '.join(map(str, inner(made.tower, PROGRAM)))}")
    turn = made.answers(ended)
    others = made.is_unharmed(began)
    print(
        f"  by a program: free {free_s:.1f} s after it began; {others} turns of the other machine, none failed; "
        f"answered {turn.ended - ended:.1f} s after its end, {turn.context}"
    )
    assert free_s <= 2.0 + FREE_S
    assert turn.context == "resumed"
    assert made.hosts() != before
    made.nobody_moved()


def test_its_person_needs_no_head(made: Yield) -> None:
    made.answers(time.time() - 1.0)
    made.nobody_moved()
    assert made.several.head.ssh(f"{HOMEPORT} down").returncode == 0
    assert made.hosts(), "the others go on"
    began = time.time()
    given = made.tower.ssh(f"{HOMEPORT} yield")
    assert "1 replica has ended, memory free after" in given.stdout
    free_s = made.is_free(began)
    print(f"  without a head: free {free_s:.1f} s after the command began")
    assert free_s <= FREE_S
    time.sleep(3.0)  # a keeper would have started it again
    assert not made.hosts()


def inner(machine: LabMachine, word: str) -> list[int]:
    """The pids that processes have on the machine itself."""
    told = machine.ssh("ps -eo pid=,comm=").stdout
    return [int(line.split()[0]) for line in told.splitlines() if line.split()[1:] == [word]]
