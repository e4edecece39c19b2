"""OpenAI's surface on the bundled model: constrained, counted and parsed answers as a real model gives them."""

import base64
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.source import SourceError, bundled_model
from tests.host_process import HostProcess, Stream, model_spec, text_of

ITALY: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": "What is the capital of Italy?"},
    ],
    "temperature": 0,
    "max_tokens": 16,
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "likes": {"type": "array", "items": {"enum": ["tea", "coffee"]}, "maxItems": 2},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 16},
                "unit": {"enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
CLOCK: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}},
}
ROME = {
    "messages": [{"role": "user", "content": "What is the weather in Rome?"}],
    "tools": [WEATHER, CLOCK],
    "temperature": 0,
    "max_tokens": 120,
}


def running(folder: Path, **options: Any) -> Iterator[HostProcess]:
    try:
        model = bundled_model()
    except SourceError as error:
        pytest.skip(str(error))
    host = HostProcess(folder, model_spec(context=1024, hold_s=0.2, sessions=2, **options), str(model), None)
    try:
        host.start()
        yield host
    finally:
        host.kill()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """With the model's own template, which knows no tools."""
    yield from running(tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """With a template that tells the model of tools."""
    template = Path(__file__).parent / "templates" / "smollm2_tools.jinja"
    yield from running(tmp_path_factory.mktemp("caller"), chat_template=str(template))


def said(answer: Any) -> str:
    assert answer.status == 200, answer.body
    return str(answer.body["choices"][0]["message"]["content"])


def put_together(stream: Stream) -> tuple[dict[int, list[str]], str | None]:
    """Name and arguments of each call of a stream, and its finish reason."""
    calls: dict[int, list[str]] = {}
    finish = None
    for event in stream.events():
        for choice in event["choices"]:
            finish = choice["finish_reason"] or finish
            for call in choice["delta"].get("tool_calls", []):
                made = calls.setdefault(call["index"], ["", ""])
                made[0] += call["function"].get("name", "")
                made[1] += call["function"].get("arguments", "")
    assert stream.done
    return calls, finish


def unpacked(embedding: str) -> tuple[float, ...]:
    data = base64.b64decode(embedding)
    return struct.unpack(f"<{len(data) // 4}f", data)


def dot(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def tokens_of(host: HostProcess, text: str) -> list[int]:
    answer = host.post("/tokenize", {"prompt": text})
    assert answer.status == 200, answer.body
    return list(answer.body["tokens"])


# what a prompt takes


def test_cached_tokens_are_those_that_were_not_evaluated(host: HostProcess) -> None:
    said_first = said(host.chat(ITALY, who="counted-before"))
    goes_on = [
        *ITALY["messages"],
        {"role": "assistant", "content": said_first},
        {"role": "user", "content": "And of France, if I may ask?"},
    ]
    edited = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "Hello."}]
    for messages in (ITALY["messages"], goes_on, goes_on, edited):
        before = host.state()["tokens_evaluated"]
        body = host.chat({**ITALY, "messages": messages}, who="counted").body
        evaluated = host.state()["tokens_evaluated"] - before
        usage, homeport = body["usage"], body["homeport"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert (usage["prompt_tokens"] - cached, cached) == (evaluated, homeport["reused_tokens"])
        assert homeport["evaluated_tokens"] == evaluated


def test_what_comes_back_in_other_tokens_is_there_already(host: HostProcess) -> None:
    """As a model's own answer does that it did not spell as its tokenizer would."""
    text = " ".join(["The capital of France is"] * 15)
    letters = [token for letter in text for token in tokens_of(host, letter)]
    assert len(letters) > len(tokens_of(host, text))

    def reused(prompt: object) -> int:
        answer = host.post(
            "/v1/completions", {"prompt": prompt, "temperature": 0, "max_tokens": 1}, who="spelled"
        )
        assert answer.status == 200, answer.body
        return int(answer.body["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert reused(letters) < len(letters) - 1
    assert reused(f"{text} the city") == len(letters)
    assert reused(letters) == len(letters) - 1  # but the last, for what comes behind it
    assert reused(tokens_of(host, text)) < 3  # whoever sends tokens means these


def test_a_title_evaluates_itself_only_and_the_chat_goes_on_where_it_was(host: HostProcess) -> None:
    chat = [{"role": "user", "content": "Many words of a long chat. " * 60}]
    title = [{"role": "user", "content": "A title for a chat of many words, please."}]
    answer = host.chat({**ITALY, "messages": chat}, who="titled")
    chat += [{"role": "assistant", "content": said(answer)}, {"role": "user", "content": "Go on."}]
    for messages, least, most in ((title, 10, 60), (chat, 1, 60), (title, 1, 60)):
        before = host.state()["tokens_evaluated"]
        body = host.chat({**ITALY, "messages": messages}, who="titled").body
        evaluated = host.state()["tokens_evaluated"] - before
        assert least <= evaluated <= most
        usage = body["usage"]
        assert usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"] == evaluated
        assert (body["homeport"]["pin"], body["homeport"]["evaluated_tokens"]) == ("kept", evaluated)


def test_progress_of_a_long_prompt_comes_part_by_part(host: HostProcess) -> None:
    words = {
        "messages": [{"role": "user", "content": "Many words, one after another. " * 80}],
        "max_tokens": 4,
    }
    events = list(host.stream(words, who="long", return_progress=True).events())
    progress = [event["prompt_progress"] for event in events if "prompt_progress" in event]
    homeport = events[-1]["homeport"]
    total = homeport["reused_tokens"] + homeport["evaluated_tokens"]
    assert len(progress) > 2
    assert {(told["total"], told["cache"]) for told in progress} == {(total, homeport["reused_tokens"])}
    processed = [told["processed"] for told in progress]
    assert processed[0] == homeport["reused_tokens"]
    assert processed[-1] == total
    assert processed == sorted(set(processed))
    times = [told["time_ms"] for told in progress]
    assert times == sorted(times)
    assert times[-1] > 0


# several answers


def test_greedy_answers_to_one_prompt_are_all_the_same(host: HostProcess) -> None:
    alone = host.chat(ITALY, who="one")
    before = host.state()["tokens_evaluated"]
    three = host.chat({**ITALY, "n": 3}, who="three")
    assert [choice["message"]["content"] for choice in three.body["choices"]] == [said(alone)] * 3
    usage = three.body["usage"]
    assert usage["prompt_tokens"] == alone.body["usage"]["prompt_tokens"]
    assert usage["completion_tokens"] == 3 * alone.body["usage"]["completion_tokens"]
    assert host.state()["tokens_evaluated"] - before <= usage["prompt_tokens"] + 3, "the prompt once"


def test_a_seed_gives_the_same_answers_again_and_several_different_ones(host: HostProcess) -> None:
    asked = {**ITALY, "temperature": 1.5, "top_k": 0, "min_p": 0, "n": 3, "seed": 11}
    first, second = (
        [choice["message"]["content"] for choice in host.chat(asked).body["choices"]] for _ in range(2)
    )
    assert first == second
    assert len(set(first)) == 3


def test_the_next_turn_goes_on_from_the_first_of_several_answers(host: HostProcess) -> None:
    answer = host.chat({**ITALY, "n": 2}, who="goes-on")
    usage = answer.body["usage"]
    longer = [
        *ITALY["messages"],
        {"role": "assistant", "content": said(answer)},
        {"role": "user", "content": "Why?"},
    ]
    homeport = host.chat({**ITALY, "messages": longer}, who="goes-on").body["homeport"]
    assert homeport["context"] == "resident"
    assert homeport["reused_tokens"] >= usage["prompt_tokens"] + usage["completion_tokens"] // 2 - 1


# log probabilities


def test_log_probabilities_are_those_of_the_answers_tokens(host: HostProcess) -> None:
    answer = host.chat({**ITALY, "logprobs": True, "top_logprobs": 20}, who="told")
    (choice,) = answer.body["choices"]
    tokens = choice["logprobs"]["content"]
    assert b"".join(bytes(token["bytes"]) for token in tokens).decode() == choice["message"]["content"]
    for token in tokens:
        likeliest = token["top_logprobs"][0]
        assert (likeliest["token"], likeliest["logprob"]) == (token["token"], token["logprob"]), "greedy"
        chances = [math.exp(other["logprob"]) for other in token["top_logprobs"]]
        assert chances == sorted(chances, reverse=True)
        assert 0 < sum(chances) <= 1.0001
    assert choice["message"]["content"] == said(host.chat(ITALY, who="untold"))


# stop strings


@pytest.mark.parametrize("length", [1, 3, 7])
def test_a_stop_string_ends_the_answer_and_no_part_of_it_is_sent(host: HostProcess, length: int) -> None:
    whole = said(host.chat(ITALY, who="whole"))
    at = len(whole) // 2
    stop = whole[at : at + length]
    wanted = whole[: whole.index(stop)]
    events = list(host.stream(ITALY, who="stopped", stop=[stop, "never said"]).events())
    assert "".join(map(text_of, events)) == wanted
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


# constrained answers


def test_an_answer_by_a_schema_fits_it(host: HostProcess) -> None:
    told = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    asked = {
        "messages": [{"role": "user", "content": "Invent a person."}],
        "response_format": told,
        "max_tokens": 200,
        "seed": 3,
    }
    answer = host.chat(asked)
    assert answer.body["choices"][0]["finish_reason"] == "stop"
    person = json.loads(said(answer))
    assert set(person) == {"name", "age", "likes"}
    assert 0 <= person["age"] <= 150
    assert set(person["likes"]) <= {"tea", "coffee"}
    stream = host.stream(asked)
    assert json.loads("".join(map(text_of, stream.events()))) == person, "the same seed, streamed"


def test_several_constrained_answers_each_fit(host: HostProcess) -> None:
    told = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["red", "green"]}}}
    asked = {"messages": [{"role": "user", "content": "Which?"}], "response_format": told, "n": 3, "seed": 1}
    body = host.chat(asked).body
    assert all(json.loads(choice["message"]["content"]) in ("red", "green") for choice in body["choices"])
    assert [choice["finish_reason"] for choice in body["choices"]] == ["stop"] * 3


