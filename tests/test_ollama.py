"""Ollama's dialect: golden files of both directions, and what a client is told of what cannot be asked."""

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.dialects import ollama
from router.dialects.dialect import Asked, Naming
from router.dialects.ollama import timestamp
from router.errors import Rejected

GOLDEN = sorted((Path(__file__).parent / "dialects" / "ollama").glob("*.json"))
STREAMED = [file for file in GOLDEN if "stream" in json.loads(file.read_text())]
NAMING = Naming("00112233445566778899aabbccddeeff", 1700000000, lambda: 1.5)
PATHS = {
    "/api/chat": ollama.chat(),
    "/api/generate": ollama.generate(),
    "/api/embed": ollama.embed(),
    "/api/embeddings": ollama.embeddings(),
}
HI = [{"role": "user", "content": "Hi"}]
CHAT = {"model": "m", "messages": HI}
ASK = {"model": "m", "prompt": "Hi"}


def asked(path: str, request: Any, naming: Naming = NAMING) -> Asked:
    return PATHS[path].read(json.dumps(request).encode(), naming)


def chat_of(**more: Any) -> Any:
    return json.loads(asked("/api/chat", CHAT | more).body)


def refusal(path: str, request: Any) -> tuple[str | None, str]:
    """The field at fault, and the message."""
    with pytest.raises(Rejected) as caught:
        asked(path, request)
    assert caught.value.error.status == 400
    return caught.value.error.param, caught.value.error.message


def lines(asked: Asked, *parts: bytes) -> list[Any]:
    stream = asked.stream(None)
    out = b"".join([*map(stream.take, parts), stream.end()])
    assert not out or out.endswith(b"\n")
    return [json.loads(line) for line in out.splitlines()]


def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return f"data: {json.dumps({'model': 'm', 'choices': [choice]})}\n\n".encode()


@pytest.fixture(params=GOLDEN, ids=lambda file: file.stem)
def golden(request: pytest.FixtureRequest) -> Any:
    return json.loads(request.param.read_text())


def test_a_golden_request_becomes_a_hosts(golden: Any) -> None:
    assert json.loads(asked(golden["path"], golden["request"]).body) == golden["chat"]


def test_a_golden_answer_becomes_ollamas(golden: Any) -> None:
    made = asked(golden["path"], golden["request"])
    assert json.loads(made.whole(json.dumps(golden["answer"]).encode(), None)) == golden["whole"]


@settings(deadline=None, max_examples=60)
@given(file=st.sampled_from(STREAMED), cuts=st.lists(st.integers(0, 1 << 16), max_size=40))
def test_a_golden_stream_becomes_its_lines_however_it_is_split(file: Path, cuts: list[int]) -> None:
    golden = json.loads(file.read_text())
    stream = "".join(event + "\n\n" for event in golden["stream"]).encode()
    at = sorted({cut % len(stream) for cut in cuts} | {0, len(stream)})
    parts = [stream[one:other] for one, other in pairwise(at)]
    assert lines(asked(golden["path"], golden["request"]), *parts) == golden["lines"]


@pytest.mark.parametrize("file", STREAMED, ids=lambda file: file.stem)
def test_a_golden_stream_becomes_its_lines_byte_by_byte(file: Path) -> None:
    golden = json.loads(file.read_text())
    stream = "".join(event + "\n\n" for event in golden["stream"]).encode()
    made = asked(golden["path"], golden["request"])
    assert lines(made, *(bytes([byte]) for byte in stream)) == golden["lines"]


def test_a_stream_is_what_is_asked_for_unless_the_client_says_otherwise() -> None:
    assert chat_of()["stream"] is True
    assert chat_of(stream=None)["stream"] is True
    assert chat_of(stream=False) == {"model": "m", "stream": False, "messages": HI}


@pytest.mark.parametrize(
    ("name", "is_called"), [("tiny", "tiny"), ("tiny:latest", "tiny"), ("qwen3:8b", "qwen3:8b")]
)
def test_a_model_may_have_ollamas_tag_and_is_answered_by_the_name_it_was_asked_by(
    name: str, is_called: str
) -> None:
    made = asked("/api/chat", {"model": name, "messages": HI})
    assert json.loads(made.body)["model"] == is_called
    line = lines(made, b": waiting\n\n")[0]
    assert line["model"] == name


@pytest.mark.parametrize(
    ("think", "chat"),
    [
        (None, {}),
        (False, {"chat_template_kwargs": {"enable_thinking": False}}),
        ("max", {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "high"}),
    ],
)
def test_thinking_is_asked_for_in_the_words_of_templates(think: Any, chat: Any) -> None:
    made = chat_of(think=think)
    assert {name: made[name] for name in ("chat_template_kwargs", "reasoning_effort") if name in made} == chat


