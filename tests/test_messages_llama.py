"""Anthropic's Messages through a real router and a real host with the bundled model, as the anthropic SDK speaks it."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic

from serving.source import SourceError, bundled_model
from tests.host_process import HostProcess, model_spec
from tests.standins import MODEL, AnswersHost, Router, bearer_of, routed

pytestmark = pytest.mark.clients

TEMPLATE = (Path(__file__).parent / "templates" / "smollm2_tools.jinja").read_text()
THINKS = TEMPLATE.replace(
    "(message.content or '')",
    "('<think>' + message.reasoning_content + '</think>' if message.reasoning_content else '') + "
    "(message.content or '')",
).replace("assistant\\n' }}", "assistant\\n' + ('<think>' if enable_thinking else '') }}")
"""SmolLM2 with tools, and made to think where that is asked for."""
GREEDY = {"temperature": 0}
"""Not among the parameters of the SDK's newest version."""
HELPFUL = "You are a helpful AI assistant."
PARIS: Any = [{"role": "user", "content": "What is the capital of France?"}]
ROME: Any = [{"role": "user", "content": "What is the weather in Rome?"}]
COUNT: Any = [{"role": "user", "content": "Count to a thousand."}]
WEATHER: Any = {
    "name": "get_weather",
    "description": "Tells the weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 16}, "unit": {"enum": ["celsius", "kelvin"]}},
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
}
NAMED: Any = {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}


class RealHost(AnswersHost):
    """A host of its own process, started and ended elsewhere."""

    def __init__(self, process: HostProcess) -> None:
        super().__init__("den/0", port=process.port)
        self.process = process

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """For one session at a time."""
    try:
        model = bundled_model()
    except SourceError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("messages")
    (folder / "thinks.jinja").write_text(THINKS)
    spec = model_spec(context=1024, hold_s=0.1, chat_template=str(folder / "thinks.jinja"))
    host = HostProcess(folder, replace(spec, name=MODEL), str(model), None)
    host.be_opened_by(bearer_of("den/0").removeprefix("Bearer "))
    try:
        host.start()
        yield host
    finally:
        host.kill()


@pytest.fixture
async def home(tmp_path: Path, process: HostProcess) -> AsyncIterator[Router]:
    async with routed(tmp_path, RealHost(process)) as router:
        yield router


def client(url: str) -> AsyncAnthropic:
    return AsyncAnthropic(base_url=url, api_key="unused", max_retries=0, timeout=120)


@pytest.fixture
async def sdk(home: Router) -> AsyncIterator[AsyncAnthropic]:
    async with client(home.url) as sdk:
        yield sdk


def named(session: str) -> dict[str, str]:
    return {"x-session-id": session}


async def runs(process: HostProcess, count: int) -> None:
    """Until so many turns run."""
    await asyncio.to_thread(process.wait_state, running=count)


async def test_a_message(sdk: AsyncAnthropic) -> None:
    asked = await sdk.messages.with_raw_response.create(
        model=MODEL, system=HELPFUL, messages=PARIS, extra_body=GREEDY, max_tokens=24
    )
    answer = await asked.parse()
    (block,) = answer.content
    assert block.type == "text"
    assert "Paris" in block.text
    assert answer.id.startswith("msg_")
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.usage.output_tokens > 0
    assert asked.headers["request-id"] == asked.headers["x-request-id"]
    assert asked.headers["x-homeport-source"] == "guess"