def test_any_object_is_an_object(host: HostProcess) -> None:
    asked = {
        "messages": [{"role": "user", "content": "Give me a JSON object with a short key and a number."}],
        "response_format": {"type": "json_object"},
        "temperature": 0,
        "max_tokens": 400,
    }
    answer = host.chat(asked)
    if answer.body["choices"][0]["finish_reason"] == "stop":
        assert isinstance(json.loads(said(answer)), dict)
    else:
        assert said(answer).startswith("{")


@pytest.mark.parametrize(
    "schema",
    [{"type": "strnig"}, {"$ref": "#/nowhere"}, {"type": "string", "pattern": "("}, {"$ref": "#"}],
)
def test_a_schema_that_cannot_be_used_is_a_400_with_the_reason(
    host: HostProcess, schema: dict[str, Any]
) -> None:
    told = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = host.chat({**ITALY, "response_format": told})
    assert (answer.status, answer.body["error"]["param"]) == (400, "response_format")
    assert host.chat(ITALY).status == 200


# tools


def test_tools_need_a_template_that_knows_them(host: HostProcess) -> None:
    answer = host.chat(ROME)
    assert (answer.status, answer.body["error"]["param"]) == (400, "tools")


def test_a_required_call_is_made_and_fits(caller: HostProcess) -> None:
    answer = caller.chat({**ROME, "tool_choice": "required", "parallel_tool_calls": False})
    (choice,) = answer.body["choices"]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    assert call["function"]["name"] in ("get_weather", "get_time")
    if call["function"]["name"] == "get_weather":
        assert set(arguments) == {"city", "unit"}
        assert arguments["unit"] in ("celsius", "fahrenheit")


