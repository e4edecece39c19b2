"""Machines that fall silent, die and return, with real Ray and turns going on: three machines, one session on each.

The tests go on from one another. `make test-cluster` has the short ones; `make test-loss` all, some of which take
minutes. Each prints what it measured (`-s`).
"""

import itertools
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.kernel import run
from tests.cluster.lab import LabMachine, until
from tests.cluster.several import HOMEPORT, Several, processes, several, wait_for
from tests.cluster.traffic import Traffic, Turn, traffic

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(700)]
NAMES = {"den-pc": "home", "tower": "home", "rack": "office"}
"""The head; one of Ray's list; one that joined by hand."""
SEEN_S = 5.0
"""By then the router sends no new work to a machine that has fallen silent."""
LOOK_S = 0.5
"""How late what the router says is read here."""
ANSWERS_S = 15.0
"""A session answers again so soon after its host serves."""
READY_S = 120.0
MAY_SAY = frozenset({"machine_unavailable", "machine_lost", "host_lost"})
ROUTER_ENDS = MAY_SAY | {
    "router_stopping",
    "cut",
    "ConnectionRefusedError",
    "ConnectionResetError",
    "IncompleteRead",
    "RemoteDisconnected",
}
"""What a session may be told while a router ends and the next one begins."""
"""What a session is told while its machine is away. Who has no router is told nothing."""
LONG = pytest.mark.skipif(
    "HOMEPORT_TEST_LOSS" not in os.environ, reason="takes minutes: `make test-loss` runs it too"
)


@dataclass
class Loss:
    """A cluster that is up, and its traffic. `homes`: the replica of each machine's session."""

    several: Several
    traffic: Traffic
    sessions: dict[str, str]
    homes: dict[str, str]

    @property
    def head(self) -> LabMachine:
        return self.several.head

    def machine(self, name: str) -> LabMachine:
        return self.several.lab.machines[name]

    def hosts(self) -> dict[str, list[int]]:
        return {machine.name: processes(machine, "serving.host") for machine in self.several.members}

    def is_whole(self) -> bool:
        """Everything that belongs on a machine is there, and the router sends turns to all of them."""
        return (
            all(
                len(processes(machine, "raylet/raylet", "ray::Keeper", "serving.host")) == 3
                for machine in self.several.members
            )
            and len(processes(self.head, "ray::Controller", "router.app")) == 2
            and self.traffic.sight() == dict.fromkeys(NAMES, "up")
        )

    def becomes_whole(self, seconds: float = READY_S) -> float:
        return wait_for(self.is_whole, "every machine is whole", seconds, self.told)

    def is_unharmed(self, since: float, *names: str) -> None:
        """No turn of these machines' sessions failed, waited for long or moved."""
        for name in names:
            self.answers(name, time.time())  # so that there is one that began after `since`
            turns = self.traffic.of(self.sessions[name], since)
            bad = [t for t in turns if t.error or (t.replica, t.pin) != (self.homes[name], "kept")]
            assert not bad, bad

    def others(self, name: str) -> list[str]:
        return [other for other in NAMES if other != name]

    def answers(self, name: str, since: float, seconds: float = ANSWERS_S) -> tuple[Turn, float]:
        """The first whole turn there that ended after `since`, and how long after. At its old home."""

        def found() -> list[Turn]:
            turns = self.traffic.whole(self.sessions[name], 0.0)
            return [turn for turn in turns if turn.ended >= since]

        wait_for(lambda: bool(found()), f"an answer of {name}", seconds, self.told)
        turn = found()[0]
        assert (turn.replica, turn.pin) == (self.homes[name], "kept"), turn
        return turn, turn.ended - since

    def is_seen(self, name: str, since: float) -> float:
        """Until the router has it out of routing. Returns when it began to send nothing new there, in seconds."""
        until(lambda: self.traffic.seen(name, ["out"], since), f"{name} is out", SEEN_S + LOOK_S)
        seen = self.traffic.seen(name, ["suspect", "out"], since)
        gone = self.traffic.seen(name, ["out"], since)
        assert seen is not None
        assert gone is not None
        assert seen - since <= SEEN_S
        print(f"  seen after {seen - since:.1f} s, out of routing after {gone - since:.1f} s")
        return seen - since

    def is_back(self, name: str, since: float, seconds: float = READY_S) -> float:
        """Until the router sends turns there again; when that was."""
        wait_for(
            lambda: self.traffic.seen(name, ("up",), since) is not None, f"{name} serves", seconds, self.told
        )
        at = self.traffic.seen(name, ("up",), since)
        assert at is not None
        return at

    def longest_s(self, name: str, since: float) -> float:
        """The longest time between two whole answers of its session."""
        ends = [turn.ended for turn in self.traffic.whole(self.sessions[name], since)]
        return max((after - before for before, after in itertools.pairwise([since, *ends])), default=0.0)

    def failures(self, name: str, since: float, may_say: frozenset[str] = MAY_SAY) -> str:
        """What its session was told meanwhile, and how often."""
        turns = self.traffic.of(self.sessions[name], since)
        told = Counter(turn.error for turn in turns if turn.error is not None)
        assert set(told) <= may_say, told
        return ", ".join(f"{times} x {code}" for code, times in told.items()) or "nothing"

    def counted(self, name: str) -> int:
        """How many turns its host has counted of its session. None may run meanwhile."""
        told = self.head.ssh(f"{HOMEPORT} sessions --json").stdout
        return int(next(each["turns"] for each in listed(told) if each["replica"] == self.homes[name]))

    def incarnations(self) -> dict[str, int]:
        """How often each replica was started."""
        machines = self.several.fleet().values()
        return {each["name"]: each["incarnation"] for machine in machines for each in machine["replicas"]}

    def builds(self) -> set[str]:
        """Which versions run, as each machine's restarter wrote it."""
        folders = (machine.home / ".local" / "state" / "homeport" for machine in self.several.members)
        return {json.loads((folder / "run.json").read_text())["build"] for folder in folders}

    def told(self) -> str:
        last = "\n".join(map(str, self.traffic.turns[-20:]))
        return f"{self.traffic.sights[-10:]}\n{last}\n{self.several.logs()}"


