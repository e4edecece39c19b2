"""The table "What happens to a session" of the design, a test a line, against real processes.

The lines on draining, yielding, sleeping, forgotten and joining machines belong to clusters of several machines.
"""

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.processes import ours
from router.lifecycle import end_everything
from tests.e2e.installation import Homeport, ended_after, eventually
from tests.e2e.talk import MODEL, SYSTEM, Answer, Conversation, at_once
from tests.e2e.test_survival import actor

LONG = "Write a long story about a harbour, a lighthouse and a storm."
TITLE = (
    "Suggest a title of at most five words for a conversation about rivers. Answer with the title alone, "
    "without quotes, without an explanation and without anything else around it."
)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeport]:
    """One exclusive replica. A quiet session keeps its place for 3 s, a turn waits for 8 s."""
    folder = tmp_path_factory.mktemp("single")
    with ended_after(Homeport(folder, hold="3s", queue="8s", count="1")) as homeport:
        homeport.up()
        yield homeport


def at_rest(homeport: Homeport) -> None:
    """Until the router's picture shows no turn."""
    eventually(lambda: not any(r["running"] or r["waiting"] for r in homeport.replicas()), 60)


def whole(answer: Answer) -> dict[str, Any]:
    """What homeport said of the turn, which must have gone well, and tell the same in usage."""
    assert answer.error is None, answer
    assert answer.finish in ("stop", "length"), answer
    said = answer.homeport
    assert said["reused_tokens"] == answer.usage.prompt_tokens_details.cached_tokens
    assert said["reused_tokens"] + said["evaluated_tokens"] == answer.usage.prompt_tokens
    return said


def past_hold(homeport: Homeport) -> None:
    """Until the only resident has been quiet longer than the 3 s that it may keep its place."""

    def is_quiet() -> bool:
        residents = homeport.host_state(homeport.replicas()[0])["residents"]
        return all(resident["quiet_s"] > 3 for resident in residents)

    eventually(is_quiet)


def story(homeport: Homeport, name: str, tokens: int = 600) -> tuple[Conversation, threading.Thread]:
    """A session whose turn runs for some seconds; returns once its first words are there."""
    talk, begun = Conversation(homeport.url, name), threading.Event()
    thread = threading.Thread(target=talk.say, args=(LONG, tokens, begun.set))
    thread.start()
    assert begun.wait(30), talk.answers
    return talk, thread


def post(homeport: Homeport, body: dict[str, Any], headers: dict[str, str]) -> tuple[socket.socket, Any]:
    """A streaming request on a socket of its own, and the file to read its answer from."""
    data = json.dumps({"model": MODEL, "stream": True, "temperature": 0, **body}).encode()
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join(
        [
            "POST /v1/chat/completions HTTP/1.1",
            f"Host: 127.0.0.1:{homeport.ports['router']}",
            "Content-Type: application/json",
            f"Content-Length: {len(data)}",
            *lines,
        ]
    )
    connection = socket.create_connection(("127.0.0.1", homeport.ports["router"]), timeout=60)
    connection.sendall(head.encode() + b"\r\n\r\n" + data)
    return connection, connection.makefile("rb")


# it is new


def test_it_is_new(homeport: Homeport) -> None:
    at_rest(homeport)
    talks = [Conversation(homeport.url, f"new-{number}") for number in range(2)]
    at_once(*(lambda t=t: t.say("Name three rivers.") for t in talks))
    told = [whole(talk.answers[0]) for talk in talks]
    assert {said["replica"] for said in told} == {r["name"] for r in homeport.replicas()}
    assert all((said["pin"], said["cause"]) == ("new", "new") for said in told)


# its replica is ready and it is resident


