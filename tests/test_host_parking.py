"""A host that parks its sessions, and one that frees its engine, with an engine that can be made to fail."""

import json
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.confine import YIELD_SIGNAL
from serving.host import STOP
from serving.model import ParkingSpec
from tests.fakes import Behaviour
from tests.host_process import Answer, HostProcess, model_spec, session

MakeHost = Callable[..., HostProcess]
WARM = len("user:hello\nassistant:It is so.")


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[MakeHost]:
    """Makes hosts that are not started yet; whole process groups are ended afterwards."""
    made: list[HostProcess] = []

    def make(behaviour: Behaviour | None = None, **spec: Any) -> HostProcess:
        folder = tmp_path / str(len(made))
        host = HostProcess(folder, model_spec(**{"hold_s": 0.1, **spec}), "none", behaviour or Behaviour())
        made.append(host)
        return host

    yield make
    for host in made:
        host.kill()


def first(host: HostProcess, who: str) -> None:
    assert host.chat("hello", who=who).status == 200


def again(host: HostProcess, who: str, pin: str = "kept") -> tuple[str, str | None, int]:
    """Context, cause and reused tokens of the session's second turn."""
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "It is so."},
        {"role": "user", "content": "why?"},
    ]
    answer = host.chat({"messages": messages}, {"x-homeport-pin": pin}, who=who)
    assert answer.status == 200, answer.body
    told = answer.body["homeport"]
    assert told["reused_tokens"] + told["evaluated_tokens"] == answer.body["usage"]["prompt_tokens"]
    return told["context"], told["cause"], told["reused_tokens"]


def parked_file(host: HostProcess, who: str) -> Path:
    return host.folder / "parked" / f"{session(who)}.kv"


def wait_parking(host: HostProcess, **wanted: int) -> dict[str, Any]:
    state = host.wait_until(lambda state: {**state["parking"], **wanted} == state["parking"])
    return dict(state["parking"])


def test_a_resident_that_gives_way_is_resumed_and_only_its_new_tokens_are_evaluated(
    make_host: MakeHost,
) -> None:
    host = make_host()
    host.start()
    first(host, "ann")
    first(host, "ben")
    parking = host.state()["parking"]
    assert (parking["sessions"], parking["saves"]) == (1, 1)
    assert again(host, "ann") == ("resumed", None, WARM)
    parking = host.state()["parking"]
    assert (parking["sessions"], parking["resumes"], parking["failures"]) == (1, 1, 0)
    assert host.faults() == ""


def test_a_session_that_is_resumed_and_cut_says_where(make_host: MakeHost) -> None:
    host = make_host()
    host.start()
    first(host, "ann")
    first(host, "ben")
    told = host.chat("help", who="ann").body["homeport"]
    assert (told["context"], told["cause"]) == ("resumed", f"edited@{len('user:hel')}")


def test_sessions_take_turns_in_a_place_and_each_keeps_its_own_words(make_host: MakeHost) -> None:
    host = make_host(Behaviour(sequences=2), sessions=2, hold_s=0.0)
    host.start()
    names = ["ann", "ben", "cem", "dora"]
    for name in names:
        host.chat(f"I am {name}", who=name)
    for name in names:
        told = host.chat(f"I am {name}", who=name).body["homeport"]
        assert told["context"] == "resumed"
        assert told["evaluated_tokens"] == 1


def test_a_parked_session_survives_sigkill(make_host: MakeHost) -> None:
    host = make_host()
    host.start()
    first(host, "ann")
    first(host, "ben")
    wait_parking(host, unwritten=0)
    host.kill()
    host.start()
    assert again(host, "ann") == ("resumed", None, WARM)


def test_a_quiet_resident_is_written_behind_and_survives_sigkill(make_host: MakeHost) -> None:
    host = make_host()
    host.start()
    first(host, "ann")
    wait_parking(host, saves=1, unwritten=0)
    assert host.state()["residents"][0]["session"] == session("ann")
    host.kill()
    host.start()
    assert again(host, "ann") == ("resumed", None, WARM)