def listed(text: str) -> list[dict[str, Any]]:
    """What `homeport sessions --json` told."""
    found = json.loads(text)["sessions"]
    assert isinstance(found, list)
    return found


@pytest.fixture(scope="module")
def made(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loss]:
    with several(tmp_path_factory.mktemp("loss") / "lab", prepared, NAMES) as cluster:
        den, tower, rack = cluster.members
        cluster.write_list(den.address, [tower.address])
        run("rm", "-rf", str(rack.home / "homeport"))
        run("cp", "-al", str(prepared), str(rack.home / "homeport"))
        for machine in cluster.members:
            machine.boot()
        up = cluster.ray("up")
        assert up.returncode == 0, up.stdout
        join_by_hand(cluster, rack, den.ssh(f"{HOMEPORT} join-token").stdout.strip())
        wait_for(lambda: cluster.ready() == set(NAMES), "every machine ready", READY_S, cluster.logs)
        sessions = [f"loss-{number}" for number in range(len(NAMES))]
        with traffic(den.namespace, sessions) as flowing:
            wait_for(
                lambda: all(flowing.whole(session, 0.0) for session in sessions),
                "a first turn of each session",
                READY_S,
                cluster.logs,
            )
            homes = {session: flowing.whole(session, 0.0)[0] for session in sessions}
            assert sorted(turn.machine for turn in homes.values()) == sorted(NAMES)
            found = Loss(
                cluster,
                flowing,
                {turn.machine: session for session, turn in homes.items()},
                {turn.machine: turn.replica for turn in homes.values()},
            )
            found.becomes_whole()
            yield found


@pytest.fixture
def loss(made: Loss) -> Loss:
    """Whole, whatever the test before left."""
    for name, session in made.sessions.items():
        made.traffic.go(session)
        machine = made.machine(name)
        machine.plug(plugged=True)
        machine.freeze(frozen=False)
        if machine.init is None:
            machine.boot()
    if not processes(made.head, "router.parent"):
        made.several.ray("up")
    made.becomes_whole()
    for name in NAMES:
        made.answers(name, time.time())
    return made


def join_by_hand(cluster: Several, machine: LabMachine, token: str = "") -> None:
    words = f"--token {token}" if token else ""
    joined = machine.ssh(f"{HOMEPORT} join {cluster.head.address} {words}", check=False, timeout=200)
    assert joined.returncode == 0, joined.stdout + joined.stderr + cluster.logs()


