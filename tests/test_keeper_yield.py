"""A keeper whose machine is wanted by its person: real hosts that go within 5 s, what they held, and their return.

With FakeEngines, but for what the bundled model alone can show: its memory, and that a context comes back.
"""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import confine
from cluster.join import note_programs
from cluster.processes import ours
from router.lifecycle import end_everything
from serving import owner_watch, slice_look, yielding
from serving.keeper import Keeper
from serving.owner import end_hosts, read_order, write_order
from serving.source import SourceError, bundled_model
from serving.yielding import Order
from tests.host_process import Stream, session
from tests.test_keeper import TALKS, Machine

FREE_S = 5.0
PATIENCE_S = 60.0
STORY = "Tell me of a harbour and the ships that come home to it. " * 12


class Den(Machine):
    """A machine with one slot, and what its clients and its person do."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(root, monkeypatch)
        self.behaviours = [TALKS, TALKS]
        self.streams: list[Stream] = []

    def real_engine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(confine, "launch", self.launch)

    def stream(self, who: str, words: str, tokens: int = 2000, **more: Any) -> Stream:
        connection = self.connection(0)
        body = {"model": "smollm2", "stream": True, "max_tokens": tokens, "temperature": 0, **more}
        body.setdefault("messages", [{"role": "user", "content": words}])
        connection.request("POST", "/v1/chat/completions", json.dumps(body), self.headers(who))
        made = Stream(connection, connection.getresponse())
        self.streams.append(made)
        return made

    def say(self, who: str, messages: list[dict[str, str]]) -> dict[str, Any]:
        """A whole answer; its words are added to `messages`. What the host tells of it."""
        connection = self.connection(0)
        body = {"model": "smollm2", "max_tokens": 12, "temperature": 0, "messages": messages}
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), self.headers(who))
            answer = connection.getresponse()
            told: dict[str, Any] = json.loads(answer.read())
        finally:
            connection.close()
        assert answer.status == 200, told
        messages.append(told["choices"][0]["message"])
        about: dict[str, Any] = told["homeport"]
        return about

    def headers(self, who: str) -> dict[str, str]:
        return {
            "authorization": f"Bearer {self.token}",
            "content-type": "application/json",
            "x-homeport-session-key": session(who),
        }

    def free_after(self, began: float) -> float:
        """Seconds from `began` until no host is there, no core is locked, and the keeper says so."""
        carved = self.keeper.book.slots[0].slice
        while True:
            report = self.keeper.report()
            told = [(each["state"], each.get("pid")) for each in report["replicas"]]
            gone = not confine.records(self.paths.locks, self.paths.run_id)
            if gone and not confine.holds_locks(self.paths.locks, carved) and told == [("yielded", None)]:
                return time.monotonic() - began
            assert time.monotonic() - began < PATIENCE_S, report
            time.sleep(0.02)

    def until_yielded(self, by: str | None) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            told = self.keeper.report()["yielded"]
            if (told and told["by"]) == by:
                return dict(told or {})
            assert time.monotonic() < deadline, told
            time.sleep(0.05)

    def stays_empty(self, seconds: float) -> None:
        """The keeper takes its steps meanwhile; one that would start a host has done so by the end."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert not ours(self.paths, "host")
            time.sleep(0.1)


@pytest.fixture
def den(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Den]:
    made = Den(tmp_path, monkeypatch)
    try:
        yield made
    finally:
        for stream in made.streams:
            stream.close()
        made.keeper.close()
        end_everything(made.paths)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts a process whose name is blender."""
    path = tmp_path / "blender"
    path.write_bytes(Path("/bin/sleep").read_bytes())
    path.chmod(0o755)
    made: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        env = {name: value for name, value in os.environ.items() if name != "HOMEPORT_RUN"}
        made.append(subprocess.Popen([str(path), "600"], env=env))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.wait()


def rss_bytes(pid: int) -> int:
    """0 for a process that is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def test_a_turn_that_runs_ends_with_an_error_and_the_host_is_gone_in_time(den: Den) -> None:
    den.serve(1)
    before = den.lives(0, 1)
    turn = den.stream("ann", "hello")
    turn.first_text()
    began = time.monotonic()
    told = den.keeper.yield_machine(None, False)
    assert told["yielded"] == {"by": "person", "until": None}
    took = den.free_after(began)
    assert took <= FREE_S
    assert rss_bytes(before["pid"]) == 0
    last = list(turn.events())[-1]
    assert last["error"]["code"] == "host_stopping"
    assert not turn.done
    replica = den.replica(0)
    assert (replica["deaths"], replica["stderr"], replica["detail"]) == (0, [], "")
    den.stays_empty(1.5)
    assert den.keeper.yield_machine(None, True)["yielded"] is None
    after = den.lives(0, 2)
    assert (after["deaths"], after["pins"]) == (0, 1)


