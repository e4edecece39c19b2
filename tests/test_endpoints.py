"""What a host's endpoints take and give, over real sockets; the engine is a stand-in that says what it is told to."""

import base64
import json
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import VOCABULARY, Behaviour
from tests.host_process import HostProcess, Stream, model_spec, session, text_of

TEMPLATES = Path(__file__).parent / "templates"
HERMES = (TEMPLATES / "smollm2_tools.jinja").read_text()
CALLS = (
    '<tool_call>\n{"name": "look", "arguments": {"at": "sky"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "look", "arguments": {"at": "sea"}}\n</tool_call>'
)
LOOK: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
    },
}
HELLO = [{"role": "user", "content": "hello"}]
MakeHost = Callable[..., HostProcess]


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[MakeHost]:
    made: list[HostProcess] = []

    def make(behaviour: Behaviour, **spec: Any) -> HostProcess:
        host = HostProcess(tmp_path / str(len(made)), model_spec(**spec), "none", behaviour)
        made.append(host)
        host.start()
        return host

    yield make
    for host in made:
        host.kill()


def module_host(folder: Path, behaviour: Behaviour) -> Iterator[HostProcess]:
    host = HostProcess(folder, model_spec(hold_s=0.1), "none", behaviour)
    try:
        host.start()
        yield host
    finally:
        host.kill()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """Says "It is so."; its template knows no tools."""
    yield from module_host(tmp_path_factory.mktemp("plain"), Behaviour())


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """Makes two calls, whatever it is asked."""
    behaviour = Behaviour(answer="Well. " + CALLS, template=HERMES)
    yield from module_host(tmp_path_factory.mktemp("caller"), behaviour)


def refusal(answer: Any) -> tuple[int, str, str | None]:
    error = answer.body["error"]
    return answer.status, error["code"], error["param"]


def choices_of(stream: Stream) -> list[dict[str, Any]]:
    return [choice for event in stream.events() for choice in event["choices"]]


# several answers, and log probabilities


def test_n_answers_share_one_prompt(host: HostProcess) -> None:
    answer = host.chat({"messages": HELLO, "n": 3})
    assert [(c["index"], c["message"]["content"]) for c in answer.body["choices"]] == [
        (index, "It is so.") for index in range(3)
    ]
    usage = answer.body["usage"]
    assert usage["completion_tokens"] == 27
    assert usage["prompt_tokens"] == len("user:hello\nassistant:")


def test_a_stream_of_n_answers_gives_one_after_another(host: HostProcess) -> None:
    stream = host.stream({"messages": HELLO, "n": 2}, stream_options={"include_usage": True})
    texts: dict[int, str] = {}
    order: list[int] = []
    for choice in choices_of(stream):
        index, text = choice["index"], choice["delta"].get("content")
        texts[index] = texts.get(index, "") + (text or "")
        if text and index not in order[-1:]:
            order.append(index)
    assert stream.done
    assert texts == {0: "It is so.", 1: "It is so."}
    assert sorted(order) == [0, 1]


def test_log_probabilities_are_told_of_every_token(host: HostProcess) -> None:
    body = {"messages": HELLO, "logprobs": True, "top_logprobs": 2}
    whole = host.chat(body).body["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in whole) == "It is so."
    assert bytes(byte for token in whole for byte in token["bytes"]) == b"It is so."
    assert all(len(token["top_logprobs"]) == 2 and token["logprob"] <= 0 for token in whole)
    streamed = [
        token
        for choice in choices_of(host.stream(body))
        for token in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == whole


def test_without_asking_there_are_no_log_probabilities(host: HostProcess) -> None:
    assert host.chat({"messages": HELLO}).body["choices"][0]["logprobs"] is None


# tools in chats


def test_tools_where_the_template_knows_none_are_a_400(host: HostProcess) -> None:
    answer = host.chat({"messages": HELLO, "tools": [LOOK]})
    assert refusal(answer) == (400, "unsupported_parameter", "tools")
    assert "template" in answer.body["error"]["message"]
    messages = [*HELLO, {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "look"}}]}]
    refused = refusal(host.chat({"messages": messages}))
    assert refused == (400, "unsupported_parameter", "messages[1].tool_calls")
    refused = refusal(host.chat({"messages": [{"role": "tool", "content": "x"}]}))
    assert refused == (400, "unsupported_parameter", "messages[0].role")


