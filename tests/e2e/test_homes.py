"""Two sessions, each on a core of its own: isolation read from the kernel, cancellation, and what people see."""

import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import confine
from cluster.slices import Slice
from tests.e2e.installation import Homeport, eventually, get_json
from tests.e2e.talk import MODEL, SYSTEM, Conversation, at_once, client

QUESTION = "What is the capital of France?"


def cores_of_threads(pid: int) -> dict[int, set[int]]:
    """Which CPUs each thread of a process may use, as the kernel says."""
    allowed = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        listed = re.search(r"^Cpus_allowed_list:\s*(\S+)", (task / "status").read_text(), re.MULTILINE)
        assert listed
        cpus: set[int] = set()
        for part in listed[1].split(","):
            first, _, last = part.partition("-")
            cpus |= set(range(int(first), int(last or first) + 1))
        allowed[int(task.name)] = cpus
    return allowed


def test_the_openai_sdk_streams_a_sensible_answer(homeport: Homeport) -> None:
    answer = Conversation(homeport.url, "sensible").say(QUESTION)
    assert answer.error is None
    assert "Paris" in answer.text
    assert answer.finish in ("stop", "length")
    assert answer.usage.prompt_tokens > 0
    assert answer.homeport["replica"] == answer.headers["x-homeport-replica"]


def test_without_a_stream_and_without_a_session(homeport: Homeport) -> None:
    with client(homeport.url) as sdk:
        raw = sdk.chat.completions.with_raw_response.create(
            model=MODEL,
            messages=[SYSTEM, {"role": "user", "content": QUESTION}],  # type: ignore[list-item]
            temperature=0,
            max_tokens=24,
        )
    body = raw.parse()
    assert "Paris" in (body.choices[0].message.content or "")
    assert raw.headers["x-homeport-pin"] == "new"
    assert raw.headers["x-homeport-source"] == "guess"
    assert raw.headers["x-request-id"]


def test_two_new_sessions_get_two_homes_and_answer_at_the_same_time(homeport: Homeport) -> None:
    # The router's picture is up to a second old: until it shows that earlier turns are over, their host counts as busy.
    eventually(lambda: not any(r["running"] or r["waiting"] for r in homeport.replicas()))
    one, two = Conversation(homeport.url, "twin-1"), Conversation(homeport.url, "twin-2")
    at_once(lambda: one.say("Count to twenty."), lambda: two.say("Name ten colours."))
    assert one.answers[0].error is None
    assert two.answers[0].error is None
    homes = {c.answers[0].headers["x-homeport-replica"] for c in (one, two)}
    assert len(homes) == 2


def test_every_thread_of_both_hosts_stays_in_its_slice_while_they_answer(homeport: Homeport) -> None:
    replicas = homeport.replicas()
    slices = [set(r["slice"]["cpus"]) for r in replicas]
    assert len(slices) >= 2
    assert sum(map(len, slices)) == len(set.union(*slices))
    seen: list[dict[int, dict[int, set[int]]]] = []
    both_talk = threading.Barrier(2, timeout=60)

    def look_once() -> None:
        """Called at each chunk; the third of each stream waits for the other's, so that both run while we look."""
        counts[threading.get_ident()] = counts.get(threading.get_ident(), 0) + 1
        if counts[threading.get_ident()] == 3 and both_talk.wait() == 0:
            talking = [r for r in replicas if homeport.host_state(r)["running"] == 1]
            if len(talking) >= 2:
                seen.append({r["slot"]: cores_of_threads(r["pid"]) for r in talking})

    counts: dict[int, int] = {}
    one, two = Conversation(homeport.url, "twin-1"), Conversation(homeport.url, "twin-2")
    at_once(
        lambda: one.say("Tell me a long story.", 200, look_once),
        lambda: two.say("Tell me a long joke.", 200, look_once),
    )
    assert seen, "the two hosts were not seen answering at the same time"
    for replica in (r for r in replicas if r["slot"] in seen[0]):
        threads = seen[0][replica["slot"]]
        assert len(threads) >= 2
        strays = {tid: cpus for tid, cpus in threads.items() if not cpus <= set(replica["slice"]["cpus"])}
        assert strays == {}