@pytest.mark.parametrize("sessions", [2])
def test_the_bundled_models_memory_is_free_and_a_context_comes_back(
    den: Den, monkeypatch: pytest.MonkeyPatch, sessions: int
) -> None:
    try:
        bundled_model()
    except SourceError as error:
        pytest.skip(str(error))
    den.real_engine(monkeypatch)
    den.serve(1, sessions=sessions, context=2048, hold_s=60.0)
    before = den.lives(0, 1)
    talk = [{"role": "user", "content": STORY}]
    den.say("ann", talk)
    turn = den.stream("ben", STORY, logit_bias={"2": -100})
    turn.first_text()
    held = rss_bytes(before["pid"])
    assert held > 200 * 2**20, "the model is there"
    began = time.monotonic()
    den.keeper.yield_machine(3600.0, False)
    took = den.free_after(began)
    print(f"yield: {held / 2**20:.0f} MiB free after {took:.2f} s, one turn running, two contexts to park")
    assert took <= FREE_S
    assert rss_bytes(before["pid"]) == 0
    assert {file.stem for file in den.paths.replica(0).glob("parked/*.kv")} == {
        session("ann"),
        session("ben"),
    }
    assert list(turn.events())[-1]["error"]["code"] == "host_stopping"
    den.keeper.yield_machine(None, True)
    den.lives(0, 2)
    talk.append({"role": "user", "content": "Which of them came first?"})
    about = den.say("ann", talk)
    assert (about["pin"], about["context"], about["cause"]) == ("kept", "resumed", None)
    assert about["evaluated_tokens"] < 40 < about["reused_tokens"], about


def test_its_time_over_the_machine_serves_again_by_itself(den: Den) -> None:
    den.serve(1)
    den.lives(0, 1)
    den.keeper.yield_machine(2.0, False)
    until = den.keeper.report()["yielded"]["until"]
    den.lives(0, 2)
    assert time.time() >= until
    assert den.keeper.report()["yielded"] is None


def test_a_persons_word_outlives_the_keeper_and_one_that_is_over_does_not_hold(
    den: Den, monkeypatch: pytest.MonkeyPatch
) -> None:
    den.serve(1)
    den.lives(0, 1)
    began = time.monotonic()
    den.keeper.yield_machine(3600.0, False)
    den.free_after(began)
    den.replace_keeper()
    assert den.keeper.report()["yielded"]["by"] == "person"
    den.stays_empty(2.0)
    den.keeper.close()
    write_order(den.paths, Order(time.time() - 7200, time.time() - 3600))  # as after a reboot in the night
    den.keeper = Keeper()
    assert den.keeper.report()["yielded"] is None
    den.lives(0, 2)


def test_a_keeper_that_begins_while_the_machine_is_yielded_ends_a_host_that_it_finds(
    den: Den, monkeypatch: pytest.MonkeyPatch
) -> None:
    den.serve(1)
    den.lives(0, 1)
    den.keeper.close()
    write_order(den.paths, Order(time.time(), None))
    began = time.monotonic()
    den.keeper = Keeper()
    assert den.free_after(began) <= FREE_S