def test_calls_are_read_out_of_an_answer(caller: HostProcess) -> None:
    (choice,) = caller.chat({"messages": HELLO, "tools": [LOOK]}).body["choices"]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert message["content"] == "Well."
    assert [json.loads(call["function"]["arguments"]) for call in message["tool_calls"]] == [
        {"at": "sky"},
        {"at": "sea"},
    ]
    assert len({call["id"] for call in message["tool_calls"]}) == 2


def test_a_stream_of_calls_puts_together_to_the_same(caller: HostProcess) -> None:
    stream = caller.stream({"messages": HELLO, "tools": [LOOK]})
    calls: dict[int, dict[str, str]] = {}
    text, finish, pieces = "", None, 0
    for choice in choices_of(stream):
        text += choice["delta"].get("content") or ""
        finish = choice["finish_reason"] or finish
        for call in choice["delta"].get("tool_calls", []):
            made = calls.setdefault(call["index"], {"arguments": ""})
            made["arguments"] += call["function"]["arguments"]
            pieces += 1
            if "id" in call:
                made["name"] = call["function"]["name"]
    assert (text, finish) == ("Well.", "tool_calls")
    assert calls == {
        0: {"name": "look", "arguments": '{"at": "sky"}'},
        1: {"name": "look", "arguments": '{"at": "sea"}'},
    }
    assert pieces > 4, "the arguments came in pieces"


def test_one_call_where_several_are_not_wanted(caller: HostProcess) -> None:
    asked = {"messages": HELLO, "tools": [LOOK], "parallel_tool_calls": False}
    (choice,) = caller.chat(asked).body["choices"]
    assert len(choice["message"]["tool_calls"]) == 1


def test_without_tools_or_with_none_to_be_called_the_text_comes_as_it_is(caller: HostProcess) -> None:
    for fields in ({}, {"tools": [LOOK], "tool_choice": "none"}):
        (choice,) = caller.chat({"messages": HELLO, **fields}).body["choices"]
        assert choice["finish_reason"] == "stop"
        assert choice["message"]["content"] == "Well. " + CALLS
        assert "tool_calls" not in choice["message"]


def test_calls_and_results_come_back_in_the_history(caller: HostProcess) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "blue"},
    ]
    counted = caller.post("/tokenize", {"messages": messages, "tools": [LOOK]}).body
    text = caller.post("/detokenize", {"tokens": counted["tokens"]}).body["prompt"]
    assert '"arguments": {"at": "sky"}' in text
    assert "blue" in text
    answer = caller.chat({"messages": messages, "tools": [LOOK]})
    assert answer.body["usage"]["prompt_tokens"] == counted["count"]


def test_the_template_hears_what_the_request_says(make_host: MakeHost) -> None:
    template = (
        "{{ reasoning_effort }}/{{ enable_thinking }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    host = make_host(Behaviour(template=template))
    asked = {
        "messages": HELLO,
        "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": False},
    }
    counted = host.post("/tokenize", asked).body
    assert host.post("/detokenize", {"tokens": counted["tokens"]}).body["prompt"] == "low/Falsehello"
    assert host.chat(asked).body["usage"]["prompt_tokens"] == len("low/Falsehello")


def test_reasoning_is_told_apart_from_the_answer(make_host: MakeHost) -> None:
    template = (TEMPLATES / "hermes_thinking.jinja").read_text()
    host = make_host(Behaviour(answer="<think>\nHm, well.\n</think>\n\nIt is so.", template=template))
    message = host.chat({"messages": HELLO}).body["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm, well.", "It is so.")
    thought = said = ""
    for choice in choices_of(host.stream({"messages": HELLO})):
        thought += choice["delta"].get("reasoning_content") or ""
        said += choice["delta"].get("content") or ""
    assert (thought, said) == ("Hm, well.", "It is so.")


# the form of a chat's answer