def test_the_named_tool_is_called_and_no_other(caller: HostProcess) -> None:
    named = {"type": "function", "function": {"name": "get_time"}}
    (choice,) = caller.chat({**ROME, "tool_choice": named}).body["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "get_time"
    assert isinstance(json.loads(call["function"]["arguments"]), dict)


def test_a_streamed_call_is_the_whole_ones(caller: HostProcess) -> None:
    asked = {**ROME, "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}
    (call,) = caller.chat(asked).body["choices"][0]["message"]["tool_calls"]
    calls, finish = put_together(caller.stream(asked))
    assert calls == {0: ["get_weather", call["function"]["arguments"]]}
    assert finish == "tool_calls"


def test_with_a_response_format_an_answer_is_a_call_or_fits_it(caller: HostProcess) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    told = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    no_call = [{"role": "user", "content": "Say hello."}]
    asked = {**ROME, "response_format": told}
    for messages in (ROME["messages"], no_call):
        (choice,) = caller.chat({**asked, "messages": messages}).body["choices"]
        assert choice["finish_reason"] in ("stop", "tool_calls")
        calls = choice["message"].get("tool_calls")
        fits = json.loads(calls[0]["function"]["arguments"] if calls else choice["message"]["content"])
        assert ("city" in fits) if calls else isinstance(fits["a"], int)
    wrong = {"type": "function", "function": {"name": "f", "parameters": {"type": "nonsense"}}}
    answer = caller.chat({**asked, "tools": [wrong]})
    assert (answer.status, answer.body["error"]["param"]) == (400, "tools")


def test_a_tools_result_is_talked_about_and_the_context_stays(caller: HostProcess) -> None:
    asked = {**ROME, "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}
    first = caller.chat(asked, who="asks")
    message = first.body["choices"][0]["message"]
    messages = [
        *ROME["messages"],  # type: ignore[misc]
        message,
        {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "sunny, 20 degrees"},
    ]
    second = caller.chat({**ROME, "messages": messages, "max_tokens": 24}, who="asks")
    assert second.status == 200, second.body
    assert second.body["homeport"]["reused_tokens"] >= first.body["usage"]["prompt_tokens"] - 1


def test_parameters_that_are_no_schema_name_the_tools(caller: HostProcess) -> None:
    wrong = {"function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "x"}}}}}
    answer = caller.chat({**ROME, "tools": [wrong], "tool_choice": "required"})
    assert (answer.status, answer.body["error"]["param"]) == (400, "tools")


# completions


def test_a_text_and_its_token_ids_are_continued_alike(host: HostProcess) -> None:
    text = "The capital of France is"
    tokens = tokens_of(host, text)
    assert host.post("/detokenize", {"tokens": tokens}).body["prompt"] == text
    asked = {"temperature": 0, "max_tokens": 8}
    answer = host.post("/v1/completions", {**asked, "prompt": [text, tokens], "echo": True})
    first, second = (choice["text"] for choice in answer.body["choices"])
    assert first == second
    assert first.startswith(text + " Paris")


def test_a_stream_of_a_completion_is_the_whole_one(host: HostProcess) -> None:
    asked = {"prompt": "One, two, three,", "temperature": 0, "max_tokens": 12, "logprobs": 1}
    (choice,) = host.post("/v1/completions", asked).body["choices"]
    stream = host.stream(asked, path="/v1/completions")
    parts = [part for event in stream.events() for part in event["choices"]]
    assert "".join(part["text"] for part in parts) == choice["text"]
    told = [part["logprobs"] for part in parts if part["logprobs"]]
    assert [token for part in told for token in part["tokens"]] == choice["logprobs"]["tokens"]
    assert [at for part in told for at in part["text_offset"]] == choice["logprobs"]["text_offset"]


# keys


def test_a_common_beginning_is_shared_within_a_key_and_with_no_other(host: HostProcess) -> None:
    rules = "Answer in one word. " * 20
    messages = [
        {"role": "system", "content": rules},
        {"role": "user", "content": "Which colour has the sky?"},
    ]
    ours, theirs = ({"x-homeport-scope": digit * 64} for digit in "ab")
    first = host.chat({**ITALY, "messages": messages}, ours, who="ours-1").body["homeport"]
    assert (first["context"], first["reused_tokens"]) == ("evaluated", 0)
    messages[-1] = {"role": "user", "content": "And the grass?"}
    asked = {**ITALY, "messages": messages}
    answer = host.chat(asked, ours, who="ours-2").body
    same = answer["homeport"]
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == same["reused_tokens"]
    assert (same["context"], same["cause"]) == ("evaluated", "new")
    assert same["reused_tokens"] > 60
    for who, headers in (("theirs", theirs), ("nobodys", None)):
        other = host.chat(asked, headers, who=who).body["homeport"]
        assert other["reused_tokens"] == 0


# embeddings


def test_embeddings_have_length_one_and_tell_texts_apart(host: HostProcess) -> None:
    texts = [
        "The cat sleeps on the sofa.",
        "A cat is sleeping on a couch.",
        "Interest rates rose again in June.",
    ]
    asked = {"input": texts, "encoding_format": "base64"}
    answer = host.post("/v1/embeddings", asked)
    assert answer.status == 200, answer.body
    cat, couch, money = (unpacked(item["embedding"]) for item in answer.body["data"])
    for vector in (cat, couch, money):
        assert math.isclose(math.hypot(*vector), 1.0, rel_tol=1e-4)
    assert dot(cat, couch) > dot(cat, money)
    alone = host.post("/v1/embeddings", {"input": texts[0]})
    assert alone.body["data"][0]["embedding"] == pytest.approx(cat, abs=2e-2)
    counted = sum(host.post("/tokenize", {"prompt": text}).body["count"] for text in texts)
    assert answer.body["usage"] == {"prompt_tokens": counted, "total_tokens": counted}


def test_embeddings_leave_sessions_as_they_are(host: HostProcess) -> None:
    first = host.chat(ITALY, who="stays")
    host.post("/v1/embeddings", {"input": "something else"})
    longer = [
        *ITALY["messages"],
        {"role": "assistant", "content": said(first)},
        {"role": "user", "content": "Why?"},
    ]
    second = host.chat({**ITALY, "messages": longer}, who="stays")
    assert second.body["homeport"]["reused_tokens"] >= first.body["usage"]["prompt_tokens"]


def test_a_text_beyond_the_context_is_refused_with_both_numbers(host: HostProcess) -> None:
    text = "word " * 1500
    count = host.post("/tokenize", {"prompt": text}).body["count"]
    answer = host.post("/v1/embeddings", {"input": ["short", text]})
    assert (answer.status, answer.body["error"]["code"]) == (400, "context_length_exceeded")
    assert str(count) in answer.body["error"]["message"]
    assert "1024" in answer.body["error"]["message"]
