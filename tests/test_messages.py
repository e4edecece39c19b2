"""The Messages dialect: golden files of both directions, what cannot be asked, and errors as Anthropic has them."""

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from router.dialects.dialect import Naming
from router.dialects.messages import Asked, CountTokens, Messages
from router.errors import Rejected

GOLDEN = {
    file.stem: json.loads(file.read_text()) for file in Path(__file__).parent.glob("dialects/messages/*")
}
"""What a client asks and is answered, and what is said of it to a host and by it. A host's words were recorded."""
NAMING = Naming("00112233445566778899aabbccddeeff", 1700000000)
PING = {"type": "ping"}
HI: Any = [{"role": "user", "content": "Hi"}]

golden = pytest.mark.parametrize("golden", GOLDEN.values(), ids=GOLDEN)


def asked(request: dict[str, Any]) -> Asked:
    return Messages().read(json.dumps(request).encode(), NAMING)


def chat(**request: Any) -> Any:
    return json.loads(asked({"model": "m", "max_tokens": 9, "messages": HI, **request}).body)


def refused(**request: Any) -> tuple[str | None, str]:
    with pytest.raises(Rejected) as rejected:
        chat(**request)
    assert rejected.value.error.status == 400
    return rejected.value.error.param, rejected.value.error.message


def events(out: bytes) -> list[Any]:
    """A stream's events, which say their kind twice, and its comments."""
    read: list[Any] = []
    for event in out.decode().removesuffix("\n\n").split("\n\n"):
        first, *rest = event.split("\n")
        if first.startswith(":"):
            read.append(first)
            continue
        (data,) = rest
        read.append(json.loads(data.removeprefix("data: ")))
        assert first == f"event: {read[-1]['type']}"
    return read


def streamed(asked: Asked, *parts: bytes) -> list[Any]:
    stream = asked.stream(None)
    return events(b"".join([*map(stream.take, parts), stream.end()]))


def recorded(golden: Any) -> bytes:
    return "".join(event + "\n\n" for event in golden["stream"]).encode()


# golden files


@golden
def test_a_request_becomes_a_chat(golden: Any) -> None:
    assert json.loads(asked(golden["request"]).body) == golden["chat"]


@golden
def test_a_whole_answer_becomes_a_message_that_the_sdk_knows(golden: Any) -> None:
    said = json.loads(asked(golden["request"]).whole(json.dumps(golden["answer"]).encode(), None))
    assert said == golden["message"]
    Message.model_validate(said, strict=True)


@golden
def test_a_stream_becomes_events_that_the_sdk_knows(golden: Any) -> None:
    said = streamed(asked(golden["request"]), recorded(golden))
    assert said == golden["events"]
    for event in said:
        if event != PING:
            TypeAdapter[Any](RawMessageStreamEvent).validate_python(event, strict=True)


@golden
def test_a_stream_is_the_same_byte_by_byte(golden: Any) -> None:
    parts = [bytes([byte]) for byte in recorded(golden)]
    assert streamed(asked(golden["request"]), *parts) == golden["events"]


@given(cuts=st.lists(st.integers(0, 1 << 16), max_size=40), name=st.sampled_from(sorted(GOLDEN)))
def test_a_stream_is_the_same_however_it_is_split(cuts: list[int], name: str) -> None:
    stream = recorded(GOLDEN[name])
    at = sorted({cut % len(stream) for cut in cuts} | {0, len(stream)})
    parts = [stream[one:other] for one, other in pairwise(at)]
    assert streamed(asked(GOLDEN[name]["request"]), *parts) == GOLDEN[name]["events"]


@golden
def test_a_streams_blocks_put_together_are_the_whole_answers(golden: Any) -> None:
    blocks: list[Any] = []
    for event in golden["events"]:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append({**event["content_block"], "partial": ""})
        elif event["type"] == "content_block_delta":
            block, delta = blocks[event["index"]], event["delta"]
            name = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial"}
            if delta["type"] == "signature_delta":
                block["signature"] = delta["signature"]
            else:
                block[name[delta["type"]]] += next(each for key, each in delta.items() if key != "type")
    assert [_told(block) for block in blocks] == [_told(block) for block in golden["message"]["content"]]
    ended = golden["events"][-2]
    assert ended["delta"]["stop_reason"] == golden["message"]["stop_reason"]
    assert ended["usage"] == golden["message"]["usage"]