def test_hosts_run_at_the_usual_priority(homeport: Homeport) -> None:
    """Ray makes its workers nice, and what they start."""
    assert {psutil.Process(r["pid"]).nice() for r in homeport.replicas()} == {psutil.Process().nice()}


def test_a_third_host_on_a_taken_core_is_refused_by_the_lock(homeport: Homeport, tmp_path: Path) -> None:
    replica = homeport.replicas()[0]
    forced = confine.Launch(
        replica="vm/99",
        slice=Slice.from_json(replica["slice"]),
        command=(sys.executable, "-c", "import time; time.sleep(60)"),
        env=dict(os.environ),
        folder=tmp_path / "99",
        record=tmp_path / "99.json",
        locks=homeport.paths.locks,
        port=1,
        config_digest="none",
    )
    with pytest.raises(confine.LockTaken, match=str(replica["slice"]["cores"][0])):
        confine.launch(forced)
    assert confine.read_record(tmp_path / "99.json") is None


def test_a_client_that_leaves_costs_at_most_one_more_token(homeport: Homeport) -> None:
    replica = homeport.replicas()[0]
    home = {r["name"]: r for r in homeport.replicas()}
    body = {
        "model": MODEL,
        "stream": True,
        "max_tokens": 800,
        "temperature": 1.0,
        "seed": 1,
        "logit_bias": {"0": -100, "2": -100},
        "messages": [{"role": "user", "content": "Tell me a very long story about a harbour."}],
    }
    headers = {"content-type": "application/json", "x-session-id": "leaver", "x-request-id": "leaver-1"}
    connection = http.client.HTTPConnection("127.0.0.1", homeport.ports["router"], timeout=60)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        assert answer.status == 200
        replica = home[answer.headers["x-homeport-replica"]]
        read = 0
        while read < 40:
            read += answer.readline().startswith(b"data: ")
        answer.close()
    finally:
        connection.close()

    def its_turn() -> Any:
        turns = [t for t in homeport.host_state(replica)["recent"] if t["request_id"] == "leaver-1"]
        return turns[0] if turns else None

    turn = eventually(its_turn)
    assert turn["after_disconnect"] <= 1, turn
    assert turn["generated"] < 200, turn
    counted = homeport.host_state(replica)["tokens_generated"]
    time.sleep(0.5)
    state = homeport.host_state(replica)
    assert (state["tokens_generated"], state["running"]) == (counted, 0)
    kept = Conversation(homeport.url, "leaver").say("Hello?")
    assert kept.error is None
    assert kept.headers["x-homeport-pin"] == "kept"


def test_the_second_turn_reuses_the_first(homeport: Homeport) -> None:
    talk = Conversation(homeport.url, "sensible-two")
    first = talk.say(QUESTION)
    second = talk.say("And of Italy?")
    assert (first.headers["x-homeport-pin"], second.headers["x-homeport-pin"]) == ("new", "kept")
    assert second.headers["x-homeport-context"] == "resident"
    assert second.headers["x-homeport-replica"] == first.headers["x-homeport-replica"]
    assert second.homeport["reused_tokens"] == second.usage.prompt_tokens_details.cached_tokens > 20
    assert first.homeport["cause"] == "new"


def test_a_session_that_gave_way_to_a_newer_one_is_resumed(homeport: Homeport) -> None:
    replicas = len(homeport.replicas())
    talks = [Conversation(homeport.url, f"crowd-{n}") for n in range(replicas + 1)]
    for talk in talks:
        answer = talk.say(QUESTION, 4)
        assert answer.error is None, answer
    shared = [t.answers[0].headers["x-homeport-replica"] for t in talks]
    pushed = next(t for n, t in enumerate(talks) if shared[n] in shared[n + 1 :])
    again = pushed.say("And of Italy?", 4)
    assert again.error is None, again
    assert again.headers["x-homeport-pin"] == "kept"
    assert again.headers["x-homeport-context"] == "resumed"
    assert again.homeport["cause"] is None
    assert again.usage.prompt_tokens_details.cached_tokens >= pushed.answers[0].usage.prompt_tokens