def test_its_replica_is_ready_and_it_is_resident(homeport: Homeport) -> None:
    at_rest(homeport)
    talk = Conversation(homeport.url, "resident")
    first = whole(talk.say("Name three rivers."))
    second = whole(talk.say("And a fourth?"))
    assert (second["pin"], second["context"], second["cause"]) == ("kept", "resident", None)
    assert second["replica"] == first["replica"]
    assert int(talk.answers[1].headers["x-homeport-waited-ms"]) < 1000


# its replica is full, a resident has been quiet longer than hold


def test_its_replica_is_full_and_a_resident_has_been_quiet_longer_than_hold(single: Homeport) -> None:
    at_rest(single)
    one, two = Conversation(single.url, "quiet-one"), Conversation(single.url, "quiet-two")
    whole(one.say("Name three rivers."))
    past_hold(single)
    asked = time.monotonic()
    whole(two.say("Name three colours."))
    assert time.monotonic() - asked < 3  # nobody had to wait for the hold
    past_hold(single)
    for talk in (one, two):
        said = whole(talk.say("And a fourth?"))
        assert (said["pin"], said["context"]) == ("kept", "resumed")
        if talk is one:
            past_hold(single)


# its replica is full of busy sessions


def test_its_replica_is_full_of_busy_sessions(single: Homeport) -> None:
    at_rest(single)
    _, busy = story(single, "busy", 1200)
    body = {"messages": [SYSTEM, {"role": "user", "content": "Hello"}], "max_tokens": 4}
    asked = time.monotonic()
    connection, answer = post(single, body, {"x-session-id": "in-the-line"})
    with connection, answer, ThreadPoolExecutor() as beside:
        eventually(lambda: single.replicas()[0]["waiting"] == 1)
        in_one_piece = beside.submit(single.post_whole, body, {"x-session-id": "not-a-stream"})
        assert b" 200 " in answer.readline()
        assert 4 < time.monotonic() - asked < 7  # the head goes out after 5 s
        lines = []
        while (line := answer.readline()) and b"queue_timeout" not in line:
            lines.append(line)
        comments = [line for line in lines if line.startswith(b": ")]
        assert any(b"waiting" in line and b"place 1" in line for line in comments), lines
        assert line
        assert b"[DONE]" not in answer.read1()
    code, headers, told = in_one_piece.result()
    assert (code, told["error"]["code"]) == (429, "queue_timeout")
    assert int(headers["retry-after"]) >= 1
    assert single.replicas()[0]["name"] in told["error"]["message"]
    busy.join()


# it was parked


def test_it_was_parked(single: Homeport) -> None:
    at_rest(single)
    one, two = Conversation(single.url, "parked"), Conversation(single.url, "parks")
    whole(one.say("Name three rivers."))
    whole(two.say("Name three colours."))  # waits until the hold is over
    said = whole(one.say("Which is the longest?"))
    first, second = one.answers
    assert (said["context"], said["cause"]) == ("resumed", None)
    assert said["reused_tokens"] >= first.usage.prompt_tokens
    assert said["evaluated_tokens"] < second.usage.prompt_tokens - first.usage.prompt_tokens
    assert whole(two.say("And a fourth?"))["context"] == "resumed"


# a second turn of it arrives while one runs


def test_a_second_turn_of_it_arrives_while_one_runs(single: Homeport) -> None:
    at_rest(single)
    talk, busy = story(single, "two-turns", 100)
    second = Conversation(single.url, "two-turns")
    answer = second.say("Name three rivers.", 4)
    assert answer.error is None
    busy.join()
    assert talk.answers[0].error is None  # the second one did not end the first
    assert talk.answers[0].finish == "length"
    assert int(answer.headers.get("x-homeport-waited-ms", "0")) > 0