def _told(block: Any) -> Any:
    """A block without what differs from answer to answer; a call's input as text."""
    block = dict(block)
    block.pop("id", None)
    partial = block.pop("partial", None)
    if block["type"] == "tool_use":
        given = block["input"]
        text = partial if partial is not None else given.get("INVALID_JSON", json.dumps(given))
        block["input"] = text.replace(" ", "")
    return block


# streams that go another way


def test_comments_stay_and_a_ping_comes_behind_each() -> None:
    said = streamed(asked(GOLDEN["text"]["request"]), b": waiting for den/0\n\n", recorded(GOLDEN["text"]))
    assert said[:2] == [": waiting for den/0", PING]
    assert said[2:] == GOLDEN["text"]["events"]


def test_a_stream_that_is_begun_again_before_its_answer_is_one_message() -> None:
    golden = GOLDEN["text"]
    first = golden["stream"][0].encode() + b"\n\n"
    begun, *rest = golden["events"]
    assert streamed(asked(golden["request"]), first, recorded(golden)) == [begun, PING, *rest]


def test_a_stream_without_usage_is_whole_all_the_same() -> None:
    choice = {"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}
    chunk = f"data: {json.dumps({'model': 'm', 'choices': [choice]})}\n\n".encode()
    said = streamed(asked(GOLDEN["text"]["request"]), chunk, b"data: [DONE]\n\n")
    kinds = [event["type"] for event in said]
    assert kinds[:3] == ["message_start", "content_block_start", "content_block_delta"]
    assert kinds[3:] == ["content_block_stop", "message_delta", "message_stop"]


def part_of_a_call(**call: Any) -> bytes:
    choice = {"index": 0, "delta": {"tool_calls": [{"index": 0, **call}]}, "finish_reason": None}
    return f"data: {json.dumps({'model': 'm', 'choices': [choice]})}\n\n".encode()


def test_a_call_whose_id_comes_again_with_its_last_part_is_one() -> None:
    first = part_of_a_call(id="call_1", type="function", function={"name": "look", "arguments": '{"a"'})
    last = part_of_a_call(id="call_1", type="function", function={"name": "look", "arguments": ": 1}"})
    said = streamed(asked(GOLDEN["text"]["request"]), first, last, b"data: [DONE]\n\n")
    begun = [event for event in said if event["type"] == "content_block_start"]
    assert [event["content_block"]["id"] for event in begun] == ["call_1"]
    given = [event["delta"]["partial_json"] for event in said if event["type"] == "content_block_delta"]
    assert "".join(given) == '{"a": 1}'


def test_arguments_that_nobody_can_read_are_given_as_they_are() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "[" * 100000}}
    choice = {"index": 0, "message": {"tool_calls": [call]}, "finish_reason": "length"}
    answer = json.dumps({"model": "m", "choices": [choice]}).encode()
    told = json.loads(asked(GOLDEN["text"]["request"]).whole(answer, None))
    assert told["content"][0]["input"] == {"INVALID_JSON": "[" * 100000}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"type": "server_error", "code": "host_lost"}, "overloaded_error"),
        ({"type": "rate_limit_error", "code": "queue_timeout"}, "overloaded_error"),
        ({"type": "rate_limit_error", "code": "rate_limit_exceeded"}, "rate_limit_error"),
        ({"type": "invalid_request_error", "code": "invalid_value"}, "invalid_request_error"),
        ({"type": "server_error", "code": "engine_failed"}, "api_error"),
    ],
)
def test_an_error_in_a_stream_is_its_last_event(error: Any, kind: str) -> None:
    failed = f"data: {json.dumps({'error': {'message': 'It is so.', **error}})}\n\n".encode()
    more = recorded(GOLDEN["text"])
    said = streamed(asked(GOLDEN["text"]["request"]), failed, more)
    assert said == [
        {
            "type": "error",
            "error": {"type": kind, "message": "It is so.", "details": {"error_code": error["code"]}},
        }
    ]


def test_a_stream_that_breaks_off_says_so() -> None:
    half = recorded(GOLDEN["text"])[:-40]
    last = streamed(asked(GOLDEN["text"]["request"]), half)[-1]
    assert last["error"]["type"] == "overloaded_error"
    assert "Send the request again" in last["error"]["message"]