@pytest.mark.parametrize("limit", [-1, -2, 0, None])
def test_an_answer_without_a_limit_has_none(limit: int | None) -> None:
    assert "max_tokens" not in chat_of(options={"num_predict": limit})


def test_options_of_loading_are_let_be_and_fields_that_name_a_session_stay() -> None:
    made = chat_of(
        options={"num_ctx": 9, "num_gpu": 1, "mirostat": 0, "top_k": 3}, user="ann", session_id="tea"
    )
    assert made == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": HI,
        "top_k": 3,
        "user": "ann",
        "session_id": "tea",
    }


def test_answers_of_tools_are_joined_to_their_calls_by_id_by_name_and_by_order() -> None:
    calls = [
        {"id": "one", "function": {"name": "look", "arguments": {"at": "sky"}}},
        {"function": {"name": "look", "arguments": {"at": "sea"}}},
        {"function": {"name": "hear", "arguments": {}}},
    ]
    answers = [
        {"role": "tool", "content": "a", "tool_name": "hear"},
        {"role": "tool", "content": "b", "tool_call_id": "one"},
        {"role": "tool", "content": "c"},
        {"role": "tool", "content": "d", "tool_name": "nobody"},
    ]
    messages = [*HI, {"role": "assistant", "content": "", "tool_calls": calls}, *answers]
    made = chat_of(messages=messages)["messages"]
    assert [call["id"] for call in made[1]["tool_calls"]] == ["one", "c00001001", "c00001002"]
    assert [(each.get("tool_call_id"), each.get("name")) for each in made[2:]] == [
        ("c00001002", "hear"),
        ("one", "look"),
        ("c00001001", "look"),
        (None, "nobody"),
    ]


def test_many_answers_of_tools_are_joined_in_no_time_beside_how_many_they_are() -> None:
    count = 30_000
    calls = [{"id": f"c{at}", "function": {"name": "look", "arguments": {}}} for at in range(count)]
    answers = [{"role": "tool", "content": "a", "tool_call_id": f"c{at}"} for at in reversed(range(count))]
    messages = [*HI, {"role": "assistant", "content": "", "tool_calls": calls}, *answers]
    begun_s = time.process_time()
    made = chat_of(messages=messages)["messages"]
    assert time.process_time() - begun_s < 10  # one by one through all of them it takes a minute
    assert [each["tool_call_id"] for each in made[2:4]] == [f"c{count - 1}", f"c{count - 2}"]


def test_the_history_stays_word_for_word() -> None:
    said = "  kept \n\n\t"
    history = [
        {"role": "system", "content": said},
        {"role": "user", "content": said},
        {"role": "assistant", "content": said, "thinking": said},
        {"role": "user", "content": "on"},
    ]
    made = chat_of(messages=history)["messages"]
    assert [each["content"] for each in made] == [each["content"] for each in history]
    assert made[2]["reasoning_content"] == said