def test_a_schema_that_makes_no_sense_names_response_format(host: HostProcess) -> None:
    told = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"title": "nonsense"}}}
    answer = host.chat({"messages": HELLO, "response_format": told}, who="ann")
    assert refusal(answer) == (400, "invalid_value", "response_format")
    assert host.state()["pins"] == 0


@pytest.mark.parametrize("after", [0, 3])
def test_what_cannot_be_done_is_the_requests_fault(make_host: MakeHost, after: int) -> None:
    host = make_host(Behaviour(breaks_after=after, breaks_by_request=True))
    answer = host.chat({"messages": HELLO}, who="ann")
    assert refusal(answer) == (400, "invalid_value", None)
    assert "as it was told to" in answer.body["error"]["message"]
    assert answer.headers["x-homeport-pin"] == "new"


# completions


def test_a_prompt_is_continued_as_it_is(host: HostProcess) -> None:
    answer = host.post("/v1/completions", {"prompt": "Once"})
    assert answer.status == 200
    assert answer.body["object"] == "text_completion"
    assert answer.body["id"].startswith("cmpl-")
    assert answer.body["choices"] == [
        {"text": "It is so.", "index": 0, "logprobs": None, "finish_reason": "stop"}
    ]
    assert answer.body["usage"]["prompt_tokens"] == len("Once")
    assert answer.body["homeport"]["pin"] == "none"


def test_a_completion_is_short_unless_asked_otherwise(make_host: MakeHost) -> None:
    host = make_host(Behaviour(endless=True))
    (choice,) = host.post("/v1/completions", {"prompt": "Once"}).body["choices"]
    assert (len(choice["text"]), choice["finish_reason"]) == (16, "length")


def test_several_prompts_are_groups_of_choices(host: HostProcess) -> None:
    asked = {"prompt": ["a:", [ord("b"), ord(":")]], "n": 2, "echo": True}
    answer = host.post("/v1/completions", asked)
    assert [(choice["index"], choice["text"]) for choice in answer.body["choices"]] == [
        (0, "a:It is so."),
        (1, "a:It is so."),
        (2, "b:It is so."),
        (3, "b:It is so."),
    ]
    assert answer.body["usage"]["completion_tokens"] == 36
    assert answer.body["usage"]["prompt_tokens"] == 4
    assert host.wait_state(running=0)["waiting"] == 0


def test_a_stream_of_several_prompts(host: HostProcess) -> None:
    asked = {"prompt": ["a", "b"], "stream_options": {"include_usage": True}}
    stream = host.stream(asked, path="/v1/completions")
    texts: dict[int, str] = {}
    events = list(stream.events())
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    assert stream.done
    assert texts == {0: "It is so.", 1: "It is so."}
    assert events[-1]["usage"]["completion_tokens"] == 18


def test_completions_of_a_session_find_its_context(host: HostProcess) -> None:
    host.post("/v1/completions", {"prompt": "Once"}, who="ann")
    homeport = host.post("/v1/completions", {"prompt": "OnceIt is so. And"}, who="ann").body["homeport"]
    assert (homeport["pin"], homeport["context"], homeport["cause"]) == ("kept", "resident", None)
    assert homeport["reused_tokens"] == len("OnceIt is so.")
    assert host.get(f"/pins/{session('ann')}").status == 200


def test_log_probabilities_of_a_completion_have_the_older_shape(host: HostProcess) -> None:
    (choice,) = host.post("/v1/completions", {"prompt": "Once", "logprobs": 2}).body["choices"]
    told = choice["logprobs"]
    assert told["tokens"] == list("It is so.")
    assert told["text_offset"] == list(range(9))
    assert len(told["token_logprobs"]) == len(told["top_logprobs"]) == 9


def test_a_client_that_leaves_ends_all_prompts(make_host: MakeHost) -> None:
    host = make_host(Behaviour(endless=True, step_s=0.02))
    stream = host.stream({"prompt": ["a", "b", "c"], "max_tokens": 1000}, path="/v1/completions")
    next(stream.events())
    stream.close()
    state = host.wait_state(running=0, waiting=0)
    assert state["turns"] == 1