# what cannot be asked


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ([{"type": "image", "source": {"type": "url", "url": "x"}}], "messages.0.content.0"),
        ([{"type": "text", "text": "a"}, {"type": "document", "source": {"type": "url"}}], "messages.0.content.1"),
        ([{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image"}]}],
         "messages.0.content.0.content.0"),
        ([{"type": "server_tool_use", "id": "a"}], "messages.0.content.0"),
        ([{"type": "text"}], "messages.0.content.0.text"),
        ([{"type": "tool_result"}], "messages.0.content.0.tool_use_id"),
        ([{}], "messages.0.content.0.type"),
        (["a"], "messages.0.content.0"),
        (7, "messages.0.content"),
        (None, "messages.0.content"),
    ],
)  # fmt: skip
def test_content_that_a_model_cannot_read_is_refused_by_its_path(content: Any, where: str) -> None:
    param, message = refused(messages=[{"role": "user", "content": content}])
    assert param == where
    assert message.startswith(f"{where}: ")


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages.0"),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, "messages.0.role"),
        ({"messages": [*HI, {"role": "assistant", "content": "Well, "}]}, "messages.1"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "b"}]}, *HI]},
         "messages.0.content.0.input"),
        ({"system": 7}, "system"),
        ({"system": [{"type": "image"}]}, "system.0"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stop_sequences": "END"}, "stop_sequences"),
        ({"tools": {}}, "tools"),
        ({"tools": [7]}, "tools.0"),
        ({"tools": [{"name": "a"}]}, "tools.0.input_schema"),
        ({"tools": [{"input_schema": {}}]}, "tools.0.name"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"thinking": {"type": "hard"}}, "thinking"),
        ({"output_config": {"effort": "none"}}, "output_config.effort"),
        ({"output_config": {"effort": ["low"]}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "text"}}}, "output_config.format"),
        ({"output_config": []}, "output_config"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_by_its_path(wrong: dict[str, Any], where: str) -> None:
    param, message = refused(**wrong)
    assert param == where
    assert message.startswith(f"{where}: ")


BODIES = [b"{", b"[]", b'"a"', b"[" * 100000, b"\xff"]
UNWRITABLE = [b'"\\ud83d"', b"NaN", b"1e999", b"[" * 300 + b"]" * 300]
"""Values that some read and nobody writes."""


@pytest.mark.parametrize("body", [*BODIES, *(b'{"model": %b}' % value for value in UNWRITABLE)])
@pytest.mark.parametrize("dialect", [Messages(), CountTokens()])
def test_a_body_that_is_none_is_refused(dialect: Messages | CountTokens, body: bytes) -> None:
    with pytest.raises(Rejected) as rejected:
        dialect.read(body, NAMING)
    assert rejected.value.error.code in ("invalid_json", "invalid_type")
    assert rejected.value.error.param is None


def test_fields_that_change_nothing_here_are_let_be() -> None:
    more: dict[str, Any] = {
        "mcp_servers": [],
        "container": None,
        "service_tier": "auto",
        "context_management": {"edits": []},
    }
    more |= {"inference_geo": "eu", "cache_control": {"type": "ephemeral"}, "betas": ["x"], "new": {"a": 1}}
    assert chat(**more) == chat()


# one field at a time


def test_fields_that_name_the_session_are_left_where_the_router_reads_them() -> None:
    named = {
        "metadata": {"user_id": "u"},
        "prompt_cache_key": "p",
        "conversation": "c",
        "session_id": "s",
        "user": "u",
    }
    assert chat(**named).items() >= named.items()


def test_the_line_for_the_bill_is_left_out_and_nothing_else_of_the_system() -> None:
    bill = "x-anthropic-billing-header: cc_version=2.1.37.0d9; cc_entrypoint=cli; cch=fa690;"
    for system in (
        [{"type": "text", "text": bill}, {"type": "text", "text": "Be brief."}],
        f"{bill}\nBe brief.",
    ):
        assert chat(system=system)["messages"][0] == {"role": "system", "content": "Be brief."}
    assert chat(system=bill) == chat()
    told = f"Never repeat {bill}"
    assert chat(system=told)["messages"][0]["content"] == told


def test_a_body_of_many_small_messages_holds_up_nobody() -> None:
    many = [{"role": "user", "content": "word " * 12}] * 60_000
    begun_s = time.process_time()
    (message,) = chat(messages=many)["messages"]
    assert time.process_time() - begun_s < 4
    assert len(message["content"]) == 60_000 * 62 - 2


def test_words_of_the_system_within_the_conversation_are_the_users_reminder() -> None:
    answer = {"role": "assistant", "content": "Yes."}
    messages = [*HI, answer, {"role": "system", "content": "Be brief."}, *HI]
    reminder = "<system-reminder>\nBe brief.\n</system-reminder>\n\nHi"
    assert chat(messages=messages)["messages"] == [*HI, answer, {"role": "user", "content": reminder}]


def test_what_a_turn_said_begins_what_the_next_one_says() -> None:
    turns: Any = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
        {"role": "user", "content": [{"type": "text", "text": "c", "cache_control": {"type": "ephemeral"}}]},
    ]
    second = json.loads(json.dumps(turns))
    del second[0]["content"][0]["cache_control"]
    assert chat(messages=second)["messages"][:1] == chat(messages=turns[:2])["messages"]


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "any", "disable_parallel_tool_use": True}, {"tool_choice": "required", "parallel_tool_calls": False}),
        ({"type": "tool", "name": "a"}, {"tool_choice": {"type": "function", "function": {"name": "a"}}}),
    ],
)  # fmt: skip
def test_the_choice_of_tools_in_a_chats_words(choice: Any, wanted: Any) -> None:
    told = chat(tool_choice=choice, tools=[{"name": "a", "input_schema": {"type": "object"}}])
    assert {name: told[name] for name in ("tool_choice", "parallel_tool_calls") if name in told} == wanted