def test_a_transient_is_never_parked(make_host: MakeHost) -> None:
    host = make_host(hold_s=0.0)
    host.start()
    host.chat("hello")
    first(host, "ann")
    wait_parking(host, saves=1, unwritten=0)
    assert [path.stem for path in (host.folder / "parked").iterdir()] == [session("ann")]


def test_a_host_that_is_told_to_stop_writes_its_residents_first(make_host: MakeHost) -> None:
    host = make_host(Behaviour(sequences=3, endless=True, step_s=0.01), sessions=3, hold_s=60.0)
    host.start()
    for name in ("ann", "ben"):
        host.chat({"messages": [{"role": "user", "content": name}], "max_tokens": 3}, who=name)
    stream = host.stream("cem", who="cem")
    assert stream.first_text() == "I"
    assert not (host.folder / "parked").exists() or not list((host.folder / "parked").iterdir())
    host.signal(signal.SIGTERM)
    assert host.wait_end(3.5) == 0
    stream.close()
    assert host.faults() == ""
    host.start()
    for name in ("ann", "ben", "cem"):
        body = {"messages": [{"role": "user", "content": name}], "max_tokens": 1}
        assert host.chat(body, who=name).body["homeport"]["context"] == "resumed"


def test_a_stop_that_cannot_save_says_how_many_and_ends_in_time(make_host: MakeHost, tmp_path: Path) -> None:
    host = make_host(Behaviour(sequences=2, saves_when=str(tmp_path / "never")), sessions=2, hold_s=60.0)
    host.start()
    first(host, "ann")
    first(host, "ben")
    begun = time.monotonic()
    host.signal(signal.SIGTERM)
    # The engine's thread stands in the save: it cannot be closed either.
    assert host.wait_end(4.0) == 1
    assert time.monotonic() - begun < 3.5
    assert "2 sessions not on disk" in host.errors()


