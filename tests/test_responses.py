"""The Responses dialect: golden files of both directions, and what a client is told of what cannot be asked."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from router.dialects.dialect import Naming
from router.dialects.responses import Asked, Responses
from router.dialects.responses_ids import item_id, response_of, session_of

GOLDEN = sorted((Path(__file__).parent / "dialects" / "responses").glob("*.json"))
NAMING = Naming("00112233445566778899aabbccddeeff", 1700000000)
SESSION = "hp_0123456789abcdef01234567"
RESPONSE = f"resp_0123456789abcdef01234567{NAMING.unique}"


def asked(request: dict[str, Any]) -> Asked:
    return Responses().read(json.dumps(request).encode(), NAMING)


def events(out: bytes) -> list[dict[str, Any]]:
    """A stream's events. Each says its kind twice."""
    told = [event.split("\n") for event in out.decode().split("\n\n") if event and not event.startswith(":")]
    for kind, data in told:
        assert kind.removeprefix("event: ") == json.loads(data.removeprefix("data: "))["type"]
    return [json.loads(data.removeprefix("data: ")) for _, data in told]


def streamed(asked: Asked, *parts: bytes) -> list[dict[str, Any]]:
    stream = asked.stream(SESSION)
    return events(b"".join([*map(stream.take, parts), stream.end()]))


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return f"data: {json.dumps({'model': 'm', 'choices': [choice], **more})}\n\n".encode()


def kept(asked: Asked) -> Any:
    return asked.record


def golden_asked(golden: dict[str, Any]) -> Asked:
    made = asked(golden["request"])
    return made.after(golden["records"], golden.get("named", ())) if "records" in golden else made


@pytest.fixture(params=GOLDEN, ids=lambda file: file.stem)
def golden(request: pytest.FixtureRequest) -> Any:
    return json.loads(request.param.read_text())


def test_a_golden_request_becomes_its_chat(golden: Any) -> None:
    assert json.loads(golden_asked(golden).body) == golden["chat"]


def test_a_golden_answer_becomes_its_response_and_its_record(golden: Any) -> None:
    made = golden_asked(golden)
    assert made.record is None
    assert json.loads(made.whole(json.dumps(golden["answer"]).encode(), SESSION)) == golden["response"]
    assert made.record == golden["record"]


@settings(deadline=None, max_examples=60)
@given(file=st.sampled_from(GOLDEN), cuts=st.lists(st.integers(0, 1 << 16), max_size=40))
def test_a_golden_stream_becomes_its_events_however_it_is_split(file: Path, cuts: list[int]) -> None:
    golden = json.loads(file.read_text())
    stream = "".join(event + "\n\n" for event in golden["stream"]).encode()
    at = sorted({cut % len(stream) for cut in cuts} | {0, len(stream)})
    parts = [stream[one:other] for one, other in pairwise(at)]
    assert streamed(golden_asked(golden), *parts) == golden["events"]


def test_a_golden_stream_becomes_its_events_byte_by_byte(golden: Any) -> None:
    stream = "".join(event + "\n\n" for event in golden["stream"]).encode()
    assert (
        streamed(golden_asked(golden), *(stream[at : at + 1] for at in range(len(stream))))
        == golden["events"]
    )


def test_a_streams_items_are_those_of_the_response_that_ends_it(golden: Any) -> None:
    told = golden["events"]
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    done = [event["item"] for event in told if event["type"] == "response.output_item.done"]
    assert done == told[-1]["response"]["output"]
    kinds = [[each["type"] for each in items] for items in (done, golden["response"]["output"])]
    assert kinds[0] == kinds[1]


def test_a_golden_answer_that_is_sent_back_is_the_chats_message_again(golden: Any) -> None:
    """So that a model reads as its own what it said, and a host has nothing of it to evaluate again."""
    before, said = golden["chat"]["messages"], golden["answer"]["choices"][0]["message"]
    asks = {"role": "user", "content": golden["request"]["input"]}
    items = [asks] if isinstance(asks["content"], str) else asks["content"]
    for response in (golden["response"], golden["events"][-1]["response"]):
        request = {
            **golden["request"],
            "input": [*items, *response["output"], {"role": "user", "content": "And?"}],
        }
        told = json.loads(golden_asked({**golden, "request": request}).body)
        assert told["messages"][: len(before)] == before
        assert told.get("tools") == golden["chat"].get("tools")
        again, _ = told["messages"][len(before) :]
        assert (again["content"] or "") == (said["content"] or "")
        assert again.get("reasoning_content") == said.get("reasoning_content")
        assert calls(again) == calls(said)


def calls(message: dict[str, Any]) -> list[str]:
    """As templates write them again: in the order of the keys."""
    functions = [call["function"] for call in message.get("tool_calls", [])]
    return [f"{function['name']}{json.dumps(json.loads(function['arguments']))}" for function in functions]


EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def test_the_sdk_knows_all_that_is_said(golden: Any) -> None:
    Response.model_validate(golden["response"])
    for event in golden["events"]:
        EVENT.validate_python(event)


def test_the_last_event_waits_until_the_response_can_be_kept() -> None:
    made = asked({"model": "m", "input": "Hi"})
    stream = made.stream(SESSION)
    told = events(stream.take(chunk({"content": "Hello"}) + chunk({}, "stop")))
    assert told[-1]["type"] == "response.output_text.delta"
    assert kept(made) is None
    told = events(stream.take(b"data: [DONE]\n\n"))
    assert told[-1]["type"] == "response.output_item.done"
    record = kept(made)
    (last,) = events(stream.end())
    assert last["type"] == "response.completed"
    assert last["response"] == record["response"]


def test_nothing_is_kept_of_what_may_not_be_stored() -> None:
    made = asked({"model": "m", "input": "Hi", "store": False})
    streamed(made, chunk({"content": "Hello"}, "stop"), b"data: [DONE]\n\n")
    assert made.record is None


def test_a_stream_that_fails_says_so_in_both_ways_and_nothing_after() -> None:
    error = b'data: {"error": {"message": "Lost.", "code": "host_lost", "type": "server_error"}}\n\n'
    made = asked({"model": "m", "input": "Hi"})
    told = streamed(made, b": waiting\n\n", chunk({"content": "Hel"}), error, chunk({"content": "lo"}))
    assert [event["type"] for event in told[-2:]] == ["error", "response.failed"]
    assert told[-2]["error"]["code"] == told[-2]["code"] == "host_lost"
    assert told[-1]["response"]["status"] == "failed"
    assert told[-1]["response"]["error"]["message"] == "Lost."
    assert made.record is None


def test_a_stream_that_just_ends_is_a_failed_response() -> None:
    told = streamed(asked({"model": "m", "input": "Hi"}), chunk({"content": "Hel"}))
    assert told[-1]["type"] == "response.failed"


@pytest.mark.parametrize(("finish", "completed_at"), [("stop", 1700000003), ("length", None)])
def test_when_a_response_was_complete_is_told(finish: str, completed_at: int | None) -> None:
    naming = Naming(NAMING.unique, NAMING.now_s, lambda: 3.9)
    made = Responses().read(json.dumps({"model": "m", "input": "Hi"}).encode(), naming)
    begun, *_, last = streamed(made, chunk({"content": "Hello"}), chunk({}, finish), b"data: [DONE]\n\n")
    assert begun["response"]["completed_at"] is None
    assert last["response"]["completed_at"] == completed_at


def test_comments_pass() -> None:
    stream = asked({"model": "m", "input": "Hi"}).stream(SESSION)
    assert stream.take(b": waiting for den/0\n\n") == b": waiting for den/0\n\n"


def test_what_is_known_before_the_history_names_the_session() -> None:
    opening = json.loads(asked({"model": "m", "input": "Hi", "previous_response_id": RESPONSE}).opening)
    assert opening == {"model": "m", "messages": [], "conversation": SESSION}
    plain = asked({"model": "m", "input": "Hi", "previous_response_id": None})
    assert plain.opening == plain.body


def test_a_stream_that_began_before_the_history_was_known_is_kept_with_it() -> None:
    first = asked({"model": "m", "input": "Hi", "conversation": "tea"})
    stream = first.stream(SESSION)
    assert stream.take(b": waiting\n\n")
    made = first.after([])
    assert kept(made) is None
    stream.take(chunk({"content": "Hello"}, "stop") + b"data: [DONE]\n\n")
    assert kept(made)["conversation"] == "tea"


def test_a_response_that_is_cancelled_holds_the_items_that_were_whole() -> None:
    made = asked({"model": "m", "input": "Hi"})
    assert made.cancelled()["output"] == []
    stream = made.stream(SESSION)
    stream.take(chunk({"reasoning_content": "Hm."}) + chunk({"content": "Hel"}))
    told = made.cancelled()
    assert (told["id"], told["status"]) == (RESPONSE, "cancelled")
    assert [item["type"] for item in told["output"]] == ["reasoning"]


# ids


def test_an_id_says_whose_session_it_is() -> None:
    made = asked({"model": "m", "input": "Hi"})
    answer = {"model": "m", "choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}]}
    response = json.loads(made.whole(json.dumps(answer).encode(), SESSION))
    assert response["id"] == RESPONSE
    assert session_of(response["id"]) == SESSION
    assert response_of(response["output"][0]["id"]) == RESPONSE
    assert session_of("resp_67ccd2bed1ec8190b14f964abc0542670bb6a6b452d3795b") is None
    assert response_of("msg_1") is None
    nobody = json.loads(made.whole(json.dumps(answer).encode(), None))
    assert session_of(nobody["id"]) == "hp_" + "0" * 24
    assert len(item_id("msg", NAMING, SESSION, 0)) <= 64