def goes_silent(
    loss: Loss, name: str, begin: Callable[[], None], end: Callable[[], None], seconds: float
) -> None:
    """Away for `seconds`, while its processes live on: then the same session at the same host, others unharmed."""
    before, began = loss.hosts(), time.time()
    try:
        begin()
        loss.is_seen(name, began)
        time.sleep(began + seconds - time.time())
    finally:
        ended = time.time()
        end()
    serves = loss.is_back(name, ended)
    turn, took_s = loss.answers(name, serves)
    print(
        f"  away {seconds:.0f} s: serves {serves - ended:.1f} s after, answers {took_s:.1f} s after that, "
        f"{turn.context}; told meanwhile: {loss.failures(name, began)}"
    )
    assert turn.context in ("resident", "resumed"), turn
    loss.is_unharmed(began, *loss.others(name))
    loss.becomes_whole()
    assert loss.hosts() == before


@pytest.mark.parametrize("name", ["tower", pytest.param("rack", marks=LONG)])
def test_a_machine_without_power_is_seen_and_comes_back_with_its_sessions(loss: Loss, name: str) -> None:
    """One of Ray's list by itself, one that joined by hand by the command that the handbook names."""
    machine, session = loss.machine(name), loss.sessions[name]
    rested = time.time()
    loss.traffic.rest(session)
    parked = machine.home / ".local" / "state" / "homeport" / "replicas"
    wait_for(
        lambda: any(file.stat().st_mtime > rested for file in parked.glob("*/parked/*.kv")),
        "the context of a session that is quiet is on disk",
        75.0,
        loss.told,
    )
    began = time.time()
    machine.plug(plugged=False)
    machine.kill()
    loss.traffic.go(session)
    loss.is_seen(name, began)
    time.sleep(began + 10 - time.time())
    machine.plug(plugged=True)
    machine.boot()
    on = time.time()
    if name == "rack":
        join_by_hand(loss.several, machine)
    serves = loss.is_back(name, on)
    turn, took_s = loss.answers(name, serves)
    print(
        f"  power gone for 10 s: serves {serves - on:.1f} s after it is on again, answers {took_s:.1f} s after that, "
        f"{turn.context}; told meanwhile: {loss.failures(name, began)}"
    )
    assert turn.context == "resumed", turn
    assert turn.reused > 0
    loss.is_unharmed(began, *loss.others(name))
    loss.becomes_whole()


@pytest.mark.parametrize("seconds", [20, pytest.param(90, marks=LONG)])
def test_a_frozen_machine_goes_on_where_it_was_and_runs_no_turn_twice(loss: Loss, seconds: int) -> None:
    """After 90 s Ray has given it up, and its keeper has not heard its host for longer than it waits for one."""
    rack, session = loss.machine("rack"), loss.sessions["rack"]
    loss.traffic.rest(session)
    time.sleep(3)
    before, since = loss.counted("rack"), time.time()
    loss.traffic.go(session)
    time.sleep(2)
    goes_silent(loss, "rack", rack.freeze, partial(rack.freeze, frozen=False), seconds)
    loss.traffic.rest(session)
    time.sleep(3)
    counted, asked = loss.counted("rack") - before, len(loss.traffic.of(session, since))
    print(f"  turns asked: {asked}, run: {counted}")
    assert counted <= asked


def test_an_unplugged_machine_is_back_at_once(loss: Loss) -> None:
    tower = loss.machine("tower")
    goes_silent(loss, "tower", partial(tower.plug, plugged=False), partial(tower.plug, plugged=True), 10)


def test_a_machine_that_hears_nothing_is_back_at_once(loss: Loss) -> None:
    rack = loss.machine("rack")
    goes_silent(loss, "rack", partial(rack.deafen, deaf=True), partial(rack.deafen, deaf=False), 10)


@LONG
@pytest.mark.parametrize(("name", "seconds"), [("tower", 75), ("rack", 180)])
def test_a_machine_unplugged_for_longer_than_rays_patience_joins_again_by_itself(
    loss: Loss, name: str, seconds: int
) -> None:
    """Ray's part of it ends and is started anew; test_service.py has that without sessions."""
    machine = loss.machine(name)
    node = processes(machine, "raylet/raylet")
    unplug, plug = partial(machine.plug, plugged=False), partial(machine.plug, plugged=True)
    goes_silent(loss, name, unplug, plug, seconds)
    assert processes(machine, "raylet/raylet") != node