@pytest.mark.parametrize(
    ("path", "request_", "field"),
    [
        ("/api/chat", {"messages": HI}, "model"),
        ("/api/chat", {"model": "m", "prompt": "Hi"}, "messages"),
        ("/api/chat", {}, "model"),
        ("/api/chat", {"model": "m", "messages": "Hi"}, "messages"),
        ("/api/chat", {"model": "m", "messages": [{"role": "user", "images": ["x"]}]}, "messages[0].images"),
        ("/api/chat", {"model": "m", "messages": [{"content": "x"}]}, "messages[0].role"),
        ("/api/chat", {"model": "m", "messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ("/api/chat", CHAT | {"format": "yaml"}, "format"),
        ("/api/chat", CHAT | {"think": "hard"}, "think"),
        ("/api/chat", CHAT | {"stream": "no"}, "stream"),
        ("/api/chat", CHAT | {"options": {"mirostat": 2}}, "options.mirostat"),
        ("/api/chat", CHAT | {"options": {"num_predict": "all"}}, "options.num_predict"),
        ("/api/generate", CHAT, "prompt"),
        ("/api/generate", ASK | {"raw": True}, "raw"),
        ("/api/generate", ASK | {"suffix": "x"}, "suffix"),
        ("/api/generate", ASK | {"template": "x"}, "template"),
        ("/api/generate", ASK | {"context": [1]}, "context"),
        ("/api/generate", ASK | {"images": ["x"]}, "images"),
        ("/api/embed", {"model": "m"}, "input"),
        ("/api/embeddings", {"model": "m"}, "prompt"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_its_name(path: str, request_: Any, field: str) -> None:
    named, message = refusal(path, request_)
    assert named == field
    assert f"`{field}`" in message


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    for dialect in PATHS.values():
        with pytest.raises(Rejected):
            dialect.read(body, NAMING)


def test_a_call_comes_whole_and_one_that_was_cut_off_not_at_all() -> None:
    begun = {"index": 0, "id": "one", "type": "function", "function": {"name": "look", "arguments": ""}}
    some = {"index": 0, "function": {"arguments": '{"at":'}}
    rest = {"index": 0, "function": {"arguments": '"sky"}'}}
    cut = {"index": 1, "id": "two", "function": {"name": "look", "arguments": '{"at'}}
    made = asked("/api/chat", CHAT)
    (broken,) = lines(made, *(event({"tool_calls": [call]}) for call in (begun, some)))
    assert broken["code"] == "host_lost"
    calls = [event({"tool_calls": [call]}) for call in (begun, some, rest, cut)]
    line, last = lines(made, *calls, event({}, "length"), b"data: [DONE]\n\n")
    call = {"id": "one", "function": {"index": 0, "name": "look", "arguments": {"at": "sky"}}}
    assert line["message"] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert (line["done"], last["done"], last["done_reason"]) == (False, True, "length")


@pytest.mark.parametrize("arguments", ["[1]", '"sky"', "3", "null", "[" * 100_000])
def test_a_call_whose_arguments_are_no_object_is_not_told_of(arguments: str) -> None:
    call = {"index": 0, "id": "one", "type": "function", "function": {"name": "look", "arguments": arguments}}
    made = asked("/api/chat", CHAT)
    (last,) = lines(made, event({"tool_calls": [call]}), event({}, "tool_calls"), b"data: [DONE]\n\n")
    assert last["done"] is True
    choice = {"index": 0, "message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}
    whole = json.loads(made.whole(json.dumps({"choices": [choice]}).encode(), None))
    assert whole["message"] == {"role": "assistant", "content": ""}


@pytest.mark.parametrize(
    ("path", "request_", "said"),
    [
        ("/api/generate", {"model": "m:latest"}, {"response": ""}),
        ("/api/generate", {"model": "m:latest", "prompt": "", "keep_alive": -1}, {"response": ""}),
        ("/api/chat", {"model": "m:latest"}, {"message": {"role": "assistant", "content": ""}}),
        (
            "/api/chat",
            {"model": "m:latest", "messages": []},
            {"message": {"role": "assistant", "content": ""}},
        ),
    ],
)
def test_a_question_without_words_loads_the_model(path: str, request_: Any, said: Any) -> None:
    made = asked(path, request_)
    assert json.loads(made.body) == {"model": "m", "prompt": ""}
    assert json.loads(made.whole(b'{"count":0,"tokens":[]}', None)) == {
        "model": "m:latest",
        "created_at": "2023-11-14T22:13:20Z",
        **said,
        "done": True,
        "done_reason": "load",
        "total_duration": 1_500_000_000,
    }


def test_a_stream_that_ends_before_its_answer_does_says_so_once() -> None:
    said, error = lines(asked("/api/chat", CHAT), event({"content": "so"}))
    assert (said["done"], error["code"]) == (False, "host_lost")
    failed = b'data: {"error":{"message":"gone","code":"host_stopping"}}\n\n'
    (error,) = lines(asked("/api/chat", CHAT), failed, event({"content": "so"}), b"data: [DONE]\n\n")
    assert error["code"] == "host_stopping"


def test_an_error_in_the_middle_is_the_last_line_and_the_answer_is_not_done() -> None:
    failed = b'data: {"error":{"message":"gone","code":"host_lost"}}\n\n'
    *_, said, error = lines(asked("/api/generate", ASK), event({"content": "so"}), failed)
    assert (said["response"], said["done"]) == ("so", False)
    assert error == {"error": "gone", "code": "host_lost"}


def test_times_are_measured_and_left_out_where_nobody_measures() -> None:
    now = iter([2.0, 5.0])
    parts = event({"content": "so"}), event({}, "stop"), b"data: [DONE]\n\n"
    timed = lines(asked("/api/chat", CHAT, Naming("0", 0, lambda: next(now))), *parts)[-1]
    names = ("total_duration", "prompt_eval_duration", "eval_duration")
    assert [timed[name] for name in names] == [5_000_000_000, 2_000_000_000, 3_000_000_000]
    unmeasured = lines(asked("/api/chat", CHAT, Naming("0", 0)), *parts)[-1]
    assert not unmeasured.keys() & set(names)


@pytest.mark.parametrize(
    ("epoch_s", "said"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (951868799, "2000-02-29T23:59:59Z"),
        (1700000000, "2023-11-14T22:13:20Z"),
        (4107542400, "2100-03-01T00:00:00Z"),
    ],
)
def test_a_moment_is_told_as_a_date(epoch_s: int, said: str) -> None:
    assert timestamp(epoch_s) == said
