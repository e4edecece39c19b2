"""The scripted engine in a real host process: what is said over HTTP, and how its contexts are kept."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from serving.model import ModelSpec
from tests.host_process import HostProcess, model_spec, text_of

TOOL = {
    "type": "function",
    "function": {
        "name": "read",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
    },
}
SCRIPT = r"""
rules:
  - when: {last_user: 'fix (\S+)', tools: [read]}
    steps:
      - think: Which file is it?
        say: I read ${1}.
        call: {name: read, arguments: {path: "${1}"}}
      - say: "It says: ${last_result}"
  - when: {last_user: forever}
    say: "on and on "
    repeat: 100000
    tokens_per_s: 100
"""
MakeHost = Callable[..., HostProcess]


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[MakeHost]:
    """Makes hosts that are not started yet; whole process groups are ended afterwards."""
    made: list[HostProcess] = []
    script = tmp_path / "script.yaml"
    script.write_text(SCRIPT)

    def make(**spec: Any) -> HostProcess:
        model = ModelSpec.from_json(
            {**model_spec(**spec).to_json(), "engine": "script", "source": str(script)}
        )
        host = HostProcess(tmp_path / str(len(made)), model, str(script), None)
        made.append(host)
        return host

    yield make
    for host in made:
        host.kill()


class Talk:
    """A growing chat of one session."""

    def __init__(self, host: HostProcess, who: str) -> None:
        self.host = host
        self.who = who
        self.messages: list[dict[str, Any]] = []
        self.usage: dict[str, Any] = {}
        self.told: dict[str, Any] = {}

    def say(self, text: str) -> dict[str, Any]:
        return self.add({"role": "user", "content": text})

    def add(self, message: dict[str, Any]) -> dict[str, Any]:
        self.messages.append(message)
        answer = self.host.chat({"messages": self.messages, "tools": [TOOL]}, who=self.who)
        assert answer.status == 200, answer.body
        self.usage, self.told = answer.body["usage"], answer.body["homeport"]
        said: dict[str, Any] = answer.body["choices"][0]["message"]
        self.messages.append(
            {"role": "assistant", **{k: v for k, v in said.items() if k != "reasoning_content"}}
        )
        return said


def test_a_long_turn_of_thoughts_calls_and_results_is_played(make_host: MakeHost) -> None:
    host = make_host()
    host.start()
    talk = Talk(host, "ann")
    said = talk.say("Please fix a.py")
    assert (said["reasoning_content"], said["content"]) == ("Which file is it?", "I read a.py.")
    (call,) = said["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("read", {"path": "a.py"})
    said = talk.add({"role": "tool", "tool_call_id": call["id"], "content": "import this"})
    assert said["content"] == "It says: import this"
    assert talk.told["cause"] is None or talk.told["cause"].startswith("edited")


def test_without_the_tool_the_rule_is_passed_over(make_host: MakeHost) -> None:
    host = make_host()
    host.start()
    answer = host.chat("Please fix a.py", who="title")
    assert answer.body["choices"][0]["message"]["content"] == "Please fix a.py"


def test_turn_two_evaluates_only_what_is_new(make_host: MakeHost) -> None:
    host = make_host()
    host.start()
    talk = Talk(host, "ann")
    talk.say("Good morning.")
    held = talk.usage["prompt_tokens"] + talk.usage["completion_tokens"] - 1
    talk.say("And good night.")
    assert (talk.told["context"], talk.told["reused_tokens"]) == ("resident", held)
    assert talk.told["evaluated_tokens"] == talk.usage["prompt_tokens"] - held


def test_two_sessions_in_one_place_are_parked_for_each_other_and_resume(make_host: MakeHost) -> None:
    host = make_host(hold_s=0.0)
    host.start()
    ann, ben = Talk(host, "ann"), Talk(host, "ben")
    for _ in range(2):
        for talk in (ann, ben):
            talk.say(f"This is {talk.who}.")
    for talk in (ann, ben):
        held = talk.usage["prompt_tokens"] - talk.told["evaluated_tokens"]
        assert (talk.told["context"], talk.told["reused_tokens"]) == ("resumed", held)
        assert held > 0


def test_a_new_process_goes_on_with_what_was_parked(make_host: MakeHost) -> None:
    host = make_host()
    host.start()
    talk = Talk(host, "ann")
    talk.say("Good morning.")
    host.signal(signal.SIGTERM)
    assert host.wait_end() == 0
    host.start()
    talk.say("And good night.")
    assert talk.told["context"] == "resumed"
    assert talk.told["evaluated_tokens"] < talk.usage["prompt_tokens"]


def test_a_client_that_leaves_ends_its_turn_within_a_token(make_host: MakeHost) -> None:
    host = make_host()
    host.start()
    stream = host.stream("Go on forever.", {"x-request-id": "gone"}, who="ann")
    read = stream.first_text()
    stream.close()
    assert read.startswith("on")
    state = host.wait_until(lambda state: state["running"] == 0 and bool(state["recent"]))
    (turn,) = state["recent"]
    assert turn["after_disconnect"] <= 1


def test_streams_of_several_sessions_run_at_once(make_host: MakeHost) -> None:
    host = make_host(sessions=2)
    host.start()
    streams = [host.stream("Go on forever.", who=who, max_tokens=40) for who in ("ann", "ben")]
    host.wait_state(running=2)
    texts = ["".join(map(text_of, stream.events())) for stream in streams]
    assert texts[0] == texts[1] == ("on and on " * 12)[:120]


def test_it_is_small_and_needs_no_model_library(make_host: MakeHost) -> None:
    host = make_host(context=131072)
    host.start()
    assert host.process is not None
    mapped = [part.path for part in psutil.Process(host.process.pid).memory_maps()]
    assert not [path for path in mapped if "llama" in path or "ggml" in path]
    state = host.state()
    assert "script.yaml" in state["detail"]
    assert host.chat("x" * 60_000).status == 200
    assert psutil.Process(host.process.pid).memory_info().rss < 200 * 2**20


def test_a_script_that_is_none_is_a_load_that_failed(make_host: MakeHost, tmp_path: Path) -> None:
    host = make_host()
    (tmp_path / "script.yaml").write_text("rules: 5")
    host.start(until=None)
    assert host.wait_end(60.0) == 78
    assert "script.yaml:1: rules: is not a list" in host.errors()