def test_a_turn_that_breaks_ends_all_prompts(make_host: MakeHost) -> None:
    host = make_host(Behaviour(answer="abc", cancels_after=3, step_s=0.05))
    stream = host.stream({"prompt": ["a", "b"]}, path="/v1/completions")
    *_, last = stream.events()
    assert last["error"]["code"] == "cancelled"
    assert not stream.done
    assert host.wait_state(running=0, waiting=0)["turns"] == 1


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, "missing_required_parameter", "prompt"),
        ({"prompt": ""}, "invalid_value", "prompt"),
        ({"prompt": []}, "empty_array", "prompt"),
        ({"prompt": [[]]}, "empty_array", "prompt"),
        ({"prompt": ["a", ""]}, "invalid_value", "prompt[1]"),
        ({"prompt": ["a", 3]}, "invalid_type", "prompt[1]"),
        ({"prompt": 3}, "invalid_type", "prompt"),
        ({"prompt": [-1]}, "invalid_type", "prompt"),
        ({"prompt": ["a"] * 129}, "invalid_value", "prompt"),
        ({"prompt": [VOCABULARY]}, "invalid_value", "prompt"),
        ({"prompt": "x" * 4000}, "context_length_exceeded", "prompt"),
        ({"prompt": "x" * 100_000}, "context_length_exceeded", "prompt"),
        ({"prompt": "x", "suffix": "y"}, "unsupported_parameter", "suffix"),
        ({"prompt": "x", "best_of": 2}, "unsupported_parameter", "best_of"),
        ({"prompt": "x", "logprobs": 21}, "invalid_value", "logprobs"),
        ({"prompt": "x", "logprobs": True}, "invalid_type", "logprobs"),
        ({"prompt": "x", "logprobs": 1, "echo": True}, "unsupported_parameter", "logprobs"),
        ({"prompt": "x", "max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"prompt": "x", "logit_bias": {str(VOCABULARY): 1}}, "invalid_value", "logit_bias"),
        ({"prompt": "x", "echos": True}, "unknown_parameter", "echos"),
    ],
)
def test_bad_completions_name_the_field(
    host: HostProcess, fields: dict[str, Any], code: str, param: str
) -> None:
    answer = host.post("/v1/completions", fields)
    assert refusal(answer) == (400, code, param)
    if code == "context_length_exceeded":
        assert "4000" in answer.body["error"]["message"]


def test_what_asks_for_nothing_special_is_served(host: HostProcess) -> None:
    fields = {"prompt": "x", "best_of": 2, "n": 2, "suffix": None, "logprobs": None, "echo": False}
    assert host.post("/v1/completions", fields).status == 200


# embeddings

UNIT = [1.0, 0.0, 0.0, 0.0]


def test_a_text_becomes_a_vector(host: HostProcess) -> None:
    answer = host.post("/v1/embeddings", {"input": "Once"}, who="nobody")
    assert answer.status == 200
    assert answer.body["data"] == [{"object": "embedding", "index": 0, "embedding": UNIT}]
    assert answer.body["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert answer.headers["x-homeport-pin"] == "none"
    assert host.get(f"/pins/{session('nobody')}").status == 404


def test_many_texts_become_as_many_vectors_in_base64(host: HostProcess) -> None:
    asked = {"input": ["a", "bc", [1, 2, 3]], "encoding_format": "base64", "dimensions": 4}
    answer = host.post("/v1/embeddings", asked)
    assert [item["index"] for item in answer.body["data"]] == [0, 1, 2]
    vectors = [struct.unpack("<4f", base64.b64decode(item["embedding"])) for item in answer.body["data"]]
    assert vectors == [tuple(UNIT)] * 3
    assert answer.body["usage"]["prompt_tokens"] == 6


def test_token_ids_become_one_vector(host: HostProcess) -> None:
    answer = host.post("/v1/embeddings", {"input": [1, 2, 3]})
    assert (len(answer.body["data"]), answer.body["usage"]["prompt_tokens"]) == (1, 3)


def test_embeddings_leave_no_resident(make_host: MakeHost) -> None:
    host = make_host(Behaviour())
    host.post("/v1/embeddings", {"input": "a"})
    state = host.wait_state(running=0)
    assert (state["residents"], state["free"]) == ([], 1)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, "missing_required_parameter", "input"),
        ({"input": ""}, "invalid_value", "input"),
        ({"input": []}, "empty_array", "input"),
        ({"input": {"a": 1}}, "invalid_type", "input"),
        ({"input": ["a"] * 2049}, "invalid_value", "input"),
        ({"input": "x" * 4001}, "context_length_exceeded", "input"),
        ({"input": [VOCABULARY]}, "invalid_value", "input"),
        ({"input": "x", "dimensions": 3}, "unsupported_parameter", "dimensions"),
        ({"input": "x", "encoding_format": "int8"}, "invalid_value", "encoding_format"),
        ({"input": "x", "stream": True}, "unsupported_parameter", "stream"),
    ],
)
def test_bad_embeddings_name_the_field(
    host: HostProcess, fields: dict[str, Any], code: str, param: str
) -> None:
    answer = host.post("/v1/embeddings", fields)
    assert refusal(answer) == (400, code, param)
    if code == "context_length_exceeded":
        assert "4001" in answer.body["error"]["message"]
        assert "4000" in answer.body["error"]["message"]


