"""`/v1/messages` through the router: whose turn it is, what its client is told, and who may ask."""

import hashlib
import json
from pathlib import Path
from typing import Any

import anthropic
import pytest
import yaml
from anthropic import AsyncAnthropic

from tests.standins import (
    MODEL,
    AnswersHost,
    DropsMidStreamHost,
    EndlessHost,
    OnlyCommentsHost,
    Router,
    error,
    routed,
)

HI: Any = [{"role": "user", "content": "Hi"}]
SESSION = "247d8918-9cf4-4789-a347-e5e224fd1417"
USER = json.dumps({"device_id": "d", "account_uuid": "", "session_id": SESSION})
CLAUDE_CODE = {"x-claude-code-session-id": SESSION, "anthropic-version": "2023-06-01", "x-app": "cli"}
"""What Claude Code sends beside its key, and below in its body."""


def turn(*said: str, **more: Any) -> dict[str, Any]:
    """Claude Code's, after these texts of user and assistant."""
    bill = f"x-anthropic-billing-header: cc_version=2.1.197.1c0; cc_entrypoint=cli; cch={len(said)}a69;"
    roles = ("user", "assistant")
    messages = [
        {"role": roles[index % 2], "content": [{"type": "text", "text": text}]}
        for index, text in enumerate(said)
    ]
    return {
        "messages": messages,
        "system": [{"type": "text", "text": bill}, {"type": "text", "text": "You are an agent."}],
        "metadata": {"user_id": USER},
        "max_tokens": 32000,
        "thinking": {"type": "adaptive"},
        **more,
    }


def client(router: Router, **more: Any) -> AsyncAnthropic:
    return AsyncAnthropic(base_url=router.url, max_retries=0, **{"api_key": "unused", **more})


class CountsHost(AnswersHost):
    """Counts every prompt's tokens as 7."""

    async def whole(self, request: Any, told: dict[str, str]) -> Any:
        if request.path != "/tokenize":
            return await super().whole(request, told)
        return error(200, "", count=7, tokens=[1] * 7)


class TooLongHost(AnswersHost):
    """Finds every conversation too long."""

    async def whole(self, request: Any, told: dict[str, str]) -> Any:
        return error(400, "context_length_exceeded")