def test_a_turn_whose_client_left_is_ended_before_its_retry_starts(single: Homeport) -> None:
    at_rest(single)
    body = {"messages": [SYSTEM, {"role": "user", "content": LONG}], "max_tokens": 1500}
    connection, answer = post(single, body, {"x-session-id": "retried"})
    with connection, answer:
        while b"content" not in answer.readline():
            pass
    retry = Conversation(single.url, "retried")
    asked = time.monotonic()
    assert retry.say(LONG, 4).error is None
    assert time.monotonic() - asked < 5
    recent = single.host_state(single.replicas()[0])["recent"]
    assert recent[-2]["after_disconnect"] <= 2
    assert recent[-2]["generated"] < 1500


# a request under its name that does not continue it


def test_a_request_under_its_name_that_does_not_continue_it(single: Homeport) -> None:
    at_rest(single)
    talk = Conversation(single.url, "with-a-title")
    whole(talk.say("Describe the three longest rivers of Europe in detail.", 300))
    assert talk.aside(TITLE).error is None
    said = whole(talk.say("Which of them is the longest?", 8))
    first, _, last = talk.answers
    assert (said["pin"], said["cause"]) == ("kept", None)
    assert said["reused_tokens"] >= first.usage.prompt_tokens + first.usage.completion_tokens - 2
    assert said["evaluated_tokens"] == last.usage.prompt_tokens - said["reused_tokens"]


def test_one_that_continues_the_scratch_makes_it_the_resident(single: Homeport) -> None:
    at_rest(single)
    talk = Conversation(single.url, "compacted")
    whole(talk.say("Describe the three longest rivers of Europe in detail.", 300))
    summary = "Here is what was said so far: the user asked about the Volga, the Danube and the Ural."
    talk.history = [SYSTEM]
    whole(talk.say(summary))
    said = whole(talk.say("Which of them is the longest?"))
    _, second, _ = talk.answers
    assert said["reused_tokens"] >= second.usage.prompt_tokens
    again = whole(talk.say("And the shortest?"))
    assert (again["context"], again["cause"]) == ("resident", None)


# a child in its family asks while it is between turns


def test_a_child_in_its_family_asks_while_it_is_between_turns(single: Homeport) -> None:
    at_rest(single)
    parent = Conversation(single.url, "parent")
    whole(parent.say("Name three rivers of Europe."))
    children = [
        Conversation(single.url, f"child-{number}", headers={"x-homeport-parent": "parent"})
        for number in range(3)
    ]
    asked = time.monotonic()
    at_once(*(lambda c=c: c.say("Name three colours.") for c in children))
    assert time.monotonic() - asked < 3 + 6 * 3  # nobody waited for a hold
    for child in children:
        said = whole(child.answers[0])
        assert said["replica"] == parent.answers[0].homeport["replica"]
    said = whole(parent.say("Which of them is the longest?"))
    first, second = parent.answers
    assert (said["pin"], said["context"], said["cause"]) == ("kept", "resumed", None)
    assert said["reused_tokens"] >= first.usage.prompt_tokens
    assert second.usage.prompt_tokens - said["reused_tokens"] == said["evaluated_tokens"]


# its machine is lost


@pytest.fixture
def half_lost(tmp_path: Path) -> Iterator[tuple[Homeport, dict[str, str]]]:
    """Two exclusive replicas; the first one's host is frozen, and nobody can start it anew. By session: its home."""
    homeport = Homeport(tmp_path, hold="1s", queue="8s")
    homeport.config.write_text(
        homeport.config.read_text().replace("network: {", "network: {lost_after: 8s, ")
    )
    frozen: list[psutil.Process] = []
    try:
        homeport.up()
        talks = [Conversation(homeport.url, f"lost-{number}") for number in range(6)]
        for talk in talks:
            whole(talk.say("Name three rivers.", 4))
        homes = {talk.name: talk.answers[0].homeport["replica"] for talk in talks}
        frozen = [
            actor(homeport, "Keeper"),
            psutil.Process(next(r["pid"] for r in homeport.replicas() if r["name"] == min(homes.values()))),
        ]
        for process in frozen:
            process.send_signal(signal.SIGSTOP)
        yield homeport, homes
    finally:
        for process in frozen:
            if process.is_running():
                process.send_signal(signal.SIGCONT)
        end_everything(homeport.paths)
    assert ours(homeport.paths) == []


