"""The openai SDK against a running homeport: what it sends is taken, and it can read the answers. The same for every
engine: test_sdk.py and tests/vllm/ take all that is here, and say against what it is run (`installed`, `model`)."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field

from tests.e2e.installation import Homeport, ended_after, eventually
from tests.e2e.talk import SYSTEM, client

TEMPLATE = Path(__file__).parent.parent / "templates" / "smollm2_tools.jinja"
"""SmolLM2's own template knows no tools."""
PARIS: Any = [SYSTEM, {"role": "user", "content": "What is the capital of France?"}]
ROME: Any = [{"role": "user", "content": "What is the weather in Rome?"}]


class Weather(BaseModel):
    """Tells the weather of a city."""

    city: str = Field(max_length=16)
    unit: Literal["celsius", "fahrenheit"]


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)
    drink: Literal["tea", "coffee"]


TOOLS: Any = [openai.pydantic_function_tool(Weather, name="get_weather")]
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


@contextmanager
def shared_replica(folder: Path) -> Iterator[Homeport]:
    """A running homeport with one replica that several sessions share, with tools."""
    more = ("sessions: 4", f"options: {{chat_template: {TEMPLATE}}}")
    with ended_after(Homeport(folder, count="1", memory="2GiB", more=more)) as installed:
        installed.up()
        yield installed


def running(installed: Homeport, model: str) -> int:
    (replica,) = [replica for replica in installed.replicas() if replica["model"] == model]
    return int(installed.host_state(replica)["running"])


def weather(arguments: str) -> Weather:
    return Weather.model_validate_json(arguments)


# chat completions


def test_a_chat(sdk: OpenAI, model: str) -> None:
    answer = sdk.chat.completions.create(model=model, messages=PARIS, temperature=0, max_completion_tokens=24)
    (choice,) = answer.choices
    assert "Paris" in (choice.message.content or "")
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None


def test_a_stream_with_usage(sdk: OpenAI, model: str) -> None:
    text, usage = "", None
    for chunk in sdk.chat.completions.create(
        model=model,
        messages=PARIS,
        temperature=0,
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    ):
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert "Paris" in text
    assert usage is not None
    assert usage.completion_tokens > 0


def test_the_sdks_own_stream_helper_puts_an_answer_together(sdk: OpenAI, model: str) -> None:
    with sdk.chat.completions.stream(model=model, messages=PARIS, temperature=0, max_tokens=24) as stream:
        kinds = {event.type for event in stream}
        answer = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert "Paris" in (answer.choices[0].message.content or "")


def test_several_answers_with_log_probabilities(sdk: OpenAI, model: str) -> None:
    answer = sdk.chat.completions.create(
        model=model, messages=PARIS, max_tokens=8, n=3, seed=5, temperature=1, logprobs=True, top_logprobs=3
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        assert choice.logprobs is not None
        tokens = choice.logprobs.content or []
        assert b"".join(bytes(token.bytes or []) for token in tokens).decode() == choice.message.content
        assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in tokens)


def test_the_sdks_own_stream_helper_tells_several_answers_apart(sdk: OpenAI, model: str) -> None:
    colours = {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 4, "maxItems": 4}
    form = {"type": "json_schema", "json_schema": {"name": "colours", "schema": colours}}
    asked: Any = {"model": model, "messages": PARIS, "max_tokens": 120, "n": 3, "seed": 5}
    asked["response_format"] = form
    said = dict.fromkeys(range(3), "")
    with sdk.chat.completions.stream(**asked) as stream:
        for event in stream:
            if event.type == "chunk":
                for choice in event.chunk.choices:
                    said[choice.index] += choice.delta.content or ""
        answer = stream.get_final_completion()
    assert {choice.index: choice.message.content for choice in answer.choices} == said
    assert [len(json.loads(text)) for text in said.values()] == [4, 4, 4]


def test_a_seed_gives_the_same_text(sdk: OpenAI, model: str) -> None:
    texts = {
        sdk.chat.completions.create(model=model, messages=PARIS, max_tokens=12, seed=9, temperature=1.2)
        .choices[0]
        .message.content
        for _ in range(2)
    }
    assert len(texts) == 1


def test_stop_strings(sdk: OpenAI, model: str) -> None:
    answer = sdk.chat.completions.create(
        model=model, messages=PARIS, temperature=0, max_tokens=24, stop=["Paris"]
    )
    assert answer.choices[0].finish_reason == "stop"
    assert "Par" not in (answer.choices[0].message.content or "")


def test_a_client_that_leaves_frees_its_place(installed: Homeport, sdk: OpenAI, model: str) -> None:
    stream = sdk.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Count to a thousand."}],
        stream=True,
        max_tokens=1500,
        logit_bias={"0": -100, "2": -100},
        extra_headers={"x-session-id": "leaves"},
    )
    next(iter(stream))
    assert running(installed, model) == 1
    stream.close()
    eventually(lambda: running(installed, model) == 0, 10)


# the form of an answer


def test_an_answer_is_parsed_into_a_pydantic_class(sdk: OpenAI, model: str) -> None:
    answer = sdk.chat.completions.parse(
        model=model,
        messages=[{"role": "user", "content": "Invent a person."}],
        response_format=Person,
        max_tokens=120,
        seed=1,
    )
    person = answer.choices[0].message.parsed
    assert isinstance(person, Person)
    assert 0 <= person.age <= 150