async def test_claude_codes_turns_and_titles_are_one_sessions(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    async with routed(tmp_path, host, AnswersHost("attic/0")) as router:
        title = await router.post("/v1/messages?beta=true", headers=CLAUDE_CODE, **turn("Name a river"))
        first = await router.post("/v1/messages?beta=true", headers=CLAUDE_CODE, **turn("Name a river"))
        body_only = await router.post("/v1/messages", **turn("Name a river", "The Rhine", "Another"))
        other = await router.post(
            "/v1/messages", headers={"x-claude-code-session-id": "another"}, **turn("Hi")
        )
    assert [each.headers["x-homeport-source"] for each in (title, first, body_only)] == [
        "header",
        "header",
        "body",
    ]
    assert len({each.headers["x-homeport-session"] for each in (title, first, body_only)}) == 1
    assert len({each.headers["x-homeport-replica"] for each in (title, first, body_only)}) == 1
    assert other.headers["x-homeport-session"] != first.headers["x-homeport-session"]
    assert other.headers["x-homeport-replica"] != first.headers["x-homeport-replica"]


async def test_a_sub_agent_is_a_child_at_its_parents_home(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("den/0"), AnswersHost("attic/0")) as router:
        parent = await router.post("/v1/messages", headers=CLAUDE_CODE, **turn("Look around"))
        agent = {**CLAUDE_CODE, "x-claude-code-agent-id": "a1"}
        child = await router.post("/v1/messages", headers=agent, **turn("Find the tea"))
    assert child.headers["x-homeport-session"] != parent.headers["x-homeport-session"]
    assert child.headers["x-homeport-replica"] == parent.headers["x-homeport-replica"]


async def test_what_a_host_reads_of_two_turns_begins_alike_although_the_line_for_the_bill_changes(
    tmp_path: Path,
) -> None:
    host = AnswersHost("den/0")
    async with routed(tmp_path, host) as router:
        await router.post("/v1/messages", headers=CLAUDE_CODE, **turn("Name a river"))
        await router.post("/v1/messages", headers=CLAUDE_CODE, **turn("Name a river", "The Rhine", "Another"))
    first, second = (json.loads(body)["messages"] for body in host.bodies)
    assert second[: len(first)] == first
    assert b"billing" not in host.bodies[0]


async def test_a_nameless_conversation_goes_on_at_its_home(tmp_path: Path) -> None:
    hosts = AnswersHost("den/0"), AnswersHost("attic/0")
    nameless: dict[str, Any] = {"metadata": {}}
    async with routed(tmp_path, *hosts) as router:
        first = await router.post("/v1/messages", **turn("Name a river") | nameless)
        said = turn("Name a river", "Hello there", "Another") | nameless
        second = await router.post("/v1/messages", **said)
    assert first.headers["x-homeport-source"] == "guess"
    assert second.headers["x-homeport-pin"] == "kept"
    assert second.headers["x-homeport-session"] == first.headers["x-homeport-session"]


async def test_a_key_may_be_shown_as_anthropics_clients_show_it(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(yaml.safe_dump([{"name": "anna", "sha256": hashlib.sha256(b"secret").hexdigest()}]))
    keys.chmod(0o600)
    async with routed(tmp_path, CountsHost("den/0"), keys_file=keys) as router:
        for shown in ({"api_key": "secret"}, {"api_key": None, "auth_token": "secret"}):
            async with client(router, **shown) as sdk:
                await sdk.messages.create(model=MODEL, messages=HI, max_tokens=9)
                assert (await sdk.messages.count_tokens(model=MODEL, messages=HI)).input_tokens == 7
        async with client(router, api_key="wrong") as sdk:
            with pytest.raises(anthropic.AuthenticationError) as refused:
                await sdk.messages.create(model=MODEL, messages=HI, max_tokens=9)
    assert refused.value.type == "authentication_error"
    assert refused.value.request_id == refused.value.response.headers["x-request-id"]


async def test_counting_leaves_no_session_behind(tmp_path: Path) -> None:
    host = CountsHost("den/0")
    async with routed(tmp_path, host) as router:
        answer = await router.post(
            "/v1/messages/count_tokens?beta=true",
            headers=CLAUDE_CODE,
            messages=HI,
            metadata={"user_id": USER},
        )
    assert answer.json() == {"input_tokens": 7}
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    assert host.paths == ["/tokenize"]
    assert host.pins == {}


async def test_a_turn_that_waits_sends_pings(tmp_path: Path) -> None:
    async with routed(tmp_path, OnlyCommentsHost("den/0")) as router:
        body = {"model": MODEL, "messages": HI, "max_tokens": 9, "stream": True}
        async with router.client.post(f"{router.url}/v1/messages", json=body) as answer:
            lines = [await answer.content.readline() for _ in range(5)]
    assert lines == [b": still here\n", b"\n", b"event: ping\n", b'data: {"type":"ping"}\n', b"\n"]


async def test_a_client_that_leaves_ends_its_turn(tmp_path: Path) -> None:
    host = EndlessHost("den/0")
    async with routed(tmp_path, host) as router, client(router) as sdk:
        stream = await sdk.messages.create(model=MODEL, messages=HI, max_tokens=9, stream=True)
        await anext(aiter(stream))
        await stream.close()
        await host.left.wait()


async def test_a_host_lost_in_the_middle_is_an_error_that_clients_ask_again_after(tmp_path: Path) -> None:
    async with routed(tmp_path, DropsMidStreamHost("den/0")) as router, client(router) as sdk:
        stream = await sdk.messages.create(model=MODEL, messages=HI, max_tokens=9, stream=True)
        with pytest.raises(anthropic.APIStatusError, match="Send the request again") as lost:
            _ = [each async for each in stream]
    assert (lost.value.type, lost.value.error_code) == ("overloaded_error", "host_lost")


async def test_a_conversation_that_is_too_long_is_told_as_clients_look_for_it(tmp_path: Path) -> None:
    async with routed(tmp_path, TooLongHost("den/0")) as router, client(router) as sdk:
        with pytest.raises(anthropic.BadRequestError, match="prompt is too long: "):
            await sdk.messages.create(model=MODEL, messages=HI, max_tokens=9)