def test_a_yield_gives_a_save_more_time_than_a_stop_and_ends_within_five_seconds(
    make_host: MakeHost, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    host = make_host(Behaviour(saves_when=str(gate)), hold_s=60.0)
    host.start()
    first(host, "ann")
    begun = time.monotonic()
    host.signal(YIELD_SIGNAL)
    late = threading.Timer(STOP.exit_s + 0.2, gate.touch)
    late.start()
    assert host.wait_end(6.0) == 0
    late.join()
    assert STOP.exit_s < time.monotonic() - begun < 5.0
    assert host.faults() == ""
    host.start()
    assert again(host, "ann") == ("resumed", None, WARM)


def test_what_a_yield_has_no_time_to_save_is_evicted(make_host: MakeHost, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    host = make_host(Behaviour(sequences=2, saves_when=str(gate)), sessions=2, hold_s=60.0)
    host.start()
    first(host, "ann")
    begun = time.monotonic()
    host.signal(YIELD_SIGNAL)
    assert host.wait_end(6.0) == 1
    assert time.monotonic() - begun < 5.0
    assert "1 sessions not on disk" in host.errors()
    gate.touch()
    host.start()
    assert again(host, "ann")[:2] == ("evaluated", "evicted")
    host.signal(signal.SIGTERM)
    assert host.wait_end(4.0) == 0
    host.start()
    assert again(host, "ann")[0] == "resumed", "the note was for one life"


def test_a_save_that_is_on_its_way_is_waited_for(make_host: MakeHost, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    host = make_host(Behaviour(saves_when=str(gate)), hold_s=0.0, parking=ParkingSpec(disk_bytes=0))
    host.start()
    first(host, "ann")
    contexts: dict[str, str] = {}

    def ask(who: str) -> None:
        contexts[who] = host.chat("hello", who=who).body["homeport"]["context"]

    threads = [threading.Thread(target=ask, args=(name,), daemon=True) for name in ("ben", "ann")]
    for thread, waiting in zip(threads, (0, 1), strict=True):
        thread.start()
        host.wait_state(running=1, waiting=waiting)
    gate.touch()
    for thread in threads:
        thread.join(10.0)
    assert contexts == {"ben": "evaluated", "ann": "resumed"}


def test_a_client_that_leaves_while_its_context_is_awaited_gives_its_place_back(
    make_host: MakeHost, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    told = Behaviour(sequences=2, saves_when=str(gate))
    host = make_host(told, sessions=2, hold_s=0.0, parking=ParkingSpec(disk_bytes=0))
    host.start()
    for name in ("ann", "ben"):
        first(host, name)
    # Ann gives way to Cem, and Ben to Ann, whose save the engine still stands in.
    thread = threading.Thread(target=lambda: host.chat("hello", who="cem"), daemon=True)
    thread.start()
    host.wait_until(lambda state: session("cem") in [one["session"] for one in state["residents"]])
    with host.post_and_wait("hello", who="ann"):
        host.wait_state(running=2)
    assert host.wait_state(running=1)["turns"] == 2
    gate.touch()
    thread.join(10.0)
    assert again(host, "ann") == ("resumed", None, WARM)


# files that are not as they must be


@pytest.mark.parametrize(
    ("harm", "cause"),
    [
        (lambda data: data[: len(data) // 2], "restore_failed"),
        (lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:], "restore_failed"),
        (lambda data: data[:-40] + bytes([data[-40] ^ 128]) + data[-39:], "restore_failed"),
        (lambda data: b"", "restore_failed"),
        (lambda data: b"no such thing" * 50, "engine_changed"),
    ],
)
def test_a_broken_file_is_said_and_the_prompt_evaluated_anew(
    make_host: MakeHost, harm: Callable[[bytes], bytes], cause: str
) -> None:
    host = make_host()
    host.start()
    first(host, "ann")
    wait_parking(host, saves=1, unwritten=0)
    host.kill()
    path = parked_file(host, "ann")
    path.write_bytes(harm(path.read_bytes()))
    host.start()
    assert again(host, "ann") == ("evaluated", cause, 0)
    assert "a parked context is dropped" in host.errors()
    assert session("ann") not in host.errors()
    assert host.state()["parking"]["failures"] == (cause == "restore_failed")
    # What the turn left is written in its place.
    wait_parking(host, saves=1, unwritten=0)
    host.kill()
    host.start()
    assert again(host, "ann")[0] == "resumed"


def test_another_sessions_file_is_never_loaded(make_host: MakeHost) -> None:
    host = make_host()
    host.start()
    first(host, "ann")
    wait_parking(host, saves=1, unwritten=0)
    host.kill()
    parked_file(host, "ann").rename(parked_file(host, "ben"))
    host.start()
    assert again(host, "ben", pin="new") == ("evaluated", "engine_changed", 0)


def test_another_layouts_file_is_engine_changed(make_host: MakeHost) -> None:
    host = make_host()
    host.start()
    first(host, "ann")
    wait_parking(host, saves=1, unwritten=0)
    host.kill()
    host.behave(Behaviour(layout="another"))
    host.start()
    assert again(host, "ann") == ("evaluated", "engine_changed", 0)


def test_an_engine_that_refuses_a_state_is_restore_failed(make_host: MakeHost) -> None:
    host = make_host(Behaviour(restores_fail=True))
    host.start()
    first(host, "ann")
    first(host, "ben")
    assert again(host, "ann") == ("evaluated", "restore_failed", 0)
    assert host.state()["parking"]["failures"] == 1


def test_an_engine_that_cannot_save_is_evicted(make_host: MakeHost) -> None:
    host = make_host(Behaviour(saves_fail=True))
    host.start()
    first(host, "ann")
    first(host, "ben")
    assert again(host, "ann") == ("evaluated", "evicted", 0)


def test_a_full_disk_is_said_and_memory_goes_on(make_host: MakeHost) -> None:
    host = make_host(Behaviour(context=200_000), context=200_000)
    host.start()
    long = "x" * 40_000
    assert host.process is not None
    # The journal's files stay below this; a state does not.
    resource.prlimit(host.process.pid, resource.RLIMIT_FSIZE, (131_072, resource.RLIM_INFINITY))
    assert host.chat(long, who="ann").status == 200
    host.wait_until(lambda state: state["parking"]["failures"] == 1)
    assert "was not parked on disk" in host.errors()
    first(host, "ben")
    assert host.chat(long, who="ann").body["homeport"]["context"] == "resumed"


def test_what_a_dead_host_left_unfinished_is_removed(make_host: MakeHost) -> None:
    host = make_host()
    (host.folder / "parked").mkdir()
    left = host.folder / "parked" / ".0123.abcd.tmp"
    left.write_bytes(b"half a state")
    host.start()
    assert not left.exists()


# the state


def test_the_state_tells_memory_and_parking(make_host: MakeHost) -> None:
    spec = json.loads((make_host().folder / "spec.json").read_text())
    limit = spec["slice"]["memory_bytes"]
    host = make_host(parking=ParkingSpec(memory_bytes=2**40))
    host.start()
    state = host.state()
    assert state["loaded"] is True
    memory = state["memory"]
    assert memory["engine"] == {"weights": 3, "kv": 2, "compute": 1}
    assert 0 < memory["loaded_bytes"] < limit == memory["limit_bytes"]
    assert state["parking"]["memory_limit_bytes"] == limit - memory["loaded_bytes"] - 128 * 2**20
    assert state["parking"]["disk_limit_bytes"] == 8 * 2**30


# an engine that nobody needs


def test_a_quiet_engine_is_freed_and_its_sessions_come_back_warm(make_host: MakeHost) -> None:
    host = make_host(Behaviour(sequences=2), sessions=2, hold_s=60.0, unload_s=0.3)
    host.start()
    first(host, "ann")
    first(host, "ben")
    state = host.wait_state(loaded=False)
    assert (state["state"], state["free"], state["residents"]) == ("ready", 2, [])
    assert state["detail"] == "a fake"
    wait_parking(host, sessions=2, unwritten=0)
    assert again(host, "ann") == ("resumed", None, WARM)
    assert host.state()["loaded"] is True
    host.wait_state(loaded=False)
    host.kill()
    host.start()
    assert again(host, "ben") == ("resumed", None, WARM)


def test_questions_about_pins_do_not_keep_the_engine(make_host: MakeHost) -> None:
    host = make_host(unload_s=0.3)
    host.start()
    deadline = time.monotonic() + 10.0
    while host.state()["loaded"]:
        assert time.monotonic() < deadline
        assert host.post("/pins/find", {"histories": [session("said")]}).status == 404
        time.sleep(0.02)


def test_a_turn_that_runs_keeps_the_engine(make_host: MakeHost) -> None:
    host = make_host(Behaviour(endless=True, step_s=0.02), unload_s=0.1)
    host.start()
    stream = host.stream("hello", who="ann", max_tokens=40)
    texts = [event for event in stream.events() if event.get("choices")]
    assert stream.done
    assert len(texts) > 40
    host.wait_state(loaded=False)


def test_turns_that_come_while_it_loads_wait_for_it(make_host: MakeHost, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    told = Behaviour(loads_again_when=str(gate), sequences=2)
    host = make_host(told, sessions=2, unload_s=0.1)
    host.start()
    host.wait_state(loaded=False)
    answers: list[Answer] = []
    threads = [
        threading.Thread(target=lambda who=name: answers.append(host.chat("hello", who=who)), daemon=True)
        for name in ("ann", "ben")
    ]
    for thread in threads:
        thread.start()
    state = host.wait_state(progress=0.5)
    assert (state["state"], state["loaded"]) == ("ready", False)
    assert answers == []
    gate.touch()
    for thread in threads:
        thread.join(10.0)
    assert [answer.status for answer in answers] == [200, 200]


def test_an_engine_that_cannot_be_loaded_again_gives_its_turns_an_error_and_ends(make_host: MakeHost) -> None:
    host = make_host(Behaviour(load_error_again="it is\ngone"), unload_s=0.1)
    host.start()
    host.wait_state(loaded=False)
    answer = host.chat("hello", who="ann")
    assert (answer.status, answer.body["error"]["code"]) == (503, "failed")
    assert "`homeport status` says why" in answer.body["error"]["message"]
    assert "it is gone" not in answer.body["error"]["message"]
    assert host.wait_end() == 78
    assert host.errors() == "homeport: load failed: it is gone\n"


def test_it_can_be_stopped_while_it_loads_again(make_host: MakeHost, tmp_path: Path) -> None:
    host = make_host(Behaviour(loads_again_when=str(tmp_path / "never")), unload_s=0.1)
    host.start()
    host.wait_state(loaded=False)
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(host.chat("hello", who="ann")), daemon=True)
    thread.start()
    host.wait_state(progress=0.5)
    host.signal(signal.SIGTERM)
    assert host.wait_end(3.5) == 0
    thread.join(5.0)
    assert (answers[0].status, answers[0].body["error"]["code"]) == (503, "host_stopping")


def settings(host: HostProcess, **other: Any) -> Answer:
    """Give the host these settings; those that are not named stay."""
    return host.settle({**host.state()["settings"], **other})


def test_a_budget_that_shrinks_makes_parked_sessions_give_way_at_once(make_host: MakeHost) -> None:
    host = make_host(parking=ParkingSpec(2**20, 2**20))
    host.start()
    for who in ("ann", "ben", "cem"):
        first(host, who)
    wait_parking(host, sessions=2, unwritten=0)
    answer = settings(host, parking=ParkingSpec(0, parked_file(host, "ann").stat().st_size).to_json())
    assert answer.status == 200, answer.body
    assert wait_parking(host, sessions=1)["memory_bytes"] == 0
    host.wait_until(lambda state: not parked_file(host, "ann").exists())
    assert again(host, "ann") == ("evaluated", "evicted", 0)
    settings(host, parking=ParkingSpec(0, 0).to_json())
    host.wait_until(lambda state: not list((host.folder / "parked").glob("*.kv")))


def test_a_disk_budget_can_be_given_while_the_host_runs(make_host: MakeHost) -> None:
    host = make_host(parking=ParkingSpec(0, 0))
    host.start()
    settings(host, parking=ParkingSpec(0, 2**20).to_json())
    first(host, "ann")
    first(host, "ben")
    assert again(host, "ann") == ("resumed", None, WARM)


def test_a_shorter_hold_lets_one_in_that_waits_already(make_host: MakeHost) -> None:
    host = make_host(hold_s=600.0, queue_s=900.0)
    host.start()
    first(host, "ann")
    waits = host.post_and_wait("hello", "ben")
    host.wait_state(waiting=1)
    settings(host, hold_s=0.0)
    assert waits.recv(15).startswith(b"HTTP/1.1 200 OK")
    waits.close()


def test_a_shorter_queue_refuses_whoever_comes_from_now_on(make_host: MakeHost) -> None:
    host = make_host(Behaviour(endless=True, step_s=0.01), hold_s=0.0, queue_s=900.0)
    host.start()
    host.stream("hello", who="ann").first_text()
    settings(host, queue_s=0.1)
    refused = host.chat("hello", who="ben")
    assert (refused.status, refused.body["error"]["code"]) == (429, "queue_timeout")


def test_a_model_can_be_freed_that_was_never_to_be_and_the_other_way_round(make_host: MakeHost) -> None:
    host = make_host()
    host.start()
    settings(host, unload_s=0.05)
    host.wait_state(loaded=False)
    settings(host, unload_s=None)
    first(host, "ann")
    assert host.state()["loaded"]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"hold_s": 60.0}, "hold_s"),
        ({"queue_s": -1}, "queue_s"),
        ({"unload_s": "30m"}, "unload_s"),
        ({"parking": {"memory_bytes": 1, "disk_bytes": 1}}, "parking.keep_s"),
        ({"context": 100}, "context"),
    ],
)
def test_settings_that_make_no_sense_are_refused_and_nothing_changes(
    make_host: MakeHost, wrong: dict[str, Any], param: str
) -> None:
    host = make_host()
    host.start()
    before = host.state()["settings"]
    answer = settings(host, **wrong)
    assert (answer.status, answer.body["error"]["param"]) == (400, param)
    assert host.state()["settings"] == before


def test_only_the_cluster_changes_settings(make_host: MakeHost) -> None:
    host = make_host()
    host.start()
    assert host.settle(host.state()["settings"], token="a guess").status == 401
    assert host.get("/settings").status == 405
