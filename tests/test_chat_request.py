"""Which bodies are served, and what the others are told."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.chat_request import HARMLESS, SUPPORTED, UNSUPPORTED, ChatRequest, read_chat_request
from serving.chat_tools import JsonOutput, ToolUse
from serving.engine import Sampling
from serving.request_fields import BadRequest, default_sampling

HELLO = [{"role": "user", "content": "hello"}]
LOOK: dict[str, Any] = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}},
}
GO = {"type": "function", "function": {"name": "go"}}


def read(**fields: Any) -> ChatRequest:
    return read_chat_request({"model": "m", "messages": HELLO, **fields}, Sampling())


def refused(**fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        read(**fields)
    return caught.value


def test_a_plain_request_takes_the_defaults() -> None:
    request = read()
    assert request == ChatRequest(
        "m", ({"role": "user", "content": "hello"},), False, False, None, Sampling(), ()
    )


def test_progress_is_told_in_streams_only() -> None:
    assert read(stream=True, return_progress=True).return_progress
    assert not read(stream=True).return_progress
    assert not read(return_progress=True).return_progress
    assert refused(return_progress="yes").param == "return_progress"


def test_defaults_come_from_the_models_options() -> None:
    defaults = default_sampling({"temperature": 0.2, "top_k": 5, "batch": 64})
    assert defaults == Sampling(temperature=0.2, top_k=5)
    body = {"model": "m", "messages": HELLO, "temperature": 1}
    assert read_chat_request(body, defaults).sampling == Sampling(temperature=1.0, top_k=5)


def test_all_of_sampling_is_read() -> None:
    sampling = read(
        temperature=0,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        typical_p=0.9,
        repeat_penalty=1.1,
        presence_penalty=-1,
        frequency_penalty=2,
        logit_bias={"12": -100, "7": 1.5},
        seed=42,
    ).sampling
    assert sampling == Sampling(0.0, 0.5, 3, 0.1, 0.9, 1.1, -1.0, 2.0, ((12, -100.0), (7, 1.5)), 42)


def test_null_counts_as_absent() -> None:
    names = (SUPPORTED | HARMLESS | UNSUPPORTED) - {"model", "messages"}
    assert read(**dict.fromkeys(names)) == read()


def test_harmless_parameters_are_ignored() -> None:
    assert read(user="u", metadata={"a": "b"}, store=True, prompt_cache_key="k") == read()


@pytest.mark.parametrize(
    ("asked", "used"), [(-1, None), (0, 0), (2**32 - 1, 0), (-2, 2**32 - 3), (2**63 - 1, 1)]
)
def test_a_seed_becomes_one_that_is_not_random(asked: int, used: int | None) -> None:
    seed = read(seed=asked).sampling.seed
    assert seed is None or 0 <= seed < 2**32 - 1
    assert (seed is None) == (used is None)
    if asked < 2**32:
        assert seed == used


def test_top_k_minus_one_is_off() -> None:
    assert read(top_k=-1).sampling.top_k == 0


def test_max_completion_tokens_goes_before_max_tokens() -> None:
    assert read(max_tokens=3).max_tokens == 3
    assert read(max_tokens=3, max_completion_tokens=5).max_tokens == 5


def test_one_stop_or_sixteen() -> None:
    assert read(stop="END").stop == ("END",)
    assert len(read(stop=["x"] * 16).stop) == 16


def test_usage_is_asked_for_in_stream_options() -> None:
    assert read(stream=True, stream_options={"include_usage": True}).include_usage
    assert not read(stream=True, stream_options={}).include_usage


def test_text_parts_are_joined_and_a_developer_is_the_system() -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {
            "role": "user",
            "name": "ann",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        },
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [], "refusal": None},
    ]
    assert read(messages=messages).messages == (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a\nb", "name": "ann"},
        {"role": "assistant", "content": "", "reasoning_content": "hm"},
    )


def test_what_asks_for_nothing_special_is_served() -> None:
    plain = read(
        n=1,
        logprobs=False,
        top_logprobs=0,
        tools=[],
        tool_choice="auto",
        response_format={"type": "text"},
        modalities=["text"],
    )
    assert plain == read()


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": None}, "model", "missing_required_parameter"),
        ({"model": 3}, "model", "invalid_type"),
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": "hello"}, "messages", "invalid_type"),
        ({"messages": ["hello"]}, "messages[0]", "invalid_type"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "tool"}]}, "messages[0].content", "invalid_type"),
        (
            {"messages": [{"role": "tool", "content": "x", "tool_call_id": 3}]},
            "messages[0].tool_call_id",
            "invalid_type",
        ),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]", "invalid_type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "invalid_type",
        ),
        ({"messages": [{"role": "user", "content": "x", "name": 3}]}, "messages[0].name", "invalid_type"),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
            "messages[0].tool_calls[0]",
            "invalid_type",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": ""}}]}]},
            "messages[0].tool_calls[0].function.name",
            "invalid_type",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
            "invalid_value",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "3"}}]}
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
            "invalid_type",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "function_call": {"name": "f"}}]},
            "messages[0].function_call",
            "unsupported_parameter",
        ),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": []}, "stream_options", "invalid_type"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        (
            {"stream": True, "stream_options": {"include_usage": 1}},
            "stream_options.include_usage",
            "invalid_type",
        ),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens", "invalid_type"),
        ({"max_tokens": True}, "max_tokens", "invalid_type"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": float("nan")}, "temperature", "invalid_value"),
        ({"top_p": -0.1}, "top_p", "invalid_value"),
        ({"min_p": 1.1}, "min_p", "invalid_value"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"presence_penalty": 3}, "presence_penalty", "invalid_value"),
        ({"frequency_penalty": -3}, "frequency_penalty", "invalid_value"),
        ({"repeat_penalty": 0}, "repeat_penalty", "invalid_value"),
        ({"seed": "1"}, "seed", "invalid_type"),
        ({"seed": 10**30}, "seed", "invalid_value"),
        ({"stop": 3}, "stop", "invalid_type"),
        ({"stop": ["x"] * 17}, "stop", "invalid_value"),
        ({"stop": ["x", ""]}, "stop", "invalid_value"),
        ({"logit_bias": []}, "logit_bias", "invalid_type"),
        ({"logit_bias": {"hello": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"-5": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_value"),
        ({"typical_p": 2}, "typical_p", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 129}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_type"),
        ({"logprobs": 3}, "logprobs", "invalid_type"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"tools": {}}, "tools", "invalid_type"),
        ({"tools": [GO] * 1025}, "tools", "invalid_value"),
        ({"tools": [GO, GO]}, "tools", "invalid_value"),
        ({"tools": ["go"]}, "tools[0]", "invalid_type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
        ({"tools": [GO, {"type": "custom", "custom": {}}]}, "tools[1].type", "unsupported_parameter"),
        ({"tools": [{"function": {"name": "a b"}}]}, "tools[0].function.name", "invalid_value"),
        (
            {"tools": [{"function": {"name": "a", "parameters": []}}]},
            "tools[0].function.parameters",
            "invalid_type",
        ),
        (
            {"tools": [{"function": {"name": "a", "description": 3}}]},
            "tools[0].function.description",
            "invalid_type",
        ),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "function", "function": {"name": "go"}}}, "tool_choice", "invalid_value"),
        ({"tools": [GO], "tool_choice": "sometimes"}, "tool_choice", "invalid_type"),
        ({"tools": [GO], "tool_choice": {"type": "function"}}, "tool_choice", "invalid_type"),
        ({"tools": [GO], "tool_choice": {"type": "allowed_tools"}}, "tool_choice", "unsupported_parameter"),
        ({"tools": [GO], "parallel_tool_calls": "no"}, "parallel_tool_calls", "invalid_type"),
        (
            {"tools": [GO], "tool_choice": "required", "response_format": {"type": "json_object"}},
            "response_format",
            "unsupported_parameter",
        ),
        ({"functions": [{}]}, "functions", "unsupported_parameter"),
        ({"response_format": {"type": "yaml"}}, "response_format", "invalid_value"),
        ({"response_format": {}}, "response_format", "invalid_value"),
        ({"response_format": "json"}, "response_format", "invalid_type"),
        (
            {"response_format": {"type": "json_object", "schema": 123}},
            "response_format.schema",
            "invalid_type",
        ),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "missing_required_parameter",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            "invalid_type",
        ),
        ({"reasoning_effort": 3}, "reasoning_effort", "invalid_type"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs", "invalid_type"),
        ({"chat_template_kwargs": {"messages": "x"}}, "chat_template_kwargs", "invalid_value"),
        ({"chat_template_kwargs": {"a b": "x"}}, "chat_template_kwargs", "invalid_value"),
        ({"chat_template_kwargs": {"x": []}}, "chat_template_kwargs.x", "invalid_type"),
        ({"chat_template_kwargs": {f"x{i}": 1 for i in range(33)}}, "chat_template_kwargs", "invalid_value"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
        ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
    ],
)
def test_bad_input_names_the_field(fields: dict[str, Any], param: str, code: str) -> None:
    bad = refused(**fields)
    assert (bad.param, bad.code) == (param, code)
    assert bad.message


def test_an_error_repeats_little_of_what_was_sent() -> None:
    bad = refused(**{"x" * 100_000: 1})
    assert bad.param == "x" * 64 + "…"
    assert len(bad.message) < 200


def test_n_and_log_probabilities_are_read() -> None:
    assert read(n=3).choices == 3
    assert read(logprobs=True).logprobs == 0
    assert read(logprobs=True, top_logprobs=5).logprobs == 5
    assert read(logprobs=False, top_logprobs=0).logprobs is None


def test_as_many_tools_are_taken_as_agents_with_several_servers_bring_along() -> None:
    many = [{"type": "function", "function": {"name": f"tool_{number}"}} for number in range(1024)]
    assert len(read(tools=many).tool_use.tools) == 1024


def test_tools_are_passed_on_as_templates_know_them() -> None:
    strict = {"type": "function", "function": {**LOOK["function"], "strict": True, "description": "looks"}}
    use = read(tools=[strict, {"function": {"name": "go"}}]).tool_use
    assert use == ToolUse(
        (
            {"type": "function", "function": {**LOOK["function"], "description": "looks"}},
            {
                "type": "function",
                "function": {"name": "go", "parameters": {"type": "object", "properties": {}}},
            },
        ),
        "auto",
    )


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ("none", ()),
        ("auto", ("look", "go")),
        ("required", ("look", "go")),
        ({"type": "function", "function": {"name": "go"}}, ("go",)),
    ],
)
def test_tool_choice_says_what_may_be_called(choice: object, called: tuple[str, ...]) -> None:
    use = read(tools=[LOOK, GO], tool_choice=choice).tool_use
    assert tuple(tool["function"]["name"] for tool in use.callable) == called
    assert len(use.tools) == 2
    assert (use.choice == "required") == (choice not in ("none", "auto"))


def test_one_call_at_a_time_where_it_is_asked_for_or_named() -> None:
    assert read(tools=[GO]).tool_use.parallel
    assert not read(tools=[GO], parallel_tool_calls=False).tool_use.parallel
    named = {"type": "function", "function": {"name": "go"}}
    assert not read(tools=[GO], tool_choice=named).tool_use.parallel


def test_calls_in_the_history_have_their_arguments_decoded() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "ü"}'}}
    empty = {"type": "function", "function": {"name": "go", "arguments": ""}}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call, empty]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "blue"}], "x": 1},
    ]
    assert read(messages=messages).messages == (
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": "ü"}}},
                {"type": "function", "function": {"name": "go", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": "blue", "tool_call_id": "c1"},
    )


def test_response_formats_are_read() -> None:
    assert read(response_format={"type": "text"}).json_output is None
    assert read(response_format={"type": "json_object"}).json_output == JsonOutput()
    own = {"type": "object", "required": ["a"]}
    assert read(response_format={"type": "json_object", "schema": own}).json_output == JsonOutput(own)
    schema = {"type": "array"}
    told = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert read(response_format=told).json_output == JsonOutput(schema)
    for choice in ("none", "auto"):
        assert read(response_format=told, tools=[GO], tool_choice=choice).json_output == JsonOutput(schema)


def test_what_the_template_is_told_beside_the_messages() -> None:
    assert read(
        reasoning_effort="low", chat_template_kwargs={"enable_thinking": False, "n": 3}
    ).variables == {
        "reasoning_effort": "low",
        "enable_thinking": False,
        "n": 3,
    }


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_content_that_is_no_text_is_named(kind: str) -> None:
    bad = refused(
        messages=[{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": kind, kind: {}}]}]
    )
    assert bad.param == "messages[0].content[1].type"
    assert kind in bad.message


@pytest.mark.parametrize("body", [None, [], "x", 3])
def test_a_body_that_is_no_object_is_refused(body: object) -> None:
    with pytest.raises(BadRequest, match="JSON object"):
        read_chat_request(body, Sampling())


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("ab1", max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab1", max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(SUPPORTED | HARMLESS | UNSUPPORTED)), values, max_size=6))
def test_whatever_comes_is_served_or_refused(fields: dict[str, Any]) -> None:
    with suppress(BadRequest):
        request = read_chat_request({"model": "m", "messages": HELLO, **fields}, Sampling())
        assert request.messages
