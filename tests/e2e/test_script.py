"""A whole homeport on scripts: real router, hosts, sessions and pins, and answers that a test has written."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from openai import OpenAI

from tests.e2e.installation import Homeport, ended_after, eventually

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "read",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
    },
}
AGENT = {
    "rules": [
        {
            "when": {"last_user": r"fix (?P<file>\S+)", "tools": ["read"]},
            "steps": [
                {"say": "I read it.", "call": {"name": "read", "arguments": {"path": "${file}"}}},
                {"say": "It says: ${last_result}"},
            ],
        },
        {"when": {"last_user": "forever"}, "say": "on and on ", "repeat": 100_000, "tokens_per_s": 100},
    ]
}


def installation(folder: Path) -> Homeport:
    """With two scripts: one place a replica, and two."""
    (folder / "agent.yaml").write_text(yaml.safe_dump(AGENT))
    (folder / "echo.yaml").write_text("")
    shape = "engine: script, needs: {cores: 1, memory: 256MiB}, hold: 0s, queue: 20s, context: 4096"
    models = (
        f"  - {{name: agent, source: agent.yaml, sessions: 1, {shape}}}",
        f"  - {{name: echo, source: echo.yaml, sessions: 2, {shape}}}\n",
    )
    return Homeport(folder, models="\n".join(models))


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeport]:
    with ended_after(installation(tmp_path_factory.mktemp("scripted"))) as installed:
        installed.up("--allow-script")
        yield installed


class Talk:
    """A session that grows, and what came of its last turn."""

    def __init__(self, homeport: Homeport, name: str, model: str = "agent") -> None:
        self.url = homeport.url
        self.name = name
        self.model = model
        self.messages: list[Any] = []

    def say(self, words: str) -> Any:
        return self.add({"role": "user", "content": words})

    def add(self, message: Any) -> Any:
        self.messages.append(message)
        with OpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0, timeout=60) as sdk:
            answer = sdk.chat.completions.create(
                model=self.model,
                messages=self.messages,
                tools=[TOOL],
                extra_headers={"x-session-id": self.name},
            )
        self.messages.append(answer.choices[0].message.model_dump(exclude_none=True))
        return answer


def told(answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = answer.homeport
    return found


def test_apply_refuses_a_script_unless_it_is_told(scripted: Homeport) -> None:
    done = scripted.run("apply", "--config", str(scripted.config))
    assert done.returncode == 2
    assert "models[0].engine: script is a test engine" in done.stderr
    assert "--allow-script" in done.stderr
    applied = scripted.run("apply", "--allow-script", "--config", str(scripted.config))
    assert "nothing is to be changed" in applied.stdout, applied.stdout + applied.stderr


def test_an_up_that_is_not_told_starts_nothing(tmp_path: Path) -> None:
    with ended_after(installation(tmp_path)) as installed:
        done = installed.run("up", "--detach", "--config", str(installed.config), timeout=60)
        assert done.returncode == 2
        assert "--allow-script" in done.stderr
        assert not installed.paths.run.exists()


def test_commands_that_foretell_say_that_it_is_a_script(scripted: Homeport) -> None:
    fit = scripted.run("fit", "agent")
    assert (fit.returncode, "agent is a script" in fit.stderr) == (2, True)
    advice = scripted.run("advise", "--config", str(scripted.config))
    assert "agent is left out. It is a script" in advice.stderr
    details = [replica["detail"] for replica in scripted.replicas()]
    assert sorted(details) == [
        "no model: the script agent.yaml, 3 rules",
        "no model: the script echo.yaml, 0 rules",
    ]


def test_an_agents_turn_is_played_and_its_next_evaluates_only_what_is_new(scripted: Homeport) -> None:
    talk = Talk(scripted, "agent-1")
    first = talk.say("Please fix a.py")
    (call,) = first.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("read", {"path": "a.py"})
    assert first.choices[0].finish_reason == "tool_calls"
    second = talk.add({"role": "tool", "tool_call_id": call.id, "content": "import this"})
    assert second.choices[0].message.content == "It says: import this"
    held = first.usage.prompt_tokens + first.usage.completion_tokens - 1
    assert (told(second)["context"], told(second)["reused_tokens"]) == ("resident", held)
    assert told(second)["replica"] == told(first)["replica"]


def test_two_sessions_in_one_place_give_way_and_are_resumed(scripted: Homeport) -> None:
    one, two = Talk(scripted, "place-1"), Talk(scripted, "place-2")
    first = one.say("Hello.")
    two.say("Hello.")
    again = one.say("Again.")
    held = first.usage.prompt_tokens + first.usage.completion_tokens - 1
    assert (told(again)["context"], told(again)["pin"], told(again)["reused_tokens"]) == (
        "resumed",
        "kept",
        held,
    )


def test_two_places_keep_two_sessions(scripted: Homeport) -> None:
    one, two = Talk(scripted, "shared-1", "echo"), Talk(scripted, "shared-2", "echo")
    firsts = [talk.say(f"I am {talk.name}.") for talk in (one, two)]
    for talk, first in zip((one, two), firsts, strict=True):
        assert first.choices[0].message.content == f"I am {talk.name}."
        again = talk.say("And still here.")
        held = first.usage.prompt_tokens + first.usage.completion_tokens - 1
        assert (told(again)["context"], told(again)["reused_tokens"]) == ("resident", held)


def test_a_stream_comes_token_by_token_and_ends_within_one_when_its_client_leaves(scripted: Homeport) -> None:
    with OpenAI(base_url=f"{scripted.url}/v1", api_key="unused", max_retries=0, timeout=60) as sdk:
        raw = sdk.chat.completions.with_raw_response.create(
            model="agent",
            messages=[{"role": "user", "content": "Go on forever."}],
            stream=True,
            extra_headers={"x-session-id": "leaver", "x-request-id": "leaver-1"},
        )
        home = raw.headers["x-homeport-replica"]
        stream, text = raw.parse(), ""
        for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            if len(text) > 30:
                break
        stream.close()
    assert text.startswith("on and on on and on ")
    replica = next(each for each in scripted.replicas() if each["name"] == home)

    def its_turn() -> Any:
        turns = scripted.host_state(replica)["recent"]
        return next((turn for turn in turns if turn["request_id"] == "leaver-1"), None)

    assert eventually(its_turn)["after_disconnect"] <= 1
    assert eventually(lambda: scripted.host_state(replica)["running"] == 0)


def test_a_changed_script_is_applied(scripted: Homeport) -> None:
    (scripted.folder / "echo.yaml").write_text("default: {say: It is another one.}\n")
    done = scripted.run("apply", "--yes", "--allow-script", "--config", str(scripted.config))
    assert done.returncode == 0, done.stdout + done.stderr
    answer = Talk(scripted, "changed", "echo").say("Who are you?")
    assert answer.choices[0].message.content == "It is another one."