def test_status_shows_slices_owners_and_limits(homeport: Homeport) -> None:
    Conversation(homeport.url, "owner").say(QUESTION, 4)
    done = homeport.run("status", "--json")
    assert done.returncode == 0, done.stderr
    machine = json.loads(done.stdout)["machines"][0]
    for replica in machine["replicas"]:
        assert replica["slice"]["cores"]
        assert set(replica["limits"]["enforced"]) >= {"cores", "threads"}
        assert "memory" in {*replica["limits"]["enforced"], *replica["limits"]["watched"]}
    shown = homeport.run("status").stdout
    assert machine["replicas"][0]["name"] in shown
    assert "hp_" in shown


def test_sessions_are_listed_by_public_ids_only(homeport: Homeport) -> None:
    answer = Conversation(homeport.url, "a very secret name").say(QUESTION, 4)
    listed = homeport.run("sessions", "--json").stdout
    assert answer.headers["x-homeport-session"] in {s["id"] for s in json.loads(listed)["sessions"]}
    everything = listed + homeport.logs() + json.dumps(homeport.get("/api/fleet"))
    assert "a very secret name" not in everything


def test_the_public_id_of_a_session_is_stable_over_turns(homeport: Homeport) -> None:
    talk = Conversation(homeport.url, "stable")
    ids = {talk.say(QUESTION, 4).headers["x-homeport-session"] for _ in range(2)}
    assert len(ids) == 1


def test_chat_answers_one_question(homeport: Homeport) -> None:
    done = homeport.run("chat", "--session", "from-the-shell", "--max-tokens", "16", QUESTION)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_a_second_up_says_what_runs_already(homeport: Homeport) -> None:
    done = homeport.run("up", "--config", str(homeport.config), timeout=30)
    assert done.returncode == 0
    assert homeport.url in done.stdout
    assert "homeport down" in done.stdout


def test_metrics_count_requests_and_carry_no_session(homeport: Homeport) -> None:
    assert homeport.run("chat", "--session", "a-secret-name", "--max-tokens", "16", QUESTION).returncode == 0

    def told() -> str:
        asked = ["curl", "-s", f"{homeport.url}/metrics"]
        with subprocess.Popen(asked, stdout=subprocess.PIPE, text=True) as curl:
            text = curl.communicate(timeout=10)[0]
        # What a keeper found comes with its next report.
        assert re.search(r"homeport_slice_cpu_seconds_total\{.*\} [0-9.]*[1-9]", text), (
            "nothing of the keeper's"
        )
        return text

    text = eventually(told, seconds=30.0)
    assert "homeport_build_info{" in text
    assert re.search(r'homeport_requests_total\{[^}]*model="smollm2"[^}]*\} [1-9]', text)
    assert "homeport_time_to_first_token_seconds_bucket" in text
    assert re.search(r'homeport_sessions\{.*state="pinned"\} [1-9]', text)
    assert re.search(r"homeport_time_between_tokens_seconds_count\{.*\} [1-9]", text)
    assert re.search(r"homeport_machine_up\{.*\} 1", text)
    assert "twin-1" not in text
    assert "a-secret-name" not in text


def test_prometheus_finds_and_may_ask_every_process(homeport: Homeport) -> None:
    with urllib.request.urlopen(f"{homeport.url}/sd", timeout=10) as answer:  # noqa: S310
        targets = [each["labels"] for each in json.load(answer)]
    roles = [labels["role"] for labels in targets]
    assert roles == ["router", "controller", "keeper", *["host"] * len(homeport.replicas())]
    for labels in targets:
        asked = {key.removeprefix("__param_"): v for key, v in labels.items() if key.startswith("__param_")}
        url = f"{homeport.url}/metrics?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
            assert b"homeport_build_info{" in answer.read(), labels


def test_hosts_and_controller_want_the_clusters_token(homeport: Homeport) -> None:
    replica = homeport.replicas()[0]
    for port in (replica["port"], homeport.ports["control"]):
        with pytest.raises(AssertionError, match="401"):
            get_json(f"http://127.0.0.1:{port}/{'state' if port == replica['port'] else 'fleet'}")


def test_a_foreign_host_header_is_refused(homeport: Homeport) -> None:
    with pytest.raises(AssertionError, match="403"):
        get_json(f"{homeport.url}/v1/models", {"host": "evil.example"})