@LONG
def test_a_head_that_was_frozen_takes_no_machine_for_lost(loss: Loss) -> None:
    """For longer than `lost_after`: its router and its controller heard nobody because they stood still themselves."""
    before, began = loss.hosts(), time.time()
    try:
        loss.head.freeze()
        time.sleep(45)
    finally:
        ended = time.time()
        loss.head.freeze(frozen=False)
    firsts = {name: loss.answers(name, ended)[0] for name in NAMES}
    told = {name: f"{turn.ended - ended:.1f} s, {turn.context}" for name, turn in firsts.items()}
    print(f"  sessions answer after {told}")
    loss.becomes_whole()
    loss.is_unharmed(began, *NAMES)
    assert loss.hosts() == before


def test_a_controller_that_is_killed_again_and_again_finds_everything_and_starts_nothing(loss: Loss) -> None:
    before, lives, began = loss.hosts(), loss.incarnations(), time.time()
    keepers = {machine.name: processes(machine, "ray::Keeper") for machine in loss.several.members}
    for _ in range(3):
        (controller,) = processes(loss.head, "ray::Controller")
        os.kill(controller, signal.SIGKILL)
        until(
            lambda controller=controller: processes(loss.head, "ray::Controller") not in ([], [controller]),  # type: ignore[misc]
            "another controller",
            60.0,
        )
        wait_for(lambda: loss.several.ready() == set(NAMES), "it hears every keeper", READY_S, loss.told)
    loss.becomes_whole()
    assert (loss.hosts(), loss.incarnations()) == (before, lives)
    assert {machine.name: processes(machine, "ray::Keeper") for machine in loss.several.members} == keepers
    loss.is_unharmed(began, *NAMES)


def test_a_workers_ray_that_is_killed_comes_back_and_no_turn_is_harmed(loss: Loss) -> None:
    tower, before, began = loss.machine("tower"), loss.hosts(), time.time()
    kill(tower, "raylet/raylet")
    until(lambda: not processes(tower, "ray::Keeper"), "the end of its keeper", 60.0)
    gone_s = time.time() - began
    back_s = loss.becomes_whole()
    print(f"  its keeper: gone after {gone_s:.1f} s, back after {gone_s + back_s:.1f} s")
    assert loss.hosts() == before
    loss.is_unharmed(began, *NAMES)


def test_a_head_whose_processes_are_all_killed_but_its_parent_is_back_by_itself(loss: Loss) -> None:
    before, began = loss.hosts(), time.time()
    kill(loss.head, "gcs/gcs_server", "raylet/raylet", "ray::", "router.app")
    firsts = {name: loss.answers(name, began + 0.5, 30.0)[0] for name in NAMES}
    worst_s = max(turn.ended - began for turn in firsts.values())
    whole_s = time.time() - began + loss.becomes_whole()
    print(f"  every session answers {worst_s:.1f} s after; all is whole after {whole_s:.1f} s")
    for name in NAMES:
        late = [turn for turn in loss.traffic.of(loss.sessions[name], firsts[name].began) if turn.error]
        assert not late, late
    assert loss.hosts() == before


@LONG
@pytest.mark.parametrize("seconds", [20, 300])
def test_while_the_heads_ray_is_dead_every_turn_is_answered_and_new_sessions_too(
    loss: Loss, seconds: int
) -> None:
    """Ray, controller and keeper of the head; its router lives."""
    rests = loss.sessions["rack"]
    loss.traffic.rest(rests)  # so that there is a place for a new one, once it has been quiet for `hold`
    before, began = loss.hosts(), time.time()
    (parent,) = processes(loss.head, "router.parent")
    os.kill(parent, signal.SIGSTOP)  # it would start Ray anew
    try:
        kill(loss.head, "gcs/gcs_server", "raylet/raylet", "ray::")
        time.sleep(seconds / 2)
        loss.is_unharmed(began, *loss.others("rack"))
        new = loss.several.ask((f"new-{seconds}", "Hello"))
        loss.traffic.go(rests)
        time.sleep(max(0.0, began + seconds - time.time()))
    finally:
        os.kill(parent, signal.SIGCONT)
    assert [answer.status for answer in new] == [200], new
    whole_s = loss.becomes_whole()
    turns = sum(len(loss.traffic.of(session, began)) for session in loss.sessions.values())
    print(f"  {seconds} s without Ray: {turns} turns, none failed; whole {whole_s:.1f} s after")
    loss.is_unharmed(began, *NAMES)
    assert loss.hosts() == before


