"""vLLM as a replica beside others: in its slice, with sessions, and through every kind of death."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import psutil
import pytest
from openai import OpenAI

from cluster.group_watch import shared_memory
from cluster.vllm_env import bundled_folder
from tests.e2e.installation import Homeport, eventually
from tests.e2e.talk import SYSTEM, client
from tests.hub import Hub
from tests.vllm.conftest import LLAMA, LOADS_S, REPOSITORY, VLLM, replica_of
from tests.vllm.processes import door, engines, family, server

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]
GONE_S = 5.0
QUESTIONS = (
    "What is the capital of France?",
    "What is the capital of Italy?",
    "Name three colours.",
    "Write one sentence about the sea.",
    "What is two plus two?",
    "Who wrote Hamlet?",
    "Translate 'good morning' to French.",
    "What do bees make?",
)


@pytest.fixture
def sdk(installed: Homeport) -> Iterator[OpenAI]:
    with client(installed.url) as sdk:
        yield sdk


@pytest.fixture
def vllm(installed: Homeport) -> dict[str, Any]:
    """Its replica, ready, whatever the test before did to it."""
    eventually(lambda: replica_of(installed, VLLM)["state"] == "ready", LOADS_S)
    return replica_of(installed, VLLM)


def metric(process: psutil.Process, name: str) -> float:
    """What vLLM itself counts; asked past its host, as nobody but root or its person can."""
    behind = door(process)
    connection = HTTPConnection("vllm")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(behind.socket))
    try:
        connection.request("GET", "/metrics", headers={"authorization": f"Bearer {behind.key}"})
        lines = connection.getresponse().read().decode().splitlines()
    finally:
        connection.close()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))


def all_gone(processes: list[psutil.Process]) -> float:
    """Seconds until none of them runs."""
    began = time.monotonic()
    _, left = psutil.wait_procs(processes, timeout=20)
    assert not left
    return time.monotonic() - began


def ask(sdk: OpenAI, words: str, session: str = "", model: str = VLLM, **more: Any) -> Any:
    return sdk.chat.completions.create(
        model=model,
        messages=[SYSTEM, {"role": "user", "content": words}],  # type: ignore[list-item]
        temperature=0,
        max_tokens=more.pop("max_tokens", 32),
        extra_headers={"x-session-id": session} if session else {},
        **more,
    )


def test_status_shows_both_engines(installed: Homeport, vllm: dict[str, Any]) -> None:
    told = installed.run("status").stdout
    assert "smollm2-vllm" in told
    assert told.count("ready") >= 2
    slices = [replica["slice"]["cpus"] for replica in installed.replicas()]
    assert not set(slices[0]) & set(slices[1])


def test_no_thread_of_it_runs_outside_its_slice(vllm: dict[str, Any], sdk: OpenAI) -> None:
    ask(sdk, "Say hello.")
    cpus, seen = set(vllm["slice"]["cpus"]), 0
    for process in family(vllm["pid"]):
        for thread in process.threads():
            assert os.sched_getaffinity(thread.id) <= cpus, process.cmdline()
            seen += 1
    print(f"\n{seen} threads, 0 outside of {sorted(cpus)}")
    assert seen > 20


def test_it_listens_nowhere_but_on_its_socket_and_tells_nobody(vllm: dict[str, Any]) -> None:
    process = server(vllm["pid"])
    env = process.environ()
    assert {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "0",
        "HF_HUB_OFFLINE": "1",
    }.items() <= env.items()
    assert env["VLLM_API_KEY"] not in " ".join(process.cmdline())
    listening = [
        connection.laddr.ip
        for each in engines(vllm["pid"])
        for connection in each.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert set(listening) <= {"127.0.0.1", "::1"}


def test_a_second_turn_evaluates_only_what_is_new(vllm: dict[str, Any], sdk: OpenAI) -> None:
    history: list[Any] = [SYSTEM, {"role": "user", "content": "Tell me a long story about a ship. " * 8}]
    made: Any = {
        "model": VLLM,
        "temperature": 0,
        "max_tokens": 40,
        "extra_headers": {"x-session-id": "turns"},
    }
    first = sdk.chat.completions.create(messages=history, **made)
    assert first.model_extra is not None
    history += [
        first.choices[0].message.model_dump(exclude_none=True),
        {"role": "user", "content": "And then?"},
    ]
    second = sdk.chat.completions.create(messages=history, **made)
    told = second.model_extra["homeport"]
    assert (told["context"], told["pin"], told["cause"]) == ("resident", "kept", None)
    assert told["reused_tokens"] % 32 == 0
    assert told["reused_tokens"] >= first.usage.total_tokens - 2 * 32
    assert second.usage.prompt_tokens_details.cached_tokens == told["reused_tokens"]
    assert told["reused_tokens"] + told["evaluated_tokens"] == second.usage.prompt_tokens


def test_a_session_that_gave_way_is_found_again(vllm: dict[str, Any], sdk: OpenAI) -> None:
    """There are four places; the fifth session takes the one that was quiet longest."""
    story = "Tell me a long story about ship number {}. " * 6
    for number in range(5):
        ask(sdk, story.format(*[number] * 6), f"way-{number}", max_tokens=4)
        time.sleep(1.1)  # hold
    told = ask(sdk, story.format(*[0] * 6), "way-0", max_tokens=4).model_extra["homeport"]
    assert (told["pin"], told["context"]) == ("kept", "resumed")
    assert told["reused_tokens"] >= 32
    assert told["evaluated_tokens"] < told["reused_tokens"]


def test_both_engines_read_the_same_prompt_and_mostly_say_the_same(sdk: OpenAI, vllm: dict[str, Any]) -> None:
    same, tokens, agreed = 0, 0, 0
    for words in QUESTIONS:
        one, other = ask(sdk, words, model=LLAMA), ask(sdk, words, model=VLLM)
        assert one.usage.prompt_tokens == other.usage.prompt_tokens
        texts = one.choices[0].message.content.split(), other.choices[0].message.content.split()
        same += texts[0] == texts[1]
        tokens += max(map(len, texts))
        agreed += next(
            (at for at, pair in enumerate(zip(*texts, strict=False)) if pair[0] != pair[1]),
            min(map(len, texts)),
        )
    print(
        f"\ngreedy answers: {same} of {len(QUESTIONS)} the same, {agreed} of {tokens} words up to the first other one"
    )
    assert agreed * 4 >= tokens  # 4-bit weights on one side, their values in bfloat16 on the other


def test_a_client_that_leaves_is_heard_by_vllm(vllm: dict[str, Any], sdk: OpenAI) -> None:
    process = server(vllm["pid"])
    stream = sdk.chat.completions.create(
        model=VLLM,
        messages=[{"role": "user", "content": "Count to a thousand."}],
        stream=True,
        max_tokens=1500,
        logit_bias={"0": -100, "2": -100},
    )
    next(iter(stream))
    assert metric(process, "vllm:num_requests_running") == 1
    began = time.monotonic()
    stream.close()
    eventually(lambda: metric(process, "vllm:num_requests_running") == 0, 5)
    print(f"\nvLLM's request is over {time.monotonic() - began:.2f} s after its client left")


def test_a_keeper_that_dies_leaves_it_be(installed: Homeport, vllm: dict[str, Any], sdk: OpenAI) -> None:
    before = [process.pid for process in family(vllm["pid"])]
    keepers = [each for each in psutil.process_iter(["cmdline"]) if is_keeper(each, installed)]
    assert len(keepers) == 1
    keepers[0].kill()
    assert ask(sdk, "Say hello.").choices[0].message.content
    eventually(lambda: [k for k in psutil.process_iter(["cmdline"]) if is_keeper(k, installed)] != [], 60)
    eventually(
        lambda: replica_of(installed, VLLM)["state"] == "ready" and replica_of(installed, VLLM)["pid"], 60
    )
    time.sleep(3)
    assert replica_of(installed, VLLM)["pid"] == vllm["pid"], "adopted"
    assert [process.pid for process in family(vllm["pid"])] == before


def is_keeper(process: psutil.Process, installed: Homeport) -> bool:
    try:
        named = "KeeperActor" in " ".join(process.info["cmdline"] or ())
        return named and process.environ().get("HOMEPORT_HOME") == str(installed.paths.home)
    except psutil.Error:
        return False


def test_when_vllms_parent_is_killed_all_of_it_goes_and_its_host_comes_back(
    installed: Homeport, vllm: dict[str, Any], sdk: OpenAI
) -> None:
    assert ask(sdk, "Remember the word plum.", "comes-back").model_extra["homeport"]["pin"] == "new"
    processes = engines(vllm["pid"])
    shared = shared_memory(process.pid for process in processes)
    assert shared
    server(vllm["pid"]).send_signal(signal.SIGKILL)
    took_s = all_gone(processes)
    print(f"\nvLLM's parent killed: children and memory gone after {took_s:.2f} s")
    assert took_s <= GONE_S
    eventually(lambda: not any(file.exists() for file in shared), GONE_S)
    is_back(installed, vllm)
    told = ask(sdk, "Which word?", "comes-back").model_extra["homeport"]
    assert (told["pin"], told["context"]) == ("kept", "evaluated")


def test_when_its_host_is_killed_all_of_it_goes(installed: Homeport, vllm: dict[str, Any]) -> None:
    processes = engines(vllm["pid"])
    shared = shared_memory(process.pid for process in processes)
    own = door(server(vllm["pid"])).socket.parent
    os.kill(vllm["pid"], signal.SIGKILL)
    took_s = all_gone(processes)
    print(f"\nits host killed: all of vLLM gone after {took_s:.2f} s")
    assert took_s <= GONE_S
    eventually(lambda: not own.exists() and not any(file.exists() for file in shared), GONE_S)
    is_back(installed, vllm)


def test_a_whole_repository_is_brought_and_served(
    installed: Homeport, vllm: dict[str, Any], sdk: OpenAI, site: Hub
) -> None:
    before = ask(sdk, QUESTIONS[0]).choices[0].message.content
    installed.others = installed.others.replace("source: bundled", f"source: hf:{REPOSITORY}")
    installed.configure()
    done = installed.run("apply", "--yes", "--config", str(installed.config), timeout=LOADS_S)
    assert done.returncode == 0, done.stdout + done.stderr
    is_back(installed, vllm)
    (pid,) = [replica["pid"] for replica in installed.replicas() if replica["model"] == VLLM]
    words = server(pid).cmdline()
    assert any(word.endswith(str(installed.paths.fetched / REPOSITORY)) for word in words), words
    assert ask(sdk, QUESTIONS[0]).choices[0].message.content == before
    weights = bundled_folder(os.environ) / "model.safetensors"
    assert weights.stat().st_size <= site.total < weights.stat().st_size + 16 * 2**20


def is_back(installed: Homeport, before: dict[str, Any]) -> None:
    def again() -> bool:
        now = replica_of(installed, VLLM)
        return now["state"] == "ready" and now["pid"] != before["pid"]

    eventually(again, LOADS_S)


def test_the_machines_person_has_its_memory_within_5_s(installed: Homeport, vllm: dict[str, Any]) -> None:
    processes = engines(vllm["pid"])
    yielding = installed.popen("yield")
    try:
        took_s = all_gone(processes)
        print(f"\nyielded: all of vLLM gone after {took_s:.2f} s")
        assert took_s <= GONE_S
    finally:
        yielding.communicate(timeout=60)
        assert installed.run("yield", "--end").returncode == 0
    is_back(installed, vllm)


def test_down_leaves_nothing_of_it(installed: Homeport, vllm: dict[str, Any]) -> None:
    """The last one: what was installed for the others ends here."""
    processes = family(vllm["pid"])
    own = door(server(vllm["pid"])).socket.parent
    shared = shared_memory(process.pid for process in processes)
    assert installed.run("down").returncode == 0
    assert all_gone(processes) <= GONE_S
    eventually(lambda: not own.exists() and not any(file.exists() for file in shared), GONE_S)
