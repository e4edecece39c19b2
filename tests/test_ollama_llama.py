"""Ollama's API through a real router and a real host with the bundled model, spoken by Ollama's own Python package."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest
from ollama import AsyncClient

from serving.source import SourceError, bundled_model
from tests.host_process import HostProcess, model_spec
from tests.moving_world import Machines, World, world

pytestmark = pytest.mark.clients

MODEL = "smollm2"
TEMPLATE = Path(__file__).parent / "templates" / "smollm2_tools.jinja"
PARIS = [{"role": "user", "content": "What is the capital of France?"}]
COUNT = [{"role": "user", "content": "Count to a thousand."}]
SHORT = {"temperature": 0, "num_predict": 16}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Tells the weather of a city.", "parameters": CITY},
}


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """One, whose replica is for one session at a time."""
    try:
        model = bundled_model()
    except SourceError as error:
        pytest.skip(str(error))
    spec = model_spec(context=1024, hold_s=0.1, chat_template=str(TEMPLATE))
    host = HostProcess(tmp_path_factory.mktemp("ollama"), spec, str(model), None)
    machines = Machines()
    machines.add("den", "home", host)
    try:
        host.start()
        yield machines
    finally:
        host.kill()


@pytest.fixture
async def home(tmp_path: Path, machines: Machines, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with world(tmp_path, machines, machines.hosts["den"].model, monkeypatch) as home:
        yield home


@pytest.fixture
async def client(home: World) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(home.url, timeout=120) as client:
        yield client


def evaluated(home: World) -> int:
    return int(home.host("den").state()["tokens_evaluated"])


async def test_a_model_is_listed_shown_and_loaded(client: AsyncClient) -> None:
    (listed,) = (await client.list()).models
    assert listed.model == MODEL
    shown = await client.show(MODEL)
    assert shown.capabilities == ["completion", "tools", "embedding"]
    assert shown.modelinfo is not None
    assert shown.modelinfo["homeport.context_length"] == 1024
    (loaded,) = (await client.ps()).models
    assert (loaded.model, loaded.context_length) == (MODEL, 1024)
    with pytest.raises(ollama.ResponseError, match="known models: smollm2"):
        await client.show("huge")
    with pytest.raises(ollama.ResponseError, match="known models: smollm2"):
        await client.generate("huge")
    with pytest.raises(ollama.ResponseError, match="homeport pull"):
        await client.pull("huge")


async def test_a_question_without_words_loads_the_model_and_begins_no_session(
    home: World, client: AsyncClient
) -> None:
    pins = home.host("den").state()["pins"]
    generated = await client.generate(MODEL, keep_alive="5m")
    (streamed,) = [part async for part in await client.generate(f"{MODEL}:latest", stream=True)]
    chat = await client.chat(MODEL, [])
    assert [(each.done, each.done_reason) for each in (generated, streamed, chat)] == [(True, "load")] * 3
    assert (generated.response, streamed.model, chat.message.content) == ("", f"{MODEL}:latest", "")
    state = home.host("den").state()
    assert (state["pins"], state["running"]) == (pins, 0)


async def test_a_conversation_that_names_nothing_keeps_its_home_and_evaluates_what_is_new(
    home: World, client: AsyncClient
) -> None:
    first = await client.chat(f"{MODEL}:latest", PARIS, options=SHORT)
    assert (first.done, first.model) == (True, f"{MODEL}:latest")
    assert first.total_duration is not None
    assert first.prompt_eval_count is not None
    before = evaluated(home)
    history: list[Any] = [*PARIS, first.message, {"role": "user", "content": "And of Italy?"}]
    second = await client.chat(MODEL, history, options=SHORT)
    assert second.prompt_eval_count is not None
    new = evaluated(home) - before
    assert 0 < new < second.prompt_eval_count - first.prompt_eval_count
    assert second.message.content


async def test_a_stream_says_the_same_as_a_whole_answer_and_how_long_it_took(client: AsyncClient) -> None:
    whole = await client.chat(MODEL, PARIS, options=SHORT)
    parts = [part async for part in await client.chat(MODEL, PARIS, options=SHORT, stream=True)]
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    *others, last = parts
    assert [part.done for part in others] == [False] * len(others)
    assert (last.done, last.done_reason, last.eval_count) == (True, whole.done_reason, whole.eval_count)
    assert last.total_duration is not None
    assert last.eval_duration is not None
    assert 0 < last.eval_duration < last.total_duration


async def test_a_prompt_is_answered_whole_and_in_a_stream(client: AsyncClient) -> None:
    asked: Any = {"model": MODEL, "prompt": PARIS[0]["content"], "system": "You are brief.", "options": SHORT}
    whole = await client.generate(**asked)
    assert whole.response
    parts = [part async for part in await client.generate(**asked, stream=True)]
    assert "".join(part.response or "" for part in parts) == whole.response
    with pytest.raises(ollama.ResponseError, match="raw"):
        await client.generate(MODEL, "x", raw=True)


async def test_an_answer_is_held_to_a_schema(client: AsyncClient) -> None:
    said = await client.chat(MODEL, PARIS, format=CITY, options={"temperature": 0, "num_predict": 40})
    assert said.message.content is not None
    assert '"city"' in said.message.content


async def test_a_tool_is_told_of_and_its_answer_goes_on_in_the_same_context(
    home: World, client: AsyncClient
) -> None:
    asked = [{"role": "user", "content": "What is the weather in Rome?"}]
    first = await client.chat(MODEL, asked, tools=[WEATHER], options=SHORT)
    call = {"function": {"name": "get_weather", "arguments": {"city": "Rome"}}}
    answered: list[Any] = [
        *asked,
        {"role": "assistant", "content": first.message.content or "", "tool_calls": [call]},
        {"role": "tool", "content": "warm", "tool_name": "get_weather"},
    ]
    before = evaluated(home)
    second = await client.chat(MODEL, answered, tools=[WEATHER], options=SHORT)
    assert second.prompt_eval_count is not None
    assert evaluated(home) - before < second.prompt_eval_count / 2


async def test_texts_become_vectors(client: AsyncClient) -> None:
    both = await client.embed(MODEL, ["one", "two"])
    one = await client.embeddings(MODEL, "one")
    assert len(both.embeddings) == 2
    assert list(one.embedding) == pytest.approx(list(both.embeddings[0]), abs=1e-4)


async def test_a_client_that_leaves_frees_its_place(home: World, client: AsyncClient) -> None:
    stream: Any = await client.chat(MODEL, COUNT, stream=True)
    await anext(stream)
    await stream.aclose()
    await asyncio.to_thread(home.host("den").wait_state, running=0)