@pytest.mark.parametrize("seconds", [30, pytest.param(300, marks=LONG)])
def test_the_heads_machine_is_dead_and_after_ray_up_everything_is_where_it_was(
    loss: Loss, seconds: int
) -> None:
    """Also its own session, which asks a router that is there before controller and host are."""
    workers = {name: pids for name, pids in loss.hosts().items() if name != loss.head.name}
    began = time.time()
    loss.head.plug(plugged=False)
    loss.head.kill()
    time.sleep(began + seconds - time.time())
    assert {name: loss.hosts()[name] for name in workers} == workers
    loss.head.plug(plugged=True)
    loss.head.boot()
    on = time.time()
    up = loss.several.ray("up")
    assert up.returncode == 0, up.stdout
    up_s = time.time() - on
    firsts = {name: loss.answers(name, on, READY_S)[0] for name in NAMES}
    told = {name: f"{turn.ended - on:.1f} s, {turn.context}" for name, turn in firsts.items()}
    serves_s = loss.is_back(loss.head.name, on) - on
    print(
        f"  {seconds} s without the head: `ray up` took {up_s:.1f} s, its host serves after {serves_s:.1f} s; "
        f"sessions answer after {told}"
    )
    loss.becomes_whole()
    assert {name: loss.hosts()[name] for name in workers} == workers


@LONG
def test_another_version_takes_over_while_every_replica_goes_on(loss: Loss) -> None:
    """`ray up` with other files brings it to the head and to the machines of its list; one that joined by hand gets the
    files, and joins again."""
    den, _, rack = loss.several.members
    before, lives, builds, began = loss.hosts(), loss.incarnations(), loss.builds(), time.time()
    den.ssh(f"{HOMEPORT} cordon rack")
    clone = loss.several.laptop.home / "homeport"
    for folder in (clone, rack.home / "homeport"):
        replace_file(folder / "serving" / "plan.py", "# another version\n")
    up = loss.several.ray("up")
    assert up.returncode == 0, up.stdout
    assert "takes over" in up.stdout
    head_s = time.time() - began
    join_by_hand(loss.several, rack)
    wait_for(
        lambda: len(loss.builds()) == 1 and loss.builds() != builds, "one version", READY_S, loss.several.logs
    )
    list_s = time.time() - began
    whole_s = list_s + loss.becomes_whole()
    told = {
        name: f"{loss.longest_s(name, began):.1f} s without an answer, {loss.failures(name, began, ROUTER_ENDS)}"
        for name in NAMES
    }
    print(
        f"  `ray up` took {head_s:.1f} s, every machine has the version after {list_s:.1f} s, all is whole after "
        f"{whole_s:.1f} s; told meanwhile: {told}"
    )
    assert (loss.hosts(), loss.incarnations()) == (before, lives)
    fleet = loss.several.fleet()
    assert [name for name, machine in fleet.items() if machine["cordoned"]] == ["rack"]
    den.ssh(f"{HOMEPORT} uncordon rack")


def test_nobody_moved_and_down_leaves_nothing(loss: Loss) -> None:
    for name, session in loss.sessions.items():
        turns = loss.traffic.whole(session, 0.0)
        assert {turn.replica for turn in turns} == {loss.homes[name]}
        assert [turn.pin for turn in turns] == ["new"] + ["kept"] * (len(turns) - 1)
    at = {each["replica"] for each in listed(loss.head.ssh(f"{HOMEPORT} sessions --json").stdout)}
    assert at >= set(loss.homes.values())
    ended = loss.head.ssh(f"{HOMEPORT} down --all")
    assert all(name in ended.stdout for name in ("tower", "rack")), ended.stdout
    for machine in loss.several.members:
        until(lambda machine=machine: not machine.commands(), f"the end of everything on {machine.name}")  # type: ignore[misc]


def replace_file(file: Path, more: str) -> None:
    """With more text at its end; as another file, since copies of it share the old one."""
    text = file.read_text()
    file.unlink()
    file.write_text(text + more)


def kill(machine: LabMachine, *words: str) -> None:
    """Its processes whose command line has one of these words, at once."""
    found = processes(machine, *words)
    assert found, words
    for pid in found:
        os.kill(pid, signal.SIGKILL)