# what a router says


@pytest.mark.parametrize(
    ("name", "value"),
    [("x-homeport-scope", "ann"), ("x-homeport-queue-left-ms", "-1"), ("x-homeport-queue-left-ms", "soon")],
)
def test_a_header_that_no_router_sends_is_a_400(host: HostProcess, name: str, value: str) -> None:
    answer = host.chat({"messages": HELLO}, {name: value})
    assert refusal(answer) == (400, "invalid_header", None)
    assert name in answer.body["error"]["message"]


def test_who_has_waited_elsewhere_waits_for_the_rest_of_the_time_only(make_host: MakeHost) -> None:
    host = make_host(Behaviour(endless=True, step_s=0.02), queue_s=60.0)
    host.stream({"messages": HELLO}, who="ann")
    answer = host.chat({"messages": HELLO}, {"x-homeport-queue-left-ms": "200"}, who="ben")
    assert (answer.status, answer.body["error"]["code"]) == (429, "queue_timeout")
    assert 150 <= int(answer.headers["x-homeport-waited-ms"]) < 30_000  # a timer may be early by its grain
    assert host.chat({"messages": HELLO}, {"x-homeport-queue-left-ms": "0"}, who="cem").status == 429


# how far a prompt is


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": HELLO}),
        ("/v1/completions", {"prompt": "user:hello\nassistant:"}),
    ],
)
def test_progress_of_a_prompt_is_told_as_llama_server_does(
    host: HostProcess, path: str, fields: dict[str, Any]
) -> None:
    total, cached = len("user:hello\nassistant:"), 0
    for _ in range(2):
        events = list(host.stream(fields, who="progress" + path, path=path, return_progress=True).events())
        progress = [event["prompt_progress"] for event in events if "prompt_progress" in event]
        assert all("prompt_progress" in event for event in events[: len(progress)]), "they come first"
        assert [told["total"] for told in progress] == [total] * 2
        cached = progress[0]["cache"]
        assert [(told["cache"], told["processed"]) for told in progress] == [
            (cached, cached),
            (cached, total),
        ]
        assert cached == events[-1]["homeport"]["reused_tokens"]
    assert cached > 0, "the second time it is resident"


def test_progress_of_every_prompt_is_told(host: HostProcess) -> None:
    body = {"prompt": ["one", "three"], "n": 2}
    events = list(host.stream(body, path="/v1/completions", return_progress=True).events())
    told = [
        (event["choices"][0]["index"], event["prompt_progress"]["processed"])
        for event in events
        if "prompt_progress" in event
    ]
    assert [told[1], told[3]] == [(0, 3), (2, 5)]


def test_progress_means_nothing_to_a_whole_answer(host: HostProcess) -> None:
    answer = host.chat({"messages": HELLO, "return_progress": True})
    assert answer.status == 200
    assert "prompt_progress" not in answer.body


# requests made aside, and families