def test_a_streamed_answer_is_parsed_into_a_pydantic_class(sdk: OpenAI, model: str) -> None:
    with sdk.chat.completions.stream(
        model=model,
        messages=[{"role": "user", "content": "Invent a person."}],
        response_format=Person,
        max_tokens=120,
        seed=1,
    ) as stream:
        answer = stream.get_final_completion()
    assert isinstance(answer.choices[0].message.parsed, Person)


def test_a_json_object(sdk: OpenAI, model: str) -> None:
    answer = sdk.chat.completions.create(
        model=model,
        messages=[
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": "What is the capital of Italy?"},
        ],
        response_format={"type": "json_object"},
        temperature=0,
        max_tokens=200,
    )
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


# tools


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_tool_is_called_where_it_must_be(sdk: OpenAI, model: str, choice: Any) -> None:
    answer = sdk.chat.completions.create(
        model=model,
        messages=ROME,
        tools=TOOLS,
        tool_choice=choice,
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=120,
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.id
    assert call.function.name == "get_weather"
    assert weather(call.function.arguments).unit in ("celsius", "fahrenheit")


def test_a_streamed_call_comes_in_pieces(sdk: OpenAI, model: str) -> None:
    names, arguments, finish = "", [], None
    for chunk in sdk.chat.completions.create(
        model=model,
        messages=ROME,
        tools=TOOLS,
        tool_choice=NAMED,
        temperature=0,
        max_tokens=120,
        stream=True,
    ):
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            for call in choice.delta.tool_calls or []:
                assert call.index == 0
                assert call.function is not None
                names += call.function.name or ""
                arguments.append(call.function.arguments or "")
    assert (names, finish) == ("get_weather", "tool_calls")
    assert len([part for part in arguments if part]) > 3
    assert weather("".join(arguments)).city


def test_the_helper_parses_a_streamed_calls_arguments(sdk: OpenAI, model: str) -> None:
    with sdk.chat.completions.stream(
        model=model,
        messages=ROME,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=120,
    ) as stream:
        answer = stream.get_final_completion()
    calls = answer.choices[0].message.tool_calls or []
    assert all(isinstance(call.function.parsed_arguments, Weather) for call in calls)
    assert calls


def test_a_tools_result_goes_back_and_the_session_stays_warm(sdk: OpenAI, model: str) -> None:
    def ask(messages: Any, **more: Any) -> Any:
        return sdk.chat.completions.create(
            model=model,
            messages=messages,
            tools=TOOLS,
            temperature=0,
            extra_headers={"x-session-id": "tools"},
            **more,
        )

    first = ask(ROME, tool_choice=NAMED, max_tokens=120)
    message = first.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny, 20 degrees"}
    second = ask([*ROME, message.model_dump(exclude_none=True), result], max_tokens=24)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens - 1


# completions


def test_completions(sdk: OpenAI, model: str) -> None:
    answer = sdk.completions.create(
        model=model,
        prompt=["The capital of France is", "The capital of Italy is"],
        echo=True,
        n=2,
        temperature=0,
        max_tokens=6,
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert all(choice.text.startswith("The capital of") for choice in answer.choices)
    assert "Paris" in answer.choices[0].text
    assert answer.choices[0].text == answer.choices[1].text


def test_a_stream_of_completions(sdk: OpenAI, model: str) -> None:
    stream = sdk.completions.create(
        model=model, prompt="The capital of France is", stream=True, temperature=0, max_tokens=6, logprobs=2
    )
    parts = [choice for chunk in stream for choice in chunk.choices]
    assert "Paris" in "".join(part.text for part in parts)
    assert parts[0].logprobs is not None
    assert parts[0].logprobs.tokens


def test_a_suffix_is_refused_by_name(sdk: OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.completions.create(model=model, prompt="def f(", suffix="return 1")
    assert refused.value.param == "suffix"


# refusals


def test_what_the_model_cannot_do_is_a_bad_request_that_names_it(sdk: OpenAI, model: str) -> None:
    image: Any = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.chat.completions.create(model=model, messages=[{"role": "user", "content": [image]}])
    assert refused.value.param == "messages[0].content[0].type"


def test_a_prompt_beyond_the_context_says_both_numbers(sdk: OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.completions.create(model=model, prompt="word " * 3000)
    assert refused.value.code == "context_length_exceeded"
    assert "2048" in refused.value.message


def test_four_clients_at_once_are_served_together(installed: Homeport, model: str) -> None:
    seen: list[int] = []
    together = threading.Barrier(4, timeout=60)

    def talk(name: str) -> None:
        with client(installed.url) as sdk:
            stream = sdk.chat.completions.create(
                model=model,
                messages=PARIS,
                stream=True,
                max_tokens=100,
                logit_bias={"0": -100, "2": -100},
                extra_headers={"x-session-id": name},
            )
            next(iter(stream))
            if together.wait() == 0:
                seen.append(running(installed, model))
            assert sum(1 for _ in stream) > 10

    threads = [threading.Thread(target=talk, args=(f"at-once-{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [4]
