"""The host as a process: what it answers, what it keeps, and how it ends."""

import json
import resource
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.model import ParkingSpec
from tests.fakes import Behaviour
from tests.host_process import HostProcess, Stream, model_spec, session, text_of

SLOW = Behaviour(endless=True, step_s=0.02)
MakeHost = Callable[..., HostProcess]


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[MakeHost]:
    """Makes hosts that are not started yet; whole process groups are ended afterwards."""
    made: list[HostProcess] = []

    def make(behaviour: Behaviour | None = None, **spec: Any) -> HostProcess:
        host = HostProcess(tmp_path / str(len(made)), model_spec(**spec), "none", behaviour or Behaviour())
        made.append(host)
        return host

    yield make
    for host in made:
        host.kill()


@pytest.fixture(scope="module")
def unused(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """One host for all the requests that must leave no trace in it."""
    host = HostProcess(tmp_path_factory.mktemp("unused"), model_spec(), "none", Behaviour())
    try:
        host.start()
        yield host
    finally:
        host.kill()


@pytest.fixture
def host(make_host: MakeHost) -> HostProcess:
    """A host with a quick engine."""
    host = make_host()
    host.start()
    return host


@pytest.fixture
def slow(make_host: MakeHost) -> HostProcess:
    """A host whose turns go on until somebody ends them."""
    host = make_host(SLOW)
    host.start()
    return host


def conversation(*texts: str) -> dict[str, Any]:
    """Texts of user and assistant in turn."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]}


def in_background(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    return thread, results


# who may come in


@pytest.mark.parametrize("path", ["/state", "/pins", "/pins/" + "0" * 64, "/nowhere"])
def test_nothing_is_answered_without_the_clusters_token(unused: HostProcess, path: str) -> None:
    answer = unused.get(path, token="wrong")
    assert answer.status == 401
    assert answer.body["error"]["code"] == "invalid_token"


def test_a_chat_without_the_token_is_refused(unused: HostProcess) -> None:
    assert unused.chat("hello", {"authorization": "Bearer"}).status == 401


def test_an_unknown_path_is_a_404_in_openais_shape(unused: HostProcess) -> None:
    answer = unused.get("/v1/models")
    assert answer.status == 404
    assert set(answer.body["error"]) == {"message", "type", "code", "param"}


# the answer


def test_a_whole_answer(host: HostProcess) -> None:
    answer = host.chat("hello", {"x-request-id": "req-1"}, who="ann")
    assert answer.status == 200
    assert answer.body["object"] == "chat.completion"
    (choice,) = answer.body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "It is so.", "refusal": None}
    assert choice["finish_reason"] == "stop"
    prompt = len("user:hello\nassistant:")
    assert answer.body["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 9,
        "total_tokens": prompt + 9,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert answer.body["homeport"] == {
        "machine": "den",
        "replica": "den/0",
        "pin": "new",
        "context": "evaluated",
        "reused_tokens": 0,
        "evaluated_tokens": prompt,
        "cause": "new",
    }
    assert host.state()["recent"] == [{"request_id": "req-1", "generated": 9, "after_disconnect": 0}]


def test_a_stream_has_role_text_finish_and_done(host: HostProcess) -> None:
    stream = host.stream("hello")
    events = list(stream.events())
    assert stream.done
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(map(text_of, events)) == "It is so."
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert events[-1]["homeport"]["pin"] == "none"
    assert all("usage" not in event for event in events)
    assert len({event["id"] for event in events}) == 1


def test_a_stream_with_usage_ends_with_a_usage_event(host: HostProcess) -> None:
    stream = host.stream("hello", stream_options={"include_usage": True})
    events = list(stream.events())
    assert stream.done
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 9
    assert events[-1]["homeport"]["machine"] == "den"
    assert all(event["usage"] is None and "homeport" not in event for event in events[:-1])


def test_max_tokens_ends_with_length(host: HostProcess) -> None:
    answer = host.chat({**conversation("hello"), "max_tokens": 3})
    assert answer.body["choices"][0]["finish_reason"] == "length"
    assert answer.body["choices"][0]["message"]["content"] == "It "


def test_headers_say_where_and_how(host: HostProcess) -> None:
    headers = host.stream("hello", who="ann").headers
    assert headers["x-homeport-machine"] == "den"
    assert headers["x-homeport-replica"] == "den/0"
    assert headers["x-homeport-pin"] == "new"
    assert headers["x-homeport-context"] == "evaluated"
    assert int(headers["x-homeport-waited-ms"]) < 5000
    assert headers["content-type"].startswith("text/event-stream")


# sessions


def test_the_second_turn_is_kept_and_resident_and_only_new_tokens_are_evaluated(host: HostProcess) -> None:
    host.chat("hello", who="ann")
    before = host.state()["tokens_evaluated"]
    answer = host.chat(conversation("hello", "It is so.", "why?"), who="ann")
    homeport = answer.body["homeport"]
    assert (homeport["pin"], homeport["context"], homeport["cause"]) == ("kept", "resident", None)
    assert answer.headers["x-homeport-context"] == "resident"
    assert homeport["reused_tokens"] == answer.body["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert homeport["reused_tokens"] == len("user:hello\nassistant:It is so.")
    assert host.state()["tokens_evaluated"] - before == homeport["evaluated_tokens"]


def test_a_changed_history_says_where_it_was_cut(host: HostProcess) -> None:
    host.chat("hello", who="ann")
    homeport = host.chat("help", who="ann").body["homeport"]
    assert homeport["cause"] == f"edited@{len('user:hel')}"
    assert homeport["context"] == "resident"


def test_a_resident_that_gave_way_comes_back_evicted_where_nothing_is_parked(make_host: MakeHost) -> None:
    host = make_host(hold_s=0.1, parking=ParkingSpec(0, 0))
    host.start()
    host.chat("hello", who="ann")
    assert host.chat("hello", who="ben").status == 200
    homeport = host.chat(conversation("hello", "It is so.", "why?"), who="ann").body["homeport"]
    assert (homeport["pin"], homeport["context"], homeport["cause"]) == ("kept", "evaluated", "evicted")
    assert homeport["reused_tokens"] == 0


def test_a_pin_survives_sigkill_and_says_engine_changed(host: HostProcess) -> None:
    host.chat("hello", who="ann")
    host.kill()
    host.start()
    homeport = host.chat(conversation("hello", "It is so.", "why?"), {"x-homeport-pin": "kept"}, "ann").body[
        "homeport"
    ]
    assert (homeport["pin"], homeport["context"], homeport["cause"]) == (
        "kept",
        "evaluated",
        "engine_changed",
    )


def test_the_pin_is_in_the_journal_before_the_response_head(slow: HostProcess) -> None:
    slow.stream("hello", who="ann")
    slow.kill()
    slow.start()
    assert slow.get(f"/pins/{session('ann')}?model=smollm2").body["replica"] == "den/0"


def test_a_kept_pin_that_the_journal_lost_is_a_421_and_pins_nothing(host: HostProcess) -> None:
    headers = {"x-homeport-pin": "kept", "x-homeport-generation": "3"}
    answer = host.chat("hello", headers, who="ann")
    assert (answer.status, answer.body["homeport"]) == (421, {"reason": "unknown", "pin": None})
    assert host.state()["pins"] == 0


def test_a_transient_leaves_nothing_behind(host: HostProcess) -> None:
    host.chat("hello")
    answer = host.chat("hello")
    assert answer.headers["x-homeport-pin"] == "none"
    assert answer.body["homeport"]["cause"] == "new"
    assert answer.body["homeport"]["reused_tokens"] == 0
    state = host.state()
    assert (state["residents"], state["pins"], state["free"]) == ([], 0, 1)


def test_the_state_names_residents(host: HostProcess) -> None:
    host.chat("hello", who="ann")
    state = host.wait_state(running=0)
    (resident,) = state["residents"]
    assert resident["session"] == session("ann")
    assert resident["tokens"] == len("user:hello\nassistant:It is so.")
    assert (state["state"], state["places"], state["free"], state["turns"]) == ("ready", 1, 0, 1)
    assert state["memory"]["rss_bytes"] > 0


def test_an_unknown_pin_is_a_404(unused: HostProcess) -> None:
    assert unused.get(f"/pins/{session('nobody')}?model=smollm2").status == 404


# a router with an old picture


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"x-homeport-replica": "attic/0"}, "replica"),
        ({"x-homeport-incarnation": "77"}, "incarnation"),
        ({"x-homeport-generation": "1"}, "generation"),
    ],
)
def test_a_mismatch_is_a_421_with_its_reason(host: HostProcess, headers: dict[str, str], reason: str) -> None:
    host.chat("hello", {"x-homeport-pin": "moved", "x-homeport-generation": "2"}, who="ann")
    answer = host.chat("hello", headers, who="ann")
    assert answer.status == 421
    assert answer.body["homeport"]["reason"] == reason
    pin = answer.body["homeport"]["pin"]
    assert (pin["generation"] if reason == "generation" else pin) == (2 if reason == "generation" else None)


def test_a_claimed_place_that_is_taken_is_a_421_and_pins_nothing(host: HostProcess) -> None:
    host.chat("hello", who="ann")
    answer = host.chat("hello", {"x-homeport-claim": "free", "x-homeport-pin": "new"}, who="ben")
    assert answer.status == 421
    assert answer.body["homeport"] == {"reason": "taken", "pin": None}
    assert host.state()["pins"] == 1


def test_a_session_whose_own_turn_took_the_place_is_not_told_that_it_is_taken(host: HostProcess) -> None:
    claim = {"x-homeport-claim": "free", "x-homeport-pin": "new"}
    # The first turn stands in the journal's writing for as long as another holds its lock.
    other = sqlite3.connect(host.folder / "journal.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    first, firsts = in_background(lambda: host.chat("hello", claim, who="ann"))
    host.wait_state(running=1)
    second, seconds = in_background(lambda: host.chat("hello", claim, who="ann"))
    host.wait_until(lambda state: state["waiting"] == 1 or bool(seconds))
    other.execute("ROLLBACK")
    other.close()
    first.join(10)
    second.join(10)
    assert [answer.status for answer in (*firsts, *seconds)] == [200, 200]
    assert [answer.headers["x-homeport-pin"] for answer in (*firsts, *seconds)] == ["new", "kept"]


# refusals of turns that have their pin


def test_a_host_that_stops_says_what_became_of_the_pin(slow: HostProcess) -> None:
    thread, results = in_background(lambda: slow.chat("hello", who="ann"))
    slow.wait_until(lambda state: state["tokens_generated"] > 0)
    slow.signal(signal.SIGTERM)
    thread.join(10)
    (answer,) = results
    assert (answer.status, answer.body["error"]["code"]) == (503, "host_stopping")
    assert (answer.headers["x-homeport-machine"], answer.headers["x-homeport-replica"]) == ("den", "den/0")
    assert answer.headers["x-homeport-pin"] == "new"
    assert int(answer.headers["x-homeport-waited-ms"]) < 5000


def test_an_engine_that_breaks_says_what_became_of_the_pin(make_host: MakeHost) -> None:
    host = make_host(Behaviour(breaks_after=0))
    host.start()
    for who, pin in (("ann", "new"), ("ann", "kept"), (None, "none")):
        answer = host.chat("hello", who=who)
        assert (answer.status, answer.body["error"]["code"]) == (500, "engine_failed")
        assert answer.headers["x-homeport-pin"] == pin
        assert "x-homeport-waited-ms" in answer.headers


def test_a_turn_that_the_engine_cancels_says_when_to_try_again(make_host: MakeHost) -> None:
    host = make_host(Behaviour(cancels_after=0))
    host.start()
    answer = host.chat("hello", who="ann")
    assert (answer.status, answer.body["error"]["code"]) == (503, "cancelled")
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["x-homeport-pin"] == "new"


def test_a_timeout_in_the_line_tells_a_kept_pin_and_no_pin_that_was_not_made(make_host: MakeHost) -> None:
    host = make_host(SLOW, hold_s=0.1, queue_s=0.3)
    host.start()
    host.chat({**conversation("hello"), "max_tokens": 1}, who="ann")
    host.stream("hello", who="ben")
    answer = host.chat("hello", who="ann")
    assert (answer.status, answer.headers["x-homeport-pin"]) == (429, "kept")
    answer = host.chat("hello", who="cem")
    assert (answer.status, "x-homeport-pin" in answer.headers) == (429, False)


# the line


def test_a_second_session_waits_and_is_served_when_the_first_is_past_its_hold(make_host: MakeHost) -> None:
    host = make_host(SLOW, hold_s=0.3)
    host.start()
    stream = host.stream("hello", who="ann")
    thread, results = in_background(lambda: host.chat({**conversation("hi"), "max_tokens": 2}, who="ben"))
    host.wait_state(waiting=1)
    stream.close()
    thread.join(10)
    (answer,) = results
    assert answer.status == 200
    assert int(answer.headers["x-homeport-waited-ms"]) >= 300


def test_turns_of_one_session_run_in_order(slow: HostProcess) -> None:
    first = slow.stream("one", who="ann", max_tokens=30)
    thread, results = in_background(lambda: slow.chat({**conversation("two"), "max_tokens": 1}, who="ann"))
    slow.wait_state(waiting=1, running=1)
    assert len([text for event in first.events() if (text := text_of(event))]) == 30
    thread.join(10)
    assert results[0].body["homeport"]["pin"] == "kept"


def test_the_queue_ends_with_a_429_that_names_the_replica(make_host: MakeHost) -> None:
    host = make_host(SLOW, hold_s=0.1, queue_s=0.3)
    host.start()
    host.stream("hello", who="ann")
    answer = host.chat("hi", who="ben")
    assert answer.status == 429
    assert answer.body["error"]["code"] == "queue_timeout"
    assert "den/0" in answer.body["error"]["message"]
    assert int(answer.headers["retry-after"]) >= 1
    assert host.state()["waiting"] == 0


def test_a_waiting_stream_gets_its_head_and_a_comment_and_a_timeout_as_an_event(make_host: MakeHost) -> None:
    host = make_host(SLOW, hold_s=0.1, queue_s=5.5)
    host.start()
    host.stream("hello", who="ann")
    begun = time.monotonic()
    stream = host.stream("hi", who="ben")
    assert 4.5 < time.monotonic() - begun < 5.5
    assert stream.headers["x-homeport-pin"] == "new"
    assert "x-homeport-context" not in stream.headers
    events = list(stream.events())
    (comment,) = stream.comments
    assert comment.startswith("waiting, place 1 in the line")
    assert [event["error"]["code"] for event in events] == ["queue_timeout"]
    assert not stream.done
    assert host.get(f"/pins/{session('ben')}").status == 200


def test_a_client_that_leaves_the_line_touches_nobody(slow: HostProcess) -> None:
    first = slow.stream("one", who="ann")
    with slow.post_and_wait("two", who="ben"):
        slow.wait_state(waiting=1)
    state = slow.wait_state(waiting=0)
    assert state["running"] == 1
    assert first.first_text()


# clients that leave, engines that fail


def test_a_client_that_leaves_ends_its_turn_within_a_token(slow: HostProcess) -> None:
    stream = slow.stream("hello", {"x-request-id": "gone"}, who="ann")
    stream.first_text()
    stream.close()
    state = slow.wait_state(running=0)
    (turn,) = state["recent"]
    assert turn["request_id"] == "gone"
    assert turn["after_disconnect"] <= 1
    made = slow.state()["tokens_generated"]
    assert made == turn["generated"] == state["tokens_generated"]


def test_a_retry_runs_once_the_zombie_is_ended(slow: HostProcess) -> None:
    for _ in range(5):
        stream = slow.stream("hello", who="ann")
        assert stream.first_text() == "I"
        stream.close()
    assert slow.wait_state(running=0)["turns"] == 5


def test_a_whole_answer_is_given_up_when_its_client_leaves(slow: HostProcess) -> None:
    with slow.post_and_wait("hello", who="ann"):
        slow.wait_until(lambda state: state["tokens_generated"] > 0)
    (turn,) = slow.wait_state(running=0, turns=1)["recent"]
    assert turn["after_disconnect"] <= 1


def test_a_client_that_leaves_at_once_gives_its_place_back(slow: HostProcess) -> None:
    for number in range(20):
        slow.post_and_wait("hello", who=f"ann{number}").close()
    state = slow.wait_state(running=0, waiting=0)
    assert state["tokens_generated"] <= 20


def test_an_engine_that_breaks_before_the_first_text_is_a_500(make_host: MakeHost) -> None:
    host = make_host(Behaviour(breaks_after=0))
    host.start()
    stream = host.stream("hello", who="ann")
    assert stream.status == 500
    assert host.wait_state(running=0)["residents"] == []


def test_an_engine_that_breaks_in_mid_stream_ends_it_with_an_error_event(make_host: MakeHost) -> None:
    host = make_host(Behaviour(breaks_after=2, step_s=0.05))
    host.start()
    stream = host.stream("hello", who="ann")
    *_, last = stream.events()
    assert last["error"]["code"] == "engine_failed"
    assert not stream.done
    host.wait_state(running=0)
    host.behave(Behaviour())
    assert host.stream("hello", who="ann").headers["x-homeport-pin"] == "kept"


def test_a_full_disk_is_a_507_and_takes_no_place(host: HostProcess) -> None:
    assert host.process is not None
    journal = host.folder / "journal.sqlite-wal"
    size = journal.stat().st_size
    resource.prlimit(host.process.pid, resource.RLIMIT_FSIZE, (size + 4096, resource.RLIM_INFINITY))
    answer = host.chat("hello", who="ann")
    assert answer.status == 507
    assert answer.body["error"]["code"] == "state_folder_full"
    assert "make room" in answer.body["error"]["message"]
    assert host.state()["free"] == 1
    resource.prlimit(
        host.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    )
    answer = host.chat("hello", who="ann")
    assert answer.headers["x-homeport-pin"] == "new"


# errors that nobody expected


def test_an_internal_error_is_a_500_and_quotes_no_prompt(make_host: MakeHost) -> None:
    host = make_host(Behaviour(prompts_fail=True))
    host.start()
    answer = host.chat("my secret", who="ann")
    assert (answer.status, answer.body["error"]["code"]) == (500, "internal_error")
    assert set(answer.body["error"]) == {"message", "type", "code", "param"}
    assert "RuntimeError" in host.errors()
    assert "fakes.py" in host.errors()
    assert "secret" not in host.errors() + json.dumps(answer.body)


def test_an_internal_error_of_a_turn_tells_its_pin_and_gives_the_place_back(make_host: MakeHost) -> None:
    host = make_host(Behaviour(answer="my secret", garbles_after=0))
    host.start()
    answer = host.chat("hello", who="ann")
    assert (answer.status, answer.headers["x-homeport-pin"]) == (500, "new")
    assert host.wait_state(running=0)["waiting"] == 0
    assert "TypeError" in host.errors()
    assert "secret" not in host.errors()


def test_an_internal_error_in_mid_stream_ends_it_with_an_error_event(make_host: MakeHost) -> None:
    host = make_host(Behaviour(answer="my secret", garbles_after=2, step_s=0.05))
    host.start()
    stream = host.stream("hello", who="ann")
    *_, last = stream.events()
    assert last["error"]["code"] == "internal_error"
    assert not stream.done
    host.wait_state(running=0)
    assert "TypeError" in host.errors()
    assert "secret" not in host.errors()


# bad input


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"", 400, "empty_body", None),
        (b"{", 400, "invalid_json", None),
        (b"[" * 100_000, 400, "invalid_json", None),
        (b"[]", 400, "invalid_type", None),
        ({"model": "other", "messages": [{"role": "user", "content": "x"}]}, 404, "model_not_found", "model"),
        ({"messages": []}, 400, "empty_array", "messages"),
        (
            {"messages": [{"role": "user", "content": "x"}], "tools": [{"function": {"name": "look"}}]},
            400,
            "unsupported_parameter",
            "tools",
        ),
        (
            {"messages": [{"role": "user", "content": "x"}], "logit_bias": {"1114112": 1}},
            400,
            "invalid_value",
            "logit_bias",
        ),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "context_length_exceeded", "messages"),
    ],
)
def test_bad_input_takes_no_place(
    unused: HostProcess, body: Any, status: int, code: str, param: str | None
) -> None:
    answer = unused.chat(body, who="ann")
    error = answer.body["error"]
    assert (answer.status, error["code"], error["param"]) == (status, code, param)
    if code == "context_length_exceeded":
        assert str(len("user:\nassistant:") + 5000) in error["message"]
        assert "4000" in error["message"]
    if param == "logit_bias":
        assert "0 to 1114111" in error["message"]
    state = unused.state()
    assert (state["free"], state["pins"], state["turns"]) == (1, 0, 0)


def test_a_prompt_that_is_too_large_for_any_tokens_is_refused_uncounted(unused: HostProcess) -> None:
    answer = unused.chat("x" * 100_000, who="ann")
    assert (answer.status, answer.body["error"]["code"]) == (400, "context_length_exceeded")
    assert "at least 25004 tokens" in answer.body["error"]["message"]
    assert "4000" in answer.body["error"]["message"]


def test_a_long_prompt_keeps_nobody_waiting(make_host: MakeHost, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    host = make_host(Behaviour(context=100_000, long_prompts_when=str(gate)), context=100_000)
    host.start()
    thread, results = in_background(lambda: host.chat("x" * 20_000, who="ann"))
    try:
        thread.join(0.5)
        assert host.get("/state").body["state"] == "ready"
        assert host.chat("hello").status == 200
        assert not results
    finally:
        gate.touch()
    thread.join(10)
    assert results[0].status == 200


def test_a_broken_session_key_is_a_400(unused: HostProcess) -> None:
    assert unused.chat("hello", {"x-homeport-session-key": "ann"}).status == 400


# its life


def test_it_answers_while_it_loads(make_host: MakeHost, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    host = make_host(Behaviour(loads_when=str(gate)))
    host.start(until="loading")
    assert host.wait_state(progress=0.5)["detail"] == ""
    answer = host.chat("hello", who="ann")
    assert (answer.status, answer.body["error"]["code"]) == (503, "loading")
    assert int(answer.headers["retry-after"]) >= 1
    gate.touch()
    assert host.wait_state(state="ready")["detail"] == "a fake"


def test_a_model_that_cannot_be_loaded_is_said_and_ends_with_78(make_host: MakeHost) -> None:
    host = make_host(Behaviour(load_error="it is\nno GGUF"))
    host.start(until=None)
    assert host.wait_end() == 78
    assert host.errors() == "homeport: load failed: it is no GGUF\n"


def test_a_broken_spec_ends_with_78(make_host: MakeHost) -> None:
    host = make_host()
    (host.folder / "spec.json").write_text("{}")
    host.start(until=None)
    assert host.wait_end() == 78
    assert host.errors().startswith("homeport: load failed: ")


def test_a_taken_port_is_said_and_nothing_is_served(host: HostProcess, make_host: MakeHost) -> None:
    other = make_host()
    spec = json.loads((other.folder / "spec.json").read_text())
    (other.folder / "spec.json").write_text(json.dumps({**spec, "port": host.port}))
    other.start(until=None)
    assert other.wait_end() == 1
    assert f"cannot listen on 127.0.0.1:{host.port}" in other.errors()
    assert "Traceback" not in other.errors()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_streams_with_an_event_and_the_process_with_0(
    slow: HostProcess, number: signal.Signals
) -> None:
    stream = slow.stream("hello", who="ann")
    stream.first_text()
    thread, results = in_background(lambda: slow.chat("hi", who="ben"))
    slow.wait_state(waiting=1)
    begun = time.monotonic()
    slow.signal(number)
    *_, last = stream.events()
    assert last["error"]["code"] == "host_stopping"
    assert not stream.done
    assert slow.wait_end(3.0) == 0
    assert time.monotonic() - begun < 3.0
    thread.join(5)
    assert (results[0].status, results[0].body["error"]["code"]) == (503, "host_stopping")
    assert slow.faults() == ""


def test_a_hanging_engine_does_not_keep_the_process(make_host: MakeHost) -> None:
    host = make_host(Behaviour(endless=True, hangs_after=3, step_s=0.01))
    host.start()
    stream = host.stream("hello", who="ann")
    assert stream.first_text() == "I"
    host.wait_state(tokens_generated=3)
    host.signal(signal.SIGTERM)
    assert host.wait_end(3.5) == 1


def test_a_client_that_does_not_read_does_not_keep_the_process(make_host: MakeHost) -> None:
    host = make_host(Behaviour(answer="x" * 2000, context=500_000, endless=True), context=500_000)
    host.start()
    stalled: Stream = host.stream("hello", who="ann")
    host.signal(signal.SIGTERM)
    assert host.wait_end(3.5) == 0
    stalled.close()


def test_it_can_be_ended_while_it_loads(make_host: MakeHost, tmp_path: Path) -> None:
    host = make_host(Behaviour(loads_when=str(tmp_path / "never")))
    host.start(until="loading")
    host.signal(signal.SIGTERM)
    assert host.wait_end(3.0) == 0


def test_a_damaged_journal_is_set_aside_and_said(make_host: MakeHost) -> None:
    host = make_host()
    (host.folder / "journal.sqlite").write_bytes(b"no database" * 1000)
    host.start()
    assert "was damaged" in host.errors()
    assert (host.folder / "journal.sqlite.broken").exists()
    assert host.chat("hello", who="ann").status == 200
