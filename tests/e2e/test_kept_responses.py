"""The OpenAI SDK goes on from answers by their ids, with the real model, through restarts of all that serves it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.installation import Homeport, ended_after, eventually

MODEL = "smollm2"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeport]:
    with ended_after(Homeport(tmp_path_factory.mktemp("kept"), count="1", memory="2GiB")) as installed:
        installed.up()
        yield installed


@pytest.fixture
def client(single: Homeport) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{single.url}/v1", api_key="none", timeout=60) as made:
        yield made


def ask(client: openai.OpenAI, words: str, **fields: Any) -> Any:
    return client.responses.create(model=MODEL, input=words, temperature=0, max_output_tokens=24, **fields)


def homeport_of(response: Any) -> dict[str, Any]:
    told: dict[str, Any] = response.model_extra["homeport"]
    return told


def knows_all_of(second: Any, first: Any) -> None:
    """All that was said before was there; only the new words were evaluated."""
    before = first.usage.input_tokens
    assert second.usage.input_tokens > before
    assert second.usage.input_tokens_details.cached_tokens >= before
    assert homeport_of(second)["reused_tokens"] == second.usage.input_tokens_details.cached_tokens
    assert homeport_of(second)["evaluated_tokens"] < before


def test_turns_go_on_by_id_through_restarts_of_host_and_router(
    single: Homeport, client: openai.OpenAI
) -> None:
    first = ask(client, "Name three rivers of Europe, and say of each in a few words where it ends.")
    second = ask(client, "Which one is the longest?", previous_response_id=first.id)
    knows_all_of(second, first)
    with client.responses.stream(
        model=MODEL,
        input="And the shortest?",
        temperature=0,
        max_output_tokens=24,
        previous_response_id=second.id,
    ) as stream:
        third: Any = stream.get_final_response()
    knows_all_of(third, second)
    eventually(lambda: sorted(single.paths.home.glob("replicas/*/parked/*.kv")))
    (replica,) = single.replicas()
    os.kill(replica["pid"], signal.SIGKILL)
    eventually(lambda: single.replicas()[0]["pid"] not in (None, replica["pid"]), 40)
    eventually(lambda: single.get("/ready"), 40)
    fourth = ask(client, "Thank you.", previous_response_id=third.id)
    assert fourth.usage.input_tokens > third.usage.input_tokens
    assert homeport_of(fourth)["context"] == "resumed"
    assert single.run("down").returncode == 0
    single.up()
    fifth = ask(client, "Goodbye.", previous_response_id=fourth.id)
    knows_all_of(fifth, fourth)
    assert homeport_of(fifth)["context"] == "resumed"
    assert len({homeport_of(each)["replica"] for each in (first, second, third, fourth, fifth)}) == 1
    assert client.responses.retrieve(first.id).output_text == first.output_text
    (asked,) = client.responses.input_items.list(second.id)
    assert asked.type == "message"


def test_what_is_not_stored_or_removed_is_not_there(single: Homeport, client: openai.OpenAI) -> None:
    unstored = ask(client, "Name three colours.", store=False)
    removed = ask(client, "Name three colours.")
    client.responses.delete(removed.id)
    for gone in (unstored.id, removed.id):
        with pytest.raises(openai.BadRequestError) as refused:
            ask(client, "And one more?", previous_response_id=gone)
        assert refused.value.code == "previous_response_not_found"
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(gone)


def test_what_is_kept_is_for_its_owner_alone(single: Homeport, client: openai.OpenAI) -> None:
    kept = ask(client, "Name three birds.")
    files: list[Path] = list(single.paths.home.glob("replicas/*/kept.sqlite*"))
    assert files
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    session = kept.id.removeprefix("resp_")[:24]
    assert single.run("end", f"hp_{session}").returncode == 0
    assert not any(b"Name three birds" in file.read_bytes() for file in files if file.exists())
