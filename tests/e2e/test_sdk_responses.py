"""The openai SDK's Responses against llama.cpp."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.e2e.installation import Homeport, eventually
from tests.e2e.sdk_tests import Person, Weather, running, shared_replica, weather
from tests.e2e.talk import MODEL, client

pytestmark = pytest.mark.clients

PARIS: Any = [
    {"role": "developer", "content": "You are a helpful AI assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]
ROME: Any = [{"role": "user", "content": "What is the weather in Rome?"}]
TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Tells the weather of a city.",
    "parameters": Weather.model_json_schema(),
    "strict": True,
}
NOTE: Any = {"type": "custom", "name": "note", "description": "Keeps a note."}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeport]:
    """One replica that several sessions share, with tools."""
    with shared_replica(tmp_path_factory.mktemp("responses")) as installed:
        yield installed


@pytest.fixture
def sdk(installed: Homeport) -> Iterator[OpenAI]:
    with client(installed.url) as sdk:
        yield sdk


def sent_back(response: Any) -> list[Any]:
    """A response's items as a client sends them with the next turn."""
    return [item.model_dump(exclude_none=True) for item in response.output]


def evaluated_only_what_is_new(first: Any, second: Any) -> bool:
    """All that the first turn read or said was still there, but for the last token, which no turn reads."""
    known = first.usage.input_tokens + first.usage.output_tokens - 1
    assert second.homeport["cause"] is None
    return bool(second.usage.input_tokens_details.cached_tokens >= known)


def test_a_response(sdk: OpenAI) -> None:
    answer = sdk.responses.create(model=MODEL, input=PARIS, temperature=0, max_output_tokens=24)
    assert "Paris" in answer.output_text
    assert answer.status == "completed"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_an_answer_that_is_cut_off_is_incomplete_and_says_why(sdk: OpenAI) -> None:
    answer = sdk.responses.create(model=MODEL, input=PARIS, temperature=0, max_output_tokens=2)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


def test_the_sdks_own_stream_helper_puts_an_answer_together(sdk: OpenAI) -> None:
    with sdk.responses.stream(model=MODEL, input=PARIS, temperature=0, max_output_tokens=24) as stream:
        kinds = [event.type for event in stream]
        answer = stream.get_final_response()
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert kinds[-1] == "response.completed"
    assert "Paris" in answer.output_text


def test_turn_two_of_a_conversation_that_is_sent_back_evaluates_only_what_is_new(sdk: OpenAI) -> None:
    asked: Any = {"model": MODEL, "temperature": 0, "max_output_tokens": 40, "prompt_cache_key": "sent back"}
    first = sdk.responses.create(input=PARIS, **asked)
    assert first.status == "completed"
    italy: Any = {"role": "user", "content": "And of Italy?"}
    second: Any = sdk.responses.create(input=[*PARIS, *sent_back(first), italy], **asked)
    assert evaluated_only_what_is_new(first, second)
    assert second.homeport["pin"] == "kept"


def test_a_tools_result_goes_back_and_only_it_is_evaluated(sdk: OpenAI) -> None:
    asked: Any = {"model": MODEL, "temperature": 0, "tools": [TOOL], "prompt_cache_key": "tools"}
    first = sdk.responses.create(input=ROME, tool_choice="required", parallel_tool_calls=False, **asked)
    (call,) = first.output
    assert call.type == "function_call"
    assert weather(call.arguments).unit in ("celsius", "fahrenheit")
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny, 20 degrees"}
    second = sdk.responses.create(input=[*ROME, *sent_back(first), result], max_output_tokens=24, **asked)
    assert evaluated_only_what_is_new(first, second)


def test_a_custom_tools_text_goes_out_and_its_result_back(sdk: OpenAI) -> None:
    asked: Any = {"model": MODEL, "temperature": 0, "tools": [NOTE], "prompt_cache_key": "notes"}
    choice: Any = {"type": "custom", "name": "note"}
    with sdk.responses.stream(input=ROME, tool_choice=choice, max_output_tokens=200, **asked) as stream:
        said = "".join(
            event.delta for event in stream if event.type == "response.custom_tool_call_input.delta"
        )
        first = stream.get_final_response()
    (call,) = first.output
    assert call.type == "custom_tool_call"
    assert call.input == said
    assert said
    result: Any = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "kept"}
    second = sdk.responses.create(input=[*ROME, *sent_back(first), result], max_output_tokens=8, **asked)
    assert second.usage is not None
    assert first.usage is not None
    # A free text that is read again may fall into other tokens than those it was made of; all before it stays.
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens


def test_a_streamed_call_comes_in_pieces(sdk: OpenAI) -> None:
    choice: Any = {"type": "function", "name": "get_weather"}
    parts = [
        event.delta
        for event in sdk.responses.create(
            model=MODEL, input=ROME, tools=[TOOL], tool_choice=choice, temperature=0, stream=True
        )
        if event.type == "response.function_call_arguments.delta"
    ]
    assert len(parts) > 3
    assert weather("".join(parts)).city


def test_an_answer_is_parsed_into_a_pydantic_class(sdk: OpenAI) -> None:
    answer = sdk.responses.parse(
        model=MODEL,
        input="Invent a person.",
        text_format=Person,
        max_output_tokens=120,
        extra_body={"seed": 1},
    )
    assert isinstance(answer.output_parsed, Person)


def test_a_json_object(sdk: OpenAI) -> None:
    answer = sdk.responses.create(
        model=MODEL,
        input=PARIS,
        text={"format": {"type": "json_object"}},
        temperature=0,
        max_output_tokens=200,
    )
    assert isinstance(json.loads(answer.output_text), dict)


def test_log_probabilities(sdk: OpenAI) -> None:
    answer: Any = sdk.responses.create(
        model=MODEL,
        input=PARIS,
        top_logprobs=2,
        include=["message.output_text.logprobs"],
        max_output_tokens=4,
    )
    (part,) = answer.output[0].content
    assert b"".join(bytes(token.bytes) for token in part.logprobs).decode() == part.text
    assert all(len(token.top_logprobs) == 2 for token in part.logprobs)


def test_a_client_that_leaves_frees_its_place(installed: Homeport, sdk: OpenAI) -> None:
    stream = sdk.responses.create(
        model=MODEL,
        input="Count to a thousand.",
        stream=True,
        max_output_tokens=1500,
        prompt_cache_key="leaves",
        extra_body={"logit_bias": {"0": -100, "2": -100}},
    )
    next(iter(stream))
    eventually(lambda: running(installed, MODEL) == 1, 10)
    stream.close()
    eventually(lambda: running(installed, MODEL) == 0, 10)


def test_what_the_model_cannot_do_is_a_bad_request_that_names_it(sdk: OpenAI) -> None:
    image: Any = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.responses.create(model=MODEL, input=[{"role": "user", "content": [image]}])
    assert refused.value.param == "input[0].content[0].type"


def test_a_prompt_beyond_the_context_says_so(sdk: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.responses.create(model=MODEL, input="word " * 3000)
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.param == "input"