@pytest.mark.parametrize("asks", ["enabled", "adaptive", "between_tools"])
def test_a_model_thinks_where_it_is_asked_to(asks: str) -> None:
    told = chat(thinking={"type": asks}, output_config={"effort": "max"})
    assert (told["chat_template_kwargs"], told["reasoning_effort"]) == ({"enable_thinking": True}, "high")
    for quiet in (chat(), chat(thinking={"type": "disabled"}, output_config={"effort": "max"})):
        assert quiet["chat_template_kwargs"] == {"enable_thinking": False}
        assert "reasoning_effort" not in quiet


def test_the_older_name_of_an_answers_form() -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    assert chat(output_format=form) == chat(output_config={"format": form})


@pytest.mark.parametrize(
    ("choice", "made", "stop"),
    [
        ({"finish_reason": "stop"}, 3, ("end_turn", None)),
        ({"finish_reason": "stop", "stop_reason": "END"}, 3, ("stop_sequence", "END")),
        ({"finish_reason": "tool_calls", "stop_reason": "END"}, 3, ("tool_use", None)),
        ({"finish_reason": "length"}, 9, ("max_tokens", None)),
        ({"finish_reason": "length"}, 3, ("model_context_window_exceeded", None)),
        ({"finish_reason": "something new"}, 3, ("end_turn", None)),
    ],
)
def test_why_an_answer_ended(choice: Any, made: int, stop: Any) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": made, "prompt_tokens_details": {"cached_tokens": 2}}
    answer = {"model": "m", "choices": [{"message": {"content": "Hi"}, **choice}], "usage": usage}
    made_asked = asked({"model": "m", "max_tokens": 9, "messages": HI})
    said = json.loads(made_asked.whole(json.dumps(answer).encode(), None))
    assert (said["stop_reason"], said["stop_sequence"]) == stop
    assert said["usage"] == {
        "input_tokens": 3,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 2,
        "output_tokens": made,
    }


# counting tokens


@golden
def test_what_is_counted_is_what_a_model_would_read(golden: Any) -> None:
    counted = json.loads(CountTokens().read(json.dumps(golden["request"]).encode(), NAMING).body)
    names = ("model", "messages", "tools", "chat_template_kwargs", "reasoning_effort")
    assert counted == {name: golden["chat"][name] for name in names if name in golden["chat"]}


def test_a_count_as_the_sdk_reads_it() -> None:
    body = json.dumps({"model": "m", "messages": HI}).encode()
    said = CountTokens().read(body, NAMING).whole(b'{"count":7,"max_model_len":9,"tokens":[1]}', None)
    assert MessageTokensCount.model_validate_json(said, strict=True).input_tokens == 7


# errors


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (409, "invalid_request_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_errors_have_their_types_by_status(status: int, kind: str) -> None:
    _, body = Messages().error(status, {"message": "It is so.", "code": "x"}, "req-1")
    assert json.loads(body) == {
        "type": "error",
        "error": {"type": kind, "message": "It is so.", "details": {"error_code": "x"}},
        "request_id": "req-1",
    }


def test_a_conversation_that_is_too_long_is_told_as_clients_look_for_it() -> None:
    ours = "the messages are at least 9000 tokens long, and this model's context holds 8192; shorten it"
    error = {"message": ours, "code": "context_length_exceeded"}
    told = json.loads(Messages().error(400, error, "")[1])["error"]["message"]
    assert told == f"prompt is too long: 9000 tokens > 8192 maximum: {ours}"
    other = json.loads(Messages().error(400, {**error, "message": "too long"}, "")[1])["error"]["message"]
    assert other == "prompt is too long: too long"
