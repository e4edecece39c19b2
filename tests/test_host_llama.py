"""The host with llama.cpp and the bundled model: that the two agree on turns, tokens and context."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.source import SourceError, bundled_model
from tests.gguf_parts import split
from tests.host_process import HostProcess, model_spec, text_of

MESSAGES = [
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": "What is the capital of Italy?"},
]
ITALY = {"messages": MESSAGES, "temperature": 0, "max_tokens": 16}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    try:
        model = bundled_model()
    except SourceError as error:
        pytest.skip(str(error))
    spec = model_spec(context=1024, hold_s=0.2)
    host = HostProcess(tmp_path_factory.mktemp("host"), spec, str(model), None)
    try:
        host.start()
        yield host
    finally:
        host.kill()


def test_a_turn_and_the_next_one_reuse_what_is_resident(host: HostProcess) -> None:
    first = host.chat(ITALY, who="ann")
    assert first.status == 200
    text = first.body["choices"][0]["message"]["content"]
    assert text.strip()
    usage = first.body["usage"]
    longer = [*MESSAGES, {"role": "assistant", "content": text}, {"role": "user", "content": "Why?"}]
    before = host.state()
    second = host.chat({**ITALY, "messages": longer}, who="ann")
    homeport = second.body["homeport"]
    assert (homeport["pin"], homeport["context"]) == ("kept", "resident")
    assert homeport["reused_tokens"] >= usage["prompt_tokens"]
    assert homeport["reused_tokens"] + homeport["evaluated_tokens"] == second.body["usage"]["prompt_tokens"]
    assert host.state()["tokens_evaluated"] - before["tokens_evaluated"] == homeport["evaluated_tokens"]


def test_the_same_question_streamed_gives_the_same_text(host: HostProcess) -> None:
    whole = host.chat(ITALY, who="ben")
    stream = host.stream(ITALY, who="cem", stream_options={"include_usage": True})
    events = list(stream.events())
    assert stream.done
    assert "".join(map(text_of, events)) == whole.body["choices"][0]["message"]["content"]
    assert events[-1]["usage"]["completion_tokens"] == whole.body["usage"]["completion_tokens"]


def test_a_client_that_leaves_ends_the_turn_within_a_token(host: HostProcess) -> None:
    ends = {"0": -100, "2": -100}
    story = {
        "messages": [{"role": "user", "content": "Count from one to a thousand."}],
        "max_tokens": 900,
        "logit_bias": ends,
    }
    stream = host.stream(story, {"x-request-id": "gone"}, who="dora")
    stream.first_text()
    stream.close()
    state = host.wait_state(running=0)
    made = {turn["request_id"]: turn for turn in state["recent"]}["gone"]
    assert made["after_disconnect"] <= 1
    assert made["generated"] < 300, "the turn went on although its client had left"
    assert host.state()["tokens_generated"] == state["tokens_generated"]


def test_a_client_that_leaves_during_its_prompt_frees_its_place_before_the_prompts_end(
    host: HostProcess,
) -> None:
    def left(who: str) -> tuple[int, int]:
        """What was generated and evaluated for somebody who left as soon as it ran."""
        before = host.state()["tokens_evaluated"]
        sender = host.post_and_wait("Ships come home. " * 220, who)
        host.wait_state(running=1)
        sender.close()
        after = host.wait_state(running=0)
        return after["recent"][-1]["generated"], after["tokens_evaluated"] - before

    # On a busy machine a client may be too late.
    tries = map(left, ("fay", "gus", "hal"))
    evaluated = next((evaluated for generated, evaluated in tries if generated == 0), 880)
    assert evaluated < 880, "it was evaluated to its end"
    assert host.chat(ITALY, who="fay").status == 200


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(host: HostProcess) -> None:
    answer = host.chat("word " * 2000, who="ann")
    assert (answer.status, answer.body["error"]["code"]) == (400, "context_length_exceeded")
    assert "1024" in answer.body["error"]["message"]


def test_a_bias_for_a_token_that_is_not_there_is_a_400_and_leaves_the_context(host: HostProcess) -> None:
    host.chat(ITALY, who="eve")
    answer = host.chat({**ITALY, "logit_bias": {"49152": 5}}, who="eve")
    assert (answer.status, answer.body["error"]["param"]) == (400, "logit_bias")
    assert "0 to 49151" in answer.body["error"]["message"]
    assert host.chat(ITALY, who="eve").body["homeport"]["context"] == "resident"


def test_twenty_mebibytes_are_refused_at_once_and_the_state_stays_open(host: HostProcess) -> None:
    begun = time.monotonic()
    answer = host.chat("a" * 20 * 2**20, who="ann")
    assert (answer.status, answer.body["error"]["code"]) == (400, "context_length_exceeded")
    assert "at least" in answer.body["error"]["message"]
    assert time.monotonic() - begun < 8, "20 s when it was tokenized"


def test_a_context_that_the_slice_has_no_room_for_ends_with_78_and_the_sum(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    spec = model_spec(context=8192, sessions=64)
    host = HostProcess(tmp_path_factory.mktemp("large"), spec, str(bundled_model()), None)
    try:
        host.start(until=None)
        assert host.wait_end(30.0) == 78
        said = host.errors()
        assert "homeport: load failed: " in said
        assert "64 x 8192 tokens of context" in said
        assert "needs.memory: " in said
    finally:
        host.kill()


def test_a_file_that_is_no_model_ends_with_78(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("broken")
    (folder / "model.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    host = HostProcess(folder, model_spec(context=256), str(folder / "model.gguf"), None)
    try:
        host.start(until=None)
        assert host.wait_end(30.0) == 78
        assert "homeport: load failed: " in host.errors()
    finally:
        host.kill()


def test_a_model_in_several_parts_answers_as_the_whole_one(host: HostProcess, tmp_path: Path) -> None:
    first = split(bundled_model(), tmp_path, "smollm2", 3)
    whole = host.chat(ITALY, who="dan").body["choices"][0]["message"]["content"]
    in_parts = HostProcess(tmp_path / "host", model_spec(context=1024), str(first), None)
    try:
        in_parts.start()
        assert in_parts.chat(ITALY, who="dan").body["choices"][0]["message"]["content"] == whole
    finally:
        in_parts.kill()