def test_its_machine_is_lost(half_lost: tuple[Homeport, dict[str, str]]) -> None:
    homeport, homes = half_lost
    lost = min(homes.values())
    gone = [name for name, home in homes.items() if home == lost]
    assert len(gone) >= 3

    def ask(name: str, policy: str) -> tuple[int, "Message[str, str]", Any]:
        messages = [SYSTEM, {"role": "user", "content": "And a fourth?"}]
        return homeport.post_whole(
            {"messages": messages, "max_tokens": 4},
            {"x-session-id": name, "x-homeport-when-lost": policy},
        )

    def is_lost() -> bool:
        return bool(ask(gone[0], "wait")[2]["error"]["code"] == "machine_lost")

    eventually(lambda: any(r["name"] == lost and r["reach"] == "out" for r in homeport.replicas()))
    eventually(is_lost, 60.0)
    code, headers, told = ask(gone[0], "wait")
    assert (code, told["error"]["code"]) == (503, "machine_lost")
    assert int(headers["retry-after"]) >= 1
    code, headers, told = ask(gone[1], "fail")
    assert (code, told["error"]["code"]) == (410, "machine_lost")
    assert headers["x-should-retry"] == "false"
    code, headers, told = ask(gone[2], "move")
    assert code == 200, told
    assert headers["x-homeport-pin"] == "moved"
    assert headers["x-homeport-replica"] == max(homes.values())
    assert told["homeport"]["cause"] == "moved"
    moved = Conversation(homeport.url, gone[2])
    assert whole(moved.say("And a fifth?"))["replica"] == max(homes.values())


# the request names no session


def test_the_request_names_no_session(homeport: Homeport) -> None:
    at_rest(homeport)
    one, two = Conversation(homeport.url, ""), Conversation(homeport.url, "")
    first = whole(one.say("Name three rivers of Europe."))
    assert one.answers[0].headers["x-homeport-source"] == "guess"
    assert first["pin"] == "new"
    second = whole(one.say("Which of them is the longest?"))
    assert (second["pin"], second["replica"]) == ("kept", first["replica"])
    assert second["reused_tokens"] >= one.answers[0].usage.prompt_tokens
    # Another one with the same opening, told apart as soon as it goes another way.
    two.history = [*one.history[:3]]
    other = whole(two.say("Which of them is the shortest?"))
    sessions = [talk.answers[-1].headers["x-homeport-session"] for talk in (one, two)]
    assert sessions[0] != sessions[1]
    assert other["pin"] == "new"
    third = whole(one.say("Why?"))
    assert one.answers[-1].headers["x-homeport-session"] == sessions[0]
    assert third["pin"] == "kept"


def test_a_public_id_means_its_session(homeport: Homeport) -> None:
    at_rest(homeport)
    talk = Conversation(homeport.url, "by-its-public-id")
    first = whole(talk.say("Name three rivers."))
    public = talk.answers[0].headers["x-homeport-session"]
    again = Conversation(homeport.url, "", history=talk.history, headers={"x-homeport-session": public})
    said = whole(again.say("And a fourth?"))
    assert (said["pin"], said["replica"], said["context"]) == ("kept", first["replica"], "resident")
    assert again.answers[0].headers["x-homeport-session"] == public


def test_a_session_is_ended_and_begins_anew(homeport: Homeport) -> None:
    at_rest(homeport)
    talk = Conversation(homeport.url, "ended")
    whole(talk.say("Name three rivers."))
    public = talk.answers[0].headers["x-homeport-session"]
    assert homeport.run("end", public).returncode == 0
    assert public not in homeport.run("sessions", "--json").stdout
    said = whole(talk.say("And a fourth?"))
    assert (said["pin"], said["reused_tokens"]) == ("new", 0)
