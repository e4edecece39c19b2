"""A request in a dialect, through the router: what its host is asked, and how answers and errors come back."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from router.dialects import ollama
from router.dialects.chat_events import ChatEvents, Chunk, Comment, Done, Failed
from router.dialects.dialect import Dialect, Naming
from router.dialects.messages import Asked, Messages
from router.dialects.responses import Responses
from router.relay import READ_AT_ONCE
from router.reply import new_naming
from serving.chat_request import read_chat_request
from serving.engine import Sampling
from serving.request_fields import BadRequest
from tests.standins import (
    MODEL,
    AnswersHost,
    DropsMidStreamHost,
    SplitsEverywhereHost,
    routed,
)

HI = [{"role": "user", "content": "Hi"}]


def events(body: bytes) -> list[dict[str, Any]]:
    """The data of a stream's events."""
    return [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: ")]


async def test_a_host_is_asked_for_a_chat_and_its_answer_comes_back_in_the_dialect(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    async with routed(tmp_path, host) as router:
        answer = await router.post("/v1/messages", session="tea", messages=HI, max_tokens=9)
        assert answer.status == 200
        assert answer.json()["content"] == [{"type": "text", "text": "Hello there"}]
        assert answer.headers["x-homeport-replica"] == "den/0"
        assert answer.headers["x-homeport-source"] == "header"
    assert host.paths == ["/v1/chat/completions"]
    assert json.loads(host.bodies[0])["max_tokens"] == 9


async def test_a_stream_that_is_split_anywhere_comes_back_in_the_dialect(tmp_path: Path) -> None:
    async with routed(tmp_path, SplitsEverywhereHost("den/0")) as router:
        answer = await router.post("/v1/messages", messages=HI, max_tokens=9, stream=True)
    told = events(answer.body)
    assert told[0]["type"] == "message_start"
    assert told[-1]["type"] == "message_stop"
    said = [each["delta"]["text"] for each in told if each["type"] == "content_block_delta"]
    assert said == ["Hello"]


async def test_an_error_has_the_dialects_shape_whoever_refuses(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("den/0")) as router:
        unread = await router.ask("POST", "/v1/messages", data=b"{")
        no_model = await router.post("/v1/messages", model="none", messages=HI, max_tokens=9)
        method = await router.ask("GET", "/v1/messages")
    assert [each.status for each in (unread, no_model, method)] == [400, 404, 405]
    assert [each.json()["error"]["type"] for each in (unread, no_model, method)] == [
        "invalid_request_error",
        "not_found_error",
        "invalid_request_error",
    ]
    assert "known models" in no_model.json()["error"]["message"]


@pytest.mark.parametrize(
    ("dialect", "fields", "said"),
    [
        (Messages(), {"max_tokens": 9, "stop_sequences": [""]}, "a string in 'stop_sequences' is empty"),
        (ollama.chat(), {"options": {"stop": [""]}}, "a string in 'options.stop' is empty"),
        (ollama.chat(), {"options": {"top_p": 7}}, "'options.top_p' must be"),
        (Responses(), {"input": "Hi", "top_p": 7}, "'top_p' must be"),
        (Responses(), {"input": "Hi", "max_output_tokens": 0}, "'max_output_tokens' must be"),
    ],
)
def test_a_hosts_error_calls_a_field_what_its_client_calls_it(
    dialect: Dialect, fields: dict[str, Any], said: str
) -> None:
    request = {"model": MODEL, "stream": False, **({} if "input" in fields else {"messages": HI}), **fields}
    asked = dialect.read(json.dumps(request).encode(), new_naming()).body
    with pytest.raises(BadRequest) as refused:
        read_chat_request(json.loads(asked), Sampling())
    error = refused.value
    told = {
        "message": error.message,
        "type": "invalid_request_error",
        "param": error.param,
        "code": error.code,
    }
    _, body = dialect.error(400, told, "r")
    assert said in body.decode()


async def test_a_host_lost_in_the_middle_is_an_error_event_of_the_dialect(tmp_path: Path) -> None:
    async with routed(tmp_path, DropsMidStreamHost("den/0")) as router:
        answer = await router.post("/v1/messages", messages=HI, max_tokens=9, stream=True)
        assert router.count("host_lost", "den/0") == 1
    last = events(answer.body)[-1]
    assert last["type"] == "error"
    assert "Send the request again" in last["error"]["message"]


async def test_fields_that_name_the_session_are_read_in_a_dialect(tmp_path: Path) -> None:
    who = {"user_id": json.dumps({"session_id": "6f0bd3e2-0cf3-4a3c-b7a3-2d0c3f0c6c11"})}
    async with routed(tmp_path, AnswersHost("den/0")) as router:
        answer = await router.post("/v1/messages", messages=HI, max_tokens=9, metadata=who)
        assert answer.headers["x-homeport-source"] == "body"


class ReadLate:
    """Has every body read no sooner than it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.let, self.read = asyncio.Event(), threading.Event(), 0
        loop, read = asyncio.get_running_loop(), Messages.read

        def late(dialect: Messages, body: bytes, naming: Naming) -> Asked:
            loop.call_soon_threadsafe(self.begun.set)
            assert self.let.wait(60)
            self.read += 1
            return read(dialect, body, naming)

        monkeypatch.setattr(Messages, "read", late)


LARGE = [{"role": "user", "content": "x" * (1 << 19)}]


async def test_others_are_served_while_a_large_body_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with routed(tmp_path, AnswersHost("den/0"), AnswersHost("attic/0")) as router:
        late = ReadLate(monkeypatch)
        large = asyncio.create_task(router.post("/v1/messages", messages=LARGE, max_tokens=9))
        await late.begun.wait()
        assert (await router.chat()).status == 200
        late.let.set()
        assert (await large).status == 200


async def test_a_client_that_goes_while_its_body_is_read_is_asked_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = AnswersHost("den/0")
    async with routed(tmp_path, host) as router:
        late = ReadLate(monkeypatch)
        large = asyncio.create_task(router.post("/v1/messages", messages=LARGE, max_tokens=9))
        await late.begun.wait()
        (turn,) = router.parts.relay.turns
        large.cancel()
        await router.until(lambda: turn.exchange.gone)
        late.let.set()
        await router.until(lambda: not router.parts.relay.turns)
    assert host.paths == []


async def test_a_large_body_is_not_read_once_its_client_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with routed(tmp_path, AnswersHost("den/0")) as router:
        late, relay = ReadLate(monkeypatch), router.parts.relay
        asked = [
            asyncio.create_task(router.post("/v1/messages", messages=LARGE, max_tokens=9)) for _ in range(4)
        ]
        await router.until(lambda: sum(turn.exchange.is_whole for turn in relay.turns) == 4)
        for each in asked:
            each.cancel()
        await router.until(lambda: all(turn.exchange.gone for turn in relay.turns))
        late.let.set()
        await router.until(lambda: not relay.turns)
    assert late.read == READ_AT_ONCE


def test_events_are_read_from_bytes_that_end_anywhere() -> None:
    stream = (
        b': waiting\n\ndata: {"choices":[{"index":0}]}\n\ndata: {"error":{"code":"x"}}\n\ndata: [DONE]\n\n'
    )
    expected = [
        Comment(b": waiting\n\n"),
        Chunk({"choices": [{"index": 0}]}),
        Failed({"code": "x"}),
        Done(),
    ]
    for size in (1, 2, 7, len(stream)):
        reader = ChatEvents()
        parts = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert [event for part in parts for event in reader.take(part)] == expected