def said(words: str, *more: dict[str, str]) -> list[dict[str, str]]:
    return [{"role": "user", "content": words}, *more]


def told(host: HostProcess, messages: list[dict[str, str]], who: str, **headers: str) -> dict[str, Any]:
    """`homeport` of a streamed answer's usage event, which says the same as its usage."""
    asked = {name.replace("_", "-"): value for name, value in headers.items()}
    stream = host.stream({"messages": messages}, asked, who=who, stream_options={"include_usage": True})
    *_, usage = stream.events()
    homeport: dict[str, Any] = usage["homeport"]
    cached = usage["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == homeport["reused_tokens"]
    assert usage["usage"]["prompt_tokens"] == cached + homeport["evaluated_tokens"]
    return homeport


def outcome(homeport: dict[str, Any]) -> tuple[str, str, str | None]:
    return homeport["pin"], homeport["context"], homeport["cause"]


def test_a_title_asked_for_under_a_chats_name_leaves_its_context_alone(make_host: MakeHost) -> None:
    host = make_host(Behaviour())
    chat = said("Tell me of the sea. " * 40)
    first = told(host, chat, "ann")
    assert outcome(first) == ("new", "evaluated", "new")
    title = said("Give this chat a title.")
    asked = len("user:Give this chat a title.\nassistant:")
    for cause in ("new", f"edited@{asked - 1}"):
        aside = told(host, title, "ann")
        assert (aside["pin"], aside["cause"]) == ("kept", cause)
        chat += [{"role": "assistant", "content": "It is so."}, {"role": "user", "content": "Go on."}]
        main = told(host, chat, "ann")
        assert outcome(main) == ("kept", "resumed", None)
        assert main["reused_tokens"] > 800, "only what is new is evaluated"
    state = host.state()
    assert state["pins"] == 1, "what is made aside has no pin"


def test_a_compacted_history_becomes_the_sessions_context(make_host: MakeHost) -> None:
    host = make_host(Behaviour())
    told(host, said("Tell me of the sea. " * 40), "ann")
    compact = said("Here is the sea in short. " * 5)
    assert told(host, compact, "ann")["cause"] == "new"
    goes_on = [
        *compact,
        {"role": "assistant", "content": "It is so."},
        {"role": "user", "content": "And now?"},
    ]
    for homeport in [told(host, goes_on, "ann") for _ in range(2)]:
        assert (homeport["pin"], homeport["context"]) == ("kept", "resident")
        assert homeport["reused_tokens"] > len("Here is the sea in short. " * 5)


def test_a_child_runs_at_once_between_its_parents_turns_and_the_parent_resumes(make_host: MakeHost) -> None:
    host = make_host(Behaviour(), hold_s=60.0)
    chat = said("Tell me of the sea. " * 40)
    told(host, chat, "root")
    parent = session("root")
    child = host.chat({"messages": HELLO}, {"x-homeport-parent-key": parent}, who="child")
    assert child.status == 200
    assert int(child.headers["x-homeport-waited-ms"]) < 1000, "whatever the parent's hold is"
    assert outcome(child.body["homeport"]) == ("new", "evaluated", "new")
    chat += [{"role": "assistant", "content": "It is so."}, {"role": "user", "content": "Go on."}]
    back = told(host, chat, "root")
    assert outcome(back) == ("kept", "resumed", None)
    assert back["reused_tokens"] > 800


def test_a_session_that_is_ended_gets_a_409_and_begins_anew(make_host: MakeHost) -> None:
    host = make_host(Behaviour(endless=True, step_s=0.02))
    running, results = host.stream({"messages": HELLO}, who="ann"), []
    running.first_text()
    waiting = threading.Thread(target=lambda: results.append(host.chat({"messages": HELLO}, who="ann")))
    waiting.start()
    host.wait_state(waiting=1)
    assert host.delete(f"/pins/{session('ann')}").body == {"ended": True}
    waiting.join(10)
    *_, event = running.events()
    assert (event["error"]["code"], running.done) == ("session_ended", False)
    (refused,) = results
    assert refusal(refused) == (409, "session_ended", None)
    assert refused.headers["x-should-retry"] == "false"
    assert "x-homeport-pin" not in refused.headers
    anew = host.chat({"messages": HELLO, "max_tokens": 1}, who="ann")
    assert outcome(anew.body["homeport"]) == ("new", "evaluated", "new")


# an engine that was freed


def test_a_stream_that_waits_for_the_model_is_told_so(make_host: MakeHost, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    host = make_host(Behaviour(loads_again_when=str(gate), head_s=0.5), unload_s=0.1)
    host.wait_state(loaded=False)
    long = [{"role": "user", "content": "x" * 5000}]
    with ThreadPoolExecutor() as both:  # each returns with the head
        streams = [both.submit(host.stream, {"messages": said}, who="ann") for said in (HELLO, long)]
    stream, wrong = (each.result() for each in streams)
    assert stream.headers["x-homeport-pin"] == "new"
    assert "x-homeport-waited-ms" not in stream.headers
    assert wrong.status == 200
    gate.touch()
    assert "".join(text_of(event) for event in stream.events()) == "It is so."
    assert stream.done
    assert stream.comments[0] == "loading the model"
    (event,) = wrong.events()
    assert (event["error"]["code"], event["error"]["param"]) == ("context_length_exceeded", "messages")
    assert not wrong.done


def test_a_client_that_leaves_while_the_model_loads_asks_for_nothing(
    make_host: MakeHost, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    host = make_host(Behaviour(loads_again_when=str(gate)), unload_s=0.1)
    host.wait_state(loaded=False)
    with host.post_and_wait("hello", who="ann"):
        host.wait_until(lambda state: state["progress"] < 1.0)
    host.state()  # The host has heard of the client's leaving before it hears this.
    gate.touch()
    state = host.wait_state(loaded=True)
    assert (state["turns"], state["pins"], state["waiting"]) == (0, 0, 0)


# tokens


def test_texts_and_conversations_are_counted(host: HostProcess) -> None:
    counted = host.post("/tokenize", {"prompt": "abc"}).body
    assert counted == {"count": 3, "max_model_len": 4000, "tokens": [97, 98, 99]}
    assert host.post("/detokenize", {"tokens": counted["tokens"]}).body == {"prompt": "abc"}
    conversation = host.post("/tokenize", {"messages": HELLO})
    assert conversation.body["count"] == len("user:hello\nassistant:")
    assert conversation.headers["x-homeport-replica"] == "den/0"


@pytest.mark.parametrize(
    ("path", "fields", "code", "param"),
    [
        ("/tokenize", {}, "missing_required_parameter", "prompt"),
        ("/tokenize", {"prompt": 3}, "invalid_type", "prompt"),
        ("/tokenize", {"prompt": "a", "messages": HELLO}, "invalid_value", "prompt"),
        ("/tokenize", {"messages": HELLO, "tools": [LOOK]}, "unsupported_parameter", "tools"),
        ("/detokenize", {}, "missing_required_parameter", "tokens"),
        ("/detokenize", {"tokens": "abc"}, "invalid_type", "tokens"),
        ("/detokenize", {"tokens": [VOCABULARY]}, "invalid_value", "tokens"),
    ],
)
def test_bad_counting_names_the_field(
    host: HostProcess, path: str, fields: dict[str, Any], code: str, param: str
) -> None:
    assert refusal(host.post(path, fields)) == (400, code, param)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/embeddings", {"input": "a"}),
        ("/tokenize", {"prompt": "a"}),
        ("/detokenize", {"tokens": [1]}),
    ],
)
def test_every_endpoint_takes_a_post_for_its_own_model_only(
    host: HostProcess, path: str, fields: dict[str, Any]
) -> None:
    assert refusal(host.get(path)) == (405, "method_not_allowed", None)
    assert host.post(path, fields).status == 200
    assert refusal(host.post(path, {"model": "other", **fields})) == (404, "model_not_found", "model")


def test_text_of_a_stream_is_the_whole_answers(host: HostProcess) -> None:
    events = list(host.stream({"messages": HELLO}).events())
    assert (
        "".join(map(text_of, events))
        == host.chat({"messages": HELLO}).body["choices"][0]["message"]["content"]
    )