async def test_the_code_on_the_page_of_messages_runs(
    home: Router, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parent.parent / "docs" / "messages.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    code = code.replace("http://127.0.0.1:8000", home.url).replace("smollm2", MODEL)
    await asyncio.to_thread(exec, f"{code}\nclient.close()", {})
    assert capsys.readouterr().out.strip()


async def test_a_stream_says_the_same_and_tells_what_was_reused_before_its_first_word(
    sdk: AsyncAnthropic,
) -> None:
    asked: Any = {
        "model": MODEL,
        "system": HELPFUL,
        "messages": PARIS,
        "extra_body": GREEDY,
        "max_tokens": 24,
    }
    whole = await sdk.messages.create(**asked, extra_headers=named("whole"))
    async with sdk.messages.stream(**asked, extra_headers=named("streamed")) as stream:
        text = "".join([part async for part in stream.text_stream])
        streamed = await stream.get_final_message()
    assert [block.to_dict() for block in streamed.content] == [block.to_dict() for block in whole.content]
    assert text == streamed.content[0].to_dict()["text"]
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    again = await sdk.messages.create(**asked, stream=True, extra_headers=named("streamed"))
    first = await anext(aiter(again))
    await again.close()
    assert first.type == "message_start"
    read = first.message.usage
    assert read.cache_read_input_tokens
    before = streamed.usage.input_tokens + (streamed.usage.cache_read_input_tokens or 0)
    assert read.input_tokens + read.cache_read_input_tokens == before


async def test_a_second_turn_evaluates_only_what_is_new(sdk: AsyncAnthropic) -> None:
    async def ask(messages: Any) -> Any:
        return await sdk.messages.create(
            model=MODEL,
            system=[{"type": "text", "text": HELPFUL, "cache_control": {"type": "ephemeral"}}],
            messages=messages,
            tools=[WEATHER],
            tool_choice={"type": "none"},
            extra_body=GREEDY,
            max_tokens=24,
            metadata={"user_id": json.dumps({"session_id": "6f0bd3e2-0cf3-4a3c-b7a3-2d0c3f0c6c11"})},
        )

    first = await ask(PARIS)
    marked = {"type": "text", "text": "And of Italy?", "cache_control": {"type": "ephemeral"}}
    said = {"role": "assistant", "content": first.content}
    second = await ask([*PARIS, said, {"role": "user", "content": [marked]}])
    assert (second.homeport["context"], second.homeport["pin"]) == ("resident", "kept")
    assert second.homeport["cause"] is None
    assert second.usage.cache_read_input_tokens >= first.usage.input_tokens - 8, (
        "the end of its prompt is its own"
    )


async def test_a_stop_sequence_is_told(sdk: AsyncAnthropic) -> None:
    asked: Any = {
        "model": MODEL,
        "system": HELPFUL,
        "messages": PARIS,
        "extra_body": GREEDY,
        "max_tokens": 24,
    }
    asked["stop_sequences"] = ["Rome", "Paris"]
    answer = await sdk.messages.create(**asked)
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "Paris")
    async with sdk.messages.stream(**asked) as stream:
        streamed = await stream.get_final_message()
    assert (streamed.stop_reason, streamed.stop_sequence) == ("stop_sequence", "Paris")
    assert [block.to_dict()["text"] for block in streamed.content] == [
        block.to_dict()["text"] for block in answer.content
    ]


async def test_an_answer_that_fills_the_context_says_so(sdk: AsyncAnthropic) -> None:
    async def counted(words: int) -> int:
        return int((await sdk.messages.count_tokens(model=MODEL, messages=asked(words))).input_tokens)

    def asked(words: int) -> Any:
        return [{"role": "user", "content": "word " * words}]

    words = 900 + 1020 - await counted(900)
    answer = await sdk.messages.create(
        model=MODEL, messages=asked(words), max_tokens=32000, extra_body=GREEDY
    )
    assert answer.stop_reason == "model_context_window_exceeded"
    assert answer.usage.output_tokens == 1024 - await counted(words)


async def test_a_tools_call_and_its_result_go_back_and_forth(sdk: AsyncAnthropic) -> None:
    async def ask(messages: Any, **more: Any) -> Any:
        return await sdk.messages.create(
            model=MODEL,
            messages=messages,
            tools=[WEATHER],
            extra_body=GREEDY,
            extra_headers=named("tools"),
            **more,
        )

    first = await ask(ROME, tool_choice=NAMED, max_tokens=120)
    (call,) = first.content
    assert (first.stop_reason, call.type, call.name) == ("tool_use", "tool_use", "get_weather")
    assert call.input["unit"] in ("celsius", "kelvin")
    text = {"type": "text", "text": "20 degrees"}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [text]}
    said = {"role": "assistant", "content": first.content}
    second = await ask([*ROME, said, {"role": "user", "content": [result]}], max_tokens=24)
    assert second.homeport["context"] == "resident"
    assert second.usage.cache_read_input_tokens >= first.usage.input_tokens
    assert second.usage.output_tokens > 0