def test_what_the_person_ends_without_the_keeper_is_no_death_of_a_host(den: Den) -> None:
    den.serve(1)
    den.lives(0, 1)
    began = time.monotonic()
    write_order(den.paths, Order(time.time(), None))
    assert end_hosts(den.paths) == (1, [])
    assert den.free_after(began) <= FREE_S
    den.stays_empty(1.5)
    assert den.replica(0)["deaths"] == 0
    write_order(den.paths, None)
    assert den.lives(0, 2)["deaths"] == 0
    assert read_order(den.paths) is None


def test_an_order_while_a_host_starts_leaves_none_behind(den: Den) -> None:
    den.serve(1)
    den.until(0, lambda replica: replica.get("pid") is not None)
    began = time.monotonic()
    den.keeper.yield_machine(None, False)
    assert den.free_after(began) <= FREE_S
    den.stays_empty(2.0)


def test_a_silent_host_holds_nothing_up(den: Den) -> None:
    den.behaviours = [TALKS, TALKS]
    den.serve(1)
    pid = den.lives(0, 1)["pid"]
    os.kill(pid, 19)  # SIGSTOP: neither an answer nor an end of its own
    time.sleep(0.6)  # so that a step may be waiting for its answer
    began = time.monotonic()
    den.keeper.yield_machine(None, False)
    assert den.free_after(began) <= FREE_S


def test_a_program_of_the_config_has_the_machine_for_as_long_as_it_runs(
    den: Den, program: Callable[[], subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yielding, "QUIET_S", 2.0)
    note_programs(den.paths, ["steam", "blender"])
    den.serve(1)
    den.lives(0, 1)
    time.sleep(2 * owner_watch.LOOK_S)  # so that the keeper has looked while it did not run
    began = time.monotonic()
    game = program()
    assert den.until_yielded("blender")["until"] is None
    seen = time.monotonic() - began
    freed = den.free_after(began)
    print(f"yield_to: seen after {seen:.1f} s, free after {freed:.1f} s")
    assert 0.5 < seen < 4.0, "two looks, a second apart"
    assert freed <= seen + FREE_S
    den.keeper.yield_machine(None, True)
    assert den.keeper.report()["yielded"]["by"] == "blender", "an end of the person's word ends no program's"
    # A keeper that starts while it runs starts no host.
    den.replace_keeper()
    assert den.keeper.report()["yielded"]["by"] == "blender"
    den.stays_empty(1.5)
    game.kill()
    ended = time.monotonic()
    den.until_yielded(None)
    assert 1.0 <= time.monotonic() - ended <= 5.0, "some seconds after it ended"
    den.lives(0, 2)


def test_programs_that_are_no_longer_named_no_longer_have_it(
    den: Den, program: Callable[[], subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yielding, "QUIET_S", 1.0)
    den.serve(1)
    den.lives(0, 1)
    note_programs(den.paths, ["blender"])
    program()
    den.until_yielded("blender")
    note_programs(den.paths, [])
    den.until_yielded(None)
    den.lives(0, 2)


def test_a_full_disk_does_not_keep_the_machine_from_its_person(
    den: Den, monkeypatch: pytest.MonkeyPatch
) -> None:
    den.serve(1)
    den.lives(0, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("serving.owner.write_private", full)
        began = time.monotonic()
        den.keeper.yield_machine(None, False)
        assert den.free_after(began) <= FREE_S
    den.stays_empty(2.0)
    den.keeper.yield_machine(None, True)
    den.lives(0, 2)


def test_who_else_runs_on_a_slice_is_in_the_report(den: Den, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slice_look, "EVERY_S", 1.0)
    den.keeper.close()
    den.keeper = Keeper()
    den.serve(1)
    cpu = den.lives(0, 1)["slice"]["cpus"][0]
    code = f"import os\nos.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"
    with subprocess.Popen(["python3", "-c", code]) as process:
        name = Path(f"/proc/{process.pid}/comm")

        def tells(replica: dict[str, Any]) -> bool:
            comm = name.read_text().strip()
            return any(each["program"] == comm and each["share"] >= 0.05 for each in replica["foreign"])

        told = den.until(0, tells)
        process.kill()
    assert all(0.05 <= each["share"] <= 1.1 for each in told["foreign"]), told