async def test_a_streamed_call_comes_in_pieces(sdk: AsyncAnthropic) -> None:
    async with sdk.messages.stream(
        model=MODEL,
        messages=ROME,
        tools=[WEATHER],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        extra_body=GREEDY,
        max_tokens=120,
    ) as stream:
        pieces = [event.partial_json async for event in stream if event.type == "input_json"]
        answer = await stream.get_final_message()
    call = answer.content[0]
    assert call.type == "tool_use"
    assert len(pieces) > 3
    assert json.loads("".join(pieces)) == call.input


async def test_what_a_model_thinks_is_shown_to_who_asks_for_it_and_read_again(sdk: AsyncAnthropic) -> None:
    asked: Any = {"model": MODEL, "messages": PARIS, "extra_body": GREEDY, "max_tokens": 24}
    async with sdk.messages.stream(**asked, thinking={"type": "adaptive"}) as stream:
        kinds = {event.type async for event in stream}
        shown: Any = (await stream.get_final_message()).content[0]
    assert "thinking" in kinds
    assert shown.type == "thinking"
    assert shown.thinking
    hidden: Any = (
        await sdk.messages.create(**asked, thinking={"type": "adaptive", "display": "omitted"})
    ).content[0]
    assert (hidden.type, hidden.thinking) == ("thinking", "")
    assert len(hidden.signature) > len(shown.signature) > 0
    plain = await sdk.messages.create(**asked)
    assert {block.type for block in plain.content} <= {"text"}

    async def count(*thought: Any) -> int:
        said: Any = {"role": "assistant", "content": [*thought, {"type": "text", "text": "Paris."}]}
        messages = [*PARIS, said, {"role": "user", "content": "Sure?"}]
        return int((await sdk.messages.count_tokens(model=MODEL, messages=messages)).input_tokens)

    bare = await count()
    assert await count({"type": "redacted_thinking", "data": "another model's"}) == bare
    assert await count(shown) == await count(hidden) > bare


async def test_a_client_that_leaves_frees_its_place(process: HostProcess, sdk: AsyncAnthropic) -> None:
    stream = await sdk.messages.create(
        model=MODEL, messages=COUNT, stream=True, max_tokens=900, thinking={"type": "adaptive"}
    )
    await anext(aiter(stream))
    await runs(process, 1)
    await stream.close()
    await runs(process, 0)


async def test_tokens_are_counted_while_the_only_place_is_taken(
    process: HostProcess, sdk: AsyncAnthropic
) -> None:
    asked: Any = {"model": MODEL, "system": HELPFUL, "messages": COUNT, "thinking": {"type": "adaptive"}}
    stream = await sdk.messages.create(**asked, stream=True, max_tokens=900, extra_headers=named("busy"))
    async with stream:
        first = await anext(aiter(stream))
        assert first.type == "message_start"
        counted = await sdk.messages.count_tokens(**asked, extra_headers=named("another"))
        assert process.state()["running"] == 1, "the turn goes on meanwhile"
    usage = first.message.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    more = await sdk.messages.count_tokens(**asked, tools=[WEATHER])
    assert more.input_tokens > counted.input_tokens + 20, "tools count as input"


async def test_errors_raise_what_the_sdk_has_for_them(sdk: AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        await sdk.messages.create(model="none", messages=PARIS, max_tokens=9)
    assert (unknown.value.type, unknown.value.error_code) == ("not_found_error", "model_not_found")
    assert unknown.value.request_id
    long: Any = [{"role": "user", "content": "word " * 1200}]
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: 1\d\d\d tokens > 1024 maximum"):
        await sdk.messages.create(model=MODEL, messages=long, max_tokens=9)
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    image: Any = [{"role": "user", "content": [{"type": "image", "source": source}]}]
    with pytest.raises(anthropic.BadRequestError, match=r"messages\.0\.content\.0: content of type 'image'"):
        await sdk.messages.create(model=MODEL, messages=image, max_tokens=9)


@pytest.mark.parametrize("where", ["/s/by-path", "/m/den", "/m/den/s/by-path"])
async def test_a_session_and_a_machine_may_stand_in_the_address(home: Router, where: str) -> None:
    async with client(home.url + where) as sdk:
        answer = await sdk.messages.with_raw_response.create(model=MODEL, messages=PARIS, max_tokens=4)
        assert answer.headers["x-homeport-machine"] == "den"
        assert answer.headers["x-homeport-source"] == ("path" if "by-path" in where else "guess")
        assert (await sdk.messages.count_tokens(model=MODEL, messages=PARIS)).input_tokens > 0
